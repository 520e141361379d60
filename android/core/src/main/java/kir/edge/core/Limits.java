package kir.edge.core;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.HashSet;
import java.util.List;
import java.util.Set;

/**
 * What of a tier may be shown now (edge/_policy.py). Limits give way when nothing else is left: the topic gap first, then
 * the author gap with the topic gap in force, then both; preloading last, and only when no candidate is preloaded.
 */
final class Limits {
    /** Author and tags of a shown video. */
    static final class About {
        final long author;
        final Set<Long> tags = new HashSet<>();

        About(Page page, int index) {
            author = page.authorId[index];
            for (int i = 0; i < Vocabulary.TAGS_MAX; i++) {
                tags.add(page.tags[index * Vocabulary.TAGS_MAX + i]);
            }
            tags.remove(Vocabulary.MISSING_KEY);
        }
    }

    final boolean[] allowed;
    /** Names of the limits that gave way, in that order. */
    final List<String> relaxed;

    private Limits(boolean[] allowed, List<String> relaxed) {
        this.allowed = allowed;
        this.relaxed = relaxed;
    }

    /** recent: the videos shown last, the newest at the end. */
    static Limits now(ChoicePolicy policy, List<Candidate> candidates, List<About> recent, DeviceState device) {
        int n = candidates.size();
        boolean[] every = new boolean[n];
        Arrays.fill(every, true);
        if (policy.remembers() == 0 && !policy.preloadedOnly) {
            return new Limits(every, Collections.<String>emptyList());
        }
        boolean[] author = new boolean[n];
        boolean[] topic = new boolean[n];
        boolean[] ready = new boolean[n];
        boolean anyReady = false;
        Set<Long> authors = new HashSet<>();
        Set<Long> tags = new HashSet<>();
        for (int i = 0; i < recent.size(); i++) {
            int age = recent.size() - i;
            if (age <= policy.authorGap) {
                authors.add(recent.get(i).author);
            }
            if (age <= policy.topicGap) {
                tags.addAll(recent.get(i).tags);
            }
        }
        for (int i = 0; i < n; i++) {
            Candidate candidate = candidates.get(i);
            About about = new About(candidate.pooled.page, candidate.index);
            author[i] = !authors.contains(about.author);
            topic[i] = Collections.disjoint(tags, about.tags);
            ready[i] = device.bufferedMs(candidate.videoId()) >= policy.bufferedMinMs;
            anyReady |= ready[i];
        }
        if (!policy.preloadedOnly || anyReady) {
            return diverse(policy.preloadedOnly ? ready : every, author, topic);
        }
        Limits found = diverse(every, author, topic);
        List<String> relaxed = new ArrayList<>(found.relaxed);
        relaxed.add("preloaded");
        return new Limits(found.allowed, relaxed);
    }

    private static Limits diverse(boolean[] ready, boolean[] author, boolean[] topic) {
        boolean[] byAuthor = and(ready, author);
        boolean[] byTopic = and(ready, topic);
        boolean[] both = and(byAuthor, topic);
        if (any(both)) {
            return new Limits(both, Collections.<String>emptyList());
        }
        if (any(byAuthor)) {
            return new Limits(byAuthor, Collections.singletonList("topic"));
        }
        if (any(byTopic)) {
            return new Limits(byTopic, Collections.singletonList("author"));
        }
        return new Limits(ready, Arrays.asList("topic", "author"));
    }

    private static boolean[] and(boolean[] a, boolean[] b) {
        boolean[] found = new boolean[a.length];
        for (int i = 0; i < a.length; i++) {
            found[i] = a[i] && b[i];
        }
        return found;
    }

    private static boolean any(boolean[] mask) {
        for (boolean one : mask) {
            if (one) {
                return true;
            }
        }
        return false;
    }
}

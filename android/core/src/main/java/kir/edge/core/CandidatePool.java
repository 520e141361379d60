package kir.edge.core;

import java.util.ArrayList;
import java.util.Collections;
import java.util.HashSet;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Set;

/**
 * Pages in order of arrival, at most two; a video once, and never after it was shown (edge/_pool.py). Soft TTL: time to
 * ask for a new page. Hard TTL: cleared when one arrives, the last tier until then. Times are boot time in ms.
 */
public final class CandidatePool {
    /** Fused values of a page's remaining candidates as of now; null when the model can't tell. */
    interface Values {
        float[] of(PooledPage page);
    }

    private final PoolConfig config;
    private List<PooledPage> pages = new ArrayList<>();
    private final Set<Long> seen = new LinkedHashSet<>();

    CandidatePool(PoolConfig config) {
        this.config = config.check();
    }

    /** Candidates left to show. */
    public int size() {
        int size = 0;
        for (PooledPage page : pages) {
            size += page.remaining.size();
        }
        return size;
    }

    /** Ids left to show, the oldest page first, each in server order. */
    public long[] videoIds() {
        List<Long> ids = new ArrayList<>();
        for (PooledPage page : pages) {
            for (int index : page.remaining) {
                ids.add(page.videoId(index));
            }
        }
        return array(ids);
    }

    /** Take in a page; returns how many of its candidates are new to show. Expired and surplus pages go. */
    int add(Page page, long nowMs, Reranker.ScoredPage scored, String reason, Values values) {
        pages.removeIf(held -> held.hardExpired(nowMs));
        int n = scored == null ? page.n() : scored.n;
        List<Integer> remaining = new ArrayList<>();
        Set<Long> fresh = new HashSet<>();
        for (int i = 0; i < n; i++) {
            if (!seen.contains(page.videoId[i])) {
                remaining.add(i);
                fresh.add(page.videoId[i]);
            }
        }
        for (PooledPage old : pages) { // the new page's pXTR and rows are fresher
            old.remaining.removeIf(index -> fresh.contains(old.videoId(index)));
        }
        dropEmpty();
        int replaced = Math.max(0, pages.size() - (config.maxPages - 1));
        pages = new ArrayList<>(pages.subList(replaced, pages.size()));
        if (!remaining.isEmpty()) {
            pages.add(new PooledPage(page, nowMs, remaining, scored, reason, config));
        }
        cut(values);
        return remaining.size();
    }

    private void dropEmpty() {
        pages.removeIf(page -> page.remaining.isEmpty());
    }

    /** Pages that no model can score go first, from their ends; then the lowest values, ties from the ends. */
    private void cut(Values values) {
        int surplus = size() - config.maxCandidates;
        if (surplus <= 0) {
            return;
        }
        List<PooledPage> scored = new ArrayList<>();
        for (PooledPage page : pages) {
            if (page.scored == null) {
                surplus -= page.cutEnd(surplus);
            } else {
                scored.add(page);
            }
        }
        List<Worth> worth = surplus > 0 ? worth(scored, values) : Collections.<Worth>emptyList();
        if (worth == null) {
            for (PooledPage page : scored) {
                surplus -= page.cutEnd(surplus);
            }
        } else if (surplus > 0) {
            Collections.sort(worth);
            List<Worth> lowest = new ArrayList<>(worth.subList(0, surplus));
            lowest.sort((a, b) -> Integer.compare(b.place, a.place)); // from the end: the places before stay
            for (Worth one : lowest) {
                one.page.remaining.remove(one.place);
            }
        }
        dropEmpty();
    }

    private static final class Worth implements Comparable<Worth> {
        final float value;
        final int number;
        final PooledPage page;
        final int place;

        Worth(float value, int number, PooledPage page, int place) {
            this.value = value;
            this.number = number;
            this.page = page;
            this.place = place;
        }

        @Override
        public int compareTo(Worth other) {
            int order = Float.compare(value, other.value);
            order = order != 0 ? order : Integer.compare(number, other.number);
            return order != 0 ? order : Integer.compare(other.place, place);
        }
    }

    private static List<Worth> worth(List<PooledPage> scored, Values values) {
        List<Worth> worth = new ArrayList<>();
        boolean told = true;
        for (int number = 0; number < scored.size(); number++) {
            float[] found = values.of(scored.get(number));
            told &= found != null;
            for (int place = 0; found != null && place < found.length; place++) {
                worth.add(new Worth(found[place], number, scored.get(number), place));
            }
        }
        return told ? worth : null;
    }

    /** Forget every page and what was seen. */
    public void clear() {
        pages = new ArrayList<>();
        seen.clear();
    }

    /** The pages to choose from, oldest first: fresh ones that a model scores, else fresh, else expired. */
    List<PooledPage> tier(long nowMs) {
        List<PooledPage> fresh = new ArrayList<>();
        for (PooledPage page : pages) {
            if (!page.hardExpired(nowMs)) {
                fresh.add(page);
            }
        }
        List<PooledPage> all = fresh.isEmpty() ? pages : fresh;
        if (all.isEmpty()) {
            throw new KirException.PoolExhausted();
        }
        List<PooledPage> scored = new ArrayList<>();
        for (PooledPage page : all) {
            if (page.scored != null) {
                scored.add(page);
            }
        }
        return scored.isEmpty() ? new ArrayList<>(all) : scored;
    }

    /** A candidate was shown: it leaves the pool and is not let in again. */
    void shown(PooledPage page, int index) {
        page.remaining.remove(Integer.valueOf(index));
        for (PooledPage held : pages) {
            held.swipes++;
        }
        seen.add(page.videoId(index));
        if (seen.size() > config.seen) {
            seen.remove(seen.iterator().next());
        }
        dropEmpty();
    }

    /** Whether to ask the server: few fresh candidates left, or the newest page is past its soft TTL. */
    public boolean wantsPage(long nowMs) {
        int fresh = 0;
        for (PooledPage page : pages) {
            fresh += page.hardExpired(nowMs) ? 0 : page.remaining.size();
        }
        return fresh < config.prefetchBelow || pages.get(pages.size() - 1).softExpired(nowMs);
    }

    /** Ids that the server need not send: those shown, and those in the pool that are still fresh. */
    public long[] excluded(long nowMs) {
        List<Long> ids = new ArrayList<>(seen);
        for (PooledPage page : pages) {
            for (int index : page.remaining) {
                if (!page.softExpired(nowMs)) {
                    ids.add(page.videoId(index));
                }
            }
        }
        return array(ids);
    }

    private static long[] array(List<Long> ids) {
        long[] found = new long[ids.size()];
        for (int i = 0; i < found.length; i++) {
            found[i] = ids.get(i);
        }
        return found;
    }
}

package kir.edge.core;

import java.util.ArrayList;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * One user's session: pages in, choices out, feedback back (edge/_session.py without network, state file, trace and
 * model updates, which are the app's). Call `maintain` after a choice was shown. Not thread-safe.
 */
public final class SwipeSession {
    private static final int SHOWN_MAX = 512;
    private static final int CAPACITY_WITHOUT_MODEL = 50;

    private final Clock clock;
    private final ChoicePolicy policy;
    private final CandidatePool pool;
    private final Reranker reranker;
    private final WatchedList watched;
    private final Map<Long, Impression> shown = new LinkedHashMap<>();
    private final List<Limits.About> recent = new ArrayList<>();
    private DeviceState device = DeviceState.UNKNOWN;
    private long position;
    private Choice pending;
    private long pendingNumber;
    private long pendingShownAtMs;
    private DeviceState pendingDevice;
    private boolean evictDue;

    /** model and graphs null: the server's order alone. */
    public SwipeSession(Model model, Graphs graphs, Clock clock, PoolConfig pool, ChoicePolicy policy) {
        this.clock = clock;
        this.policy = policy.check();
        this.pool = new CandidatePool(pool);
        this.watched = new WatchedList(model == null ? CAPACITY_WITHOUT_MODEL : model.capacity);
        this.reranker = model == null ? null : new Reranker(model.check(), graphs, watched);
    }

    /** What is left to show. */
    public CandidatePool pool() {
        return pool;
    }

    /** Videos in the watched list. */
    public int watched() {
        return watched.watched();
    }

    /** Ids of the watched list, oldest first: what a page request lists, and the page's watched rows are in the order of. */
    public long[] watchedIds() {
        long[] ids = new long[watched.watched()];
        for (int i = 0; i < ids.length; i++) {
            ids[i] = watched.item(1 + i).videoId;
        }
        return ids;
    }

    /** Videos shown so far; a replay may set it. */
    public void setPosition(long position) {
        this.position = position;
    }

    /**
     * Take in a page. requestIds: the watched list of the request that it answers. Returns "" or why the model can't
     * score it; it joins the pool in server order then.
     */
    public String onPage(Page page, long[] requestIds) {
        page.check();
        settle();
        String reason = reranker == null ? "no_model" : reranker.model.unfitReason(page);
        Reranker.ScoredPage scored = null;
        if (reason.isEmpty()) {
            try {
                scored = reranker.openPage(page, requestIds);
            } catch (RuntimeException error) { // a broken model or page must not cost the candidates
                reason = "engine_error";
            }
        }
        pool.add(page, clock.monotonicMs(), scored, reason, this::valuesNow);
        return reason;
    }

    /** Fused values of a page's remaining candidates as a swipe of now would find them; null when it could not. */
    private float[] valuesNow(PooledPage page) {
        if (reranker == null) {
            return null;
        }
        try {
            Chooser.ready(reranker, situation());
            float[] scores = Chooser.scores(reranker, Collections.singletonList(page), device);
            float[] values = Fusion.values(scores, reranker.model.fusion);
            return Fusion.finite(values) ? values : null;
        } catch (RuntimeException error) { // the server's order decides what goes
            return null;
        }
    }

    private Chooser.Situation situation() {
        return new Chooser.Situation(clock.nowMs(), device, position, position, policy, recent);
    }

    /** The next video. Raises PoolExhausted when nothing is left, and nothing else. */
    public Choice next(DeviceState now) {
        Choice choice = decide(now);
        show(choice);
        return choice;
    }

    /** What `next` would show; nothing is shown. */
    public Choice decide(DeviceState now) {
        device = now;
        settle();
        return Chooser.choose(pool.tier(clock.monotonicMs()), reranker, situation());
    }

    /** Show a candidate that `decide` considered: another one than it chose keeps a replay on its rails. */
    public void show(Choice choice) {
        pool.shown(choice.page, choice.index);
        pending = choice;
        pendingNumber = position++;
        pendingShownAtMs = clock.nowMs();
        pendingDevice = device;
        evictDue = true;
    }

    /** The same decision with another of its candidates chosen. */
    public Choice instead(Choice decision, long videoId) {
        for (Candidate candidate : Candidate.of(Collections.singletonList(decision.page))) {
            if (candidate.videoId() == videoId) {
                return new Choice(candidate, decision.chooser, decision.reason, Collections.singletonList(candidate),
                        null, null, null, decision.relaxed);
            }
        }
        throw new KirException("not a remaining candidate", Long.toUnsignedString(videoId), null);
    }

    /** The list that a plan finds now, for the player to preload; nothing is shown, and time is not limited. */
    public Search lookAhead(BeamPlan plan, DeviceState now) {
        device = now;
        settle();
        List<PooledPage> tier = pool.tier(clock.monotonicMs());
        if (reranker == null || tier.get(0).scored == null) {
            return Search.none(tier.get(0).reason);
        }
        boolean[] allowed = Limits.now(policy, Candidate.of(tier), recent, device).allowed;
        float[] scores;
        try {
            Chooser.ready(reranker, situation());
            scores = Chooser.scores(reranker, tier, device);
        } catch (RuntimeException error) {
            return Search.none("engine_error");
        }
        return Ahead.search(reranker, tier, device, scores, plan, allowed, () -> false);
    }

    /** Take in a feedback and work out its token. Late, amended and out-of-order ones are fine. */
    public Feedback.Outcome feedback(Feedback feedback) {
        settle();
        Impression impression = shown.get(feedback.videoId);
        if (impression == null) {
            return Feedback.Outcome.UNKNOWN;
        }
        boolean first = impression.revision < 0;
        if (first && watched.full()) {
            evict();
        }
        int revision = feedback.revision < 0 ? impression.revision + 1 : feedback.revision;
        boolean news = impression.merge(feedback, revision);
        if (revision <= impression.revision && !news) {
            return Feedback.Outcome.STALE;
        }
        impression.revision = Math.max(impression.revision, revision);
        return first ? append(impression, feedback) : amend(impression, feedback);
    }

    private Feedback.Outcome append(Impression impression, Feedback feedback) {
        impression.item.observe(impression);
        if (feedback.shownAtMs >= 0) {
            impression.item.shownAtMs = feedback.shownAtMs;
        }
        WatchedList.Change change = watched.append(impression.item);
        if (reranker != null) {
            reranker.appended(change, impression.row, impression.rowsRevision);
            refresh();
        }
        return Feedback.Outcome.APPENDED;
    }

    private Feedback.Outcome amend(Impression impression, Feedback feedback) {
        WatchedList.Change change = watched.amend(feedback.videoId, impression);
        if (change == null) {
            return Feedback.Outcome.LOGGED;
        }
        if (reranker != null) {
            reranker.changed(change);
            refresh();
        }
        return Feedback.Outcome.AMENDED;
    }

    /** What need not be waited for: evict after a choice, bring keys and values up to date. Never raises. */
    public void maintain() {
        settle();
    }

    private void settle() {
        note();
        if (evictDue) {
            evictDue = false;
            evict();
        }
        refresh();
    }

    private void evict() {
        WatchedList.Change change = watched.evictIfFull();
        if (change != null && reranker != null) {
            reranker.changed(change);
        }
    }

    private void refresh() {
        try {
            if (reranker != null) {
                reranker.refresh();
            }
        } catch (RuntimeException error) { // the swipe tries once more and says engine_error
            return;
        }
    }

    /** Take down what the last choice showed: it can wait until the choice is out. */
    private void note() {
        if (pending == null) {
            return;
        }
        Choice choice = pending;
        pending = null;
        Page page = choice.page.page;
        WatchedItem item = WatchedItem.of(page, choice.index, pendingDevice, pendingNumber);
        item.shownAtMs = pendingShownAtMs;
        float[] row = null;
        if (choice.page.scored != null) {
            int width = reranker.model.spec.width("watched_rows");
            int at = choice.index * width;
            row = java.util.Arrays.copyOfRange(choice.page.scored.features.watchedRows, at, at + width);
        }
        shown.put(choice.videoId, new Impression(item, row, page.rowsRevision));
        if (shown.size() > SHOWN_MAX) {
            shown.remove(shown.keySet().iterator().next());
        }
        if (policy.remembers() > 0) {
            recent.add(new Limits.About(page, choice.index));
            if (recent.size() > policy.remembers()) {
                recent.remove(0);
            }
        }
    }
}

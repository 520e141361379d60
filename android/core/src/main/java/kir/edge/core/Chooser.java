package kir.edge.core;

import java.util.List;
import java.util.function.BooleanSupplier;

/** The first of the best list, or the best candidate now, or the server's first (edge/_choice.py). */
final class Chooser {
    /** What a choice depends on beside the candidates. swipeIndex: in this session; number: over all of them. */
    static final class Situation {
        final long nowMs;
        final DeviceState device;
        final long swipeIndex;
        final long number;
        final ChoicePolicy policy;
        final List<Limits.About> recent;

        Situation(long nowMs, DeviceState device, long swipeIndex, long number, ChoicePolicy policy,
                List<Limits.About> recent) {
            this.nowMs = nowMs;
            this.device = device;
            this.swipeIndex = swipeIndex;
            this.number = number;
            this.policy = policy;
            this.recent = recent;
        }
    }

    private Chooser() {}

    /** One of a tier's remaining candidates. Whatever a graph raises, a video is shown: the server's order decides. */
    static Choice choose(List<PooledPage> tier, Reranker reranker, Situation now) {
        long startNs = System.nanoTime();
        List<Candidate> among = Candidate.of(tier);
        Limits limits = Limits.now(now.policy, among, now.recent, now.device);
        if (reranker == null || tier.get(0).scored == null) {
            return byServer(tier.get(0).reason, among, limits);
        }
        float[] scores;
        try {
            ready(reranker, now);
            scores = scores(reranker, tier, now.device);
        } catch (RuntimeException error) {
            return byServer("engine_error", among, limits);
        }
        if (!Fusion.finite(scores)) {
            return byServer("non_finite_scores", among, limits);
        }
        float[] values = Fusion.values(scores, reranker.model.fusion);
        int best = Fusion.best(values, limits.allowed);
        Search search = null;
        if (now.policy.beam != null) {
            double budgetNs = now.policy.budgetMs * 1e6;
            BooleanSupplier late = () -> budgetNs >= 0 && System.nanoTime() - startNs >= budgetNs;
            search = Ahead.search(reranker, tier, now.device, scores, now.policy.beam, limits.allowed, late);
            best = search.first < 0 ? best : search.first;
        }
        return new Choice(among.get(best), "model", "", among, scores, values, search, limits.relaxed);
    }

    private static Choice byServer(String reason, List<Candidate> among, Limits limits) {
        int first = 0;
        while (!limits.allowed[first]) {
            first++;
        }
        return new Choice(among.get(first), "server_order", reason, among, null, null, null, limits.relaxed);
    }

    /** Keys and values up to date, and what depends on now filled in. */
    static void ready(Reranker reranker, Situation now) {
        reranker.refresh();
        reranker.device(now.nowMs, now.device, now.swipeIndex, now.number);
    }

    /** Logits [N, T] of a tier's remaining candidates, after `ready`. */
    static float[] scores(Reranker reranker, List<PooledPage> tier, DeviceState device) {
        int tasks = reranker.model.tasks.size();
        int n = 0;
        for (PooledPage page : tier) {
            n += page.remaining.size();
        }
        float[] found = new float[n * tasks];
        int at = 0;
        for (PooledPage page : tier) {
            float[] all = reranker.scores(page.scored, page.page, device);
            for (int index : page.remaining) {
                System.arraycopy(all, index * tasks, found, at, tasks);
                at += tasks;
            }
        }
        return found;
    }
}

package kir.edge.core;

import java.util.ArrayList;
import java.util.List;

/** A page in the pool: what of it was not shown, in server order, and how old it is, in time and in swipes. */
final class PooledPage {
    final Page page;
    final long arrivedMs;
    /** Indices of candidates. */
    final List<Integer> remaining;
    /** Null when no model can score the page; then `reason` says why. */
    Reranker.ScoredPage scored;
    String reason;
    int swipes;
    private final PoolConfig config;

    PooledPage(Page page, long arrivedMs, List<Integer> remaining, Reranker.ScoredPage scored, String reason,
            PoolConfig config) {
        this.page = page;
        this.arrivedMs = arrivedMs;
        this.remaining = new ArrayList<>(remaining);
        this.scored = scored;
        this.reason = reason;
        this.config = config;
    }

    boolean softExpired(long nowMs) {
        return expired(config.softTtlSwipes, page.softTtlMs, nowMs);
    }

    boolean hardExpired(long nowMs) {
        return expired(config.hardTtlSwipes, page.hardTtlMs, nowMs);
    }

    private boolean expired(int ttlSwipes, long ttlMs, long nowMs) {
        return ttlSwipes > 0 && swipes >= ttlSwipes || nowMs - arrivedMs >= ttlMs;
    }

    long videoId(int index) {
        return page.videoId[index];
    }

    /** Drop up to so many of the last candidates; returns how many. */
    int cutEnd(int surplus) {
        int dropped = Math.min(remaining.size(), Math.max(0, surplus));
        remaining.subList(remaining.size() - dropped, remaining.size()).clear();
        return dropped;
    }
}

package kir.edge.core;

/** Limits of the candidate pool; a field left alone is edge's default. TTLs in swipes: 0 = no such limit. */
public final class PoolConfig {
    public int maxPages = 2;
    /** Over all pages. */
    public int maxCandidates = 200;
    /** Ask when fewer fresh candidates are left. */
    public int prefetchBelow = 6;
    /** Shown ids kept. */
    public int seen = 1000;
    public int softTtlSwipes = 0;
    public int hardTtlSwipes = 0;

    PoolConfig check() {
        if (maxPages < 1 || maxCandidates < 1 || prefetchBelow < 1 || seen < 1) {
            throw new KirException("pool: a limit is below 1", maxPages + ", " + maxCandidates, null);
        }
        if (softTtlSwipes < 0 || hardTtlSwipes < 0 || hardTtlSwipes > 0 && hardTtlSwipes < softTtlSwipes) {
            throw new KirException("pool: TTLs in swipes out of range", softTtlSwipes + ", " + hardTtlSwipes, null);
        }
        return this;
    }
}

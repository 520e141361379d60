package kir.edge.core;

/** Bucketing rules of contract/buckets.py, in integers. Null (negative) gives -1. Bounds are exclusive upper ones. */
public final class Buckets {
    static final long[] GAP_MS = {
        1_000, 5_000, 15_000, 60_000, 300_000, 1_800_000, 7_200_000, 43_200_000, 86_400_000, 604_800_000
    };
    static final long[] WATCH_MS = {1_000, 3_000, 7_000, 12_000, 18_000, 30_000, 60_000, 120_000};
    static final long[] AGE_DAYS = {1, 3, 7, 14, 30, 90, 365};
    static final long[] REGISTER_DAYS = {8, 31, 61, 91, 181, 366, 731};
    static final long[] INDEX = {1, 2, 4, 8, 16, 32, 64};
    static final long[] DURATION_MS = {
        3_000, 5_000, 7_000, 9_000, 11_000, 14_000, 17_000, 21_000, 26_000, 34_000, 45_000, 60_000, 90_000, 150_000,
        240_000
    };

    private Buckets() {}

    /** Index of the first bound above the value, 0 … bounds.length; -1 for null. */
    static int bounded(long value, long[] bounds) {
        if (value < 0) {
            return -1;
        }
        int index = 0;
        while (index < bounds.length && bounds[index] <= value) {
            index++;
        }
        return index;
    }

    /** Tenths of the duration, 0 … 10; 10 = all of it and more. -1 when either is null. */
    static int playRatio(long playTimeMs, long durationMs) {
        return playTimeMs >= 0 && durationMs > 0 ? (int) Math.min(playTimeMs * 10 / durationMs, 10) : -1;
    }
}

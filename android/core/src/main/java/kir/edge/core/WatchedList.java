package kir.edge.core;

/**
 * The watched list of contract/watched.py: slot 0 the start token, videos in the order of their first feedback, tokens
 * frozen when appended; a full list loses its oldest half AFTER the choice has been returned. Not thread-safe.
 */
final class WatchedList {
    /** Feedback of the last so many items is worked out again; older amendments go to the log only. */
    static final int AMENDABLE = 8;

    /** Keys and values of slots [firstSlot, length) are stale; `dropped` of the oldest videos went. */
    static final class Change {
        final int firstSlot;
        final int dropped;

        Change(int firstSlot, int dropped) {
            this.firstSlot = firstSlot;
            this.dropped = dropped;
        }
    }

    final int capacity;
    private final WatchedItem[] items;
    private int length = 1;

    WatchedList(int capacity) {
        this.capacity = capacity;
        this.items = new WatchedItem[capacity + 1];
        items[0] = new WatchedItem();
        items[0].start = true;
    }

    /** Slots in use, the start token included. */
    int length() {
        return length;
    }

    int watched() {
        return length - 1;
    }

    boolean full() {
        return watched() >= capacity;
    }

    WatchedItem item(int slot) {
        return items[slot];
    }

    /** Add a video; its gap to the one before is worked out here. */
    Change append(WatchedItem item) {
        if (full()) {
            throw new KirException("the watched list is full", watched(), capacity);
        }
        long before = items[length - 1].shownAtMs;
        boolean known = length > 1 && item.shownAtMs >= 0 && before >= 0 && item.shownAtMs >= before;
        item.gapMs = known ? item.shownAtMs - before : Vocabulary.NULL_INT;
        items[length] = item;
        return new Change(length++, 0);
    }

    /** Drop the oldest L/2 when L videos are held; null when there is room. A frozen gap stays. */
    Change evictIfFull() {
        if (!full()) {
            return null;
        }
        int half = capacity / 2;
        System.arraycopy(items, 1 + half, items, 1, half);
        length = 1 + half;
        for (int slot = length; slot < items.length; slot++) {
            items[slot] = null;
        }
        return new Change(1, half);
    }

    /** Replace what was observed of the newest item with this id among the last AMENDABLE; null when there is none. */
    Change amend(long videoId, Impression told) {
        for (int slot = length - 1; slot >= Math.max(1, length - AMENDABLE); slot--) {
            if (items[slot].videoId == videoId) {
                items[slot].observe(told);
                return new Change(slot, 0);
            }
        }
        return null;
    }

    /** Raw columns of slots [first, end). */
    Columns columns(int first, int end) {
        int n = end - first;
        long[] start = new long[n];
        long[] duration = new long[n];
        long[] play = new long[n];
        long[] gap = new long[n];
        long[] profile = new long[n];
        long[] comment = new long[n];
        long[] landscape = new long[n];
        float[] volume = new float[n];
        long[] signals = new long[n * Vocabulary.S];
        float[] pxtr = new float[n * Vocabulary.X];
        for (int i = 0; i < n; i++) {
            WatchedItem item = items[first + i];
            start[i] = item.start ? 1 : 0;
            duration[i] = item.durationMs;
            play[i] = item.playTimeMs;
            gap[i] = item.gapMs;
            profile[i] = item.profileStayMs;
            comment[i] = item.commentStayMs;
            landscape[i] = item.landscape;
            volume[i] = item.volume;
            System.arraycopy(item.signals, 0, signals, i * Vocabulary.S, Vocabulary.S);
            System.arraycopy(item.pxtr, 0, pxtr, i * Vocabulary.X, Vocabulary.X);
        }
        return new Columns(n).put("start", start).put("duration_ms", duration).put("play_time_ms", play)
                .put("gap_ms", gap).put("profile_stay_ms", profile).put("comment_stay_ms", comment)
                .put("landscape", landscape).put("volume", volume).put("signals", signals).put("pxtr", pxtr);
    }

    /** When each slot's video was shown, and its running number; -1 for the start token. */
    long[] shownAtMs() {
        long[] found = new long[length];
        for (int slot = 0; slot < length; slot++) {
            found[slot] = items[slot].shownAtMs;
        }
        return found;
    }

    long[] numbers() {
        long[] found = new long[length];
        for (int slot = 0; slot < length; slot++) {
            found[slot] = items[slot].number;
        }
        return found;
    }
}

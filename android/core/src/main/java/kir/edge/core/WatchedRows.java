package kir.edge.core;

import java.util.Arrays;

/** Sparse rows of the watched list, slot by slot, and of which rows_revision each is (-1: default row). */
final class WatchedRows {
    private final int width;
    private final float[] rows;
    private final long[] revision;

    WatchedRows(int capacity, int width) {
        this.width = width;
        this.rows = new float[(capacity + 1) * width];
        this.revision = new long[capacity + 1];
        Arrays.fill(revision, -1);
    }

    /** Whether the start token has its row: nothing can be worked out before. */
    boolean started() {
        return revision[0] >= 0;
    }

    float[] slots(int first, int end) {
        return Arrays.copyOfRange(rows, first * width, end * width);
    }

    /** null: no row of this model's version is known yet, the start token's default row stands in. */
    void put(int slot, float[] row, long rowsRevision) {
        System.arraycopy(row == null ? slots(0, 1) : row, 0, rows, slot * width, width);
        revision[slot] = row == null ? -1 : rowsRevision;
    }

    /** Slots 1 … dropped go, the rest move down. */
    void evict(int dropped) {
        int kept = revision.length - 1 - dropped;
        System.arraycopy(rows, (1 + dropped) * width, rows, width, kept * width);
        System.arraycopy(revision, 1 + dropped, revision, 1, kept);
    }

    /**
     * Take a page's rows for slots that have none yet; a slot that has its row keeps it. Returns the first changed slot,
     * at least the number of slots when there is none.
     */
    int adopt(PageFeatures features, WatchedList watched, long rowsRevision) {
        int first = revision.length;
        if (revision[0] < 0) {
            System.arraycopy(features.startRow, 0, rows, 0, width);
            revision[0] = rowsRevision;
            first = 0;
        }
        for (int slot = 1; slot < watched.length(); slot++) {
            float[] row = features.requestRows.get(watched.item(slot).videoId);
            if (revision[slot] < 0 && (row != null || first == 0)) {
                put(slot, row, rowsRevision);
                first = Math.min(first, slot);
            }
        }
        return first;
    }
}

package kir.edge.core;

import java.util.Arrays;
import java.util.HashMap;
import java.util.Map;

/**
 * Cached keys and values of the watched list (edge/_cache.py): slots [0, fresh) are right; a failed refresh goes on from
 * where it got to. past [1, G, L1, D], memory [1, L1, Wm], their masks and since, behind [1, L1].
 */
final class WatchCache {
    private final Model model;
    private final Graphs graphs;
    private final int slots;
    private final float[] past;
    private final float[] pastMask;
    final float[] memory;
    final float[] memoryMask;
    final float[] since;
    final float[] behind;
    private int fresh;

    WatchCache(Model model, Graphs graphs) {
        this.model = model;
        this.graphs = graphs;
        this.slots = model.capacity + 1;
        this.past = new float[model.planes * slots * model.width];
        this.pastMask = new float[slots];
        this.memory = new float[slots * model.memoryWidth];
        this.memoryMask = new float[slots];
        this.since = new float[slots];
        this.behind = new float[slots];
        empty(0);
    }

    int fresh() {
        return fresh;
    }

    /** Slots from `slot` on must be worked out again. */
    void staleFrom(int slot) {
        if (slot < fresh) {
            fresh = slot;
            empty(slot);
        }
    }

    private void empty(int first) {
        for (int plane = 0; plane < model.planes; plane++) {
            int at = plane * slots;
            Arrays.fill(past, (at + first) * model.width, (at + slots) * model.width, 0.0f);
        }
        Arrays.fill(pastMask, first, slots, Vocabulary.MASK_VALUE);
        Arrays.fill(memory, first * model.memoryWidth, memory.length, 0.0f);
        Arrays.fill(memoryMask, first, slots, Vocabulary.MASK_VALUE);
        Arrays.fill(since, first, slots, 0.0f);
        Arrays.fill(behind, first, slots, 0.0f);
    }

    /** Work out slots [fresh, length) with as few runs as the buckets allow. */
    void refresh(WatchedList watched, WatchedRows rows) {
        int largest = model.watchBuckets[model.watchBuckets.length - 1];
        while (fresh < watched.length()) {
            int end = Math.min(watched.length(), fresh + largest);
            float[] dense = Features.denseBlock(model.spec, "watched_dense", watched.columns(fresh, end));
            run(rows.slots(fresh, end), dense, fresh, end);
            fresh = end;
        }
    }

    private void run(float[] rows, float[] dense, int first, int end) {
        int n = end - first;
        int size = 0;
        for (int i = model.watchBuckets.length - 1; i >= 0; i--) {
            size = n <= model.watchBuckets[i] ? model.watchBuckets[i] : size;
        }
        float[] position = new float[size * slots];
        for (int token = 0; token < n; token++) {
            position[token * slots + first + token] = 1.0f;
        }
        Map<String, float[]> inputs = new HashMap<>();
        inputs.put("watched_rows", Arrays.copyOf(rows, size * model.spec.width("watched_rows")));
        inputs.put("watched_dense", Arrays.copyOf(dense, size * model.spec.width("watched_dense")));
        inputs.put("position", position);
        inputs.put("past", past);
        inputs.put("past_mask", pastMask);
        Map<String, float[]> out = graphs.run("watch", "T" + size, inputs);
        float[] memoryNew = out.get("memory_new");
        if (!Fusion.finite(Arrays.copyOf(memoryNew, n * model.memoryWidth))) {
            throw new KirException("the watch graph gave values that are no numbers", "slots from " + first, null);
        }
        for (int plane = 0; plane < model.planes; plane++) {
            System.arraycopy(out.get("new"), plane * size * model.width, past, (plane * slots + first) * model.width,
                    n * model.width);
        }
        System.arraycopy(memoryNew, 0, memory, first * model.memoryWidth, n * model.memoryWidth);
        Arrays.fill(pastMask, first, end, 0.0f);
        Arrays.fill(memoryMask, first, end, 0.0f);
    }
}

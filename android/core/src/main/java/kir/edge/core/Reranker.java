package kir.edge.core;

import java.util.Arrays;
import java.util.HashMap;
import java.util.Map;

/** One model at work in a session: its graphs, cached keys and values, and rows of the watched list. Not thread-safe. */
final class Reranker {
    /** A page that the model can score: what `page` worked out, and its candidates' rows for when they are watched. */
    static final class ScoredPage {
        final int n;
        final int bucket;
        final Map<String, float[]> outputs;
        final PageFeatures features;

        ScoredPage(int n, int bucket, Map<String, float[]> outputs, PageFeatures features) {
            this.n = n;
            this.bucket = bucket;
            this.outputs = outputs;
            this.features = features;
        }

        /** Columns of placed_kv. */
        int placedWidth() {
            return outputs.get("placed_kv").length / bucket;
        }
    }

    final Model model;
    final WatchedList watched;
    private final Graphs graphs;
    private final WatchedRows rows;
    private final WatchCache cache;
    private float[] swipeDense = {};

    Reranker(Model model, Graphs graphs, WatchedList watched) {
        this.model = model;
        this.graphs = graphs;
        this.watched = watched;
        this.rows = new WatchedRows(model.capacity, model.spec.width("watched_rows"));
        this.cache = new WatchCache(model, graphs);
    }

    /** Take what a page brings for the watched list, and work the page out. The largest bucket cuts server order. */
    ScoredPage openPage(Page page, long[] requestIds) {
        int n = Math.min(page.n(), model.largest());
        PageFeatures features = new PageFeatures(model.spec, page, n, requestIds);
        cache.staleFrom(rows.adopt(features, watched, page.rowsRevision));
        refresh();
        int bucket = model.bucketFor(n);
        Map<String, float[]> inputs = new HashMap<>();
        for (Map.Entry<String, float[]> block : features.blocks.entrySet()) {
            boolean each = block.getKey().startsWith("candidate");
            int size = model.spec.width(block.getKey()) * (each ? bucket : 1);
            inputs.put(block.getKey(), Arrays.copyOf(block.getValue(), size));
        }
        return new ScoredPage(n, bucket, graphs.run("page", "N" + bucket, inputs), features);
    }

    /** After an append; row null: the default row until a page brings its own. */
    void appended(WatchedList.Change change, float[] row, long revision) {
        rows.put(change.firstSlot, row, revision);
        cache.staleFrom(change.firstSlot);
    }

    /** After an amendment or an eviction. */
    void changed(WatchedList.Change change) {
        if (change.dropped > 0) {
            rows.evict(change.dropped);
        }
        cache.staleFrom(change.firstSlot);
    }

    /** Work out keys and values that are not up to date; nothing before the first page, which brings the start. */
    void refresh() {
        if (cache.fresh() < watched.length() && rows.started()) {
            cache.refresh(watched, rows);
        }
    }

    /** Fill what depends on now. number: the user's running number of the impression being chosen. */
    void device(long nowMs, DeviceState device, long swipeIndex, long number) {
        Features.since(nowMs, watched.shownAtMs(), cache.since);
        Features.behind(number, watched.numbers(), cache.behind);
        swipeDense = Features.denseBlock(model.spec, "swipe_dense", new Columns(1).put("network", device.network)
                .put("decoder", device.decoder).put("swipe_index", swipeIndex));
    }

    /** Logits [n, T] of a page's candidates, shown ones included, after `device`. */
    float[] scores(ScoredPage page, Page of, DeviceState device) {
        float[] scores = graphs.run("swipe", "N" + page.bucket, now(page, of, device)).get("scores");
        return Arrays.copyOf(scores, page.n * model.tasks.size());
    }

    /** Logits [k, N, T] given what k lists have placed: placed [1, k, P, V], mask [1, k, P]; N of the bucket. */
    float[] place(ScoredPage page, Page of, DeviceState device, float[] placed, float[] mask) {
        Map<String, float[]> inputs = now(page, of, device);
        inputs.put("placed", placed);
        inputs.put("placed_mask", mask);
        return graphs.run("place", "N" + page.bucket, inputs).get("scores");
    }

    private Map<String, float[]> now(ScoredPage page, Page of, DeviceState device) {
        Map<String, float[]> inputs = new HashMap<>(page.outputs);
        inputs.put("memory", cache.memory);
        inputs.put("memory_mask", cache.memoryMask);
        inputs.put("since", cache.since);
        inputs.put("behind", cache.behind);
        inputs.put("swipe_dense", swipeDense);
        long[] buffered = new long[page.bucket];
        for (int i = 0; i < buffered.length; i++) {
            buffered[i] = i < page.n ? device.bufferedMs(of.videoId[i]) : Vocabulary.NULL_INT;
        }
        Columns columns = new Columns(page.bucket).put("buffered_ms", buffered);
        inputs.put("candidate_swipe", Features.denseBlock(model.spec, "candidate_swipe", columns));
        return inputs;
    }
}

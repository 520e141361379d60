package kir.edge.core;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/** What a fitting page holds for a model, worked out once when it arrives (edge/_features.py). */
final class PageFeatures {
    /** user_rows [1, Ru], user_dense [1, Fu], candidate_rows [n, Rc], candidate_dense [n, Fc]. */
    final Map<String, float[]> blocks = new HashMap<>();
    /** Each candidate's row as a watched video [n, Rw], and the start token's: every table's default row. */
    final float[] watchedRows;
    final float[] startRow;
    /** Video id to row [Rw], of the watched videos that the request listed. */
    final Map<Long, float[]> requestRows = new HashMap<>();
    private final FeatureSpec spec;
    private final Page page;

    /** Of the first n candidates. */
    PageFeatures(FeatureSpec spec, Page page, int n, long[] requestIds) {
        this.spec = spec;
        this.page = page;
        blocks.put("user_rows", rows("user_rows", 1));
        blocks.put("user_dense", Features.denseBlock(spec, "user_dense", new Columns(1)
                .put("user_activity", page.userActivity).put("user_register_days", page.userRegisterDays)
                .put("hour", page.hour).put("user_profile", page.userProfile)));
        blocks.put("candidate_rows", rows("candidate_rows", n));
        long[] position = new long[n];
        for (int i = 0; i < n; i++) {
            position[i] = i;
        }
        blocks.put("candidate_dense", Features.denseBlock(spec, "candidate_dense", new Columns(n)
                .put("duration_ms", page.durationMs).put("upload_age_days", page.uploadAgeDays)
                .put("pxtr", page.pxtr).put("server_position", position)));
        watchedRows = asWatched(n);
        List<Slots> none = new ArrayList<>();
        for (FeatureSpec.Column column : spec.columns("watched_rows")) {
            none.add(Slots.none(column.field.table, 1));
        }
        startRow = pool("watched_rows", none, 1);
        float[] listed = rows("watched_rows", requestIds.length);
        int width = spec.width("watched_rows");
        for (int i = 0; i < requestIds.length; i++) {
            requestRows.put(requestIds[i], Arrays.copyOfRange(listed, i * width, (i + 1) * width));
        }
    }

    static String ownerOf(String block) {
        return block.equals("user_rows") ? "user" : block.equals("candidate_rows") ? "candidate" : "watched";
    }

    private float[] rows(String block, int n) {
        List<Slots> slots = new ArrayList<>();
        for (FeatureSpec.Column column : spec.columns(block)) {
            slots.add(entries(ownerOf(block), column.field, column.field.name, n));
        }
        return pool(block, slots, n);
    }

    /** The rows that candidates will have once watched: the same feature of the same table, another field. */
    private float[] asWatched(int n) {
        List<Slots> slots = new ArrayList<>();
        for (FeatureSpec.Column column : spec.columns("watched_rows")) {
            String twin = "";
            for (FeatureSpec.Column other : spec.columns("candidate_rows")) {
                if (other.field.feature.equals(column.field.feature) && other.field.table.equals(column.field.table)) {
                    twin = other.field.name;
                }
            }
            slots.add(entries("candidate", column.field, twin, n));
        }
        return pool("watched_rows", slots, n);
    }

    /** An index that is absent or of another length gives default rows. */
    private Slots entries(String owner, FeatureSpec.Field field, String feature, int n) {
        Slots slots = page.slots(owner, feature);
        if (slots == null || slots.entries < n || owner.equals("watched") && slots.entries != n) {
            return Slots.none(field.table, n);
        }
        return slots.narrowed(field.maxLen);
    }

    private float[] pool(String block, List<Slots> slots, int n) {
        List<RowTable> tables = new ArrayList<>();
        for (FeatureSpec.Column column : spec.columns(block)) {
            tables.add(page.table(column.field.table));
        }
        return Features.poolRows(spec, block, tables, slots, n);
    }
}

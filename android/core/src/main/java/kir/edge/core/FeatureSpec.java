package kir.edge.core;

import java.util.ArrayList;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** Which features exist and where their columns stand in the tensors (contract/spec.py). Immutable. */
public final class FeatureSpec {
    /** One feature: `width` columns of `block`, computed by `feature`; of a served field, rows of `table`. */
    public static final class Field {
        public final String name;
        public final String feature;
        public final String block;
        public final int width;
        /** Served table, "" for a dense field. */
        public final String table;
        /** Entries of a multi-valued feature, averaged. */
        public final int maxLen;

        public Field(String name, String feature, String block, int width, String table, int maxLen) {
            this.name = name;
            this.feature = feature;
            this.block = block;
            this.width = width;
            this.table = table;
            this.maxLen = maxLen;
        }
    }

    /** A field and its first column in the block. */
    public static final class Column {
        public final Field field;
        public final int offset;

        Column(Field field, int offset) {
            this.field = field;
            this.offset = offset;
        }
    }

    /** As the manifest tells it (spec_fingerprint): two parts that meet compare it. */
    public final String fingerprint;
    /** In the spec's order. */
    public final List<Field> fields;
    private final Map<String, List<Column>> columns = new LinkedHashMap<>();
    private final Map<String, Integer> widths = new LinkedHashMap<>();

    public FeatureSpec(String fingerprint, List<Field> fields) {
        this.fingerprint = fingerprint;
        this.fields = Collections.unmodifiableList(new ArrayList<>(fields));
        for (Field field : fields) {
            List<Column> before = columns.computeIfAbsent(field.block, block -> new ArrayList<>());
            before.add(new Column(field, width(field.block)));
            widths.put(field.block, width(field.block) + field.width);
        }
    }

    /** Columns of a block, left to right; none for a block that this spec does not have. */
    public List<Column> columns(String block) {
        List<Column> found = columns.get(block);
        return found == null ? Collections.emptyList() : found;
    }

    /** Columns of a block in numbers; 0 when there is none. */
    public int width(String block) {
        Integer found = widths.get(block);
        return found == null ? 0 : found;
    }

    /** Whether rows must come with a page. */
    public boolean hasTables() {
        for (Field field : fields) {
            if (!field.table.isEmpty()) {
                return true;
            }
        }
        return false;
    }
}

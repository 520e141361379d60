package kir.edge.core;

import java.util.HashMap;
import java.util.Map;

/**
 * Raw columns of n entries by name, as contract/features.py lists them: integers as long (-1 = null), pXTR, volume and
 * profile as float (NaN = null), multi-valued columns row by row.
 */
public final class Columns {
    public final int n;
    private final Map<String, long[]> longs = new HashMap<>();
    private final Map<String, float[]> floats = new HashMap<>();

    public Columns(int n) {
        this.n = n;
    }

    /** values: n times the column's width, row by row. */
    public Columns put(String name, long... values) {
        longs.put(name, values);
        return this;
    }

    /** values: n times the column's width, row by row. */
    public Columns put(String name, float... values) {
        floats.put(name, values);
        return this;
    }

    long[] longs(String name) {
        return there(longs.get(name), name);
    }

    float[] floats(String name) {
        return there(floats.get(name), name);
    }

    private <T> T there(T column, String name) {
        if (column == null) {
            throw new KirException("a raw column is absent", name, null);
        }
        return column;
    }
}

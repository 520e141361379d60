package kir.edge.core;

import java.util.Arrays;

/** Which rows of a table the entries of one feature take: [entries, width] row numbers, -1 = no entry. */
public final class Slots {
    private static final int WIDTH_MAX = 64;

    public final String table;
    public final int entries;
    public final int width;
    private final int[] rows;

    /** rows: entries times width, row by row. */
    public Slots(String table, int entries, int width, int[] rows) {
        if (width < 1 || width > WIDTH_MAX || entries < 0 || rows.length != entries * width) {
            throw new KirException.PageRefused("row index does not fit", table, rows.length, entries + " x " + width);
        }
        this.table = table;
        this.entries = entries;
        this.width = width;
        this.rows = rows;
    }

    /** A single-valued feature, as the page carries it: one row an entry. */
    public static Slots single(String table, int[] rows) {
        refuseNegative(table, rows);
        return new Slots(table, rows.length, 1, rows);
    }

    /**
     * A multi-valued feature, as the page carries it: `counts[i]` of `rows` belong to entry i.
     *
     * @throws KirException.PageRefused when the counts do not sum up, or an entry has too many
     */
    public static Slots ragged(String table, int[] counts, int[] rows) {
        refuseNegative(table, rows);
        int width = 1;
        long sum = 0;
        for (int count : counts) {
            if (count < 0 || count > WIDTH_MAX) {
                throw new KirException.PageRefused("too many values of one entry", table, count, WIDTH_MAX);
            }
            width = Math.max(width, count);
            sum += count;
        }
        if (sum != rows.length) {
            throw new KirException.PageRefused("counts do not sum up", table, sum, rows.length);
        }
        int[] padded = new int[counts.length * width];
        Arrays.fill(padded, -1);
        int next = 0;
        for (int entry = 0; entry < counts.length; entry++) {
            System.arraycopy(rows, next, padded, entry * width, counts[entry]);
            next += counts[entry];
        }
        return new Slots(table, counts.length, width, padded);
    }

    /** On the wire rows are unsigned: what looks negative here is far past any table. */
    private static void refuseNegative(String table, int[] rows) {
        for (int row : rows) {
            if (row < 0) {
                throw new KirException.PageRefused("row out of range", table, Integer.toUnsignedString(row), null);
            }
        }
    }

    /** Default rows for n entries. */
    static Slots none(String table, int n) {
        int[] rows = new int[n];
        Arrays.fill(rows, -1);
        return new Slots(table, n, 1, rows);
    }

    /** The first `places` of each entry; more are not this spec's. */
    Slots narrowed(int places) {
        if (width <= places) {
            return this;
        }
        int[] kept = new int[entries * places];
        for (int entry = 0; entry < entries; entry++) {
            System.arraycopy(rows, entry * width, kept, entry * places, places);
        }
        return new Slots(table, entries, places, kept);
    }

    int row(int entry, int place) {
        return rows[entry * width + place];
    }

    /** Whether every row lies in a table of so many rows. */
    boolean within(int tableRows) {
        for (int row : rows) {
            if (row < -1 || row >= tableRows) {
                return false;
            }
        }
        return true;
    }
}

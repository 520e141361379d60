package kir.edge.core;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;

/** Decoded sparse rows of one table (contract/rows.py): float [rows, width], row 0 the default row. */
public final class RowTable {
    private static final float ABS_MAX = 65536.0f;
    private static final int WIDTH_MAX = 4096;
    private static final int ROWS_MAX = 200_000;

    public final int width;
    public final int rows;
    final float[] values;

    private RowTable(int width, float[] values) {
        this.width = width;
        this.rows = values.length / width;
        this.values = values;
    }

    /**
     * Decode rows as the page carries them, little-endian.
     *
     * @param encoding "int8" (one float16 scale per row), "float16" or "float32"
     * @throws KirException.PageRefused when bytes contradict the width or the encoding, or values are no fit numbers
     */
    public static RowTable decode(String encoding, int width, byte[] values, byte[] scales) {
        int itemBytes = encoding.equals("int8") ? 1 : encoding.equals("float16") ? 2 : encoding.equals("float32") ? 4 : 0;
        if (itemBytes == 0 || width < 1 || width > WIDTH_MAX) {
            throw refused("unknown row encoding or width", encoding + ", " + width);
        }
        int n = values.length / itemBytes;
        int rows = n / width;
        if (values.length % (itemBytes * width) != 0 || rows < 1 || rows > ROWS_MAX) {
            throw refused("row bytes do not fit the width, or the default row is absent", values.length);
        }
        boolean int8 = itemBytes == 1;
        if (int8 && scales.length != 2 * rows) {
            throw refused("one float16 scale per row", scales.length);
        }
        ByteBuffer source = ByteBuffer.wrap(values).order(ByteOrder.LITTLE_ENDIAN);
        ByteBuffer scale = ByteBuffer.wrap(scales).order(ByteOrder.LITTLE_ENDIAN);
        float[] out = new float[n];
        for (int i = 0; i < n; i++) {
            out[i] = int8 ? values[i] * half(scale.getShort(i / width * 2))
                    : itemBytes == 2 ? half(source.getShort(2 * i)) : source.getFloat(4 * i);
            if (!(Math.abs(out[i]) <= ABS_MAX)) { // NaN as well
                throw refused("rows hold values that are no fit numbers", out[i]);
            }
        }
        return new RowTable(width, out);
    }

    private static KirException refused(String what, Object got) {
        return new KirException.PageRefused(what, "row table", got, null);
    }

    /** IEEE half precision. android.util.Half is from API 26 and not of the JDK. */
    static float half(short bits) {
        int sign = (bits & 0x8000) << 16;
        int exponent = bits >> 10 & 0x1f;
        int fraction = bits & 0x3ff;
        if (exponent == 0) {
            float small = fraction * (1.0f / (1 << 24));
            return sign == 0 ? small : -small;
        }
        int wide = exponent == 0x1f ? 0xff : exponent + (127 - 15);
        return Float.intBitsToFloat(sign | wide << 23 | fraction << 13);
    }
}

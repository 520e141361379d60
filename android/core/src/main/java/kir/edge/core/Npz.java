package kir.edge.core;

import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.zip.ZipEntry;
import java.util.zip.ZipInputStream;

/** Arrays of an .npz file, as a published model's golden tensors come: little-endian, C order, no pickle. */
public final class Npz {
    private static final Pattern HEADER = Pattern.compile(
            "\\{'descr': '[<|]([a-z]\\d)', 'fortran_order': False, 'shape': \\(([\\d, ]*)\\), \\}\\s*");
    private static final int BYTES_MAX = 64 << 20;

    private final Map<String, byte[]> files = new LinkedHashMap<>();

    /** Raises KirException for a file that is no .npz, or unpacks to more than 64 MiB. */
    public Npz(byte[] content) {
        try (ZipInputStream zip = new ZipInputStream(new ByteArrayInputStream(content))) {
            byte[] buffer = new byte[1 << 16];
            int left = BYTES_MAX;
            for (ZipEntry entry = zip.getNextEntry(); entry != null; entry = zip.getNextEntry()) {
                ByteArrayOutputStream out = new ByteArrayOutputStream();
                for (int n = zip.read(buffer); n >= 0; n = zip.read(buffer)) {
                    left -= n;
                    if (left < 0) {
                        throw new KirException("an .npz file is too large", entry.getName(), BYTES_MAX);
                    }
                    out.write(buffer, 0, n);
                }
                files.put(entry.getName().replaceAll("\\.npy$", ""), out.toByteArray());
            }
        } catch (IOException | IllegalArgumentException error) {
            throw new KirException("not an .npz file", error.getMessage(), null);
        }
        if (files.isEmpty()) {
            throw new KirException("not an .npz file", content.length + " bytes", null);
        }
    }

    /** Whether there is an array of this name. */
    public boolean has(String name) {
        return files.containsKey(name);
    }

    /** A float32 array, flat. */
    public float[] floats(String name) {
        Data data = data(name, "f4");
        float[] found = new float[data.count];
        data.bytes.asFloatBuffer().get(found);
        return found;
    }

    /** A float64 array, flat. */
    public double[] doubles(String name) {
        Data data = data(name, "f8");
        double[] found = new double[data.count];
        data.bytes.asDoubleBuffer().get(found);
        return found;
    }

    /** An int64 or uint64 array, flat; of uint64 the bits. */
    public long[] longs(String name) {
        Data data = data(name, "i8u8");
        long[] found = new long[data.count];
        data.bytes.asLongBuffer().get(found);
        return found;
    }

    /** A uint8 array, flat. */
    public byte[] bytes(String name) {
        Data data = data(name, "u1");
        byte[] found = new byte[data.count];
        data.bytes.get(found);
        return found;
    }

    private static final class Data {
        final ByteBuffer bytes;
        final int count;

        Data(ByteBuffer bytes, int count) {
            this.bytes = bytes;
            this.count = count;
        }
    }

    /** kinds: allowed type codes, written one after the other. */
    private Data data(String name, String kinds) {
        byte[] file = files.get(name);
        if (file == null || file.length < 12 || (file[0] & 0xff) != 0x93) {
            throw new KirException("no such array", name, files.keySet());
        }
        ByteBuffer all = ByteBuffer.wrap(file).order(ByteOrder.LITTLE_ENDIAN);
        boolean old = file[6] == 1; // format version 1 has a short header length, 2 and 3 an int
        int length = old ? all.getShort(8) & 0xffff : all.getInt(8);
        int start = old ? 10 : 12;
        String text = new String(file, start, Math.min(length, file.length - start), StandardCharsets.UTF_8);
        Matcher header = HEADER.matcher(text);
        if (!header.matches() || kinds.indexOf(header.group(1)) % 2 != 0) {
            throw new KirException("an array of another type", name + " " + text.trim(), kinds);
        }
        long count = 1;
        for (String size : header.group(2).split(",")) {
            count *= size.trim().isEmpty() ? 1 : Long.parseLong(size.trim());
        }
        int itemBytes = header.group(1).charAt(1) - '0';
        all.position(start + length);
        if (count * itemBytes != all.remaining()) {
            throw new KirException("an array's bytes do not fit its shape", name, all.remaining());
        }
        return new Data(all.slice().order(ByteOrder.LITTLE_ENDIAN), (int) count);
    }
}

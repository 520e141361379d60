package kir.edge.core;

import java.util.List;

/**
 * The feature functions of contract/features.py, row by row: what training saw. Blocks are float [n, width], row by row.
 * Integers and one-hots are equal to Python's bit for bit; logarithms within an ulp.
 */
public final class Features {
    private static final float LOGIT_CLIP = 8.0f;
    private static final float P_MIN = 1e-6f;
    private static final float P_MAX = (float) (1 - 1e-6);
    private static final long BUFFERED_CAP_MS = 10_000;
    private static final long STAY_CAP_MS = 60_000;
    private static final long RANK_CAP = 64;
    private static final double SINCE_CAP_S = 7 * 24 * 3600;
    private static final double BEHIND_CAP = 1_000;
    /** The signal that each pXTR head predicts. */
    private static final int[] SIGNAL_OF_HEAD = new int[Vocabulary.X];

    static {
        for (int head = 0; head < Vocabulary.X; head++) {
            SIGNAL_OF_HEAD[head] = Vocabulary.SIGNALS.indexOf(Vocabulary.PXTR_HEADS.get(head));
        }
    }

    private Features() {}

    /** A dense block of `columns.n` rows. Raises KirException for a feature that is not known here. */
    public static float[] denseBlock(FeatureSpec spec, String block, Columns columns) {
        int width = spec.width(block);
        float[] out = new float[columns.n * width];
        for (FeatureSpec.Column column : spec.columns(block)) {
            for (int row = 0; row < columns.n; row++) {
                write(column.field, columns, row, out, row * width + column.offset);
            }
        }
        return out;
    }

    private static void write(FeatureSpec.Field field, Columns c, int row, float[] out, int at) {
        switch (field.feature) {
            case "start":
                out[at] = c.longs("start")[row];
                break;
            case "pxtr":
                pxtr(c.floats("pxtr"), row, out, at);
                break;
            case "signals":
                signals(c.longs("signals"), row, out, at);
                break;
            case "surprise":
                surprise(c, row, out, at);
                break;
            case "play_ratio":
                oneHot(Buckets.playRatio(c.longs("play_time_ms")[row], c.longs("duration_ms")[row]), field, out, at);
                break;
            case "stays":
                share(c.longs("profile_stay_ms")[row], STAY_CAP_MS, out, at);
                share(c.longs("comment_stay_ms")[row], STAY_CAP_MS, out, at + 2);
                break;
            case "posture":
                posture(c.floats("volume")[row], c.longs("landscape")[row], out, at);
                break;
            case "server_position":
                share(c.longs("server_position")[row], RANK_CAP, out, at);
                break;
            case "buffered":
                share(c.longs("buffered_ms")[row], BUFFERED_CAP_MS, out, at);
                break;
            case "profile":
                profile(c.floats("user_profile"), row, out, at);
                break;
            default:
                oneHot(index(field, c, row), field, out, at);
        }
    }

    /** Features that are one-hots of one integer column. */
    private static int index(FeatureSpec.Field field, Columns c, int row) {
        switch (field.feature) {
            case "watch_time":
                return Buckets.bounded(c.longs("play_time_ms")[row], Buckets.WATCH_MS);
            case "duration":
                return Buckets.bounded(c.longs("duration_ms")[row], Buckets.DURATION_MS);
            case "gap":
                return Buckets.bounded(c.longs("gap_ms")[row], Buckets.GAP_MS);
            case "upload_age":
                return Buckets.bounded(c.longs("upload_age_days")[row], Buckets.AGE_DAYS);
            case "user_register":
                return Buckets.bounded(c.longs("user_register_days")[row], Buckets.REGISTER_DAYS);
            case "swipe_index":
                return Buckets.bounded(c.longs("swipe_index")[row], Buckets.INDEX);
            case "user_activity":
            case "hour":
            case "tab":
                return (int) Math.min(c.longs(field.feature)[row], Integer.MAX_VALUE);
            case "network":
            case "decoder":
                int state = (int) c.longs(field.feature)[row];
                return state == 0 ? -1 : state; // unknown feeds no weight: logs seldom hold it
            default:
                throw new KirException("the spec has a feature that this app can't compute", field.feature, null);
        }
    }

    /** Null leaves the columns zero; an index past the width is the last bucket. */
    private static void oneHot(int index, FeatureSpec.Field field, float[] out, int at) {
        if (index >= 0) {
            out[at + Math.min(index, field.width - 1)] = 1.0f;
        }
    }

    private static void pxtr(float[] pxtr, int row, float[] out, int at) {
        for (int head = 0; head < Vocabulary.X; head++) {
            float told = pxtr[row * Vocabulary.X + head];
            float p = Math.min(Math.max(Float.isNaN(told) ? 0.5f : told, P_MIN), P_MAX);
            float logit = (float) Math.log(p) - (float) Math.log1p(-p);
            out[at + head] = Math.min(Math.max(logit, -LOGIT_CLIP), LOGIT_CLIP);
            out[at + Vocabulary.X + head] = Float.isNaN(told) ? 0.0f : 1.0f;
        }
    }

    private static void signals(long[] signals, int row, float[] out, int at) {
        for (int s = 0; s < Vocabulary.S; s++) {
            long signal = signals[row * Vocabulary.S + s];
            out[at + s] = signal == 1 ? 1.0f : 0.0f;
            out[at + Vocabulary.S + s] = signal >= 0 ? 1.0f : 0.0f;
        }
    }

    private static void surprise(Columns c, int row, float[] out, int at) {
        long[] signals = c.longs("signals");
        float[] pxtr = c.floats("pxtr");
        for (int head = 0; head < Vocabulary.X; head++) {
            long signal = signals[row * Vocabulary.S + SIGNAL_OF_HEAD[head]];
            float p = pxtr[row * Vocabulary.X + head];
            out[at + head] = signal >= 0 && !Float.isNaN(p) ? signal - p : 0.0f;
        }
    }

    private static void posture(float volume, long landscape, float[] out, int at) {
        if (!Float.isNaN(volume)) {
            out[at] = Math.min(Math.max(volume, 0.0f), 1.0f);
            out[at + 1] = 1.0f;
        }
        out[at + 2] = landscape == 1 ? 1.0f : 0.0f;
        out[at + 3] = landscape >= 0 ? 1.0f : 0.0f;
    }

    private static void profile(float[] profile, int row, float[] out, int at) {
        for (int i = 0; i < Vocabulary.PROFILE; i++) {
            float value = profile[row * Vocabulary.PROFILE + i];
            boolean known = !Float.isNaN(value);
            out[at + 2 * i] = known ? value : 0.0f;
            if (i < Vocabulary.PROFILE - 1) { // how much history there is needs no presence bit
                out[at + 2 * i + 1] = known ? 1.0f : 0.0f;
            }
        }
    }

    /** value / cap within 0 … 1, and a presence bit. */
    private static void share(long value, long cap, float[] out, int at) {
        if (value >= 0) {
            out[at] = (float) ((double) Math.min(value, cap) / cap);
            out[at + 1] = 1.0f;
        }
    }

    /** log1p(seconds since each video was shown) / 8 into out[0 …]; 0 for nulls. */
    public static void since(long nowMs, long[] shownAtMs, float[] out) {
        age(nowMs, shownAtMs, 1000.0, SINCE_CAP_S, 8.0, out);
    }

    /** log1p(videos shown since each of these) / 4 into out[0 …]; 0 for nulls. */
    public static void behind(long numberNow, long[] number, float[] out) {
        age(numberNow, number, 1.0, BEHIND_CAP, 4.0, out);
    }

    private static void age(long now, long[] at, double unit, double cap, double divisor, float[] out) {
        for (int i = 0; i < at.length; i++) {
            double age = Math.min(Math.max((now - at[i]) / unit, 0.0), cap);
            out[i] = at[i] >= 0 ? (float) (Math.log1p(age) / divisor) : 0.0f;
        }
    }

    /**
     * A served block of n rows. slots: for each column of the block, n times its width of row numbers, -1 = no entry.
     * An entry that is absent altogether takes the table's default row 0; several are averaged.
     */
    static float[] poolRows(FeatureSpec spec, String block, List<RowTable> tables, List<Slots> slots, int n) {
        int width = spec.width(block);
        float[] out = new float[n * width];
        List<FeatureSpec.Column> columns = spec.columns(block);
        for (int i = 0; i < columns.size(); i++) {
            for (int row = 0; row < n; row++) {
                average(tables.get(i), slots.get(i), row, out, row * width + columns.get(i).offset);
            }
        }
        return out;
    }

    private static void average(RowTable table, Slots slots, int entry, float[] out, int at) {
        int count = 0;
        for (int place = 0; place < slots.width; place++) {
            int row = slots.row(entry, place);
            if (row >= 0) {
                count++;
                for (int d = 0; d < table.width; d++) {
                    float value = table.values[row * table.width + d];
                    out[at + d] = count == 1 ? value : out[at + d] + value;
                }
            }
        }
        if (count == 0) {
            System.arraycopy(table.values, 0, out, at, table.width);
        }
        for (int d = 0; count > 1 && d < table.width; d++) {
            out[at + d] /= count;
        }
    }
}

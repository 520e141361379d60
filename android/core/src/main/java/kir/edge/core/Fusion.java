package kir.edge.core;

/** Score fusion and orders of candidates (contract/golden.py). */
public final class Fusion {
    private static final float LOGIT_MIN = -80.0f;

    private Fusion() {}

    /** Σ weight · sigmoid(logit): float [N] of logits [N, T]. */
    public static float[] values(float[] scores, float[] weights) {
        int tasks = weights.length;
        float[] found = new float[scores.length / tasks];
        for (int i = 0; i < found.length; i++) {
            float sum = 0.0f;
            for (int t = 0; t < tasks; t++) {
                float logit = Math.max(scores[i * tasks + t], LOGIT_MIN);
                sum += weights[t] / (1.0f + (float) Math.exp(-logit));
            }
            found[i] = sum;
        }
        return found;
    }

    /** The first of the highest values among those allowed. */
    static int best(float[] values, boolean[] allowed) {
        int best = -1;
        for (int i = 0; i < values.length; i++) {
            if (allowed[i] && (best < 0 || values[i] > values[best])) {
                best = i;
            }
        }
        return best;
    }

    static boolean finite(float[] values) {
        for (float value : values) {
            if (Float.isNaN(value) || Float.isInfinite(value)) {
                return false;
            }
        }
        return true;
    }

    /** Same order, except where expected values are closer than twice the tolerance. */
    public static boolean rankingsAgree(float[] expected, float[] got, double tolerance) {
        Integer[] order = new Integer[got.length];
        for (int i = 0; i < order.length; i++) {
            order[i] = i;
        }
        java.util.Arrays.sort(order, (a, b) -> Float.compare(got[b], got[a])); // stable
        double lowest = Double.POSITIVE_INFINITY;
        for (int place : order) {
            lowest = Math.min(lowest, expected[place]);
            if (expected[place] > lowest + 2 * tolerance) {
                return false;
            }
        }
        return true;
    }
}

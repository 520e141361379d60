package kir.edge.core;

import java.util.List;
import java.util.Map;

/** What a place of a list is worth (contract/beam.py): r = Σ value[task] · sigmoid(score), h = sigmoid(survival). */
public final class ListReward {
    private final float[] weights;
    private final int survival;

    /** value: task to weight; survival: the task whose probability discounts what comes after. */
    public ListReward(List<String> tasks, Map<String, Double> value, String survival) {
        this.weights = new float[tasks.size()];
        for (Map.Entry<String, Double> entry : value.entrySet()) {
            int task = tasks.indexOf(entry.getKey());
            if (task < 0) {
                throw new KirException("list_reward names another task", entry.getKey(), tasks);
            }
            weights[task] = entry.getValue().floatValue();
        }
        this.survival = tasks.indexOf(survival);
        if (this.survival < 0) {
            throw new KirException("list_reward names another task", survival, tasks);
        }
    }

    /** Rewards r of candidates with logits [m, T]. */
    float[] values(float[] scores) {
        return Fusion.values(scores, weights);
    }

    /** Survivals h of candidates with logits [m, T]. */
    float[] survivals(float[] scores) {
        int tasks = weights.length;
        float[] found = new float[scores.length / tasks];
        for (int i = 0; i < found.length; i++) {
            found[i] = 1.0f / (1.0f + (float) Math.exp(-scores[i * tasks + survival]));
        }
        return found;
    }
}

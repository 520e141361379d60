package kir.edge.core;

import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/** Graphs that were run by Python: the same calls in the same order, inputs within the tolerance, or an AssertionError. */
final class RecordedGraphs implements Graphs {
    private static final class Run {
        final String key;
        final String number;
        final String[] inputs;
        final String[] outputs;

        Run(String[] words) {
            number = words[1];
            key = words[2] + "/" + words[3];
            inputs = words[4].split(",");
            outputs = words[5].split(",");
        }
    }

    private final Npz arrays;
    private final List<Run> runs = new ArrayList<>();
    private int next;
    private double maxAbs;

    RecordedGraphs(Npz arrays) {
        this.arrays = arrays;
    }

    void add(String[] words) {
        runs.add(new Run(words));
    }

    /** Largest difference of an input to the recorded one. */
    double finish() {
        if (next != runs.size()) {
            throw new AssertionError("graphs ran " + next + " times, not " + runs.size());
        }
        return maxAbs;
    }

    @Override
    public Map<String, float[]> run(String name, String bucket, Map<String, float[]> inputs) {
        String key = name + "/" + bucket;
        if (next >= runs.size() || !runs.get(next).key.equals(key)) {
            String recorded = next < runs.size() ? runs.get(next).key : "the end";
            throw new AssertionError("run " + next + " is " + key + ", not " + recorded);
        }
        Run run = runs.get(next++);
        for (String input : run.inputs) {
            float[] given = inputs.get(input);
            float[] recorded = arrays.floats("run" + run.number + "/in/" + input);
            double difference = given == null ? Double.NaN : VectorCheck.difference(recorded, given);
            if (!(difference <= VectorCheck.TOLERANCE)) {
                throw new AssertionError("run " + run.number + " " + key + ": " + input + " differs by " + difference);
            }
            maxAbs = Math.max(maxAbs, difference);
        }
        Map<String, float[]> outputs = new HashMap<>();
        for (String output : run.outputs) {
            outputs.put(output, arrays.floats("run" + run.number + "/out/" + output));
        }
        return outputs;
    }
}

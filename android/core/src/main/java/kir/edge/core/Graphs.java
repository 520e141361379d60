package kir.edge.core;

import java.util.Map;

/** The model's graphs: LiteRT on a phone, a recording on the JVM. */
public interface Graphs {
    /**
     * Run one graph.
     *
     * @param name "page", "watch", "swipe" or "place"
     * @param bucket "N24" (candidates), or "T1" (videos) for watch
     * @param inputs tensors by name, flat; those that the graph has not are left out
     * @return outputs by name, flat, arrays of the caller's own
     */
    Map<String, float[]> run(String name, String bucket, Map<String, float[]> inputs);
}

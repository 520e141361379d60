package kir.edge.core;

import java.util.Arrays;
import java.util.Collections;
import java.util.List;

/** The closed sets and nulls of contract/vocabulary.py. */
public final class Vocabulary {
    /** Feedback signals in column order; -1 = not observed. */
    public static final List<String> SIGNALS =
            list("click", "long_view", "like", "follow", "comment", "forward", "hate", "profile_enter", "finish");
    /** Heads of the server ranker, in the order of a page's pXTR columns. */
    public static final List<String> PXTR_HEADS =
            list("click", "long_view", "like", "follow", "comment", "forward", "hate");
    /** Device states by index; 0 = unknown. */
    public static final List<String> NETWORKS = list("unknown", "offline", "2g", "3g", "4g", "5g", "wifi");
    /** Decoders by index; 0 = unknown. */
    public static final List<String> DECODERS = list("unknown", "hardware", "software");

    /** Number of pXTR heads. */
    public static final int X = 7;
    /** Number of feedback signals. */
    public static final int S = 9;
    /** Tags of one video at most. */
    public static final int TAGS_MAX = 3;
    /** Numbers of a user's profile. */
    public static final int PROFILE = 4;
    /** "No id here": the bits of 2**64 - 1. */
    public static final long MISSING_KEY = -1L;
    /** Null of an integer column. */
    public static final long NULL_INT = -1L;
    /** Added to attention logits where there is nothing to attend to. */
    public static final float MASK_VALUE = -30.0f;

    private Vocabulary() {}

    private static List<String> list(String... names) {
        return Collections.unmodifiableList(Arrays.asList(names));
    }
}

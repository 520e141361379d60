package kir.edge.core;

import java.util.LinkedHashMap;
import java.util.Map;

/** What was done with a shown video. What is left out was not observed, which is not "no". */
public final class Feedback {
    public final long videoId;
    /** Milliseconds, -1 = not observed. */
    public long playTimeMs = Vocabulary.NULL_INT;
    public long profileStayMs = Vocabulary.NULL_INT;
    public long commentStayMs = Vocabulary.NULL_INT;
    /** Unix milliseconds; -1 = when the session chose it. */
    public long shownAtMs = Vocabulary.NULL_INT;
    /** Amendments of one impression count up from 0; -1 = one more than the last. */
    public int revision = -1;
    /** Signal (Vocabulary.SIGNALS) to 0 or 1. */
    public final Map<String, Integer> signals = new LinkedHashMap<>();

    public Feedback(long videoId) {
        this.videoId = videoId;
    }

    /** What became of a feedback. */
    public enum Outcome { APPENDED, AMENDED, LOGGED, STALE, UNKNOWN }
}

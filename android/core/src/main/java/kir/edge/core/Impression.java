package kir.edge.core;

import java.util.Arrays;
import java.util.HashMap;
import java.util.Map;

/** One shown video and all that was observed of it; the order in which its revisions come does not matter. */
final class Impression {
    final WatchedItem item;
    /** Its sparse row as a watched video, null without a fitting page. */
    final float[] row;
    final long rowsRevision;
    long playTimeMs = Vocabulary.NULL_INT;
    long profileStayMs = Vocabulary.NULL_INT;
    long commentStayMs = Vocabulary.NULL_INT;
    final long[] signals = new long[Vocabulary.S];
    /** Of the newest feedback, -1 before the first. */
    int revision = -1;
    private final Map<String, Integer> toldAt = new HashMap<>();

    Impression(WatchedItem item, float[] row, long rowsRevision) {
        this.item = item;
        this.row = row;
        this.rowsRevision = rowsRevision;
        Arrays.fill(signals, Vocabulary.NULL_INT);
    }

    /** Of two that tell the same thing the higher revision stands, and the first of equal ones. Whether it was news. */
    boolean merge(Feedback feedback, int told) {
        boolean news = false;
        for (Map.Entry<String, Integer> signal : feedback.signals.entrySet()) {
            int column = Vocabulary.SIGNALS.indexOf(signal.getKey());
            if (column < 0) {
                throw new KirException("unknown feedback signal", signal.getKey(), Vocabulary.SIGNALS);
            }
            if (isNews(signal.getKey(), told)) {
                news = true;
                signals[column] = signal.getValue();
            }
        }
        if (feedback.playTimeMs >= 0 && isNews("play_time_ms", told)) {
            news = true;
            playTimeMs = feedback.playTimeMs;
        }
        if (feedback.profileStayMs >= 0 && isNews("profile_stay_ms", told)) {
            news = true;
            profileStayMs = feedback.profileStayMs;
        }
        if (feedback.commentStayMs >= 0 && isNews("comment_stay_ms", told)) {
            news = true;
            commentStayMs = feedback.commentStayMs;
        }
        return news;
    }

    private boolean isNews(String name, int told) {
        Integer before = toldAt.get(name);
        if (told <= (before == null ? -1 : before)) {
            return false;
        }
        toldAt.put(name, told);
        return true;
    }
}

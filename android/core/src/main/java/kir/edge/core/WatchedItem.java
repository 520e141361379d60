package kir.edge.core;

/** One watched video: what its page said of it, how it was shown, what came back. -1 or NaN = null. */
final class WatchedItem {
    long videoId = Vocabulary.MISSING_KEY;
    long authorId = Vocabulary.MISSING_KEY;
    final long[] tags = {Vocabulary.MISSING_KEY, Vocabulary.MISSING_KEY, Vocabulary.MISSING_KEY};
    long durationMs = Vocabulary.NULL_INT;
    final float[] pxtr = new float[Vocabulary.X];
    long playTimeMs = Vocabulary.NULL_INT;
    long[] signals = {-1, -1, -1, -1, -1, -1, -1, -1, -1};
    long gapMs = Vocabulary.NULL_INT;
    long profileStayMs = Vocabulary.NULL_INT;
    long commentStayMs = Vocabulary.NULL_INT;
    float volume = Float.NaN;
    long landscape = Vocabulary.NULL_INT;
    long shownAtMs = Vocabulary.NULL_INT;
    /** The user's running number of the impression. */
    long number = Vocabulary.NULL_INT;
    boolean start;

    WatchedItem() {
        java.util.Arrays.fill(pxtr, Float.NaN);
    }

    /** The columns that a candidate brings, pXTR as sent with its page. */
    static WatchedItem of(Page page, int index, DeviceState device, long number) {
        WatchedItem item = new WatchedItem();
        item.videoId = page.videoId[index];
        item.authorId = page.authorId[index];
        System.arraycopy(page.tags, index * Vocabulary.TAGS_MAX, item.tags, 0, Vocabulary.TAGS_MAX);
        item.durationMs = page.durationMs[index];
        System.arraycopy(page.pxtr, index * Vocabulary.X, item.pxtr, 0, Vocabulary.X);
        item.volume = device.volume;
        item.landscape = device.landscape;
        item.number = number;
        return item;
    }

    /** Put in what was observed: only this changes after the append. */
    void observe(Impression told) {
        playTimeMs = told.playTimeMs;
        signals = told.signals.clone();
        profileStayMs = told.profileStayMs;
        commentStayMs = told.commentStayMs;
    }
}

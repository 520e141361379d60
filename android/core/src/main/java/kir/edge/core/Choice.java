package kir.edge.core;

import java.util.List;

/** The next video and how it was found. */
public final class Choice {
    public final long videoId;
    public final String pageId;
    /** Candidate of the page. */
    public final int index;
    /** "model", or "server_order" and why in `reason`. */
    public final String chooser;
    public final String reason;
    /** Ids it was chosen from, in server order; the chosen one is among them. */
    public final long[] considered;
    /** Logits [N, T] of `considered` and fused values [N]; null when the model did not choose. */
    public final float[] scores;
    public final float[] values;
    /** Null without a beam. */
    public final Search search;
    /** Limits that gave way: "topic", "author", "preloaded". */
    public final List<String> relaxed;
    final PooledPage page;

    Choice(Candidate chosen, String chooser, String reason, List<Candidate> among, float[] scores, float[] values,
            Search search, List<String> relaxed) {
        this.page = chosen.pooled;
        this.videoId = chosen.videoId();
        this.pageId = page.page.pageId;
        this.index = chosen.index;
        this.chooser = chooser;
        this.reason = reason;
        this.considered = new long[among.size()];
        for (int i = 0; i < considered.length; i++) {
            considered[i] = among.get(i).videoId();
        }
        this.scores = scores;
        this.values = values;
        this.search = search;
        this.relaxed = relaxed;
    }
}

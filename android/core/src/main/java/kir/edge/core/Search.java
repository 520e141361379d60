package kir.edge.core;

/** What looking ahead found. problem: "" or why there was no search and NextOne chose; the rest is empty then. */
public final class Search {
    /** The best list as far as it was searched, the chosen one first: what to preload next. */
    public final long[] videoIds;
    /** Its ListReward, as the model predicts it. */
    public final double reward;
    /** min/max of the kept rewards at the last step. */
    public final double stability;
    /** "stable", "exhausted", "depth" or "time". */
    public final String ended;
    public final String problem;
    /** The candidate that the list begins with; -1 without one. */
    final int first;

    private Search(long[] videoIds, double reward, double stability, String ended, String problem, int first) {
        this.videoIds = videoIds;
        this.reward = reward;
        this.stability = stability;
        this.ended = ended;
        this.problem = problem;
        this.first = first;
    }

    static Search none(String problem) {
        return new Search(new long[0], 0, 0, "", problem, -1);
    }

    static Search of(Beam.Result found, long[] videoIds) {
        return new Search(videoIds, found.reward, found.stability, found.ended, "", found.items[0]);
    }
}

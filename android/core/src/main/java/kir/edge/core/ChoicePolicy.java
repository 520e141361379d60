package kir.edge.core;

/** How a session chooses (edge/_policy.py); a field left alone is edge's default. */
public final class ChoicePolicy {
    private static final int GAP_MAX = 64;

    /** Null: NextOne, the best candidate now. Otherwise the first of the best list that the plan finds. */
    public BeamPlan beam;
    /** No step of the search begins later than this after the choice began; negative: no limit. */
    public double budgetMs = 20.0;
    /** Not the same author within so many videos; 0: off. */
    public int authorGap;
    /** No tag in common with so many videos before; 0: off. */
    public int topicGap;
    /** Only candidates of which the player has bufferedMinMs at least. */
    public boolean preloadedOnly;
    public long bufferedMinMs = 1;

    ChoicePolicy check() {
        if (authorGap < 0 || authorGap > GAP_MAX || topicGap < 0 || topicGap > GAP_MAX || bufferedMinMs < 1) {
            throw new KirException("policy: out of range", authorGap + ", " + topicGap + ", " + bufferedMinMs, GAP_MAX);
        }
        return this;
    }

    int remembers() {
        return Math.max(authorGap, topicGap);
    }
}

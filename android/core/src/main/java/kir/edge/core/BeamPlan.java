package kir.edge.core;

/** beams: k lists kept; depth: most places looked ahead; stability: t of KIR Eq. 6; shown: videos decided now. */
public final class BeamPlan {
    public final int beams;
    public final int depth;
    public final double stability;
    public final int shown;

    public BeamPlan(int beams, int depth, double stability, int shown) {
        if (beams < 1 || shown < 1 || depth < shown || !(stability >= 0 && stability <= 1)) {
            throw new KirException("a beam plan out of range", beams + ", " + depth + ", " + stability + ", " + shown,
                    "beams ≥ 1, depth ≥ shown ≥ 1, stability 0 … 1");
        }
        this.beams = beams;
        this.depth = depth;
        this.stability = stability;
        this.shown = shown;
    }
}

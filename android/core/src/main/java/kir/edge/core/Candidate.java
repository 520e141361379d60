package kir.edge.core;

import java.util.ArrayList;
import java.util.List;

/** A remaining candidate of a tier. */
final class Candidate {
    final PooledPage pooled;
    final int index;

    private Candidate(PooledPage pooled, int index) {
        this.pooled = pooled;
        this.index = index;
    }

    long videoId() {
        return pooled.videoId(index);
    }

    /** All of a tier: the oldest page first, each in server order. */
    static List<Candidate> of(List<PooledPage> tier) {
        List<Candidate> found = new ArrayList<>();
        for (PooledPage page : tier) {
            for (int index : page.remaining) {
                found.add(new Candidate(page, index));
            }
        }
        return found;
    }
}

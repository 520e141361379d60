package kir.edge.core;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.function.BooleanSupplier;

/**
 * The beam search of one swipe over the remaining candidates of a tier (edge/_ahead.py). A placed candidate is its key
 * and value, whatever page it came with, so a step runs `place` once a page, all with the same lists.
 */
final class Ahead implements Beam.Expand {
    private final Reranker reranker;
    private final List<PooledPage> tier;
    private final DeviceState device;
    private final float[] scores;
    private final List<Candidate> candidates;

    /** scores: logits [m, T] with nothing placed. */
    private Ahead(Reranker reranker, List<PooledPage> tier, DeviceState device, float[] scores) {
        this.reranker = reranker;
        this.tier = tier;
        this.device = device;
        this.scores = scores;
        this.candidates = Candidate.of(tier);
    }

    /** Never raises what a graph raises: NextOne stands then. */
    static Search search(Reranker reranker, List<PooledPage> tier, DeviceState device, float[] scores, BeamPlan plan,
            boolean[] allowed, BooleanSupplier outOfTime) {
        String problem = reranker.model.unfitPlan(plan);
        if (!problem.isEmpty()) {
            return Search.none(problem);
        }
        Ahead ahead = new Ahead(reranker, tier, device, scores);
        Beam.Result found;
        try {
            found = Beam.search(ahead, ahead.candidates.size(), plan, allowed, outOfTime);
        } catch (RuntimeException error) {
            return Search.none("engine_error");
        }
        long[] ids = new long[found.items.length];
        for (int i = 0; i < ids.length; i++) {
            ids[i] = ahead.candidates.get(found.items[i]).videoId();
        }
        return Search.of(found, ids);
    }

    @Override
    public Beam.Step of(List<int[]> lists) {
        if (lists.get(0).length == 0) {
            return step(new float[][] {scores});
        }
        int beams = reranker.model.beams;
        float[][] found = new float[lists.size()][];
        for (int at = 0; at < lists.size(); at += beams) { // as many at a time as the graph holds
            List<int[]> few = lists.subList(at, Math.min(at + beams, lists.size()));
            System.arraycopy(scoresOf(few), 0, found, at, few.size());
        }
        return step(found);
    }

    private Beam.Step step(float[][] scoresOfLists) {
        double[][] values = new double[scoresOfLists.length][];
        double[][] survivals = new double[scoresOfLists.length][];
        for (int list = 0; list < scoresOfLists.length; list++) {
            if (!Fusion.finite(scoresOfLists[list])) {
                throw new KirException("the place graph gave scores that are no numbers", null, null);
            }
            values[list] = wide(reranker.model.listReward.values(scoresOfLists[list]));
            survivals[list] = wide(reranker.model.listReward.survivals(scoresOfLists[list]));
        }
        return new Beam.Step(values, survivals);
    }

    /** A search adds up in double, as Python's does. */
    private static double[] wide(float[] values) {
        double[] found = new double[values.length];
        for (int i = 0; i < found.length; i++) {
            found[i] = values[i];
        }
        return found;
    }

    /** Logits [m, T] for each of a few lists. */
    private float[][] scoresOf(List<int[]> lists) {
        Model model = reranker.model;
        int width = tier.get(0).scored.placedWidth();
        float[] placed = new float[model.beams * model.placed * width];
        float[] mask = new float[model.beams * model.placed];
        Arrays.fill(mask, Vocabulary.MASK_VALUE);
        for (int list = 0; list < lists.size(); list++) {
            int[] items = lists.get(list);
            for (int slot = 0; slot < items.length; slot++) {
                Candidate candidate = candidates.get(items[slot]);
                float[] keys = candidate.pooled.scored.outputs.get("placed_kv");
                int at = list * model.placed + slot;
                System.arraycopy(keys, candidate.index * width, placed, at * width, width);
                mask[at] = 0.0f;
            }
        }
        List<float[]> pages = new ArrayList<>();
        for (PooledPage page : tier) {
            pages.add(reranker.place(page.scored, page.page, device, placed, mask));
        }
        int tasks = model.tasks.size();
        float[][] found = new float[lists.size()][candidates.size() * tasks];
        for (int list = 0; list < lists.size(); list++) {
            int to = 0;
            for (int number = 0; number < tier.size(); number++) {
                PooledPage page = tier.get(number);
                for (int index : page.remaining) {
                    int from = (list * page.scored.bucket + index) * tasks;
                    System.arraycopy(pages.get(number), from, found[list], to, tasks);
                    to += tasks;
                }
            }
        }
        return found;
    }
}

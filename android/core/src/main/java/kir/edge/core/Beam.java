package kir.edge.core;

import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.function.BooleanSupplier;

/**
 * Adaptive beam search over ListReward (contract/beam.py; KIR, CIKM 2022, Algorithm 1). Each step expands every kept
 * list by every unused candidate; ties go to the list kept earlier, then to the smaller index.
 */
public final class Beam {
    /** Lists of candidates, all of one length, to rewards and survivals of each candidate placed next. */
    interface Expand {
        Step of(List<int[]> lists);
    }

    /** [lists][m] each. */
    static final class Step {
        final double[][] values;
        final double[][] survivals;

        Step(double[][] values, double[][] survivals) {
            this.values = values;
            this.survivals = survivals;
        }
    }

    /** The best list as far as it was searched, and how the search ended. */
    static final class Result {
        final int[] items;
        final double reward;
        final double stability;
        /** "stable", "exhausted", "depth" or "time". */
        final String ended;

        Result(int[] items, double reward, double stability, String ended) {
            this.items = items;
            this.reward = reward;
            this.stability = stability;
            this.ended = ended;
        }
    }

    private Beam() {}

    /** allowed: who may stand first (anyone may follow). outOfTime is asked before every step but the first. */
    static Result search(Expand expand, int m, BeamPlan plan, boolean[] allowed, BooleanSupplier outOfTime) {
        List<int[]> lists = Collections.singletonList(new int[0]);
        double[] rewards = {0.0};
        double[] survive = {1.0};
        double stability = 1.0;
        String ended = m <= plan.depth ? "exhausted" : "depth";
        for (int step = 0; step < Math.min(m, plan.depth); step++) {
            if (step > 0 && outOfTime.getAsBoolean()) {
                ended = "time";
                break;
            }
            Step next = expand.of(lists);
            List<Kept> open = open(lists, rewards, survive, next, step == 0 ? allowed : null);
            if (open.isEmpty()) {
                throw new KirException("no candidate to choose from", m, null);
            }
            open.sort((a, b) -> Double.compare(b.reward, a.reward)); // stable
            List<Kept> kept = open.subList(0, Math.min(plan.beams, open.size()));
            List<int[]> longer = new ArrayList<>();
            double[] newRewards = new double[kept.size()];
            double[] newSurvive = new double[kept.size()];
            for (int k = 0; k < kept.size(); k++) {
                Kept one = kept.get(k);
                int[] list = java.util.Arrays.copyOf(lists.get(one.list), step + 1);
                list[step] = one.item;
                longer.add(list);
                newRewards[k] = one.reward;
                newSurvive[k] = survive[one.list] * next.survivals[one.list][one.item];
            }
            lists = longer;
            rewards = newRewards;
            survive = newSurvive;
            stability = stabilityOf(rewards);
            if (step + 1 >= plan.shown && stability > plan.stability) {
                ended = "stable";
                break;
            }
        }
        return new Result(lists.get(0), rewards[0], stability, ended);
    }

    private static final class Kept {
        final int list;
        final int item;
        final double reward;

        Kept(int list, int item, double reward) {
            this.list = list;
            this.item = item;
            this.reward = reward;
        }
    }

    private static List<Kept> open(List<int[]> lists, double[] rewards, double[] survive, Step next, boolean[] first) {
        List<Kept> open = new ArrayList<>();
        for (int list = 0; list < lists.size(); list++) {
            for (int item = 0; item < next.values[list].length; item++) {
                double total = rewards[list] + survive[list] * next.values[list][item];
                if (Double.isNaN(total) || Double.isInfinite(total)) {
                    throw new KirException("a list's reward is not finite", total, null);
                }
                if ((first == null || first[item]) && !holds(lists.get(list), item)) {
                    open.add(new Kept(list, item, total));
                }
            }
        }
        return open;
    }

    private static boolean holds(int[] list, int item) {
        for (int held : list) {
            if (held == item) {
                return true;
            }
        }
        return false;
    }

    /** min / max (Eq. 6). Equal rewards are stable whatever they are; a negative one among unequal ones is not. */
    static double stabilityOf(double[] rewards) {
        double low = rewards[0];
        double high = rewards[0];
        for (double reward : rewards) {
            low = Math.min(low, reward);
            high = Math.max(high, reward);
        }
        return low == high ? 1.0 : low >= 0 ? low / high : 0.0;
    }
}

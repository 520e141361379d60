package kir.edge.core;

import java.util.List;

/** What a swipe needs to know of a published model, as its manifest tells it. Set the fields, then `check()`. */
public final class Model {
    public String denseVersion;
    public FeatureSpec spec;
    /** Tasks in the order of the score columns, and the fusion weight of each. */
    public List<String> tasks;
    public float[] fusion;
    /** What a list is worth; null: NextOne only. */
    public ListReward listReward;
    /** L: videos that the watched list holds. */
    public int capacity;
    /** k and P of the place graph; 0 without it. */
    public int beams;
    public int placed;
    /** Shape of the watch graph's `past` [1, planes, L + 1, width]; 0 without. */
    public int planes;
    public int width;
    /** Columns of the swipe graph's `memory`. */
    public int memoryWidth;
    /** Candidates that page, swipe and place graphs take, ascending; videos that watch graphs take, from 1. */
    public int[] buckets;
    public int[] watchBuckets;
    /** Whether there is a place graph for every bucket. */
    public boolean hasPlace;

    /** The model itself. Raises KirException for one that no phone can run. */
    public Model check() {
        if (buckets.length == 0 || watchBuckets.length == 0 || watchBuckets[0] != 1) {
            throw new KirException("page, swipe and watch graphs must be there, watch also for one video", null, null);
        }
        if (capacity < 2 || capacity % 2 != 0) {
            throw new KirException("capacity L must be an even number from 2", capacity, null);
        }
        if (fusion.length != tasks.size()) {
            throw new KirException("one fusion weight per task", fusion.length, tasks);
        }
        return this;
    }

    /** The smallest bucket for n candidates. */
    int bucketFor(int n) {
        for (int bucket : buckets) {
            if (n <= bucket) {
                return bucket;
            }
        }
        throw new KirException("more candidates than the largest bucket", n, buckets[buckets.length - 1]);
    }

    int largest() {
        return buckets[buckets.length - 1];
    }

    /** Why this model can't search by a plan; "" when it can. */
    String unfitPlan(BeamPlan plan) {
        if (listReward == null) {
            return "no_list_reward";
        }
        if (!hasPlace) {
            return "no_place_graph";
        }
        return beams < 1 || plan.depth > placed + 1 ? "plan_above_capacity" : "";
    }

    /** Why this model can't score a page; "" when it can. */
    String unfitReason(Page page) {
        if (!page.rowsStatus.equals("ok") && (spec.hasTables() || !page.rowsStatus.equals("not_needed"))) {
            return "rows_status:" + page.rowsStatus;
        }
        if (!page.denseVersion.equals(denseVersion)) {
            return "version_mismatch";
        }
        if (!page.specFingerprint.equals(spec.fingerprint)) {
            return "spec_mismatch";
        }
        for (FeatureSpec.Field field : spec.fields) {
            if (field.table.isEmpty()) {
                continue;
            }
            RowTable table = page.table(field.table);
            if (table == null) {
                return "no_rows";
            }
            Slots slots = page.slots(PageFeatures.ownerOf(field.block), field.name);
            if (table.width != field.width || slots != null && !slots.table.equals(field.table)) {
                return "spec_mismatch";
            }
        }
        return "";
    }
}

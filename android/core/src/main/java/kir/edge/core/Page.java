package kir.edge.core;

import java.util.HashMap;
import java.util.HashSet;
import java.util.Map;
import java.util.Set;

/**
 * A candidate page in arrays: N candidates in server order, and decoded sparse rows (contract/page.py).
 *
 * Set the fields, then `check()`: a page from a hostile or broken server ends in one PageRefused, never in a wrong
 * ranking.
 */
public final class Page {
    static final int CANDIDATES_MAX = 10_000;
    private static final int NAME_MAX = 128;
    private static final long TTL_MAX_MS = 7L * 24 * 3600 * 1000;
    private static final long CELLS_MAX = 1_000_000;
    private static final int WATCHED_MAX = 512;

    public String pageId = "";
    public String denseVersion = "";
    public String specFingerprint = "";
    public long rowsRevision;
    /** "ok", "no_live_version", "spec_mismatch" or "not_needed". */
    public String rowsStatus = "";
    /** Milliseconds from arrival: time to ask for the next page, and time to be cleared when it comes. */
    public long softTtlMs = 600_000;
    public long hardTtlMs = 1_800_000;
    public long userActivity = -1;
    public long userRegisterDays = -1;
    public long hour = -1;
    /** float [4], NaN = nothing observed. */
    public float[] userProfile = {Float.NaN, Float.NaN, Float.NaN, Float.NaN};
    /** long [N], bits of uint64. */
    public long[] videoId = {};
    public long[] authorId = {};
    /** long [N, 3], padded with MISSING_KEY. */
    public long[] tags = {};
    /** long [N], -1 = null. */
    public long[] durationMs = {};
    public long[] uploadAgeDays = {};
    /** float [N, 7] probabilities, NaN = null. */
    public float[] pxtr = {};
    private final Map<String, RowTable> tables = new HashMap<>();
    private final Map<String, Slots> slots = new HashMap<>();

    /** Number of candidates. */
    public int n() {
        return videoId.length;
    }

    /** Rows of one table. */
    public void addTable(String name, RowTable table) {
        require(tables.put(name, table) == null, "a row table comes twice", name, null);
    }

    /** owner: "user", "candidate" or "watched" (entries in the order of the request's list). */
    public void addSlots(String owner, String feature, Slots index) {
        require(slots.put(owner + "/" + feature, index) == null, "a row index comes twice", feature, null);
    }

    RowTable table(String name) {
        return tables.get(name);
    }

    Slots slots(String owner, String feature) {
        return slots.get(owner + "/" + feature);
    }

    /** The page itself. Raises PageRefused, whose text names the page. */
    public Page check() {
        require(!pageId.isEmpty() && pageId.length() <= NAME_MAX, "page_id is empty or long", pageId.length(), NAME_MAX);
        require(softTtlMs >= 0 && softTtlMs <= TTL_MAX_MS && hardTtlMs >= 0 && hardTtlMs <= TTL_MAX_MS,
                "a TTL is out of range", softTtlMs + ", " + hardTtlMs, TTL_MAX_MS);
        hardTtlMs = Math.max(hardTtlMs, softTtlMs);
        require(rowsRevision >= 0, "rows_revision out of range", rowsRevision, null);
        checkCandidates();
        require(userProfile.length == Vocabulary.PROFILE && probabilities(userProfile), "user profile out of range",
                userProfile.length, Vocabulary.PROFILE);
        long cells = 0;
        for (Map.Entry<String, Slots> entry : slots.entrySet()) {
            Slots index = entry.getValue();
            RowTable table = tables.get(index.table);
            require(table != null, "a row index names an absent table", index.table, tables.keySet());
            require(index.within(table.rows), "row out of range", entry.getKey(), table.rows);
            boolean good = entry.getKey().startsWith("user/") ? index.entries == 1
                    : entry.getKey().startsWith("candidate/") ? index.entries == n() : index.entries <= WATCHED_MAX;
            require(good, "wrong number of entries", entry.getKey() + " " + index.entries, null);
            cells += (long) index.entries * index.width;
        }
        require(cells <= CELLS_MAX, "row indexes are too large", cells, CELLS_MAX);
        return this;
    }

    private void checkCandidates() {
        int n = n();
        require(n > 0 && n <= CANDIDATES_MAX, "number of candidates out of range", n, CANDIDATES_MAX);
        require(authorId.length == n && durationMs.length == n && uploadAgeDays.length == n
                && tags.length == n * Vocabulary.TAGS_MAX && pxtr.length == n * Vocabulary.X,
                "a candidate column has another length", null, n);
        require(probabilities(pxtr), "pXTR are not probabilities", null, "0 … 1 or NaN");
        Set<Long> ids = new HashSet<>();
        for (int i = 0; i < n; i++) {
            require(videoId[i] != Vocabulary.MISSING_KEY && ids.add(videoId[i]), "a candidate id is missing or comes twice",
                    Long.toUnsignedString(videoId[i]), null);
            require(durationMs[i] == Vocabulary.NULL_INT || durationMs[i] > 0 && durationMs[i] <= Integer.MAX_VALUE,
                    "duration_ms out of range", durationMs[i], null);
            require(uploadAgeDays[i] >= -1, "upload_age_days below -1", uploadAgeDays[i], null);
        }
    }

    private static boolean probabilities(float[] values) {
        for (float value : values) {
            if (!(Float.isNaN(value) || value >= 0 && value <= 1)) {
                return false;
            }
        }
        return true;
    }

    private void require(boolean good, String what, Object got, Object allowed) {
        if (!good) {
            String name = pageId.length() <= NAME_MAX ? pageId : pageId.substring(0, NAME_MAX);
            throw new KirException.PageRefused(what, "page " + name, got, allowed);
        }
    }
}

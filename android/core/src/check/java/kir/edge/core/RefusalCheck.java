package kir.edge.core;

import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.function.Consumer;

/** Pages that contradict themselves: each is refused, with one line that names the page, and the sound one is not. */
final class RefusalCheck {
    private RefusalCheck() {}

    /** Name of what was spoilt, to "" when it was refused as it should, or what happened instead. */
    static Map<String, String> run() {
        Map<String, Consumer<Page>> spoilt = new LinkedHashMap<>();
        spoilt.put("an-id-twice", page -> page.videoId[1] = page.videoId[0]);
        spoilt.put("the-missing-id", page -> page.videoId[1] = Vocabulary.MISSING_KEY);
        spoilt.put("no-candidate", page -> page.videoId = new long[0]);
        spoilt.put("a-short-column", page -> page.authorId = new long[1]);
        spoilt.put("short-pxtr", page -> page.pxtr = new float[Vocabulary.X]);
        spoilt.put("pxtr-above-1", page -> page.pxtr[3] = 1.5f);
        spoilt.put("infinite-pxtr", page -> page.pxtr[3] = Float.POSITIVE_INFINITY);
        spoilt.put("a-negative-age", page -> page.uploadAgeDays[0] = -2);
        spoilt.put("a-duration-past-int32", page -> page.durationMs[0] = 1L << 31);
        spoilt.put("no-page-id", page -> page.pageId = "");
        spoilt.put("a-long-page-id", page -> page.pageId = new String(new char[1 << 20]).replace('\0', 'x'));
        spoilt.put("a-ttl-of-months", page -> page.hardTtlMs = 1L << 40);
        spoilt.put("a-revision-past-int64", page -> page.rowsRevision = -1);
        spoilt.put("a-profile-above-1", page -> page.userProfile[0] = 2);
        spoilt.put("an-absent-table", page -> page.addSlots("user", "u", Slots.single("other", new int[] {0})));
        spoilt.put("a-row-past-its-table", page -> page.addSlots("user", "u", Slots.single("t", new int[] {2})));
        spoilt.put("a-row-past-int32", page -> page.addSlots("user", "u", Slots.single("t", new int[] {-1})));
        spoilt.put("two-users", page -> page.addSlots("user", "u", Slots.single("t", new int[] {0, 0})));
        spoilt.put("entries-of-others", page -> page.addSlots("candidate", "c", Slots.single("t", new int[] {0})));
        spoilt.put("an-index-twice", page -> page.addSlots("user", "user_id", Slots.single("t", new int[] {0})));
        spoilt.put("a-table-twice", page -> page.addTable("t", table(new byte[8], new byte[4])));
        spoilt.put("counts-that-do-not-sum-up", page -> Slots.ragged("t", new int[] {1, 2}, new int[] {0, 0}));
        spoilt.put("a-negative-count", page -> Slots.ragged("t", new int[] {2, -1}, new int[] {0}));
        spoilt.put("a-count-of-many", page -> Slots.ragged("t", new int[] {65}, new int[65]));
        spoilt.put("a-scale-too-few", page -> table(new byte[8], new byte[2]));
        spoilt.put("half-a-row", page -> table(new byte[7], new byte[4]));
        spoilt.put("no-default-row", page -> table(new byte[0], new byte[0]));
        spoilt.put("an-infinite-scale", page -> table(new byte[] {1, 1, 1, 1}, new byte[] {0, 0x7c}));
        spoilt.put("a-nan-scale", page -> table(new byte[4], new byte[] {1, 0x7c}));
        spoilt.put("an-unknown-encoding", page -> RowTable.decode("int4", 4, new byte[4], new byte[2]));
        Map<String, String> found = new LinkedHashMap<>();
        spoilt.forEach((name, spoil) -> found.put(name, refused(spoil)));
        found.put("a-sound-page", refused(page -> { }).equals("taken") ? "" : "refused");
        Slots ragged = Slots.ragged("t", new int[] {2, 0, 1}, new int[] {5, 6, 7});
        int[] rows = {ragged.row(0, 0), ragged.row(0, 1), ragged.row(1, 0), ragged.row(1, 1), ragged.row(2, 0)};
        found.put("ragged-entries", Arrays.equals(rows, new int[] {5, 6, -1, -1, 7}) ? "" : Arrays.toString(rows));
        return found;
    }

    private static String refused(Consumer<Page> spoil) {
        Page page = sound();
        try {
            spoil.accept(page);
            page.check();
            return "taken";
        } catch (KirException.PageRefused refused) {
            String text = refused.getMessage();
            return text.length() <= 700 && text.indexOf('\n') < 0 ? "" : "a long text: " + text.length();
        }
    }

    private static RowTable table(byte[] values, byte[] scales) {
        return RowTable.decode("int8", 4, values, scales);
    }

    private static Page sound() {
        Page page = new Page();
        page.pageId = "page-1";
        page.videoId = new long[] {7, 8};
        page.authorId = new long[] {1, 2};
        page.tags = new long[2 * Vocabulary.TAGS_MAX];
        page.durationMs = new long[] {-1, 5_000};
        page.uploadAgeDays = new long[] {-1, 3};
        page.pxtr = new float[2 * Vocabulary.X];
        page.pxtr[0] = Float.NaN;
        page.addTable("t", table(new byte[8], new byte[4]));
        page.addSlots("user", "user_id", Slots.single("t", new int[] {1}));
        return page;
    }
}

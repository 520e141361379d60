package kir.edge.pages;

import com.google.protobuf.ByteString;
import com.google.protobuf.InvalidProtocolBufferException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.Arrays;
import java.util.List;
import kir.edge.core.KirException;
import kir.edge.core.Page;
import kir.edge.core.RowTable;
import kir.edge.core.Slots;
import kir.edge.core.Vocabulary;
import kir.v1.PageOuterClass;

/** Bytes of a kir.v1.Page to a checked Page (contract/page.py, decode_page). */
public final class PageDecoder {
    private static final int BYTES_MAX = 4 << 20;

    private PageDecoder() {}

    /** @throws KirException.PageRefused for bytes that are no page, or a page that contradicts itself */
    public static Page decode(byte[] bytes) {
        if (bytes.length > BYTES_MAX) {
            throw new KirException.PageRefused("page is too large", "page", bytes.length, BYTES_MAX);
        }
        try {
            return decode(PageOuterClass.Page.parseFrom(bytes));
        } catch (InvalidProtocolBufferException error) {
            throw new KirException.PageRefused("bytes are not a kir.v1.Page", "page", error.getMessage(), null);
        }
    }

    private static Page decode(PageOuterClass.Page message) {
        Page page = new Page();
        page.pageId = message.getPageId();
        page.denseVersion = message.getDenseVersion();
        page.specFingerprint = message.getSpecFingerprint();
        page.rowsRevision = message.getRowsRevision();
        page.rowsStatus = rowsStatus(message.getRowsStatus());
        page.softTtlMs = Integer.toUnsignedLong(message.getSoftTtlMs());
        page.hardTtlMs = Integer.toUnsignedLong(message.getHardTtlMs());
        page.userActivity = message.getUser().getActivity();
        page.userRegisterDays = message.getUser().getRegisterDays();
        page.hour = message.getUser().getHour();
        List<Float> profile = message.getUser().getProfileList();
        if (!profile.isEmpty()) {
            page.userProfile = new float[profile.size()];
            for (int i = 0; i < profile.size(); i++) {
                page.userProfile[i] = profile.get(i);
            }
        }
        candidates(message.getCandidates(), page);
        for (PageOuterClass.RowTable table : message.getRowTablesList()) {
            page.addTable(table.getName(), RowTable.decode(encoding(table.getEncoding()), table.getWidth(),
                    table.getValues().toByteArray(), table.getScales().toByteArray()));
        }
        for (PageOuterClass.RowIndex index : message.getRowIndexesList()) {
            int[] rows = ints(index.getRowsList());
            Slots slots = index.getCountsCount() == 0 ? Slots.single(index.getTable(), rows)
                    : Slots.ragged(index.getTable(), ints(index.getCountsList()), rows);
            page.addSlots(owner(index.getOwner()), index.getFeature(), slots);
        }
        return page.check();
    }

    private static void candidates(PageOuterClass.CandidateColumns columns, Page page) {
        page.videoId = longs(columns.getVideoIdsList());
        page.authorId = longs(columns.getAuthorIdsList());
        int n = page.videoId.length;
        page.durationMs = new long[columns.getDurationMsCount()];
        for (int i = 0; i < page.durationMs.length; i++) {
            long duration = Integer.toUnsignedLong(columns.getDurationMs(i));
            page.durationMs[i] = duration == 0 ? Vocabulary.NULL_INT : duration; // 0 = unknown
        }
        page.uploadAgeDays = new long[columns.getUploadAgeDaysCount()];
        for (int i = 0; i < page.uploadAgeDays.length; i++) {
            page.uploadAgeDays[i] = columns.getUploadAgeDays(i);
        }
        page.tags = tags(ints(columns.getTagCountsList()), longs(columns.getTagsList()));
        if (!columns.getPxtrHeadsList().equals(Vocabulary.PXTR_HEADS)) {
            throw refused("pXTR columns of other heads", columns.getPxtrHeadsList());
        }
        page.pxtr = pxtr(columns.getPxtr(), columns.getPxtrPresent(), n * Vocabulary.X);
    }

    private static long[] tags(int[] counts, long[] tags) {
        long[] padded = new long[counts.length * Vocabulary.TAGS_MAX];
        Arrays.fill(padded, Vocabulary.MISSING_KEY);
        int next = 0;
        for (int entry = 0; entry < counts.length; entry++) {
            if (counts[entry] < 0 || counts[entry] > Vocabulary.TAGS_MAX || next + counts[entry] > tags.length) {
                throw refused("tag counts do not fit", counts[entry]);
            }
            System.arraycopy(tags, next, padded, entry * Vocabulary.TAGS_MAX, counts[entry]);
            next += counts[entry];
        }
        if (next != tags.length) {
            throw refused("tag counts do not fit", next);
        }
        return padded;
    }

    private static float[] pxtr(ByteString values, ByteString present, int size) {
        if (values.size() != 4 * size || present.size() != size) {
            throw refused("pxtr bytes do not fit", values.size() + ", " + present.size());
        }
        float[] found = new float[size];
        ByteBuffer source = values.asReadOnlyByteBuffer().order(ByteOrder.LITTLE_ENDIAN);
        for (int i = 0; i < size; i++) {
            float value = source.getFloat();
            byte flag = present.byteAt(i);
            if (flag != 0 && (flag != 1 || Float.isNaN(value))) {
                throw refused("pxtr_present must be 0 or 1, and a number there", flag);
            }
            found[i] = flag == 1 ? value : Float.NaN;
        }
        return found;
    }

    private static String rowsStatus(PageOuterClass.RowsStatus status) {
        switch (status) {
            case ROWS_STATUS_OK:
                return "ok";
            case ROWS_STATUS_NO_LIVE_VERSION:
                return "no_live_version";
            case ROWS_STATUS_SPEC_MISMATCH:
                return "spec_mismatch";
            case ROWS_STATUS_NOT_NEEDED:
                return "not_needed";
            default:
                throw refused("unknown rows_status", status);
        }
    }

    private static String encoding(PageOuterClass.RowEncoding encoding) {
        switch (encoding) {
            case ROW_ENCODING_INT8:
                return "int8";
            case ROW_ENCODING_FLOAT16:
                return "float16";
            case ROW_ENCODING_FLOAT32:
                return "float32";
            default:
                throw refused("unknown row encoding", encoding);
        }
    }

    private static String owner(PageOuterClass.RowOwner owner) {
        switch (owner) {
            case ROW_OWNER_USER:
                return "user";
            case ROW_OWNER_CANDIDATE:
                return "candidate";
            case ROW_OWNER_WATCHED:
                return "watched";
            default:
                throw refused("unknown row owner", owner);
        }
    }

    private static KirException refused(String what, Object got) {
        return new KirException.PageRefused(what, "page", got, null);
    }

    private static long[] longs(List<Long> values) {
        long[] found = new long[values.size()];
        for (int i = 0; i < found.length; i++) {
            found[i] = values.get(i);
        }
        return found;
    }

    private static int[] ints(List<Integer> values) {
        int[] found = new int[values.size()];
        for (int i = 0; i < found.length; i++) {
            found[i] = values.get(i);
        }
        return found;
    }
}

package kir.edge.core;

import java.util.Arrays;
import java.util.HashMap;
import java.util.Iterator;
import java.util.List;
import java.util.Map;

/** Drives a SwipeSession by the lines of one session and compares what comes of each with the line "expect" behind it. */
final class SessionCheck implements Clock {
    private final Model model;
    private final Npz arrays;
    private final RecordedGraphs graphs;
    private final Map<String, Page> pages = new HashMap<>();
    private final ChoicePolicy policy = new ChoicePolicy();
    private final PoolConfig pool = new PoolConfig();
    private final Iterator<String> lines;
    private SwipeSession session;
    private long offsetMs;
    private long atMs = 1_000; // where Python's FakeClock begins
    private boolean withModel;
    private double maxAbs;
    private String line;

    SessionCheck(Model model, List<String> lines, Npz arrays) {
        this.model = model;
        this.arrays = arrays;
        this.graphs = new RecordedGraphs(arrays);
        for (String each : lines) {
            if (each.startsWith("run ")) {
                graphs.add(each.split(" "));
            }
        }
        this.lines = lines.iterator();
    }

    @Override
    public long monotonicMs() {
        return atMs;
    }

    @Override
    public long nowMs() {
        return atMs + offsetMs;
    }

    /** Largest difference of numbers. Raises AssertionError at the first step that differs. */
    double run() {
        while (lines.hasNext()) {
            line = lines.next();
            step(line.split(" "));
        }
        return Math.max(maxAbs, graphs.finish());
    }

    private void step(String[] w) {
        switch (w[0]) {
            case "policy":
                policy.authorGap = number(w[1]);
                policy.topicGap = number(w[2]);
                policy.preloadedOnly = w[3].equals("1");
                policy.bufferedMinMs = number(w[4]);
                policy.beam = w[5].equals("0") ? null : plan(w, 5);
                policy.budgetMs = -1;
                break;
            case "pool":
                pool.maxPages = number(w[1]);
                pool.maxCandidates = number(w[2]);
                pool.prefetchBelow = number(w[3]);
                pool.seen = number(w[4]);
                pool.softTtlSwipes = number(w[5]);
                pool.hardTtlSwipes = number(w[6]);
                break;
            case "model":
                withModel = w[1].equals("1");
                break;
            case "offset":
                offsetMs = Long.parseLong(w[1]);
                session = new SwipeSession(withModel ? model : null, withModel ? graphs : null, this, pool, policy);
                break;
            case "at":
                atMs = Long.parseLong(w[1]);
                break;
            case "define":
                define(w);
                break;
            case "table":
                String rows = w[1] + "/" + w[2];
                pages.get(w[1]).addTable(w[2], RowTable.decode(w[3], number(w[4]), arrays.bytes(rows + "/values"),
                        arrays.bytes(rows + "/scales")));
                break;
            case "slots":
                int[] places = VectorCheck.ints(arrays.longs(w[1]));
                pages.get(w[1].substring(0, w[1].indexOf('/'))).addSlots(w[2], w[3],
                        new Slots(w[4], number(w[5]), number(w[6]), places));
                break;
            case "run":
                break;
            default:
                action(w);
        }
    }

    private void action(String[] w) {
        switch (w[0]) {
            case "page":
                String reason = session.onPage(pages.get("page" + w[1]), ids(w, 2));
                expect(reason.isEmpty() ? "-" : reason);
                break;
            case "next":
                swipe(w);
                break;
            case "feedback":
                Feedback.Outcome outcome = session.feedback(feedback(w));
                expect(outcome + " " + session.watched());
                break;
            case "ahead":
                ahead(w);
                break;
            case "maintain":
                session.maintain();
                break;
            case "state":
                CandidatePool now = session.pool();
                expect((now.wantsPage(atMs) ? 1 : 0) + " " + join(now.videoIds()) + " " + join(now.excluded(atMs)));
                break;
            case "clear":
                session.pool().clear();
                break;
            default:
                throw new AssertionError("unknown line: " + line);
        }
    }

    private void define(String[] w) {
        Page page = new Page();
        page.pageId = w[2];
        page.denseVersion = w[3];
        page.specFingerprint = w[4];
        page.rowsStatus = w[5];
        page.rowsRevision = number(w[6]);
        page.softTtlMs = number(w[7]);
        page.hardTtlMs = number(w[8]);
        page.userActivity = number(w[9]);
        page.userRegisterDays = number(w[10]);
        page.hour = number(w[11]);
        page.userProfile = arrays.floats(w[1] + "/profile");
        page.videoId = arrays.longs(w[1] + "/video_id");
        page.authorId = arrays.longs(w[1] + "/author_id");
        page.tags = arrays.longs(w[1] + "/tags");
        page.durationMs = arrays.longs(w[1] + "/duration_ms");
        page.uploadAgeDays = arrays.longs(w[1] + "/upload_age_days");
        page.pxtr = arrays.floats(w[1] + "/pxtr");
        pages.put(w[1], page);
    }

    private void swipe(String[] w) {
        float volume = w[3].equals("-") ? Float.NaN : Float.parseFloat(w[3]);
        DeviceState device = new DeviceState(number(w[1]), number(w[2]), told(w, 5), volume, number(w[4]));
        Choice choice;
        try {
            choice = session.next(device);
        } catch (KirException.PoolExhausted exhausted) {
            expect("exhausted");
            return;
        }
        Search search = choice.search;
        String found = search == null ? "-" : search.problem.isEmpty() ? join(search.videoIds) : "!" + search.problem;
        String relaxed = choice.relaxed.isEmpty() ? "-" : String.join(",", choice.relaxed);
        String reason = choice.reason.isEmpty() ? "-" : choice.reason;
        String[] expected = expected();
        String values = expected[6];
        String who = choice.chooser + " " + reason + " " + relaxed + " " + join(choice.considered);
        compare(Long.toUnsignedString(choice.videoId) + " " + who + " " + values + " " + found, expected);
        if (values.equals("-") != (choice.values == null)) {
            throw new AssertionError(line + ": values " + Arrays.toString(choice.values));
        }
        if (choice.values != null) {
            close(VectorCheck.difference(arrays.floats(values), choice.values));
        }
    }

    private void ahead(String[] w) {
        Search found = session.lookAhead(plan(w, 1), new DeviceState(number(w[4]), number(w[5]), told(w, 6)));
        String[] expected = expected();
        String problem = found.problem.isEmpty() ? "-" : found.problem;
        String ended = found.ended.isEmpty() ? "-" : found.ended;
        String numbers = expected[3] + " " + expected[4];
        compare(problem + " " + ended + " " + numbers + " " + join(found.videoIds), expected);
        close(Math.abs(found.reward - Double.parseDouble(expected[3])));
        close(Math.abs(found.stability - Double.parseDouble(expected[4])));
    }

    private Feedback feedback(String[] w) {
        Feedback feedback = new Feedback(Long.parseUnsignedLong(w[1]));
        feedback.playTimeMs = Long.parseLong(w[2]);
        feedback.profileStayMs = Long.parseLong(w[3]);
        feedback.commentStayMs = Long.parseLong(w[4]);
        feedback.shownAtMs = Long.parseLong(w[5]);
        feedback.revision = number(w[6]);
        for (int i = 7; i < w.length; i++) {
            String[] signal = w[i].split(":");
            feedback.signals.put(signal[0], number(signal[1]));
        }
        return feedback;
    }

    private static BeamPlan plan(String[] w, int at) {
        return new BeamPlan(number(w[at]), number(w[at + 1]), Double.parseDouble(w[at + 2]), 1);
    }

    private static Map<Long, Long> told(String[] w, int from) {
        Map<Long, Long> told = new HashMap<>();
        for (int i = from; i < w.length; i++) {
            String[] one = w[i].split(":");
            told.put(Long.parseUnsignedLong(one[0]), Long.parseLong(one[1]));
        }
        return told;
    }

    private String[] expected() {
        String next = lines.hasNext() ? lines.next() : "";
        if (!next.startsWith("expect ")) {
            throw new AssertionError("no line of what to expect after: " + line);
        }
        return next.split(" ");
    }

    private void expect(String got) {
        compare(got, expected());
    }

    private void compare(String got, String[] expected) {
        String wanted = String.join(" ", Arrays.copyOfRange(expected, 1, expected.length));
        if (!got.equals(wanted)) {
            throw new AssertionError(line + ": " + got + " instead of " + wanted);
        }
    }

    private void close(double difference) {
        if (!(difference <= VectorCheck.TOLERANCE)) {
            throw new AssertionError(line + ": differs by " + difference);
        }
        maxAbs = Math.max(maxAbs, difference);
    }

    private static int number(String word) {
        return Integer.parseInt(word);
    }

    private static long[] ids(String[] w, int from) {
        long[] ids = new long[w.length - from];
        for (int i = 0; i < ids.length; i++) {
            ids[i] = Long.parseUnsignedLong(w[from + i]);
        }
        return ids;
    }

    private static String join(long[] ids) {
        StringBuilder text = new StringBuilder();
        for (long id : ids) {
            text.append(text.length() == 0 ? "" : ",").append(Long.toUnsignedString(id));
        }
        return text.length() == 0 ? "-" : text.toString();
    }
}

package kir.edge.core;

import java.io.IOException;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.DirectoryStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.Paths;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * Holds the core against golden vectors made by Python (python -m benchmarks.jvm MODEL_DIR VECTORS).
 *
 * Run: java -cp CLASSES kir.edge.core.VectorCheck VECTORS. One line a case: "ok NAME MAX_ABS" or "DIFFERS NAME WHAT".
 * Exit status 0 when all agree. Integers, one-hots, rows and choices must be equal; logarithms and exponentials may
 * differ by what one float's last bits do.
 */
public final class VectorCheck {
    static final double TOLERANCE = 2e-6;

    private final Path folder;
    private final PrintStream out;
    private final Model model;
    private final Npz arrays;
    private final Map<String, RowTable> tables = new HashMap<>();
    private final Map<String, List<Slots>> slots = new HashMap<>();
    private Columns columns;
    private int failed;

    private VectorCheck(Path folder, PrintStream out) throws IOException {
        this.folder = folder;
        this.out = out;
        this.model = readModel(lines(folder.resolve("model.txt")));
        this.arrays = new Npz(Files.readAllBytes(folder.resolve("cases.npz")));
    }

    public static void main(String[] args) throws IOException {
        System.exit(run(Paths.get(args[0]), System.out));
    }

    /** Exit status of all cases of a folder, told line by line. */
    public static int run(Path folder, PrintStream out) throws IOException {
        VectorCheck check = new VectorCheck(folder, out);
        for (String line : lines(check.folder.resolve("cases.txt"))) {
            check.one(line.split(" "));
        }
        RefusalCheck.run().forEach((name, problem) -> {
            check.failed += problem.isEmpty() ? 0 : 1;
            out.println((problem.isEmpty() ? "ok" : "DIFFERS") + " refused/" + name + " " + problem);
        });
        try (DirectoryStream<Path> sessions = Files.newDirectoryStream(check.folder, "session-*.txt")) {
            List<Path> sorted = new ArrayList<>();
            sessions.forEach(sorted::add);
            sorted.sort(null);
            for (Path session : sorted) {
                check.session(session);
            }
        }
        return check.failed == 0 ? 0 : 1;
    }

    static List<String> lines(Path file) throws IOException {
        return Files.readAllLines(file, StandardCharsets.UTF_8);
    }

    private void session(Path file) throws IOException {
        String name = file.getFileName().toString().replace(".txt", "");
        Npz npz = new Npz(Files.readAllBytes(folder.resolve(name + ".npz")));
        try {
            SessionCheck check = new SessionCheck(model, lines(file), npz);
            report(name, check.run());
        } catch (RuntimeException | AssertionError error) {
            failed++;
            out.println("DIFFERS " + name + " " + error);
        }
    }

    private void report(String name, double maxAbs) {
        boolean good = maxAbs <= TOLERANCE;
        failed += good ? 0 : 1;
        out.println((good ? "ok " : "DIFFERS ") + name + " " + maxAbs);
    }

    private void one(String[] w) {
        String name = String.join("/", w.length > 1 ? Arrays.copyOf(w, 2) : w);
        try {
            double maxAbs = maxAbs(w);
            if (maxAbs >= 0) {
                report(name, maxAbs);
            }
        } catch (RuntimeException error) {
            failed++;
            out.println("DIFFERS " + name + " " + error);
        }
    }

    /** Of one case; negative for a line that only brings inputs. */
    private double maxAbs(String[] w) {
        switch (w[0]) {
            case "rows":
                String rows = "rows/" + w[1];
                RowTable table = RowTable.decode(w[1], number(w[2]), arrays.bytes(rows + "/values"),
                        arrays.bytes(rows + "/scales"));
                return exact(arrays.floats(rows + "/expected"), table.values);
            case "column":
                columns = columns == null ? new Columns(number(w[3])) : columns;
                if (w[2].equals("f")) {
                    columns.put(w[1], arrays.floats("columns/" + w[1]));
                } else {
                    columns.put(w[1], arrays.longs("columns/" + w[1]));
                }
                return -1;
            case "dense":
                return difference(arrays.floats("dense/" + w[1]),
                        Features.denseBlock(model.spec, w[1], columns));
            case "table":
                tables.put(w[1], RowTable.decode("int8", number(w[2]), arrays.bytes("tables/" + w[1] + "/values"),
                        arrays.bytes("tables/" + w[1] + "/scales")));
                return -1;
            case "slots":
                int[] places = ints(arrays.longs("pool/" + w[1] + "/" + w[2]));
                slots.computeIfAbsent(w[1], block -> new ArrayList<>())
                        .add(new Slots(w[3], places.length / number(w[4]), number(w[4]), places));
                return -1;
            case "pool":
                return exact(arrays.floats("pool/" + w[1] + "/expected"), pooled(w[1], number(w[2])));
            case "since":
            case "behind":
                return difference(arrays.floats(w[0] + "/expected"), ages(w[0], Long.parseLong(w[1])));
            case "fused":
                return difference(arrays.floats("fused/expected"),
                        Fusion.values(arrays.floats("fused/scores"), model.fusion));
            case "best":
                return best(number(w[1]));
            case "beam":
                return beam(w);
            default:
                throw new KirException("unknown case", String.join(" ", w), null);
        }
    }

    private float[] pooled(String block, int n) {
        List<RowTable> of = new ArrayList<>();
        for (FeatureSpec.Column column : model.spec.columns(block)) {
            of.add(tables.get(column.field.table));
        }
        return Features.poolRows(model.spec, block, of, slots.get(block), n);
    }

    private float[] ages(String name, long now) {
        long[] at = arrays.longs(name + "/at");
        float[] out = new float[at.length];
        if (name.equals("since")) {
            Features.since(now, at, out);
        } else {
            Features.behind(now, at, out);
        }
        return out;
    }

    private double best(int lists) {
        float[] values = arrays.floats("best/values");
        long[] allowed = arrays.longs("best/allowed");
        long[] expected = arrays.longs("best/expected");
        int n = values.length / lists;
        for (int list = 0; list < lists; list++) {
            float[] of = Arrays.copyOfRange(values, list * n, (list + 1) * n);
            int found = Fusion.best(of, mask(Arrays.copyOfRange(allowed, list * n, (list + 1) * n)));
            if (found != expected[list]) {
                throw new KirException("another candidate of list " + list, found, expected[list]);
            }
        }
        return 0;
    }

    private static boolean[] mask(long[] flags) {
        boolean[] mask = new boolean[flags.length];
        for (int i = 0; i < mask.length; i++) {
            mask[i] = flags[i] == 1;
        }
        return mask;
    }

    private double beam(String[] w) {
        String prefix = "beam/" + w[1];
        double[] base = arrays.doubles(prefix + "/base");
        double[] pair = arrays.doubles(prefix + "/pair");
        double[] survive = arrays.doubles(prefix + "/survive");
        boolean[] allowed = mask(arrays.longs(prefix + "/first"));
        int m = base.length;
        Beam.Expand expand = lists -> {
            double[][] values = new double[lists.size()][m];
            double[][] survivals = new double[lists.size()][m];
            for (int list = 0; list < lists.size(); list++) {
                for (int j = 0; j < m; j++) {
                    double placed = 0.0;
                    for (int i : lists.get(list)) {
                        placed += pair[i * m + j];
                    }
                    values[list][j] = base[j] + placed;
                    survivals[list][j] = survive[j] * Math.pow(0.9, lists.get(list).length);
                }
            }
            return new Beam.Step(values, survivals);
        };
        BeamPlan plan = new BeamPlan(number(w[2]), number(w[3]), Double.parseDouble(w[4]), 1);
        Beam.Result found = Beam.search(expand, m, plan, allowed, () -> false);
        if (!Arrays.equals(found.items, ints(arrays.longs(prefix + "/items"))) || !found.ended.equals(w[5])) {
            throw new KirException("another list", Arrays.toString(found.items) + " " + found.ended, w[5]);
        }
        double[] result = arrays.doubles(prefix + "/result");
        return Math.max(Math.abs(found.reward - result[0]), Math.abs(found.stability - result[1]));
    }

    private static int number(String word) {
        return Integer.parseInt(word);
    }

    static int[] ints(long[] values) {
        int[] found = new int[values.length];
        for (int i = 0; i < found.length; i++) {
            found[i] = Math.toIntExact(values[i]);
        }
        return found;
    }

    private static double exact(float[] expected, float[] got) {
        return difference(expected, got) == 0 ? 0 : Double.POSITIVE_INFINITY;
    }

    /** Largest difference; infinite where lengths differ or a value is no number. */
    static double difference(float[] expected, float[] got) {
        double largest = expected.length == got.length ? 0 : Double.POSITIVE_INFINITY;
        for (int i = 0; i < Math.min(expected.length, got.length); i++) {
            double here = Math.abs((double) expected[i] - got[i]);
            largest = here <= largest ? largest : Double.isNaN(here) ? Double.POSITIVE_INFINITY : here;
        }
        return largest;
    }

    private static Model readModel(List<String> lines) {
        Map<String, int[]> numbers = new HashMap<>();
        Map<String, String> words = new HashMap<>();
        Map<String, Double> weights = new LinkedHashMap<>();
        Map<String, Double> rewards = new LinkedHashMap<>();
        List<FeatureSpec.Field> fields = new ArrayList<>();
        for (String line : lines) {
            String[] w = line.split(" ");
            switch (w[0]) {
                case "dense_version":
                case "fingerprint":
                case "survival":
                    words.put(w[0], w[1]);
                    break;
                case "task":
                    weights.put(w[1], Double.valueOf(w[2]));
                    break;
                case "reward":
                    rewards.put(w[1], Double.valueOf(w[2]));
                    break;
                case "field":
                    fields.add(new FeatureSpec.Field(w[1], w[2], w[3], number(w[4]), w[5].equals("-") ? "" : w[5],
                            number(w[6])));
                    break;
                default:
                    numbers.put(w[0], Arrays.stream(w).skip(1).mapToInt(Integer::parseInt).toArray());
            }
        }
        Model model = new Model();
        model.denseVersion = words.get("dense_version");
        model.spec = new FeatureSpec(words.get("fingerprint"), fields);
        model.tasks = new ArrayList<>(weights.keySet());
        model.fusion = new float[weights.size()];
        for (int t = 0; t < model.fusion.length; t++) {
            model.fusion[t] = weights.get(model.tasks.get(t)).floatValue();
        }
        String survival = words.get("survival");
        model.listReward = survival == null ? null : new ListReward(model.tasks, rewards, survival);
        model.capacity = numbers.get("capacity")[0];
        model.beams = numbers.get("beams")[0];
        model.placed = numbers.get("placed")[0];
        model.planes = numbers.get("planes")[0];
        model.width = numbers.get("width")[0];
        model.memoryWidth = numbers.get("memory_width")[0];
        model.buckets = numbers.get("buckets");
        model.watchBuckets = numbers.get("watch_buckets");
        model.hasPlace = numbers.get("has_place")[0] == 1;
        return model.check();
    }
}

import java.io.ByteArrayOutputStream;
import java.io.PrintStream;
import java.net.URL;
import java.net.URLClassLoader;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.Paths;
import java.util.Arrays;
import javax.tools.JavaCompiler;
import javax.tools.ToolProvider;

/** java Mutants.java CLASSES VECTORS MUTANT.java …: "found", "survived" or "broken" for each, a line each. */
public final class Mutants {
    private Mutants() {}

    public static void main(String[] args) throws Exception {
        JavaCompiler compiler = ToolProvider.getSystemJavaCompiler();
        Path classes = Paths.get(args[0]);
        Path vectors = Paths.get(args[1]);
        for (String mutant : Arrays.asList(args).subList(2, args.length)) {
            Path out = Files.createDirectory(Paths.get(mutant).resolveSibling("classes"));
            int compiled = compiler.run(null, null, null, "--release", "8", "-Xlint:-options", "-proc:none", "-cp",
                    classes.toString(), "-d", out.toString(), mutant);
            System.out.println(compiled != 0 ? "broken" : check(out, classes, vectors) == 0 ? "survived" : "found");
        }
    }

    /** Mutant classes come first; a loader of its own for each. */
    private static int check(Path out, Path classes, Path vectors) throws Exception {
        URL[] path = {out.toUri().toURL(), classes.toUri().toURL()};
        try (URLClassLoader loader = new URLClassLoader(path, ClassLoader.getPlatformClassLoader())) {
            PrintStream quiet = new PrintStream(new ByteArrayOutputStream());
            return (int) loader.loadClass("kir.edge.core.VectorCheck")
                    .getMethod("run", Path.class, PrintStream.class).invoke(null, vectors, quiet);
        }
    }
}

import java.nio.file.Files;
import java.nio.file.Paths;
import java.util.Arrays;
import kir.edge.core.KirException;
import kir.edge.core.Page;
import kir.edge.pages.PageDecoder;

/** java DecodePages PAGE …: each file's page as one line of its columns, or "refused". */
public final class DecodePages {
    private DecodePages() {}

    public static void main(String[] args) throws Exception {
        for (String file : args) {
            System.out.println(line(Files.readAllBytes(Paths.get(file))));
        }
    }

    private static String line(byte[] bytes) {
        try {
            Page page = PageDecoder.decode(bytes);
            return String.join(" ", page.pageId, page.denseVersion, page.specFingerprint, page.rowsStatus,
                    page.rowsRevision + "", page.softTtlMs + "", page.hardTtlMs + "", page.userActivity + "",
                    page.userRegisterDays + "", page.hour + "", of(Arrays.toString(page.userProfile)),
                    of(Arrays.toString(page.videoId)), of(Arrays.toString(page.authorId)),
                    of(Arrays.toString(page.tags)), of(Arrays.toString(page.durationMs)),
                    of(Arrays.toString(page.uploadAgeDays)), of(Arrays.toString(page.pxtr)));
        } catch (KirException.PageRefused refused) {
            return "refused";
        }
    }

    private static String of(String array) {
        return array.replaceAll("[\\[\\] ]", "");
    }
}

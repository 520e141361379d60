package kir.edge.core;

/** An error raised on purpose: what, where, got, allowed, what to do, as contract/errors.py has it. One line. */
public class KirException extends RuntimeException {
    private static final long serialVersionUID = 1L;
    private static final int LONGEST = 200;

    /** Each part but `what` may be null. */
    public KirException(String what, String where, Object got, Object allowed, String fix) {
        super(line(what, where, got, allowed, fix));
    }

    /** Without a place and without advice. */
    public KirException(String what, Object got, Object allowed) {
        this(what, null, got, allowed, null);
    }

    private static String line(String what, String where, Object got, Object allowed, String fix) {
        StringBuilder text = new StringBuilder(where == null ? "" : where + ": ").append(what);
        if (got != null) {
            text.append("; got ").append(cut(got));
        }
        if (allowed != null) {
            text.append("; allowed: ").append(cut(allowed));
        }
        return fix == null ? text.toString() : text.append("; ").append(fix).toString();
    }

    private static String cut(Object value) {
        String text = String.valueOf(value).replaceAll("\\s+", " ");
        return text.length() <= LONGEST ? text : text.substring(0, LONGEST - 1) + "…";
    }

    /** Nothing is left to show until the next page arrives. */
    public static final class PoolExhausted extends KirException {
        private static final long serialVersionUID = 1L;

        PoolExhausted() {
            super("nothing is left to show", null, null, null, "fetch a page, then swipe again");
        }
    }

    /** A page that contradicts itself. The pool goes on without it. */
    public static final class PageRefused extends KirException {
        private static final long serialVersionUID = 1L;

        public PageRefused(String what, String where, Object got, Object allowed) {
            super(what, where, got, allowed, null);
        }
    }
}

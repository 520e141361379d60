"""A terminal as the player needs it: keys without Enter, a screen of its own, and everything back as it was at the end.

POSIX only: termios and signals. Belongs to the main thread, where Python delivers signals.
"""

from __future__ import annotations

import os
import re
import select
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from types import FrameType, TracebackType
from typing import Any, TextIO

from contract.errors import InputError
from edge._cast import Cast
from edge._player import HELP, LIKE, QUIT, SKIP, THROUGH
from edge._screen import ACCENT, BOLD, DIM, DOWN, UP, Glyphs, Line, glyphs_for

KEYS = {
    **{"l": LIKE, "s": SKIP, "w": THROUGH, "?": HELP, "h": HELP, "q": QUIT},
    **{"\x1b[B": SKIP, "\x1bOB": SKIP, "\x1b[C": THROUGH, "\x1bOC": THROUGH, "\x04": QUIT},
}
UNKNOWN = "unknown"
_KEY = re.compile(r"\x1b[\[O][0-9;]*[@-~]|[\s\S]")
# Select graphic rendition; NO_COLOR (no-color.org) leaves weight alone.
_SGR = {BOLD: "1", DIM: "2", UP: "32", DOWN: "31", ACCENT: "36"}
# Screen of its own, no cursor, no wrapping at the edge; and the way back in the opposite order.
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J", "\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l"
_ENDING = ("SIGTERM", "SIGHUP")


def keys_of(data: bytes) -> list[str]:
    """Bytes of a terminal -> the player's keys, in order; letters in either case, anything else UNKNOWN."""
    return [KEYS.get(key, KEYS.get(key.lower(), UNKNOWN)) for key in _KEY.findall(data.decode(errors="replace"))]


def frame(lines: Sequence[Line], colour: bool = True) -> str:
    """Lines as one writing: from the top left, every line cleared to its end, and all below."""
    painted = []
    for line in lines:
        spans = [f"\x1b[{_SGR[s]}m{text}\x1b[0m" if s in _SGR and (colour or s == BOLD) else text for text, s in line]
        painted.append("".join(spans) + "\x1b[K")
    return "\x1b[H" + "\r\n".join(painted) + "\x1b[J"


def is_interactive() -> bool:
    """Whether a person sits at both ends, at a terminal that can move its cursor."""
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


class Terminal:
    """A context: cbreak mode and a screen of its own inside it, the old state after it, however it is left.

    SIGTERM and SIGHUP end it as an exception does (SystemExit), so that they restore the terminal too; a change of the
    window's size ends `keys` early. Suspending is off: a shell would find the mode of the player.
    Raises InputError where there is no termios (Windows).
    """

    cast: Cast | None = None  # takes down what is painted

    def __init__(self, stdin: TextIO | None = None, stdout: TextIO | None = None):
        try:
            import termios
        except ImportError:
            fix = "use --swipes N, or a POSIX system such as WSL"
            raise InputError("the player needs a POSIX terminal", got=sys.platform, fix=fix) from None
        self._termios: Any = termios
        self._stdin, self._stdout = (stdin or sys.stdin).fileno(), stdout or sys.stdout
        self._closing = ExitStack()
        self._wake = -1
        self.glyphs: Glyphs = glyphs_for(self._stdout.encoding)
        self._colour = not os.environ.get("NO_COLOR")

    def __enter__(self) -> Terminal:
        with ExitStack() as undo:  # a failure half-way takes back what was done
            self._handle_signals(undo)
            termios = self._termios
            before = termios.tcgetattr(self._stdin)
            undo.callback(self._restore, before)
            mode = termios.tcgetattr(self._stdin)
            mode[3] &= ~(termios.ECHO | termios.ICANON)  # local flags: keys at once and unseen, Ctrl-C as ever
            mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
            mode[6][termios.VSUSP] = b"\0"
            termios.tcsetattr(self._stdin, termios.TCSADRAIN, mode)
            self._write(_ENTER)
            self._closing = undo.pop_all()
        return self

    def _restore(self, mode: list[Any]) -> None:
        with suppress(OSError, self._termios.error):  # a terminal that hung up has nothing to restore
            self._write(_LEAVE)
        with suppress(self._termios.error):
            self._termios.tcsetattr(self._stdin, self._termios.TCSADRAIN, mode)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._closing.close()

    def _handle_signals(self, undo: ExitStack) -> None:
        self._wake, writing = os.pipe()
        os.set_blocking(writing, False)
        for handle in (self._wake, writing):
            undo.callback(os.close, handle)
        undo.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(writing, warn_on_full_buffer=False))
        handlers = {"SIGWINCH": lambda number, at: None, **dict.fromkeys(_ENDING, _end)}
        for name, handler in handlers.items():
            number = getattr(signal, name)
            undo.callback(signal.signal, number, signal.signal(number, handler))

    def size(self) -> tuple[int, int]:
        """Columns and lines; 80 and 24 when the terminal does not tell."""
        try:
            columns, lines = os.get_terminal_size(self._stdout.fileno())
        except OSError:
            columns = lines = 0
        return columns or 80, lines or 24

    def paint(self, lines: Sequence[Line]) -> None:
        self._write(frame(lines, self._colour))

    def _write(self, text: str) -> None:
        encoding = self._stdout.encoding or "ascii"
        text = text.encode(encoding, "replace").decode(encoding)  # whatever it is, it can be written
        self._stdout.write(text)
        self._stdout.flush()
        if self.cast is not None:
            self.cast.output(text, self.size())

    def keys(self, timeout_s: float) -> list[str]:
        """Keys pressed, once there are some; none after the time or a signal. QUIT when the terminal is gone."""
        ready, _, _ = select.select([self._stdin, self._wake], [], [], timeout_s)
        if self._wake in ready:
            os.read(self._wake, 64)
        if self._stdin not in ready:
            return []
        try:
            data = os.read(self._stdin, 256)
        except OSError:  # what a terminal that hung up answers
            data = b""
        return keys_of(data) if data else [QUIT]


def _end(number: int, at: FrameType | None) -> None:
    raise SystemExit(128 + number)

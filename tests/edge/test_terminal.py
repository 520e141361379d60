"""The player at a real pseudo-terminal: keys, painting, recording, and the terminal as it was however it ends."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import pytest

import kir
from contract.errors import InputError
from edge import DeviceState, EdgeSession, FakeClock, InstalledModel
from edge._cast import Cast
from edge._player import HELP, LIKE, QUIT, SKIP, THROUGH, PlayClock
from edge._screen import UP
from edge._terminal import UNKNOWN, Terminal, frame, is_interactive, keys_of
from edge.player_cli import play
from tests.edge.conftest import LocalServer
from tests.edge.tiny_page import page_bytes

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Pty:
    """A pseudo-terminal: `stdin` and `stdout` of the program, and the person's side."""

    def __init__(self, encoding: str = "utf-8"):
        self.person, self.program = pty.openpty()
        self.resize(100, 40)
        self.stdin: TextIO = os.fdopen(os.dup(self.program), "r", encoding="utf-8")
        self.stdout: TextIO = os.fdopen(os.dup(self.program), "w", encoding=encoding)

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.program, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def type(self, keys: str) -> None:
        os.write(self.person, keys.encode())

    def seen(self) -> str:
        """All that was painted since the last call."""
        os.set_blocking(self.person, False)
        found = b""
        try:
            while part := os.read(self.person, 65536):
                found += part
        except BlockingIOError:
            return found.decode()
        return found.decode()

    def mode(self) -> list[Any]:
        return termios.tcgetattr(self.program)

    def terminal(self) -> Terminal:
        return Terminal(self.stdin, self.stdout)

    def hang_up(self) -> None:
        os.close(self.person)
        self.person = os.open(os.devnull, os.O_RDONLY)

    def close(self) -> None:
        with suppress(OSError):  # what was left to write, after `hang_up`
            self.stdout.close()
        self.stdin.close()
        os.close(self.person)
        os.close(self.program)


@pytest.fixture
def tty() -> Iterator[Pty]:
    made = Pty()
    yield made
    made.close()


@pytest.fixture
def session(published: Callable[[str], InstalledModel]) -> EdgeSession:
    """On the player's clock, with a page."""
    made = EdgeSession(5, published("kir-a"), clock=PlayClock(FakeClock()), session_id=77)
    made.start()
    made.on_page(page_bytes(range(101, 109)))
    return made


def play_at(tty: Pty, session: EdgeSession, record: Path | None = None) -> Any:
    clock = session._clock
    assert isinstance(clock, PlayClock)
    return play(session, clock, DeviceState(network=6), record, tty.terminal())


class TestKeys:
    @pytest.mark.parametrize(
        ("typed", "keys"),
        [
            (b"lswq", [LIKE, SKIP, THROUGH, QUIT]),
            (b"LSWQ", [LIKE, SKIP, THROUGH, QUIT]),
            (b"?h", [HELP, HELP]),
            (b"\x1b[B\x1bOBs", [SKIP, SKIP, SKIP]),
            (b"\x1b[C\x1b[A", [THROUGH, UNKNOWN]),
            (b"\x1b[1;5Cq", [UNKNOWN, QUIT]),
            (b"\x04", [QUIT]),
            (b"\x1b", [UNKNOWN]),
            ("é\n".encode(), [UNKNOWN, UNKNOWN]),
            (b"\xff", [UNKNOWN]),
            (b"", []),
        ],
    )
    def test_bytes_become_keys(self, typed: bytes, keys: list[str]) -> None:
        assert keys_of(typed) == keys

    def test_a_key_needs_no_enter_and_is_not_echoed(self, tty: Pty) -> None:
        with tty.terminal() as terminal:
            tty.seen()
            tty.type("l")
            assert terminal.keys(5.0) == [LIKE]
            assert terminal.keys(0.0) == []
            assert tty.seen() == ""

    def test_a_terminal_that_is_gone_is_a_quit(self, tty: Pty) -> None:
        with tty.terminal() as terminal:
            tty.hang_up()
            assert terminal.keys(5.0) == [QUIT]


def handlers() -> list[Any]:
    return [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGWINCH)]


class TestRestored:
    @pytest.mark.parametrize("error", [None, RuntimeError("broken"), KeyboardInterrupt()])
    def test_however_it_is_left(self, tty: Pty, error: BaseException | None) -> None:
        before = tty.mode(), handlers()
        with suppress(RuntimeError, KeyboardInterrupt), tty.terminal():
            assert tty.mode() != before[0]
            assert handlers() != before[1]
            if error is not None:
                raise error
        assert (tty.mode(), handlers()) == before
        seen = tty.seen()
        assert seen.startswith("\x1b[?1049h\x1b[?25l\x1b[?7l")
        assert seen.endswith("\x1b[?7h\x1b[?25h\x1b[?1049l")

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
    def test_by_a_signal_that_ends_it(self, tty: Pty, number: signal.Signals) -> None:
        before = tty.mode()
        with pytest.raises(SystemExit) as leaving, tty.terminal():
            signal.raise_signal(number)
        assert leaving.value.code == 128 + number
        assert tty.mode() == before
        assert tty.seen().endswith("\x1b[?1049l")

    def test_when_it_can_not_be_entered(self, tty: Pty, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(self: Terminal, text: str) -> None:
            raise OSError("disk full")

        before = tty.mode(), signal.getsignal(signal.SIGTERM)
        monkeypatch.setattr(Terminal, "_write", fail)
        with pytest.raises(OSError, match="disk full"), tty.terminal():
            pass
        assert (tty.mode(), signal.getsignal(signal.SIGTERM)) == before

    def test_no_handle_stays_open(self, tty: Pty) -> None:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            with tty.terminal():
                pass
        assert len(os.listdir("/proc/self/fd")) == before


class TestPainting:
    def test_a_frame_covers_what_was_there(self) -> None:
        lines = [[("up", UP), (" plain", "")], []]
        assert frame(lines) == "\x1b[H\x1b[32mup\x1b[0m plain\x1b[K\r\n\x1b[K\x1b[J"
        assert frame(lines, colour=False) == "\x1b[Hup plain\x1b[K\r\n\x1b[K\x1b[J"

    def test_no_color_is_kept_to(self, tty: Pty, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NO_COLOR", "1")
        with tty.terminal() as terminal:
            terminal.paint([[("up", UP)]])
        assert "\x1b[32m" not in tty.seen()

    def test_a_new_size_wakes_the_wait_for_keys(self, tty: Pty) -> None:
        with tty.terminal() as terminal:
            assert terminal.size() == (100, 40)
            tty.resize(40, 20)
            signal.raise_signal(signal.SIGWINCH)
            assert terminal.keys(60.0) == []  # pytest's own timeout would end a wait that is not woken
            assert terminal.size() == (40, 20)

    def test_a_size_that_is_not_told(self, tty: Pty) -> None:
        tty.resize(0, 0)
        assert tty.terminal().size() == (80, 24)

    def test_what_the_locale_can_not_write_is_replaced(self) -> None:
        tty = Pty("ascii")
        with tty.terminal() as terminal:
            terminal.paint([[("é…", "")]])
        assert "??" in tty.seen()
        tty.close()


class TestPlay:
    def test_keys_typed_ahead_play_a_session(self, tty: Pty, session: EdgeSession) -> None:
        before = tty.mode()
        tty.type("l")
        tty.type("sw?q")
        choices = play_at(tty, session)
        assert len(choices) == 3
        assert tty.mode() == before
        screens = [ESCAPE.sub("", part) for part in tty.seen().split("\x1b[H")]
        assert f"video {choices[0].video_id}" in screens[1]

    def test_every_key_repaints(self, tty: Pty, session: EdgeSession, monkeypatch: pytest.MonkeyPatch) -> None:
        typed = iter([[LIKE], [SKIP], [HELP], [QUIT]])
        monkeypatch.setattr(Terminal, "keys", lambda self, timeout_s: next(typed))
        choices = play_at(tty, session)
        screens = [ESCAPE.sub("", part) for part in tty.seen().split("\x1b[H")[1:]]
        assert len(screens) == 4
        assert f"pool after you liked {choices[0].video_id}" in screens[1]
        assert f"pool after you skipped {choices[0].video_id}" in screens[2]
        assert "this help on and off" in screens[3]

    def test_an_error_in_the_middle_leaves_terminal_and_recording_whole(
        self, tty: Pty, session: EdgeSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(self: Terminal, timeout_s: float) -> list[str]:
            raise KeyboardInterrupt

        before = tty.mode()
        monkeypatch.setattr(Terminal, "keys", fail)
        with pytest.raises(KeyboardInterrupt):
            play_at(tty, session, tmp_path / "session.cast")
        assert tty.mode() == before
        lines = [json.loads(line) for line in (tmp_path / "session.cast").read_text().splitlines()]
        assert lines[-1][2].endswith("\x1b[?1049l")

    def test_a_recording_holds_what_was_seen(self, tty: Pty, session: EdgeSession, tmp_path: Path) -> None:
        tty.type("lsq")
        assert select.select([tty.person], [], [], 30)[0]  # the kernel echoes in its own time
        assert tty.seen() == "lsq"  # the terminal's own echo, before the player
        play_at(tty, session, tmp_path / "new" / "session.cast")
        header, *events = [json.loads(line) for line in (tmp_path / "new" / "session.cast").read_text().splitlines()]
        assert (header["version"], header["width"], header["height"]) == (2, 100, 40)
        assert "".join(data for _, kind, data in events if kind == "o") == tty.seen().replace("\r\r\n", "\r\n")
        times = [at for at, _, _ in events]
        assert times == sorted(times)

    def test_a_recording_that_is_there_is_kept(self, tty: Pty, session: EdgeSession, tmp_path: Path) -> None:
        path = tmp_path / "session.cast"
        path.write_text("mine")
        with pytest.raises(InputError, match="writes a new file"):
            play_at(tty, session, path)
        assert path.read_text() == "mine"
        assert tty.seen() == ""

    def test_a_recording_tells_a_new_size(self, tmp_path: Path) -> None:
        now = iter([10.0, 10.5, 11.0, 11.0])
        cast = Cast(tmp_path / "c", (80, 24), seconds=lambda: next(now), started_s=1_700_000_000.9)
        header = '{"version": 2, "width": 80, "height": 24, "timestamp": 1700000000, "title": "kir swipe"}\n'
        assert (tmp_path / "c").read_text() == header
        cast.output("µ", (80, 24))
        cast.output("b", (40, 20))
        cast.save()
        assert (tmp_path / "c").read_text() == header + '[0.5, "o", "µ"]\n[1.0, "r", "40x20"]\n[1.0, "o", "b"]\n'


class TestCommand:
    """Which viewer `kir swipe` takes, and what it refuses, before any screen."""

    def test_a_pipe_is_no_person(self, monkeypatch: pytest.MonkeyPatch, tty: Pty) -> None:
        assert not is_interactive()
        monkeypatch.setattr(sys, "stdin", tty.stdin)
        monkeypatch.setattr(sys, "stdout", tty.stdout)
        monkeypatch.setenv("TERM", "xterm")
        assert is_interactive()
        monkeypatch.setenv("TERM", "dumb")
        assert not is_interactive()

    @pytest.mark.parametrize("flags", [[], ["--swipes", "3"]])
    def test_a_recording_needs_the_player(
        self, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert kir.main(["swipe", "--server", "localhost:1", "--record", str(tmp_path / "c"), *flags]) == 2
        assert "--record needs the player" in capsys.readouterr().err
        assert not (tmp_path / "c").exists()

    def test_a_system_without_termios_is_told(self, monkeypatch: pytest.MonkeyPatch, tty: Pty) -> None:
        monkeypatch.setitem(sys.modules, "termios", None)
        with pytest.raises(InputError, match="needs a POSIX terminal"):
            tty.terminal()

    def test_a_server_that_is_down_is_told_before_the_screen(
        self, server: LocalServer, tty: Pty, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr("edge.cli.is_interactive", lambda: True)
        server.stop()
        assert kir.main(["swipe", "--server", server.target]) == 2
        told = capsys.readouterr()
        assert "no page from the server" in told.err
        assert "\x1b" not in told.out
        server.start()

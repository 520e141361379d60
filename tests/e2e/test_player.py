"""A person at a terminal: `kir swipe` as a process on a pseudo-terminal, against real servers on loopback."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.server_process import ServerProcess
from contract.parquet import read_events
from tests.e2e.conftest import SmallLoop

REPOSITORY = Path(__file__).resolve().parents[2]
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
# Takes the pseudo-terminal as its controlling one, so that Ctrl-C reaches it, and becomes `kir`. A shell's background
# job has SIGINT ignored, and so would have all that it starts.
START = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, "-m", "kir", *sys.argv[1:]])
"""
Serve = Callable[..., ServerProcess]


class Person:
    """Starts `kir swipe` on a pseudo-terminal, types, and reads the last screen painted."""

    def __init__(self, server: ServerProcess, user_id: int, *flags: str, columns: int = 100, **environment: str):
        self._keyboard, self._terminal = pty.openpty()
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        self.mode_before = termios.tcgetattr(self._terminal)
        self.output = ""
        command = [sys.executable, "-c", START, "swipe", "--server", server.grpc_address, "--cdn", server.http_url]
        self._process = subprocess.Popen(
            [*command, "--user", str(user_id), *flags],
            stdin=self._terminal,
            stdout=self._terminal,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=REPOSITORY,
            env={**os.environ, "TERM": "xterm-256color", **environment},
        )

    def screen(self) -> str:
        """The last frame, without styles."""
        return ESCAPE.sub("", self.output.rpartition("\x1b[H")[2]).replace("\r", "")

    def type(self, keys: str) -> None:
        os.write(self._keyboard, keys.encode())

    def see(self, pattern: str, timeout_s: float = 60.0) -> re.Match[str]:
        """Wait until the last screen holds the pattern."""
        deadline = time.monotonic() + timeout_s
        while (found := re.search(pattern, self.screen())) is None:
            assert time.monotonic() < deadline, f"no {pattern!r} in\n{self.screen()}"
            self._read()
        return found

    def _read(self) -> None:
        if select.select([self._keyboard], [], [], 0.1)[0]:
            self.output += os.read(self._keyboard, 65536).decode("utf-8", "replace")

    def leave(self, keys: str) -> int:
        """Type and wait for the end; returns the exit status. Typed again after ten seconds: an interrupt that falls
        into a callback is lost to Python, and a person presses again.
        """
        for _ in range(4):
            self.type(keys)
            deadline = time.monotonic() + 10
            while self._process.poll() is None and time.monotonic() < deadline:
                self._read()
            if self._process.poll() is not None:
                break
        while select.select([self._keyboard], [], [], 0)[0]:
            self._read()
        return self._process.wait(5)

    def close(self) -> Any:
        """End the process if it has not ended; returns the mode it left the terminal in."""
        self._process.kill()
        self._process.wait(5)
        mode = termios.tcgetattr(self._terminal)
        os.close(self._keyboard)
        os.close(self._terminal)
        return mode


def trust(small_loop: SmallLoop) -> tuple[str, str]:
    return "--root", str(small_loop.paths.root_json)


def test_a_person_likes_skips_watches_through_and_quits(
    small_loop: SmallLoop, serve: Serve, world: Any, tmp_path: Path
) -> None:
    server = serve(small_loop.paths, "--events", str(tmp_path / "events"))
    person = Person(server, int(world.users.user_id[3]), *trust(small_loop), "--record", str(tmp_path / "session.cast"))
    try:
        shown = [person.see(r"video (\d+) · playing 0:0\d of \d+:\d\d")[1]]
        assert small_loop.first in person.screen()
        person.type("l")
        person.see(rf"pool after you liked {shown[0]} \([+-]0\.\d+ to the first\)")
        for key, did in (("s", "skipped"), ("w", "watched")):
            before = shown[-1]
            person.type(key)
            person.see(rf"pool after you {did} {before}\b")
            shown.append(person.see(r"video (\d+) · playing")[1])
            assert shown[-1] != before
            person.see(r"swipe \d+ µs: maintain \d+ features \d+ engine \d+ choice \d+ · feedback \d+ µs")
            person.see(r"because [^;\n]+ [+-]\d\.\d{3}; ")
            person.see(r"\n *(user|video|server|device|watched) [+-]\d\.\d{3} · ")
            person.see(rf"\n +1 [▲▼=]\d+ +{shown[-1]} +\d\.\d{{3}} +[+-]\d\.\d{{3}} █+")
        assert person.leave("q") == 0
    finally:
        mode = person.close()
    assert mode == person.mode_before
    screens, _, last_line = person.output.rpartition("\x1b[?1049l")
    assert screens.count("\x1b[?1049h") == 1
    told = json.loads(last_line)
    assert told["by_model"] == told["swipes"] == 3
    server.stop()  # which writes all events
    events = read_events(tmp_path / "events")
    assert 1 in events["like"][events["video_id"].astype(str) == shown[0]].tolist()
    header, *lines = (tmp_path / "session.cast").read_text().splitlines()
    assert json.loads(header)["version"] == 2
    assert any(f"pool after you liked {shown[0]}" in ESCAPE.sub("", json.loads(line)[2]) for line in lines)


@pytest.mark.slow
def test_a_person_outlives_the_server(small_loop: SmallLoop, serve: Serve, world: Any) -> None:
    server = serve(small_loop.paths)
    person = Person(server, int(world.users.user_id[5]), *trust(small_loop))
    try:
        first = person.see(r"video (\d+) · playing")[1]
        server.kill()
        person.type("s" * 60)
        person.see("No video is left.*(\n.*)*no page from the server")
        server.start(same_ports=True)
        assert person.see(r"video (\d+) · playing")[1] != first
        assert person.leave("q") == 0
    finally:
        mode = person.close()
    assert mode == person.mode_before


def test_a_narrow_terminal_of_another_locale_and_ctrl_c(small_loop: SmallLoop, serve: Serve, world: Any) -> None:
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    server, user_id = serve(small_loop.paths), int(world.users.user_id[4])
    person = Person(server, user_id, *trust(small_loop), columns=40, **locale)
    try:
        video = person.see(r"video (\d+) - playing")[1]
        person.type("l")
        person.see(rf"pool after you liked {video}(.*\n)*? +1 [\^v=]\d+ .* #+")
        assert person.screen().isascii()
        assert max(len(line) for line in person.screen().splitlines()) <= 40
        assert person.leave("\x03") == 130
    finally:
        mode = person.close()
    assert mode == person.mode_before
    assert "\x1b[?1049l" in person.output
    assert "kir swipe: interrupted" in person.output

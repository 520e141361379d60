"""A trace of one session in Chrome's trace event format: https://ui.perfetto.dev or chrome://tracing open it.

    session = EdgeSession(…, trace=Trace("session.json"))     # written when the session closes

Complete events ("X") with durations and counts: no id, no feature, no time of day. Safe to use from any thread.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from pathlib import Path
from typing import IO

from contract.errors import InputError
from contract.files import replacing

CAPACITY = 50_000  # about 4,000 swipes


class Trace:
    """Spans of a session, the newest `capacity` of them.

    to        a file, replaced whole, or a text stream
    dropped   older spans that made room; saved: whether it was written
    Raises InputError for a capacity below 1.
    """

    def __init__(self, to: str | Path | IO[str], *, capacity: int = CAPACITY):
        if capacity < 1:
            raise InputError("trace: capacity starts at 1", got=capacity)
        self._to = to
        self._spans: deque[tuple[str, int, int, int, str, int]] = deque(maxlen=capacity)
        self._threads: dict[str, int] = {}
        self._lock = threading.Lock()
        self.dropped = 0
        self.saved = False

    def add(self, name: str, start_ns: int, end_ns: int, what: str = "", n: int = 0) -> None:
        """A span of this thread, by one monotonic timer's nanoseconds. what, n: what it was about, and how many."""
        thread = threading.current_thread().name
        with self._lock:
            number = self._threads.setdefault(_role(thread), len(self._threads) + 1)
            self.dropped += len(self._spans) == self._spans.maxlen
            self._spans.append((name, start_ns, end_ns, number, what, n))

    def events(self) -> list[dict[str, object]]:
        """The spans so far as trace events, in order of their begin, those around others first."""
        with self._lock:
            spans, threads = list(self._spans), dict(self._threads)
        spans.sort(key=lambda span: (span[1], -span[2]))
        origin_ns = spans[0][1] if spans else 0
        names = [
            {"name": "thread_name", "ph": "M", "pid": 1, "tid": number, "args": {"name": role}}
            for role, number in threads.items()
        ]
        return [*names, *(_event(origin_ns, *span) for span in spans)]

    def save(self) -> None:
        """Write the trace. Raises OSError when the file can't be written; what was there stays then."""
        told = {"traceEvents": self.events(), "displayTimeUnit": "ms", "otherData": {"dropped": self.dropped}}
        text = json.dumps(told)
        if isinstance(self._to, (str, Path)):
            with replacing(self._to) as file:
                file.write(text.encode())
        else:
            self._to.write(text)
        self.saved = True


def _event(origin_ns: int, name: str, start_ns: int, end_ns: int, thread: int, what: str, n: int) -> dict[str, object]:
    return {
        "name": name,
        "cat": "kir",
        "ph": "X",
        "ts": (start_ns - origin_ns) / 1e3,
        "dur": (end_ns - start_ns) / 1e3,
        "pid": 1,
        "tid": thread,
        "args": {what: n} if what else {},
    }


def _role(thread: str) -> str:
    """Threads of this package by what they do; every other one drives the session."""
    return {"kir-page": "pages", "kir-feedback": "feedback"}.get(thread.partition("_")[0], "session")

"""What one input may do: nothing, or one of the errors that its target documents. All else is a finding.

    with Judge(TARGETS["page"]) as judge:
        finding = judge.judge(data)      # None: as it should be

Held for each input: the error's type, one short line of text, no warning, TIME_LIMIT_S of CPU time, and memory of
MEMORY_FLOOR_BYTES + MEMORY_PER_BYTE times its size (Python's and numpy's, by tracemalloc; protobuf's own arena is held
by PAGE_BYTES_MAX). CPU time, not wall time: the machine is shared.
"""

from __future__ import annotations

import signal
import time
import traceback
import tracemalloc
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Self

from contract.errors import KirError

TIME_LIMIT_S = 1.0
HANG_S = 20.0  # CPU seconds after which an input is broken off
MEMORY_FLOOR_BYTES = 32 * 2**20
MEMORY_PER_BYTE = 64
LINE_MAX = 1_000
REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Target:
    """One thing that reads bytes of others.

    seeds   valid inputs to start from
    run     takes an input; raises `errors` for a bad one, and AssertionError when what came out does not hold together
    errors  what it documents
    shape   what an input is to the mutator: "json", a protobuf message class, or an object with `parses(data)` and
            `change(data, rng)`
    seal    makes a mutated input pass a checksum, so that what lies behind it is reached too
    """

    name: str
    seeds: Callable[[], list[bytes]]
    run: Callable[[bytes], object]
    errors: tuple[type[KirError], ...]
    shape: Any = "json"
    seal: Callable[[bytes], bytes] = bytes


@dataclass(frozen=True)
class Finding:
    """An input that did what none may. key: same cause, same key."""

    kind: str
    detail: str
    place: str
    data: bytes

    @property
    def key(self) -> tuple[str, str, str]:
        return self.kind, self.detail.partition(":")[0], self.place

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail} at {self.place} ({len(self.data)} bytes)"


class _Hang(BaseException):
    """Not an Exception: code that survives whatever its engine raises must not survive this."""


def _hang(signum: int, frame: FrameType | None) -> NoReturn:
    raise _Hang(f"no end after {HANG_S} s of CPU time")


class Judge:
    """Judges inputs one after the other, in the main thread: it owns tracemalloc, warnings and SIGVTALRM meanwhile."""

    def __init__(self, target: Target):
        self.target = target
        self._warned: list[str] = []

    def __enter__(self) -> Self:
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.simplefilter("always")
        warnings.showwarning = self._warn  # type: ignore[assignment]
        self._handler = signal.signal(signal.SIGVTALRM, _hang)
        tracemalloc.start()
        return self

    def __exit__(self, *_: object) -> None:
        tracemalloc.stop()
        signal.signal(signal.SIGVTALRM, self._handler)
        self._warnings.__exit__(None, None, None)

    def _warn(self, message: Any, category: type[Warning], filename: str, lineno: int, *_: object) -> None:
        self._warned.append(f"{category.__name__}: {message} at {_relative(filename)}:{lineno}")

    def judge(self, data: bytes) -> Finding | None:
        """Run one input. None when it did what it may."""
        self._warned.clear()
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        start = time.thread_time()
        signal.setitimer(signal.ITIMER_VIRTUAL, HANG_S)
        wrong = None
        try:
            self.target.run(data)
        except self.target.errors as error:
            line = str(error)
            if "\n" in line or len(line) > LINE_MAX:
                wrong = ("line", f"{type(error).__name__} of {len(line)} characters", _place(error))
        except (Exception, _Hang) as error:
            wrong = ("error", f"{type(error).__name__}: {error}"[:300], _place(error))
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        if wrong is None:
            wrong = self._overspent(time.thread_time() - start, tracemalloc.get_traced_memory()[1] - before, len(data))
        return None if wrong is None else Finding(*wrong, data)

    def _overspent(self, seconds: float, peak: int, size: int) -> tuple[str, str, str] | None:
        if self._warned:
            what, _, place = self._warned[0].rpartition(" at ")
            return "warning", what, place
        if seconds > TIME_LIMIT_S:
            return "slow", f"over {TIME_LIMIT_S} s: {seconds:.1f} s", self.target.name
        limit = MEMORY_FLOOR_BYTES + MEMORY_PER_BYTE * size
        if peak > limit:
            return "memory", f"over the limit: {peak} bytes of {limit}", self.target.name
        return None


def _place(error: BaseException) -> str:
    """The innermost line of this repository, tests left out: where the fault is, not which library said so."""
    frames = traceback.extract_tb(error.__traceback__)
    here = [f for f in frames if Path(f.filename).is_relative_to(REPOSITORY)]
    rooms = [f for f in here if not _relative(f.filename).startswith("tests/")] or here
    return f"{_relative(rooms[-1].filename)}:{rooms[-1].lineno}" if rooms else "?"


def _relative(filename: str) -> str:
    path = Path(filename)
    return path.relative_to(REPOSITORY).as_posix() if path.is_relative_to(REPOSITORY) else path.name

"""What the parts of one session tell the outside: metrics, a trace when there is one, the error swallowed last."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

from edge._metrics import Metrics
from edge._trace import Trace

TimerNs = Callable[[], int]
Span = Callable[[str], AbstractContextManager[None]]


def no_span(name: str) -> AbstractContextManager[None]:
    """Stands for `Telemetry.span` where nobody looks."""
    return nullcontext()


class _Span:
    """Written out, since a generator's context costs a swipe three times as much."""

    __slots__ = ("_args", "_start_ns", "_telemetry")

    def __init__(self, telemetry: Telemetry, name: str, what: str, n: int):
        self._telemetry, self._args = telemetry, (name, what, n)
        self._start_ns = 0

    def __enter__(self) -> None:
        self._start_ns = self._telemetry.timer_ns()

    def __exit__(self, *error: object) -> None:
        name, what, n = self._args
        self._telemetry.stage(name, self._start_ns, self._telemetry.timer_ns(), what, n)


class Telemetry:
    """Shared by the parts of a session. last_error: what was swallowed last, since nothing may stop a swipe."""

    def __init__(self, trace: Trace | None = None, timer_ns: TimerNs = time.perf_counter_ns) -> None:
        self.metrics = Metrics()
        self.trace = trace
        self.last_error: Exception | None = None
        self.timer_ns = timer_ns

    def swallowed(self, error: Exception) -> None:
        """Keep an error that costs no swipe."""
        self.last_error = error
        self.metrics.add("kir.edge.errors")

    def span(self, name: str, what: str = "", n: int = 0) -> _Span:
        """A stage: its duration into `kir.edge.stage.duration`, its span into the trace. From any thread.

        what, n: what it was about and how many, for the trace.
        """
        return _Span(self, name, what, n)

    def stage(self, name: str, start_ns: int, end_ns: int, what: str = "", n: int = 0) -> None:
        """A stage that its caller timed, as `span` has it."""
        self.metrics.record("kir.edge.stage.duration", (end_ns - start_ns) / 1e3, name)
        if self.trace is not None:
            self.trace.add(name, start_ns, end_ns, what, n)

    def swipe(
        self, start_ns: int, settled_ns: int, began_ns: int, end_ns: int, us: Mapping[str, float], n: int
    ) -> None:
        """A swipe by its times and stages. began_ns: when features began, 0 when no model was asked; n: candidates."""
        search_us = us.get("search", 0.0)
        self.metrics.swiped(us["maintain"], us["features"], us["engine"], us["choice"], us["total"])
        if search_us:
            self.metrics.record("kir.edge.swipe.stage.duration", search_us, "search")
        if self.trace is None:
            return
        self.trace.add("swipe", start_ns, end_ns, "candidates", n)
        self.trace.add("settle", start_ns, settled_ns)
        self.trace.add("choose", settled_ns, end_ns)
        if began_ns:
            ready_ns = began_ns + int(us["features"] * 1e3)
            self.trace.add("features", began_ns, ready_ns)
            self.trace.add("engine", ready_ns, ready_ns + int(us["engine"] * 1e3))
        if search_us:
            self.trace.add("search", end_ns - int(search_us * 1e3), end_ns)

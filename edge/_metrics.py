"""What a session counts and how long its stages take, under OpenTelemetry-style names that a host app reads.

    session.metrics.snapshot()["kir.edge.swipe.duration"]["p99"]        # microseconds

Nothing is sent anywhere. Thread-safe; two numbers of one snapshot may be a swipe apart. What happens is only noted;
counters and log-spaced buckets are filled off the swipe path.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from contract.errors import InputError

COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"


class Metric(NamedTuple):
    """unit: "us" microseconds, "1" a count; attribute: what its values are told apart by, "" for nothing."""

    kind: str
    unit: str
    attribute: str
    doc: str


METRICS = {
    "kir.edge.swipes": Metric(COUNTER, "1", "", "videos that `next` returned"),
    "kir.edge.swipe.duration": Metric(HISTOGRAM, "us", "", "`next`, from its call to its choice"),
    "kir.edge.swipe.stage.duration": Metric(HISTOGRAM, "us", "stage", "maintain, features, engine, search, choice"),
    "kir.edge.fallbacks": Metric(COUNTER, "1", "reason", "swipes in the server's order, by what stands before a colon"),
    "kir.edge.pool.exhausted": Metric(COUNTER, "1", "", "swipes that found nothing to show"),
    "kir.edge.pool.evictions": Metric(COUNTER, "1", "reason", "candidates that left unshown"),
    "kir.edge.pool.candidates": Metric(GAUGE, "1", "", "left to show"),
    "kir.edge.pages": Metric(COUNTER, "1", "", "pages taken in"),
    "kir.edge.pages.refused": Metric(COUNTER, "1", "", "pages that could not be trusted"),
    "kir.edge.pages.unscored": Metric(COUNTER, "1", "reason", "pages taken in that no model can score"),
    "kir.edge.fetch.failures": Metric(COUNTER, "1", "", "pages that did not come"),
    "kir.edge.default_rows": Metric(COUNTER, "1", "", "entries of pages without a row of their own"),
    "kir.edge.feedback": Metric(COUNTER, "1", "outcome", "feedback taken in"),
    "kir.edge.watched.evictions": Metric(COUNTER, "1", "", "videos dropped from a full watched list"),
    "kir.edge.watched.videos": Metric(GAUGE, "1", "", "in the watched list"),
    "kir.edge.stage.duration": Metric(HISTOGRAM, "us", "stage", "off the swipe path: the spans of the trace"),
    "kir.edge.uploads": Metric(COUNTER, "1", "result", "feedback events: accepted, duplicates, rejected, dropped"),
    "kir.edge.model.updates": Metric(COUNTER, "1", "", "models that `update` offered"),
    "kir.edge.model.activations": Metric(COUNTER, "1", "", "models that took over"),
    "kir.edge.state.set_aside": Metric(COUNTER, "1", "", "state files that could not be used"),
    "kir.edge.state.failures": Metric(COUNTER, "1", "", "saves that the system refused"),
    "kir.edge.state.dropped": Metric(COUNTER, "1", "", "unsent feedback above the outbox's bound"),
    "kir.edge.errors": Metric(COUNTER, "1", "", "errors swallowed; `last_error` is the last"),
}
SWIPE_STAGES = ("maintain", "features", "engine", "choice")
PENDING_MAX = 512  # swipes not yet in their buckets
# Upper bounds of buckets, a factor of √2 apart: 1 us … 11 s. What is slower goes into one more.
BOUNDS_US = tuple(round(2 ** (i / 2), 2) for i in range(48))


class Histogram:
    """Durations in microseconds, in buckets of BOUNDS_US."""

    __slots__ = ("buckets", "largest", "total")

    def __init__(self) -> None:
        self.buckets = [0] * (len(BOUNDS_US) + 1)
        self.total = self.largest = 0.0

    def record(self, us: float) -> None:
        self.buckets[bisect_left(BOUNDS_US, us)] += 1
        self.total += us
        if us > self.largest:
            self.largest = us

    def snapshot(self) -> dict[str, Any]:
        """count, sum, max, p50, p90, p99 (within a bucket's width) and the buckets, all in microseconds."""
        buckets, largest = list(self.buckets), self.largest
        quantiles = {f"p{percent}": _quantile(buckets, percent / 100, largest) for percent in (50, 90, 99)}
        told = {"unit": "us", "count": sum(buckets), "sum": round(self.total, 1), "max": round(largest, 1)}
        return {**told, **quantiles, "bounds": list(BOUNDS_US), "buckets": buckets}


def _quantile(buckets: Sequence[int], share: float, largest: float) -> float:
    """Geometric within the bucket where the share is reached; 0 without a value."""
    rank, below = share * sum(buckets), 0
    for i, n in enumerate(buckets):
        if n and below + n >= rank:
            if i >= len(BOUNDS_US):
                break
            upper = BOUNDS_US[i]
            return round(min(largest, upper * 2 ** (-0.5 * (1 - (rank - below) / n))), 1)
        below += n
    return round(largest, 1)


class Metrics:
    """The metrics of one session, by the names in TABLE."""

    TABLE = METRICS

    def __init__(self) -> None:
        self._counters: dict[str, int] = {}
        self._observed: dict[str, Callable[[], int | Mapping[str, int]]] = {}
        self._histograms: dict[str, Histogram] = {}
        # Made before the first swipe, which finds them without a lookup by name.
        self._swipe = self._histogram("kir.edge.swipe.duration")
        stages = [self._histogram("kir.edge.swipe.stage.duration", stage) for stage in SWIPE_STAGES]
        self._swiped = (*stages, self._swipe)
        self._pending: deque[tuple[float, ...]] = deque()
        self._noted: deque[tuple[str, str, float]] = deque()  # name, value, and how many or how long
        self._lock = threading.Lock()

    def add(self, name: str, n: int = 1, value: str = "") -> None:
        """Count. value: of the metric's attribute."""
        self._note(name, value, n)

    def record(self, name: str, us: float, value: str = "") -> None:
        """A duration in microseconds."""
        self._note(name, value, us)

    def _note(self, name: str, value: str, amount: float) -> None:
        """Sorted in by `fold`, as swipes are: a feedback counts and times three things."""
        if name not in METRICS:
            _key(name, value)
        self._noted.append((name, value, amount))
        if len(self._noted) > PENDING_MAX:
            self.fold()

    def swiped(self, *us: float) -> None:
        """The stages of one swipe, in the order of SWIPE_STAGES, and the whole. Sorted into buckets by `fold`."""
        self._pending.append(us)
        if len(self._pending) > PENDING_MAX:  # nobody folds: then each swipe does for one
            self.fold(1)

    def fold(self, n: int = PENDING_MAX) -> None:
        """Take what was noted into counters and histograms; `maintain` and `snapshot` do. From any thread."""
        with self._lock:
            for _ in range(len(self._noted)):
                name, value, amount = self._noted.popleft()
                if METRICS[name].kind == HISTOGRAM:
                    self._histogram(name, value).record(amount)
                else:
                    key = _key(name, value)
                    self._counters[key] = self._counters.get(key, 0) + int(amount)
            for _ in range(min(n, len(self._pending))):
                for histogram, us in zip(self._swiped, self._pending.popleft(), strict=True):
                    histogram.record(us)

    def observe(self, name: str, read: Callable[[], int | Mapping[str, int]]) -> None:
        """A number that another part keeps: read at each snapshot, a mapping by the attribute's values."""
        _key(name, "")
        self._observed[name] = read

    def _histogram(self, name: str, value: str = "") -> Histogram:
        key = _key(name, value)
        if key not in self._histograms:
            self._histograms[key] = Histogram()
        return self._histograms[key]

    def snapshot(self) -> dict[str, Any]:
        """Name, or "name{attribute=value}", to a number or a histogram; JSON-ready. From any thread."""
        self.fold()
        found: dict[str, Any] = {
            name: 0 for name, metric in METRICS.items() if metric.kind == COUNTER and not metric.attribute
        }
        found["kir.edge.swipes"] = sum(self._swipe.buckets)
        found |= dict(self._counters)
        for name, read in dict(self._observed).items():
            value = read()
            found |= {_key(name, v): n for v, n in dict(value).items()} if isinstance(value, Mapping) else {name: value}
        return found | {key: histogram.snapshot() for key, histogram in dict(self._histograms).items()}


def _key(name: str, value: str) -> str:
    metric = METRICS.get(name)
    if metric is None:
        raise InputError("no such metric", got=name, allowed=sorted(METRICS))
    return f"{name}{{{metric.attribute}={value}}}" if value else name

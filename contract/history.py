"""A user's history: positive watches, which KuaiFormer reads (last 256), or every impression with what came of it,
which the ranker reads (last 50). Trained and served.

A positive is an impression with long_view == 1 or like == 1. Histories are oldest first and right-aligned: padding
comes first. `gap_ms` is the time since the entry before it, frozen when it was appended; null when there is none.

`HistoryIndex` builds many histories at once from a log; `UserHistory` holds one user's on the server, in real time.
The same events give the same columns on both sides (tests/training/test_history.py).

Shapes: n histories, L history, P entries (positives or impressions), U users.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.errors import EventError, InputError
from contract.events import Events
from contract.vocabulary import MISSING_KEY, NULL_INT, SIGNALS, TAGS_MAX

KUAIFORMER_HISTORY, RANKER_HISTORY = 256, 50

# name -> (dtype, trailing shape, null): the raw columns that history features read.
HISTORY_COLUMNS: dict[str, tuple[Any, tuple[int, ...], Any]] = {
    "video_id": (np.uint64, (), MISSING_KEY),
    "author_id": (np.uint64, (), MISSING_KEY),
    "tags": (np.uint64, (TAGS_MAX,), MISSING_KEY),
    "duration_ms": (np.int32, (), NULL_INT),
    "music_id": (np.uint64, (), MISSING_KEY),
    "kind": (np.uint64, (), MISSING_KEY),
    "play_time_ms": (np.int32, (), NULL_INT),
    "signals": (np.int8, (len(SIGNALS),), NULL_INT),
    "gap_ms": (np.int64, (), NULL_INT),
}
FROM_EVENTS = tuple(name for name in HISTORY_COLUMNS if name != "gap_ms")
FEEDBACK = ("play_time_ms", "signals")  # what an amendment may change

Columns = dict[str, NDArray[Any]]


def is_positive(long_view: Any, like: Any) -> Any:
    """True where a video was watched long or liked; null (-1) is neither. Scalars or arrays."""
    return (np.asarray(long_view) == 1) | (np.asarray(like) == 1)


def gap_between(time_ms: Any, before_ms: Any) -> NDArray[np.int64]:
    """time_ms - before_ms; null when either is null or time runs backwards."""
    time_ms, before_ms = np.asarray(time_ms, np.int64), np.asarray(before_ms, np.int64)
    known = (time_ms >= 0) & (before_ms >= 0) & (time_ms >= before_ms)
    return np.where(known, time_ms - before_ms, np.int64(NULL_INT))


def available_at(events: Events) -> NDArray[np.int64]:
    """When each impression's feedback could be known: known_at_ms, else the end of play. int64 [n], -1 = no time."""
    time_ms, known_ms = events["time_ms"], events["known_at_ms"]
    end_ms = time_ms + np.maximum(events["play_time_ms"], 0)
    return np.where(time_ms < 0, np.int64(NULL_INT), np.where(known_ms >= 0, known_ms, end_ms))


def _column(events: Events, name: str) -> NDArray[Any]:
    return events.signals if name == "signals" else events[name]


def _empty(*shape: int) -> Columns:
    return {name: np.full((*shape, *tail), null, dtype=dtype) for name, (dtype, tail, null) in HISTORY_COLUMNS.items()}


@dataclass(frozen=True)
class HistoryIndex:
    """All positives, or all impressions, of a log: users side by side, oldest first.

    columns  HISTORY_COLUMNS, each [P]
    event    int64 [P], the row of the log it came from
    time_ms  int64 [P]
    known_ms int64 [P], running maximum within the user of when feedback was available
    user_id  uint64 [U], ascending
    offsets  int64 [U + 1]: user u owns entries [offsets[u], offsets[u + 1])
    """

    columns: Mapping[str, NDArray[Any]]
    event: NDArray[np.int64]
    time_ms: NDArray[np.int64]
    known_ms: NDArray[np.int64]
    user_id: NDArray[np.uint64]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.event)

    @property
    def user_P(self) -> NDArray[np.int64]:
        """Whose each positive is, as a number in `user_id`: [P]."""
        return np.repeat(np.arange(len(self.user_id)), np.diff(self.offsets))

    @staticmethod
    def from_events(events: Events, *, every: bool = False, among: NDArray[np.bool_] | None = None) -> HistoryIndex:
        """Build from a log in any order; rows of one user at one time keep the log's order. Null times come first.

        every: all impressions, not only the positives. among: bool [n], no other impressions than these.
        """
        kept = np.ones(len(events), bool) if every else is_positive(events["long_view"], events["like"])
        if among is not None:
            kept = kept & among
        rows = np.flatnonzero(kept)
        rows = rows[np.lexsort((events["time_ms"][rows], events["user_id"][rows]))]
        user_P, time_P = events["user_id"][rows], events["time_ms"][rows]
        user_id, starts = np.unique(user_P, return_index=True)
        offsets = np.append(starts, len(rows)).astype(np.int64)
        first_P = np.zeros(len(rows), bool)
        first_P[starts] = True
        before_P = np.where(first_P, np.int64(NULL_INT), np.roll(time_P, 1))
        columns: Columns = {name: _column(events, name)[rows] for name in FROM_EVENTS}
        columns["gap_ms"] = gap_between(time_P, before_P)
        known_P = _running_maximum(available_at(events)[rows], np.cumsum(first_P))
        return HistoryIndex(columns, rows, time_P, known_P, user_id, offsets)

    def bounds(
        self, user_ids: NDArray[np.uint64], time_ms: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Positives [start, end) of each user that may be used at `time_ms`: int64 [n] twice.

        The availability rule: shown before `time_ms` and feedback known by then; positives without a time count as
        earlier. The longest prefix that holds is taken. A null `time_ms` asks for all of the user's positives.
        Users without positives get start == end.
        """
        user_ids, time_ms = np.asarray(user_ids, np.uint64), np.asarray(time_ms, np.int64)
        if not len(self.user_id):
            nothing = np.zeros(len(user_ids), np.int64)
            return nothing, nothing.copy()
        place = np.minimum(np.searchsorted(self.user_id, user_ids), len(self.user_id) - 1)
        known = self.user_id[place] == user_ids
        start = np.where(known, self.offsets[place], 0)
        limit = np.where(known, self.offsets[place + 1], 0)
        shown = _first_from(self.time_ms, start, limit, time_ms, strict=False)
        told = _first_from(self.known_ms, start, limit, time_ms, strict=True)
        return start, np.where(time_ms < 0, limit, np.minimum(shown, told))

    def bounds_in_log_order(
        self, user_ids: NDArray[np.uint64], event: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Positives [start, end) of impressions without a time: those without a time that stand before row `event`."""
        start, end = self.bounds(user_ids, np.zeros(len(user_ids), np.int64))
        return start, _first_from(self.event, start, end, np.asarray(event, np.int64), strict=False)

    def windows(self, start: NDArray[np.int64], end: NDArray[np.int64], length: int) -> NDArray[np.int64]:
        """Places of the last `length` positives of each [start, end): int64 [n, length], right-aligned; padding -1."""
        index_nL = end[:, None] - length + np.arange(length)
        return np.where(index_nL >= start[:, None], index_nL, np.int64(-1))

    def gather(self, index_nL: NDArray[np.int64]) -> Columns:
        """HISTORY_COLUMNS of `windows`, nulls in the padding: each [n, L, …]."""
        found = _empty(*index_nL.shape)
        present = index_nL >= 0
        for name, column in found.items():
            column[present] = self.columns[name][index_nL[present]]
        return found

    def latest(self, user_ids: NDArray[np.uint64], length: int, time_ms: NDArray[np.int64] | None = None) -> Columns:
        """The last `length` positives of each user (known at `time_ms`, when given): columns [n, length, …]."""
        when = np.full(len(user_ids), NULL_INT, np.int64) if time_ms is None else time_ms
        return self.gather(self.windows(*self.bounds(user_ids, when), length))

    def user_history(self, user_id: int, capacity: int) -> UserHistory:
        """One user's history as the server holds it."""
        (start,), (end,) = self.bounds(np.array([user_id], np.uint64), np.array([NULL_INT]))
        history = UserHistory(capacity)
        for place in range(max(start, end - capacity), end):
            item = {name: self.columns[name][place] for name in FROM_EVENTS}
            history.append(item, int(self.time_ms[place]), gap_ms=int(self.columns["gap_ms"][place]))
        return history


class UserHistory:
    """The last `capacity` entries of one user, oldest first. Not thread-safe."""

    def __init__(self, capacity: int):
        if capacity < 1:
            raise InputError("history capacity starts at 1", got=capacity)
        self.capacity = capacity
        # Twice the room: appending moves the rows only once in `capacity` times.
        self._columns = _empty(2 * capacity)
        self._end = 0
        self._last_ms = NULL_INT

    def __len__(self) -> int:
        return min(self._end, self.capacity)

    def offer(self, item: Mapping[str, Any]) -> bool:
        """Append an impression if it is a positive; True then. `item`: event columns, left-out ones are null."""
        if not bool(is_positive(item.get("long_view", NULL_INT), item.get("like", NULL_INT))):
            return False
        self.append({name: item[name] for name in FROM_EVENTS if name in item}, int(item.get("time_ms", NULL_INT)))
        return True

    def append(self, item: Mapping[str, Any], time_ms: int, *, gap_ms: int | None = None) -> None:
        """Add one entry. gap_ms is worked out from the times unless given. Raises EventError for unknown columns."""
        unknown = sorted(set(item) - set(FROM_EVENTS))
        if unknown:
            raise EventError("not a column of a history", got=unknown, allowed=FROM_EVENTS)
        if self._end == 2 * self.capacity:
            for column in self._columns.values():
                column[: self.capacity] = column[self.capacity :]
            self._end = self.capacity
        for name in FROM_EVENTS:
            self._columns[name][self._end] = item.get(name, HISTORY_COLUMNS[name][2])
        self._columns["gap_ms"][self._end] = gap_between(time_ms, self._last_ms) if gap_ms is None else gap_ms
        self._last_ms = time_ms
        self._end += 1

    def amend(self, video_id: int, feedback: Mapping[str, Any]) -> bool:
        """Replace FEEDBACK of the latest entry with this id; False when none is held. Raises EventError for others."""
        unknown = sorted(set(feedback) - set(FEEDBACK))
        if unknown:
            raise EventError("not feedback of a history", got=unknown, allowed=FEEDBACK)
        first = self._end - len(self)
        found = np.flatnonzero(self._columns["video_id"][first : self._end] == np.uint64(video_id))
        for name, value in feedback.items() if len(found) else ():
            self._columns[name][first + found[-1]] = value
        return bool(len(found))

    def take_latest(self, other: UserHistory, n: int) -> None:
        """Append the last n entries that `other` holds, gaps as they stand there."""
        end = other._end
        for place in range(max(0, end - min(n, len(other))), end):
            item = {name: other._columns[name][place] for name in FROM_EVENTS}
            self.append(item, other._last_ms, gap_ms=int(other._columns["gap_ms"][place]))

    def columns(self, length: int | None = None) -> Columns:
        """The last `length` (capacity) entries, right-aligned with nulls in front: each [length, …], a copy."""
        length = self.capacity if length is None else length
        if length > self.capacity:
            raise InputError("longer than the history's capacity", got=length, allowed=self.capacity)
        held = min(len(self), length)
        found = _empty(length)
        for name, column in found.items():
            column[length - held :] = self._columns[name][self._end - held : self._end]
        return found

    def mask(self, length: int | None = None) -> NDArray[np.float32]:
        """1 where `columns` holds an entry, 0 in the padding: float32 [length]."""
        length = self.capacity if length is None else length
        return (np.arange(length) >= length - min(len(self), length)).astype(np.float32)


def _running_maximum(values: NDArray[np.int64], group: NDArray[np.int64]) -> NDArray[np.int64]:
    """Running maximum within each group; `group` ascends."""
    if not len(values):
        return values
    low = values.min()
    span = values.max() - low + 1
    highest: NDArray[np.int64] = np.maximum.accumulate(group * span + (values - low))
    running: NDArray[np.int64] = highest - group * span + low
    return running


def _first_from(
    sorted_P: NDArray[np.int64],
    start: NDArray[np.int64],
    limit: NDArray[np.int64],
    value: NDArray[np.int64],
    strict: bool,
) -> NDArray[np.int64]:
    """First place in [start, limit) with a value >= `value` (strict: > `value`), else `limit`; a binary search each."""
    low, high = start.copy(), limit.copy()
    while bool((low < high).any()):
        middle = (low + high) // 2
        at = sorted_P[np.minimum(middle, len(sorted_P) - 1)]
        right = (low < high) & ((at <= value) if strict else (at < value))
        low, high = np.where(right, middle + 1, low), np.where(right | (low >= high), high, middle)
    return low

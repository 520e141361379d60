"""The watched list: what is in it, in which order, as of when. One state machine for training, server and edge.

Slot 0 always holds the start token; watched videos take slots 1 … L in the order in which they were appended, and a
token is frozen when appended. When the list is full, the oldest L/2 are dropped AFTER the choice has been returned
(`evict_if_full`): upper layers of a causal stack mix old items in, so a sliding window could not be cached.
Each call tells from which slot on cached keys and values must be computed again.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from contract.errors import InputError
from contract.vocabulary import MISSING_KEY, NULL_INT, SIGNALS, TAGS_MAX, X_PXTR

AMENDABLE = 8  # feedback of the last so many items is re-run; older amendments go to the log only

# name -> (dtype, trailing shape, null). The raw columns that watch-time features read. number: the user's running
# number of the impression.
WATCHED_COLUMNS: dict[str, tuple[Any, tuple[int, ...], Any]] = {
    "video_id": (np.uint64, (), MISSING_KEY),
    "author_id": (np.uint64, (), MISSING_KEY),
    "tags": (np.uint64, (TAGS_MAX,), MISSING_KEY),
    "duration_ms": (np.int32, (), NULL_INT),
    "pxtr": (np.float32, (X_PXTR,), np.nan),
    "play_time_ms": (np.int32, (), NULL_INT),
    "signals": (np.int8, (len(SIGNALS),), NULL_INT),
    "gap_ms": (np.int64, (), NULL_INT),
    "profile_stay_ms": (np.int32, (), NULL_INT),
    "comment_stay_ms": (np.int32, (), NULL_INT),
    "volume": (np.float32, (), np.nan),
    "landscape": (np.int8, (), NULL_INT),
    "shown_at_ms": (np.int64, (), NULL_INT),
    "number": (np.int64, (), NULL_INT),
    "start": (np.bool_, (), False),
}
ITEM_COLUMNS = frozenset(WATCHED_COLUMNS) - {"start", "gap_ms"}  # what an appended item may hold
_TIMES = ("shown_at_ms", "number")  # the rows of `at`
_NULLS = tuple((name, null) for name, (_, _, null) in WATCHED_COLUMNS.items())
FEEDBACK_COLUMNS = ("play_time_ms", "signals", "profile_stay_ms", "comment_stay_ms")
_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Change(NamedTuple):
    """What a call did. Keys and values of slots [first_slot, length) are stale; none when first_slot == length.

    dropped: how many of the oldest videos went (slots 1 … dropped); the rest moved down by as many.
    """

    first_slot: int
    length: int
    dropped: int = 0

    @property
    def stale(self) -> int:
        return self.length - self.first_slot


class WatchedList:
    """Struct-of-arrays with capacity L + 1 slots. Not thread-safe.

    `columns()` gives views of the filled slots [0, length); write to them never.
    at: when each was shown and as which impression, float64 [2, L + 1] (shown_at_ms, number), for `contract.ages`; a
    null is infinity, never.
    """

    def __init__(self, capacity: int):
        if capacity < 2 or capacity % 2:
            raise InputError("watched-list capacity L must be an even number from 2", got=capacity)
        self.capacity = capacity
        self._arrays = {
            name: np.full((capacity + 1, *shape), null, dtype=dtype)
            for name, (dtype, shape, null) in WATCHED_COLUMNS.items()
        }
        self._arrays["start"][0] = True
        self.at = np.full((len(_TIMES), capacity + 1), np.inf)
        self.length = 1  # slots in use, the start token included
        self._prepared: Mapping[str, Any] | None = None  # whose columns stand in the next slot already

    @property
    def n_watched(self) -> int:
        return self.length - 1

    def columns(self, first_slot: int = 0, end_slot: int | None = None) -> Mapping[str, NDArray[Any]]:
        end = self.length if end_slot is None else end_slot
        return {name: array[first_slot:end] for name, array in self._arrays.items()}

    def prepare(self, item: Mapping[str, Any]) -> None:
        """Write what is known of a video into the slot that it takes when `append` gets this very mapping, so that its
        feedback finds little left to do. Changes nothing else; no room: does nothing.

        Raises InputError for an unknown column.
        """
        if not item.keys() <= ITEM_COLUMNS:
            raise InputError("not a column of a watched item", got=sorted(set(item) - ITEM_COLUMNS))
        self._prepared = None
        if self.length > self.capacity:
            return
        arrays, slot = self._arrays, self.length
        for name, null in _NULLS:
            arrays[name][slot] = item.get(name, null)
        self._prepared = item

    def append(self, item: Mapping[str, Any], feedback: Mapping[str, Any] = _NOTHING) -> Change:
        """Add one watched video; `item` holds WATCHED_COLUMNS values, left-out ones are null. feedback: more of them.

        gap_ms is worked out here from shown_at_ms (to the previous item; null when either is null or negative).
        Raises InputError when the list is full (call `evict_if_full` after each choice) or a column is unknown.
        """
        slot, arrays = self.length, self._arrays
        if slot > self.capacity:
            raise InputError("watched list is full", got=self.n_watched, fix="call evict_if_full after the choice")
        if not feedback.keys() <= ITEM_COLUMNS:
            raise InputError("not a column of a watched item", got=sorted(set(feedback) - ITEM_COLUMNS))
        if item is not self._prepared:
            self.prepare(item)
        self._prepared = None
        for name, value in feedback.items():
            arrays[name][slot] = value
        shown = arrays["shown_at_ms"]
        now, before = shown.item(slot), shown.item(slot - 1)
        arrays["gap_ms"][slot] = now - before if slot > 1 and now >= before >= 0 else NULL_INT
        number = arrays["number"].item(slot)
        self.at[0, slot], self.at[1, slot] = now if now >= 0 else np.inf, number if number >= 0 else np.inf
        self.length = slot + 1
        return Change(slot, slot + 1)

    def gap_ms(self, slot: int) -> int:
        """Milliseconds from the video before to that of a slot, as `append` found it; -1 = null."""
        return int(self._arrays["gap_ms"].item(slot))

    def restore(self, columns: Mapping[str, NDArray[Any]]) -> None:
        """Fill an empty list with watched videos as they stood, oldest first: columns [n, …] of WATCHED_COLUMNS.

        Tokens are frozen: gap_ms is taken as it was, since the video before may be gone. Raises InputError when there
        are more than L, or the list is not empty.
        """
        n = len(columns["video_id"])
        if self.length != 1 or n > self.capacity:
            raise InputError("an empty list takes up to L videos", got=(self.n_watched, n), allowed=self.capacity)
        for name, array in self._arrays.items():
            array[1 : 1 + n] = columns[name]
        self._arrays["start"][1 : 1 + n] = False
        self.length = 1 + n
        self._prepared = None
        self._note_times()

    def _note_times(self) -> None:
        """`at` of all slots, after many changed at once."""
        for row, name in enumerate(_TIMES):
            self.at[row] = np.where(self._arrays[name] >= 0, self._arrays[name], np.inf)

    def evict_if_full(self) -> Change:
        """Drop the oldest L/2 when L videos are held. Call it after the choice has been returned."""
        if self.n_watched < self.capacity:
            return Change(self.length, self.length)
        half = self.capacity // 2
        for name, array in self._arrays.items():
            array[1 : 1 + half] = array[1 + half : 1 + 2 * half].copy()
            array[1 + half :] = WATCHED_COLUMNS[name][2]
        self.length = 1 + half
        self._prepared = None
        self._note_times()
        # The oldest kept item has no previous item any more; its frozen gap stays, as training sees it.
        return Change(1, self.length, dropped=half)

    def amend(self, video_id: int, feedback: Mapping[str, Any]) -> Change | None:
        """Replace feedback of one of the last AMENDABLE items (the latest with this id).

        Returns the change, or None when the item is not among them: then it goes to the log only.
        """
        unknown = set(feedback) - set(FEEDBACK_COLUMNS)
        if unknown:
            raise InputError("not a feedback column", got=sorted(unknown), allowed=FEEDBACK_COLUMNS)
        first = max(1, self.length - AMENDABLE)
        found = np.flatnonzero(self._arrays["video_id"][first : self.length] == np.uint64(video_id))
        if not len(found):
            return None
        slot = first + int(found[-1])
        for name, value in feedback.items():
            self._arrays[name][slot] = value
        return Change(slot, self.length)

"""Cached keys and values of the watched list: what makes a swipe cost one new token and not the whole list.

Legend: G planes, L1 = L + 1 slots (slot 0 the start token), D width, t tokens of one `watch` run.

Driven by `contract.watched.Change`: an append works out one slot (T1), an amendment its slot and those after it,
an eviction slots 1 … (nothing is shifted: upper layers mix dropped videos in), new rows whatever they touch.
`refresh` is the only expensive call; the session makes it off the swipe path. Not thread-safe.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from contract.finite import all_finite
from contract.vocabulary import MASK_VALUE
from edge._engine import Engine, Memory, Past

Floats = NDArray[np.float32]
_NOTHING = (-1, None)  # no slot is prepared
# (first slot, end slot) -> watched_rows [n, Rw], watched_dense [n, Fw]
Blocks = Callable[[int, int], tuple[Floats, Floats]]


class WatchCache:
    """Planes [1, G, L1, D], memory [1, L1, Wm] and its mask [1, L1], for one engine.

    Slots [0, fresh) are right. A failed `refresh` leaves `fresh` where it got to, so the next one goes on from there.
    """

    def __init__(self, engine: Engine):
        slots = engine.capacity + 1
        self._engine = engine
        self._past = Past(
            np.zeros((1, engine.planes, slots, engine.width), np.float32), np.full((1, slots), MASK_VALUE, np.float32)
        )
        self.ages: Floats = np.zeros((2, slots), np.float32)  # since and behind, as `contract.ages` writes them
        self.memory = Memory(
            memory=np.zeros((1, slots, engine.memory_width), np.float32),
            memory_mask=np.full((1, slots), MASK_VALUE, np.float32),
            since=self.ages[:1],
            behind=self.ages[1:],
        )
        self.fresh = 0
        self._prepared: tuple[int, object] = _NOTHING  # slot and mark
        self._blank = True  # whether nothing stands behind `fresh`
        self.runs = 0  # of the watch graph, for tests and statistics

    def stale_from(self, slot: int) -> None:
        """Slots from `slot` on must be worked out again."""
        if slot < self.fresh:
            self.fresh, self._blank = slot, False

    def prepare(self, slot: int, rows_1R: Floats, mark: object) -> None:
        """Set up the run for a token that will probably come next, but for its watched_dense. mark: of this row.

        Nothing to do unless all slots before it are right.
        """
        self._prepared = _NOTHING
        if self.fresh == slot and self._blank:
            self._engine.prepare_watch(rows_1R, slot, self._past, mark)
            self._prepared = slot, mark

    def refresh(self, length: int, blocks: Blocks, mark: object = None) -> None:
        """Work out slots [fresh, length) with as few runs as the buckets allow; slots from `length` on are emptied.

        mark: of the row of slot `fresh`, as given to `prepare`.
        """
        memory, past = self.memory, self._past
        if not self._blank:
            self._empty()
        largest = self._engine.watch_buckets[-1]
        while self.fresh < length:
            first, end = self.fresh, min(length, self.fresh + largest)
            rows, dense = blocks(first, end)
            slot, prepared = self._prepared
            known = mark if prepared is mark and slot == first == end - 1 else None
            new_GtD, memory_new = self._engine.watch(rows, dense, first, past, known)
            self._prepared = _NOTHING
            self.runs += 1
            if not all_finite(memory_new):
                raise FloatingPointError(f"watch graph gave non-finite values for slots {first} … {end - 1}")
            past.planes[0, :, first:end] = new_GtD
            past.mask[0, first:end] = 0.0
            memory.memory[0, first:end] = memory_new
            memory.memory_mask[0, first:end] = 0.0
            self.fresh = memory.length = end

    def _empty(self) -> None:
        """Nothing stands behind `fresh` any more."""
        memory, past = self.memory, self._past
        past.planes[:, :, self.fresh :] = 0.0
        past.mask[0, self.fresh :] = MASK_VALUE
        past.changed()
        memory.memory[:, self.fresh :] = 0.0
        memory.memory_mask[:, self.fresh :] = MASK_VALUE
        memory.length = self.fresh
        memory.changed()
        self._blank = True

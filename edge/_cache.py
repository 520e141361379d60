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

from contract.vocabulary import MASK_VALUE
from edge._engine import Engine, Memory, Past

Floats = NDArray[np.float32]
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
        self.memory = Memory(
            memory=np.zeros((1, slots, engine.memory_width), np.float32),
            memory_mask=np.full((1, slots), MASK_VALUE, np.float32),
            since=np.zeros((1, slots), np.float32),
            behind=np.zeros((1, slots), np.float32),
        )
        self.fresh = 0
        self._blank = True  # whether nothing stands behind `fresh`
        self.runs = 0  # of the watch graph, for tests and statistics

    def stale_from(self, slot: int) -> None:
        """Slots from `slot` on must be worked out again."""
        if slot < self.fresh:
            self.fresh, self._blank = slot, False

    def refresh(self, length: int, blocks: Blocks) -> None:
        """Work out slots [fresh, length) with as few runs as the buckets allow; slots from `length` on are emptied."""
        memory, past = self.memory, self._past
        memory.changed()
        if not self._blank:
            past.planes[:, :, self.fresh :] = 0.0
            past.mask[0, self.fresh :] = MASK_VALUE
            past.changed()
            memory.memory[:, self.fresh :] = 0.0
            memory.memory_mask[:, self.fresh :] = MASK_VALUE
            memory.since[:, self.fresh :] = 0.0
            memory.behind[:, self.fresh :] = 0.0
            self._blank = True
        largest = self._engine.watch_buckets[-1]
        while self.fresh < length:
            first, end = self.fresh, min(length, self.fresh + largest)
            rows, dense = blocks(first, end)
            new_GtD, memory_new = self._engine.watch(rows, dense, first, past)
            self.runs += 1
            if not np.isfinite(memory_new).all():
                raise FloatingPointError(f"watch graph gave non-finite values for slots {first} … {end - 1}")
            past.planes[0, :, first:end] = new_GtD
            past.mask[0, first:end] = 0.0
            memory.memory[0, first:end] = memory_new
            memory.memory_mask[0, first:end] = 0.0
            self.fresh = end

"""The watched list as a state file has it, and which of its slots differ from what was saved.

Nobody tells what changed: a feedback, an amendment, an eviction, a page's rows and another model all do, and one
forgotten would leave the file wrong for good. Comparing the bytes of all slots costs some numpy calls a save.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.watched import WatchedList
from edge._reranker import Reranker
from edge._stored import records_of

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Slots:
    """A copy of the list at one moment, slots [0, n).

    tokens         uint8 [n, bytes of a token]
    rows           uint8 [n, 4 · Rw] of the model at work, of which those with a revision below 0 are its default;
                   None without a model
    dense_version  of the rows; "" without a model
    revision       rows_revision, int64 [n]; -1: the slot has no row of its own
    """

    tokens: Bytes
    rows: Bytes | None
    dense_version: str
    revision: NDArray[np.int64]

    @classmethod
    def of(cls, watched: WatchedList, reranker: Reranker | None) -> Slots:
        """The list as it stands now."""
        n = watched.length
        tokens = records_of(watched.columns())
        if reranker is None:
            return cls(tokens, None, "", np.full(n, -1))
        rows = reranker.rows.rows[:n].astype("<f4").view(np.uint8)
        return cls(tokens, rows, reranker.dense_version, reranker.rows.revision[:n].copy())

    def __len__(self) -> int:
        return len(self.tokens)

    def changed(self, saved: Slots | None) -> list[int]:
        """Slots that are not as they were saved, ascending; all when nothing was saved, or of another model."""
        n = 0 if saved is None or saved.dense_version != self.dense_version else min(len(saved), len(self))
        differ = np.ones(len(self), np.bool_)
        if saved is not None and n:
            differ[:n] = (self.tokens[:n] != saved.tokens[:n]).any(1) | (self.revision[:n] != saved.revision[:n])
            if self.rows is not None and saved.rows is not None:
                differ[:n] |= (self.rows[:n] != saved.rows[:n]).any(1)
        found: list[int] = np.flatnonzero(differ).tolist()
        return found

    def values(self, slot: int) -> tuple[Any, ...]:
        """A slot as a row of the table `watched`: slot, token, row, dense_version, rows_revision."""
        revision = int(self.revision[slot])
        row = None if self.rows is None or revision < 0 else self.rows[slot].tobytes()
        return slot, self.tokens[slot].tobytes(), row, self.dense_version, revision

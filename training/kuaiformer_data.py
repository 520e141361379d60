"""Batches for KuaiFormer: (history before the cut, next positive), one target per forward.

Slots are looked up once for all positives; a batch only gathers. Examples of similar length share a batch, and the
window is cut to the batch's longest history: same result (tests/training/test_kuaiformer.py), much less work.

Shapes: B batch, L window, M entries of a field, P positives, N items.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contract.catalogue import Catalogue
from contract.history import KUAIFORMER_HISTORY, PositiveIndex
from contract.spec import FeatureSpec
from training.kuaiformer import LENGTHS
from training.tables import SparseTables

BUCKET_BATCHES = 16  # so many batches are drawn together, sorted by length, and cut again
CUTS = np.array([n for n in LENGTHS if n in (4, 8, 16, 24, 32, 48) or n > 48])


@dataclass(frozen=True)
class KuaiFormerBatch:
    """history: field -> int64 [B, L, M]; mask: float32 [B, L]; item: field -> int64 [B, M]; target: int64 [B]."""

    history: dict[str, Tensor]
    mask: Tensor
    item: dict[str, Tensor]
    target: Tensor


class HistorySlots:
    """Slots of every positive's history fields, and of a padding row behind them. Gathers windows of any users."""

    def __init__(self, index: PositiveIndex, spec: FeatureSpec, tables: SparseTables):
        self.index = index
        found = tables.field_slots(spec, "history_rows", index.columns)
        self._fields = {
            name: np.concatenate([slots, np.full((1, slots.shape[1]), -1)]).astype(np.int32)
            for name, slots in found.items()
        }

    def window(
        self, start: NDArray[np.int64], end: NDArray[np.int64], length: int | None = None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Slots [B, L, M] per field and mask [B, L]. L: `length`, or the shortest allowed one that holds them all."""
        if length is None:
            longest = int(np.minimum(end - start, KUAIFORMER_HISTORY).max(initial=1))
            length = int(CUTS[np.searchsorted(CUTS, longest)])
        places_BL = self.index.windows(start, end, length)
        mask = torch.from_numpy((places_BL >= 0).astype(np.float32))
        return {n: torch.from_numpy(slots[places_BL].astype(np.int64)) for n, slots in self._fields.items()}, mask


class KuaiFormerData:
    """Examples of a log: every positive is the target of the history that was available when it was shown.

    per_user  at most so many targets of one user in an epoch, drawn anew each epoch; None = all
    """

    def __init__(
        self,
        index: PositiveIndex,
        spec: FeatureSpec,
        tables: SparseTables,
        *,
        batch: int = 256,
        per_user: int | None = None,
    ):
        self.batch, self.per_user = batch, per_user
        self.history = HistorySlots(index, spec, tables)
        self.items = tables.field_slots(spec, "item_rows", index.columns)
        self.target_P = tables.slots("video", index.columns["video_id"])
        self.user_P = np.repeat(np.arange(len(index.user_id)), np.diff(index.offsets))
        self.start_P = np.repeat(index.offsets[:-1], np.diff(index.offsets))
        _, end_P = index.bounds(index.user_id[self.user_P], index.time_ms)
        # Where the log has no times its order is all there is: a positive sees those that stand before it.
        self.end_P = np.where(index.time_ms < 0, np.arange(len(index)), end_P)

    def __len__(self) -> int:
        """Examples of an epoch."""
        if self.per_user is None:
            return len(self.target_P)
        return int(np.minimum(np.bincount(self.user_P), self.per_user).sum())

    @property
    def steps_per_epoch(self) -> int:
        return len(self) // self.batch if len(self) >= self.batch else int(len(self) > 1)

    def counts(self, n_rows: int) -> Tensor:
        """How often each video slot is a target: float32 [n_rows], for the frequency estimator."""
        return torch.from_numpy(np.bincount(self.target_P, minlength=n_rows).astype(np.float32))

    def batches(self, epoch: int, seed: int) -> Iterator[KuaiFormerBatch]:
        """`steps_per_epoch` batches; the same for the same (epoch, seed)."""
        random = np.random.default_rng((seed, epoch))
        order = random.permutation(len(self.target_P))
        if self.per_user is not None:
            order = order[_rank_within(self.user_P[order]) < self.per_user]
        length_P = np.minimum(self.end_P - self.start_P, KUAIFORMER_HISTORY)
        span = self.batch * BUCKET_BATCHES
        groups: list[NDArray[np.int64]] = []
        for first in range(0, len(order), span):
            some = order[first : first + span]
            some = some[np.argsort(length_P[some], kind="stable")]
            groups += [some[i : i + self.batch] for i in range(0, len(some), self.batch)]
        whole = [g for g in groups if len(g) == self.batch] or [g for g in groups if len(g) > 1]
        for i in random.permutation(len(whole)):
            yield self.make(whole[i])

    def make(self, examples: NDArray[np.int64]) -> KuaiFormerBatch:
        """The batch of some positives, by their number in the index."""
        history, mask = self.history.window(self.start_P[examples], self.end_P[examples])
        item = {name: torch.from_numpy(slots[examples]) for name, slots in self.items.items()}
        return KuaiFormerBatch(history, mask, item, torch.from_numpy(self.target_P[examples]))


def _rank_within(group: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many of the same group stand before each entry."""
    order = np.argsort(group, kind="stable")
    sorted_group = group[order]
    starts = np.flatnonzero(np.r_[True, sorted_group[1:] != sorted_group[:-1]])
    ranks = np.empty(len(group), np.int64)
    ranks[order] = np.arange(len(group)) - np.repeat(starts, np.diff(np.r_[starts, len(group)]))
    return ranks


def item_columns(catalogue: Catalogue) -> dict[str, NDArray]:
    """Raw columns of all items for the block item_rows: each [N, …]."""
    return {name: getattr(catalogue, name) for name in ("video_id", "author_id", "tags", "duration_ms")}


def item_slots(catalogue: Catalogue, spec: FeatureSpec, tables: SparseTables) -> dict[str, Tensor]:
    """Slots of all items: field -> int64 [N, M]."""
    found = tables.field_slots(spec, "item_rows", item_columns(catalogue))
    return {name: torch.from_numpy(slots) for name, slots in found.items()}

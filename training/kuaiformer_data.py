"""Batches for KuaiFormer: (history before the cut, next positives).

One forward of the encoder serves `targets` next positives: with 1 every positive is the target of its own history (the
paper's Eq. 1); with more, cut points are `targets` apart, at a random phase in each epoch, which costs as many times
less and is what serving does with one page for several swipes.

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
from contract.errors import InputError
from contract.history import KUAIFORMER_HISTORY, PositiveIndex
from contract.spec import FeatureSpec
from training.kuaiformer import LENGTHS
from training.tables import SparseTables

BUCKET_BATCHES = 16  # so many batches are drawn together, sorted by length, and cut again
CUTS = np.array([n for n in LENGTHS if n in (4, 8, 16, 24, 32, 48) or n > 48])


@dataclass(frozen=True)
class KuaiFormerBatch:
    """B histories and their T targets.

    history  field -> int64 [B, L, M]
    mask     float32 [B, L]
    item     field -> int64 [T, M]
    target   int64 [T], slot of the target's video row
    row      int64 [T], the history a target belongs to
    owner    int64 [T], number of the user
    """

    history: dict[str, Tensor]
    mask: Tensor
    item: dict[str, Tensor]
    target: Tensor
    row: Tensor
    owner: Tensor


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
    """Examples of a log: the history that was available when a positive was shown, and the positives from there on.

    batch     targets of a batch, about: it holds batch / targets histories
    targets   positives to be found from one history, at most
    per_user  at most so many histories of one user in an epoch, drawn anew each epoch; None = all
    """

    def __init__(
        self,
        index: PositiveIndex,
        spec: FeatureSpec,
        tables: SparseTables,
        *,
        batch: int = 256,
        targets: int = 1,
        per_user: int | None = None,
    ):
        if targets < 1 or batch < 2 * targets:
            raise InputError("a batch needs two histories or more", got=f"batch {batch}, {targets} targets each")
        self.histories, self.targets, self.per_user = batch // targets, targets, per_user
        self.history = HistorySlots(index, spec, tables)
        self.items = tables.field_slots(spec, "item_rows", index.columns)
        self.target_P = tables.slots("video", index.columns["video_id"])
        sizes = np.diff(index.offsets)
        self.user_P = np.repeat(np.arange(len(index.user_id)), sizes)
        self.start_P = np.repeat(index.offsets[:-1], sizes)
        self.limit_P = np.repeat(index.offsets[1:], sizes)
        _, end_P = index.bounds(index.user_id[self.user_P], index.time_ms)
        # Where the log has no times its order is all there is: a positive sees those that stand before it.
        self.end_P = np.where(index.time_ms < 0, np.arange(len(index)), end_P)
        cuts = -(-sizes // targets)
        self._cuts = int(np.minimum(cuts, per_user or cuts.max(initial=0)).sum())

    def __len__(self) -> int:
        """Histories of an epoch."""
        return self._cuts

    @property
    def steps_per_epoch(self) -> int:
        return len(self) // self.histories if len(self) >= self.histories else int(len(self) > 1)

    def counts(self, n_rows: int) -> Tensor:
        """How often each video slot is a target: float32 [n_rows], for the frequency estimator."""
        return torch.from_numpy(np.bincount(self.target_P, minlength=n_rows).astype(np.float32))

    def batches(self, epoch: int, seed: int) -> Iterator[KuaiFormerBatch]:
        """At least `steps_per_epoch` batches; the same for the same (epoch, seed)."""
        random = np.random.default_rng((seed, epoch))
        order = self._cut_points(random)
        length_P = np.minimum(self.end_P - self.start_P, KUAIFORMER_HISTORY)
        span = self.histories * BUCKET_BATCHES
        groups: list[NDArray[np.int64]] = []
        for first in range(0, len(order), span):
            some = order[first : first + span]
            some = some[np.argsort(length_P[some], kind="stable")]
            groups += [some[i : i + self.histories] for i in range(0, len(some), self.histories)]
        whole = [g for g in groups if len(g) == self.histories] or [g for g in groups if len(g) > 1]
        for i in random.permutation(len(whole)):
            yield self.make(whole[i])

    def _cut_points(self, random: np.random.Generator) -> NDArray[np.int64]:
        """Positives at which histories are cut, shuffled: the first of each user's stretches of `targets` positives.

        The second stretch begins a random number of positives after the first (and overlaps with it), so that every
        epoch cuts elsewhere; a stretch that this adds is left out, so that every epoch has the same number of them.
        """
        place_P = np.arange(len(self.target_P)) - self.start_P
        phase = random.integers(0, self.targets, len(self.user_P))[self.start_P]
        sizes = self.limit_P - self.start_P
        # Cuts at 0 (if the phase is not 0), phase, phase + targets, …
        cut = ((place_P >= phase) & ((place_P - phase) % self.targets == 0)) | (place_P == 0)
        order = random.permutation(np.flatnonzero(cut))
        allowed = -(-sizes // self.targets)
        if self.per_user is not None:
            allowed = np.minimum(allowed, self.per_user)
        return order[_rank_within(self.user_P[order]) < allowed[order]]

    def make(self, cuts: NDArray[np.int64]) -> KuaiFormerBatch:
        """The batch of some histories, each named by its first target's number in the index."""
        history, mask = self.history.window(self.start_P[cuts], self.end_P[cuts])
        places_BJ = cuts[:, None] + np.arange(self.targets)
        row, column = np.nonzero(places_BJ < self.limit_P[cuts][:, None])
        places = places_BJ[row, column]
        return KuaiFormerBatch(
            history,
            mask,
            {name: torch.from_numpy(slots[places]) for name, slots in self.items.items()},
            torch.from_numpy(self.target_P[places]),
            torch.from_numpy(row),
            torch.from_numpy(self.user_P[places]),
        )


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

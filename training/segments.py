"""Batches for sequence models: stretches of users' positives with many cuts each, each positive a target once an epoch.

A cut is a number of positives that have been seen; a target belongs to the cut whose history was known when it was
shown (contract: availability), so no answer is trained on what could not be known. A segment is what one forward pass
reads: up to `sum(windows)` old positives, of which windows are made, and up to `latest` raw ones; its cuts stand behind
the last `stride` raw items (all of them, and the empty history before, in a user's first segment). So the model sees
latest - stride + 1 … latest raw items, at the last cut exactly the plan that serving uses. Where segments begin is
drawn anew in each epoch.

With `item_dropout` some videos of a batch's histories, others each time, are read as unknown: from the default row, as
one is served that training never saw. With `half_life_days` old targets weigh less: 2^(-age / half_life_days), age
counted from the newest one; 1 on average.

Segments of similar length share a batch, and an epoch is cut into batches of as many targets each, so that little is
padded and every step weighs about the same.

Shapes: B segments, L slots, P cuts, T targets, M entries of a field, S segments of an epoch, U users.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contract.catalogue import Catalogue
from contract.errors import InputError
from contract.history import HistoryIndex
from contract.spec import FeatureSpec
from training.retrieval_split import RetrievalSplit
from training.tables import SparseTables

DAY_MS = 86_400_000
VIDEO, HELD = "history_video_id", "held"
UNKNOWN = 0  # slot of the default row (training/tables.py)
SPAN_BATCHES = 32  # so many batches' segments are drawn together and sorted by length
ROUND_TO = 2  # slots of a batch, where no window's border says otherwise; more only pads (a slot's cost is even)
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class SegmentBatch:
    """B segments and their T targets.

    history  field -> int64 [B, L, M], slots of the block history_rows, right-aligned; HELD: see `held`
    mask     float32 [B, L], 1 = real
    n_cuts   P: cut c of a row sees the slots 0 … L - P + c
    cell     int64 [T], row * P + cut of each target
    item     int64 [T], the target's row in the catalogue
    owner    int64 [T], number of the user
    weight   float32 [T], of each target in the loss; 1 on average over an epoch
    day      int64 [T], of each target (training/recency.py); None = not asked for
    """

    history: dict[str, Tensor]
    mask: Tensor
    n_cuts: int
    cell: Tensor
    item: Tensor
    owner: Tensor
    weight: Tensor
    day: Tensor | None = None

    @property
    def held(self) -> Tensor:
        """Slots of the videos in the histories, int64 [B, L], those too that are read as unknown."""
        held: Tensor = self.history.get(HELD, self.history[VIDEO])[..., 0]
        return held


class HistorySlots:
    """Slots of every positive's history fields, and of a padding row behind them. Gathers windows of any users."""

    def __init__(self, index: HistoryIndex, spec: FeatureSpec, tables: SparseTables):
        self.index = index
        found = tables.field_slots(spec, "history_rows", index.columns)
        self._fields = {
            name: torch.from_numpy(np.concatenate([slots, np.full((1, slots.shape[1]), -1)]).astype(np.int32))
            for name, slots in found.items()
        }

    def window(self, start: Ids, end: Ids, length: int) -> tuple[dict[str, Tensor], Tensor]:
        """Slots [B, L, M] per field and mask [B, L] of the last `length` places of each [start, end)."""
        places_BL = self.index.windows(start, end, length)
        mask = torch.from_numpy((places_BL >= 0).astype(np.float32))
        # Place -1 is the padding row at the end.
        places = torch.from_numpy(np.where(places_BL < 0, len(self.index), places_BL))
        return {name: slots[places].long() for name, slots in self._fields.items()}, mask


@dataclass(frozen=True)
class Segments:
    """S segments: cuts (low, high] as places, history [start, high), targets [first, last) as places; all int64 [S]."""

    start: Ids
    low: Ids
    high: Ids
    first: Ids
    last: Ids
    user: Ids

    def __len__(self) -> int:
        return len(self.high)

    def take(self, rows: NDArray[np.integer] | NDArray[np.bool_]) -> Segments:
        return Segments(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


class SegmentData:
    """The segments of a split's training positives.

    windows  sizes of the compressed windows, oldest first; latest: raw slots behind them
    stride   cuts of a segment that isn't a user's first; None = the smallest window, without windows `latest`
    batch    targets of a batch, about
    cap      at most so many segments of a user in an epoch, drawn anew each epoch; None = all
    half_life_days  of a target's weight; None = all weigh 1
    item_dropout  chance that a video of a history is read as unknown, drawn anew in each batch
    day_P    day of every place, int64 [P], for models with a prior; None = batches tell no day

    Raises InputError for a stride or batch out of range, without a positive to train on, and for a half life without
    times.
    """

    def __init__(
        self,
        split: RetrievalSplit,
        spec: FeatureSpec,
        tables: SparseTables,
        *,
        windows: tuple[int, ...] = (),
        latest: int = 200,
        stride: int | None = None,
        batch: int = 4096,
        cap: int | None = None,
        half_life_days: float | None = None,
        item_dropout: float = 0.0,
        day_P: Ids | None = None,
    ):
        self.stride = stride if stride is not None else min((*windows, latest))
        if not 1 <= self.stride <= latest:
            raise InputError("cuts of a segment stand behind raw items", got=self.stride, allowed=f"1 … {latest}")
        if cap is not None and cap < 1:
            raise InputError("cap counts segments of a user", got=cap, allowed="1 or more, or none")
        if not 0.0 <= item_dropout < 1.0:
            raise InputError("item_dropout is a probability below 1", got=item_dropout)
        if batch < 2:
            raise InputError("a batch needs two targets or more", got=batch)
        self.split, self.windows, self.latest, self.batch, self.cap = split, windows, latest, batch, cap
        self.item_dropout = item_dropout
        self.history = HistorySlots(split.index, spec, tables)
        self.item_slots = item_slots(split.items, spec, tables)
        offsets = split.index.offsets
        self._users = np.flatnonzero(split.train_end > offsets[:-1])
        self._usable_P = split.row_P >= 0
        if not self.n_targets:
            raise InputError("no positive to train on", where=f"data '{split.name}'", fix="give more events")
        self._weight_P = target_weights(split, half_life_days)
        self._day_P = day_P
        self._borders = np.cumsum([latest, *reversed(windows)])

    @property
    def n_targets(self) -> int:
        """Targets of an epoch without `cap`."""
        return int(self._usable_P[self.split.train_places()].sum())

    @cached_property
    def steps_per_epoch(self) -> int:
        if self.cap is None:
            return max(1, self.n_targets // self.batch)
        # The draws differ in size: a typical one.
        drawn = [self._drawn(np.random.default_rng((0, epoch))) for epoch in range(3)]
        return max(1, int(np.mean([self._n_targets(one).sum() for one in drawn])) // self.batch)

    def batches(self, epoch: int, seed: int) -> Iterator[SegmentBatch]:
        """`steps_per_epoch` batches, for the same (epoch, seed) the same."""
        random = np.random.default_rng((seed, epoch))
        left = self.steps_per_epoch
        while left:  # Once, but where `cap` drew less than is typical: segments of another draw fill up then.
            for batch in self._once(random, left):
                yield batch
                left -= 1

    def _once(self, random: np.random.Generator, most: int) -> Iterator[SegmentBatch]:
        """One draw's segments in at most so many batches."""
        segments = self._drawn(random)
        n_targets_S = self._n_targets(segments)
        total = int(n_targets_S.sum())
        order = random.permutation(len(segments))
        span = max(1, round(SPAN_BATCHES * self.batch / n_targets_S.mean()))
        slots_S = self._slots(segments)
        pieces = [order[i : i + span] for i in range(0, len(order), span)]
        # Up and down by turns, so that neighbours across two pieces are of similar length as well.
        order = np.concatenate(
            [piece[np.argsort((-1) ** i * slots_S[piece], kind="stable")] for i, piece in enumerate(pieces)]
        )
        # No segment has more targets than a batch, so each of the n parts of the sum has a segment that begins in it.
        n = max(1, total // self.batch)
        number_S = (np.cumsum(n_targets_S[order]) - n_targets_S[order]) * n // total
        groups = np.split(order, np.flatnonzero(np.diff(number_S)) + 1)
        for i in random.permutation(n)[:most]:
            batch = self.make(segments.take(groups[i]))
            if self.item_dropout:
                held = batch.history[VIDEO]
                known = torch.from_numpy(random.random(held.shape, np.float32) >= self.item_dropout)
                unknown = torch.where(known, held, held.clamp(max=UNKNOWN))
                batch = replace(batch, history={**batch.history, VIDEO: unknown, HELD: held})
            yield batch

    def make(self, segments: Segments) -> SegmentBatch:
        """The batch of some segments."""
        slots = int(self._slots(segments).max())
        n_slots = int(self._borders[np.searchsorted(self._borders, slots)])
        if slots <= self.latest:
            n_slots = min(self.latest, -(-slots // ROUND_TO) * ROUND_TO)
        history, mask = self.history.window(segments.start, segments.high, n_slots)
        n_cuts = int((segments.high - segments.low).max())
        row, number = _spread(segments.last - segments.first)
        place = segments.first[row] + number
        usable = self._usable_P[place]
        row, place = row[usable], place[usable]
        cut = n_cuts - 1 - (segments.high[row] - self.split.known_end_P[place])
        return SegmentBatch(
            history,
            mask,
            n_cuts,
            torch.from_numpy(row * n_cuts + cut),
            torch.from_numpy(self.split.row_P[place]),
            torch.from_numpy(segments.user[row]),
            torch.from_numpy(self._weight_P[place]),
            None if self._day_P is None else torch.from_numpy(self._day_P[place]),
        )

    def _slots(self, segments: Segments) -> Ids:
        """Slots a segment needs: its history, and one before it for the empty cut."""
        held = np.minimum(segments.high - segments.start, self._borders[-1])
        return np.maximum(1, held + (segments.low < segments.start))

    def _n_targets(self, segments: Segments) -> Ids:
        usable = np.append(0, np.cumsum(self._usable_P))
        found: Ids = usable[segments.last] - usable[segments.first]
        return found

    def _drawn(self, random: np.random.Generator) -> Segments:
        """All segments that have a target, cut at a random phase."""
        user = self._users
        start, end = self.split.index.offsets[user], self.split.train_end[user]
        # The first segment: the empty cut and up to latest - 1 items, fewer by the phase. With a cap no more cuts
        # than the others, so that as many segments of any plan have about as many targets.
        first_cuts = self.latest if self.cap is None else self.stride
        phase = random.integers(0, min(self.stride, first_cuts - 1) or 1, len(user))
        first_high = np.minimum(start + max(first_cuts - 1, 0) - phase, end - 1)
        more = np.maximum(0, -(-(end - 1 - first_high) // self.stride))
        of, k = _spread(1 + more)
        high = np.minimum(first_high[of] + k * self.stride, end[of] - 1)
        low = np.where(k == 0, start[of] - 1, first_high[of] + (k - 1) * self.stride)
        known = self.split.known_end_P
        first = np.maximum(np.searchsorted(known, low, side="right"), start[of])
        last = np.minimum(np.searchsorted(known, high, side="right"), end[of])
        segments = self._divided(Segments(start[of], low, high, first, np.maximum(first, last), user[of]))
        rows = np.flatnonzero(self._n_targets(segments) > 0)
        if self.cap is not None:
            shuffled = random.permutation(rows)
            rows = np.sort(shuffled[_rank_within(segments.user[shuffled]) < self.cap])
        return segments.take(rows)

    def _divided(self, segments: Segments) -> Segments:
        """Where one has more positives than a batch takes (many known at once), it stands for each part anew."""
        of, k = _spread(np.maximum(1, -(-(segments.last - segments.first) // self.batch)))
        parts = segments.take(of)
        first = parts.first + k * self.batch
        return replace(parts, first=first, last=np.minimum(parts.last, first + self.batch))


def target_weights(split: RetrievalSplit, half_life_days: float | None) -> NDArray[np.float32]:
    """2^(-age / half life) of every place, over its mean in training: float32 [P]; all 1 without a half life.

    Places without a time are as old as the oldest training positive that has one. Raises InputError where none has one
    and for a half life that is not above 0.
    """
    time_ms, trained = split.index.time_ms, split.train_places()
    trained = trained[split.row_P[trained] >= 0]
    if half_life_days is None:
        return np.ones(len(time_ms), np.float32)
    if not half_life_days > 0:
        raise InputError("half_life_days must be above 0", got=half_life_days)
    known = time_ms[trained][time_ms[trained] >= 0]
    if not len(known):
        raise InputError(
            "half_life_days needs times", where=f"data '{split.name}'", fix="leave it out: these data have none"
        )
    age_P = (known.max() - np.where(time_ms >= 0, time_ms, known.min())) / DAY_MS
    weight_P = np.exp2(-np.maximum(age_P, 0.0) / half_life_days)
    found: NDArray[np.float32] = (weight_P / weight_P[trained].mean()).astype(np.float32)
    return found


def _spread(sizes: Ids) -> tuple[Ids, Ids]:
    """Whose each of sum(sizes) entries is, and its number among its owner's: int64 [sum] twice."""
    owner = np.repeat(np.arange(len(sizes)), sizes)
    return owner, np.arange(len(owner)) - (np.cumsum(sizes) - sizes)[owner]


def _rank_within(group: Ids) -> Ids:
    """How many of the same group stand before each entry."""
    ranks = np.empty(len(group), np.int64)
    ranks[np.argsort(group, kind="stable")] = _spread(np.unique(group, return_counts=True)[1])[1]
    return ranks


def item_columns(catalogue: Catalogue) -> dict[str, NDArray]:
    """Raw columns of all items for the block item_rows: each [N, …]."""
    return {name: getattr(catalogue, name) for name in ("video_id", "author_id", "tags", "duration_ms")}


def item_slots(catalogue: Catalogue, spec: FeatureSpec, tables: SparseTables) -> dict[str, Tensor]:
    """Slots of all items: field -> int64 [N, M]."""
    found = tables.field_slots(spec, "item_rows", item_columns(catalogue))
    return {name: torch.from_numpy(slots) for name, slots in found.items()}

"""Batches for the ranker: the impressions of a user beside their history, which is read once for many of them.

A choice sees what the server knew when it made the page: where the log tells pages, feedback known when the first
video of that page was shown; elsewhere feedback from before the day. What a user does within a page is the reranker's
to use. Impressions without a time see what stands before them in the log. Real-time feedback is a setting of its own
(`training.real_time`).

Shapes: n impressions of the log, B histories of a batch, M targets of each, h entries of each, X pXTR heads, K kinds of
match, Q pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contract.events import Events
from contract.features import dense_block
from contract.history import HistoryIndex
from contract.matches import match_flags
from contract.spec import FeatureSpec
from contract.vocabulary import PXTR_HEADS, WATCH_TIME_CAP_MS
from training.days import DAY_MS, days_of
from training.ranker import DENSE, HISTORY, SERVED
from training.tables import SparseTables

Ints = NDArray[np.int64]

PIECE_TARGETS = 64
PAIRS_OF_A_POSITIVE = 32
RANKED = PXTR_HEADS.index("long_view")  # the head whose order within a user is trained by pairs


@dataclass(frozen=True)
class RankerBatch:
    """slots: block -> field -> int64 [B, M or h, max_len]; dense: block -> float32 [B, M or h, F]; visible [B, M, h];
    match [B, M, h, K]; labels int8 [B, M, X], -1 = null or padding; watched float32 [B, M], share of WATCH_TIME_CAP_MS,
    NaN = null or padding; event int64 [B, M], -1 = padding; pairs int64 [Q, 2], places in [B·M] of a positive and a
    negative of one user; pair_weight float32 [Q], together 1 for each positive."""

    slots: dict[str, dict[str, Tensor]]
    dense: dict[str, Tensor]
    visible: Tensor
    match: Tensor
    labels: Tensor
    watched: Tensor
    pairs: Tensor
    pair_weight: Tensor
    event: Ints


def day_start_ms(events: Events, utc_offset_hours: float) -> Ints:
    """When the day of each impression began: int64 [n], -1 = no time."""
    days = days_of(events, utc_offset_hours)
    return np.where(days < 0, np.int64(-1), days * DAY_MS - int(utc_offset_hours * 3_600_000))


def known_until_ms(events: Events, utc_offset_hours: float) -> Ints:
    """Up to when the server knew feedback as it chose each impression: int64 [n], -1 = no time."""
    time_ms = events["time_ms"]
    until_ms = np.minimum(day_start_ms(events, utc_offset_hours), time_ms)  # a log's day may begin before midnight
    rows = np.flatnonzero((events["page_id"] != "") & (time_ms >= 0))
    if len(rows):
        page = np.unique(events["page_id"][rows].astype(str), return_inverse=True)[1]
        first_ms = np.full(page.max() + 1, np.iinfo(np.int64).max)
        np.minimum.at(first_ms, page, time_ms[rows])
        until_ms[rows] = first_ms[page]
    return until_ms


def frozen_bounds(
    index: HistoryIndex, events: Events, utc_offset_hours: float, cut_ms: int | None = None
) -> tuple[Ints, Ints]:
    """Entries [start, end) of each impression's history, as of `known_until_ms`, or of `cut_ms` where that is earlier.

    `events` must be the log that `index` was built from: rows without a time are placed by their number in it.
    """
    as_of = known_until_ms(events, utc_offset_hours)
    if cut_ms is not None:
        as_of = np.where(as_of < 0, as_of, np.minimum(as_of, cut_ms))
    start, end = index.bounds(events["user_id"], np.maximum(as_of, 0))
    _, by_order = index.bounds_in_log_order(events["user_id"], np.arange(len(events)))
    return start, np.where(as_of < 0, by_order, end)


def live_bounds(index: HistoryIndex, events: Events) -> tuple[Ints, Ints]:
    """Entries [start, end) of each impression's history, as of its own time; without one as in `frozen_bounds`."""
    time_ms = events["time_ms"]
    start, end = index.bounds(events["user_id"], np.maximum(time_ms, 0))
    _, by_order = index.bounds_in_log_order(events["user_id"], np.arange(len(events)))
    return start, np.where(time_ms < 0, by_order, end)


class RankerData:
    """Impressions `rows` of a log, with histories from the whole log by the rule above.

    index    of every impression (`HistoryIndex.from_events(events, every=True)`)
    rows     int64, which impressions; None = all
    history  h, entries that a choice sees
    batch    about so many targets in a batch
    cut_ms   freeze histories no later than this
    live     histories go on to the moment of each impression instead; the index says what was known when
    """

    def __init__(
        self,
        events: Events,
        index: HistoryIndex,
        spec: FeatureSpec,
        tables: SparseTables,
        *,
        rows: Ints | None = None,
        history: int,
        batch: int = 1024,
        utc_offset_hours: float = 0.0,
        cut_ms: int | None = None,
        live: bool = False,
    ):
        self.events, self.index, self.spec, self.batch, self.length = events, index, spec, batch, history
        rows = np.arange(len(events)) if rows is None else rows
        start, self.end = live_bounds(index, events) if live else frozen_bounds(index, events, utc_offset_hours, cut_ms)
        self.start = np.maximum(start, self.end - history)
        self.slots = {
            block: tables.field_slots(spec, block, events.columns) for block in SERVED if block not in HISTORY
        }
        # a log of scored days alone has nothing to read: padding then repeats a null entry
        self.entries = index.columns if len(index) else index.gather(np.array([-1]))
        self.entry_slots = tables.field_slots(spec, HISTORY[0], self.entries)
        self.labels = np.stack([events[head] for head in PXTR_HEADS], axis=1)
        play_ms = events["play_time_ms"]
        self.watched = np.where(play_ms >= 0, np.minimum(play_ms / WATCH_TIME_CAP_MS, 1.0), np.nan).astype(np.float32)
        self.order, self.piece = self._pieces(rows, start)
        self.user = events["user_id"][self.order[self.piece[:, 0]]] if len(self.piece) else events["user_id"][:0]

    def _pieces(self, rows: Ints, start: Ints) -> tuple[Ints, Ints]:
        """Impressions by user, and pieces [pieces, 2] of that order: targets of one user whose histories lie close.

        Ends within h of each other share a block, so a piece reads at most 2·h entries.
        """
        user, end = self.events["user_id"][rows], self.end[rows]
        order = rows[np.lexsort((rows, end, user))]
        user, end = self.events["user_id"][order], self.end[order]
        block = np.maximum(end - start[order] - 1, 0) // self.length
        new = np.ones(len(order), bool)
        new[1:] = (user[1:] != user[:-1]) | (block[1:] != block[:-1])
        first = np.flatnonzero(new)
        since = np.arange(len(order)) - np.repeat(first, np.diff([*first, len(order)]))
        first = np.flatnonzero(since % PIECE_TARGETS == 0)
        return order, np.stack([first, np.append(first[1:], len(order))], axis=1)

    def parts(self, epoch: int, seed: int) -> list[Ints]:
        """Pieces of each batch, users shuffled by (epoch, seed), all pieces of a user side by side."""
        rng = np.random.default_rng((seed, epoch))
        _, user = np.unique(self.user, return_inverse=True)
        order = np.argsort(rng.permutation(user.max(initial=-1) + 1)[user], kind="stable")
        batches = self._cut(order)
        return [batches[place] for place in rng.permutation(len(batches))]

    def _cut(self, pieces: Ints) -> list[Ints]:
        """Runs of about `batch` targets: as many pieces each, so that every epoch has as many steps."""
        return np.array_split(pieces, self.steps_per_epoch) if len(pieces) else []

    @property
    def steps_per_epoch(self) -> int:
        return min(-(-len(self.order) // self.batch), len(self.piece))

    def batches(self, epoch: int, seed: int) -> Iterator[RankerBatch]:
        """Shuffled; the same for the same (epoch, seed)."""
        rng = np.random.default_rng((seed, epoch, 1))
        for pieces in self.parts(epoch, seed):
            yield self.make(pieces, rng)

    def in_order(self) -> Iterator[RankerBatch]:
        """By user, without pairs."""
        for pieces in self._cut(np.arange(len(self.piece))):
            yield self.make(pieces, None)

    def make(self, pieces: Ints, rng: np.random.Generator | None) -> RankerBatch:
        """The batch of some pieces; rng draws its pairs, None = no pairs."""
        first_B, end_B = self.piece[pieces, 0], self.piece[pieces, 1]
        place_BM = first_B[:, None] + np.arange(int((end_B - first_B).max()))
        real_BM = place_BM < end_B[:, None]
        # padding repeats the first target; labels and events tell it apart
        event_BM = self.order[np.where(real_BM, place_BM, first_B[:, None])]
        low_BM, high_BM = self.start[event_BM], self.end[event_BM]
        high_B = high_BM.max(axis=1)
        h = max(int((high_B - low_BM.min(axis=1)).max()), 1)
        entry_Bh = high_B[:, None] - h + np.arange(h)
        visible_BMh = (entry_Bh[:, None] >= low_BM[:, :, None]) & (entry_Bh[:, None] < high_BM[:, :, None])
        visible_BMh &= real_BM[:, :, None]
        entry_Bh = np.maximum(entry_Bh, 0)
        entries = {name: column[entry_Bh] for name, column in self.entries.items()}
        columns = {name: self.events[name][event_BM] for name in _COLUMNS}
        slots = {b: {n: torch.from_numpy(s[event_BM]) for n, s in fields.items()} for b, fields in self.slots.items()}
        slots[HISTORY[0]] = {name: torch.from_numpy(s[entry_Bh]) for name, s in self.entry_slots.items()}
        dense = {block: self._dense(block, entries if block == HISTORY[1] else columns) for block in DENSE}
        labels_BMX = np.where(real_BM[:, :, None], self.labels[event_BM], -1).astype(np.int8)
        pairs, weight = pairs_of(labels_BMX[..., RANKED], self.user[pieces], rng)
        return RankerBatch(
            slots,
            dense,
            torch.from_numpy(visible_BMh.astype(np.float32)),
            torch.from_numpy(match_flags(columns, entries)),
            torch.from_numpy(labels_BMX),
            torch.from_numpy(np.where(real_BM, self.watched[event_BM], np.float32(np.nan))),
            torch.from_numpy(pairs),
            torch.from_numpy(weight),
            np.where(real_BM, event_BM, -1),
        )

    def _dense(self, block: str, columns: dict[str, NDArray[np.generic]]) -> Tensor:
        shape = columns["video_id"].shape
        flat = {name: column.reshape(-1, *column.shape[2:]) for name, column in columns.items()}
        out = np.empty((shape[0] * shape[1], self.spec.width(block)), np.float32)
        return torch.from_numpy(dense_block(self.spec, block, flat, out).reshape(*shape, -1))


def pairs_of(
    label_BM: NDArray[np.int8], user_B: NDArray[np.uint64], rng: np.random.Generator | None
) -> tuple[Ints, NDArray[np.float32]]:
    """Pairs (positive, negative) of one user, as places in [B·M], and their weights: 1 in all for each positive.

    All negatives of a user for each of their positives, or PAIRS_OF_A_POSITIVE drawn ones where there are more.
    """
    flat, user = label_BM.reshape(-1), np.repeat(np.unique(user_B, return_inverse=True)[1], label_BM.shape[1])
    positive, negative = np.flatnonzero(flat == 1), np.flatnonzero(flat == 0)
    if rng is None or not len(positive) or not len(negative):
        return np.zeros((0, 2), np.int64), np.zeros(0, np.float32)
    negative = negative[np.argsort(user[negative], kind="stable")]
    first = np.searchsorted(user[negative], user[positive], side="left")
    n = np.searchsorted(user[negative], user[positive], side="right") - first
    drawn = np.minimum(n, PAIRS_OF_A_POSITIVE)
    which = np.repeat(np.arange(len(positive)), drawn)
    step = np.arange(len(which)) - np.repeat(np.cumsum(drawn) - drawn, drawn)
    many = n[which] > PAIRS_OF_A_POSITIVE
    step = np.where(many, rng.integers(0, np.maximum(n[which], 1)), step)
    pairs = np.stack([positive[which], negative[first[which] + step]], axis=1)
    return pairs, (1.0 / drawn[which]).astype(np.float32)


# Raw columns that dense features and matches of the ranker read.
_COLUMNS = (
    "video_id", "author_id", "tags", "duration_ms", "upload_age_days", "user_activity", "user_register_days", "hour",
    "tab", "music_id", "kind",
)  # fmt: skip

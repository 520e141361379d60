"""Batches for the ranker: one impression per row, its user's history frozen at the start of the day it was shown.

Frozen at the day and not at the swipe, so that pXTR hold what a server learns between sessions; what a user does within
one is the reranker's to use. Impressions without a time see what stands before them in the log.

Shapes: B impressions of a batch, n of the log, h history, X pXTR heads.
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
from contract.history import PositiveIndex
from contract.spec import FeatureSpec
from contract.vocabulary import PXTR_HEADS
from training.days import DAY_MS, days_of
from training.ranker import DENSE
from training.tables import SparseTables


@dataclass(frozen=True)
class RankerBatch:
    """slots: block -> field -> int64 [B, (h,) M]; mask [B, h]; dense: block -> float32 [B, F]; labels: int8 [B, X]."""

    slots: dict[str, dict[str, Tensor]]
    mask: Tensor
    dense: dict[str, Tensor]
    labels: Tensor


def day_start_ms(events: Events, utc_offset_hours: float) -> NDArray[np.int64]:
    """When the day of each impression began: int64 [n], -1 = no time."""
    days = days_of(events, utc_offset_hours)
    return np.where(days < 0, np.int64(-1), days * DAY_MS - int(utc_offset_hours * 3_600_000))


def frozen_bounds(
    index: PositiveIndex, events: Events, utc_offset_hours: float, cut_ms: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positives [start, end) of each impression's history, as of its day's start, or of `cut_ms` where that is earlier.

    `events` must be the log that `index` was built from: rows without a time are placed by their number in it.
    """
    as_of = day_start_ms(events, utc_offset_hours)
    if cut_ms is not None:
        as_of = np.where(as_of < 0, as_of, np.minimum(as_of, cut_ms))
    start, end = index.bounds(events["user_id"], np.maximum(as_of, 0))
    _, by_order = index.bounds_in_log_order(events["user_id"], np.arange(len(events)))
    return start, np.where(as_of < 0, by_order, end)


class RankerData:
    """Impressions `rows` of a log, with histories from the whole log by the rule above.

    rows    int64, which impressions; None = all
    cut_ms  freeze histories no later than this
    """

    def __init__(
        self,
        events: Events,
        index: PositiveIndex,
        spec: FeatureSpec,
        tables: SparseTables,
        *,
        rows: NDArray[np.int64] | None = None,
        history: int,
        batch: int = 1024,
        utc_offset_hours: float = 0.0,
        cut_ms: int | None = None,
    ):
        self.events, self.index, self.spec, self.batch, self.length = events, index, spec, batch, history
        self.rows = np.arange(len(events)) if rows is None else rows
        self.start, self.end = frozen_bounds(index, events, utc_offset_hours, cut_ms)
        columns = events.columns
        self.slots = {block: tables.field_slots(spec, block, columns) for block in ("user_rows", "candidate_rows")}
        self.history = {
            name: np.concatenate([slots, np.full((1, slots.shape[1]), -1)])
            for name, slots in tables.field_slots(spec, "history_rows", index.columns).items()
        }
        self.labels = np.stack([events[head] for head in PXTR_HEADS], axis=1)

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.rows) // self.batch)

    def batches(self, epoch: int, seed: int) -> Iterator[RankerBatch]:
        """Shuffled; the same for the same (epoch, seed)."""
        order = np.random.default_rng((seed, epoch)).permutation(self.rows)
        for first in range(0, len(order), self.batch):
            yield self.make(order[first : first + self.batch])

    def in_order(self) -> Iterator[RankerBatch]:
        for first in range(0, len(self.rows), self.batch):
            yield self.make(self.rows[first : first + self.batch])

    def make(self, rows: NDArray[np.int64]) -> RankerBatch:
        """The batch of some impressions, by their number in the log."""
        places_Bh = self.index.windows(self.start[rows], self.end[rows], self.length)
        slots = {b: {n: torch.from_numpy(s[rows]) for n, s in fields.items()} for b, fields in self.slots.items()}
        slots["history_rows"] = {name: torch.from_numpy(s[places_Bh]) for name, s in self.history.items()}
        wanted = {name: column[rows] for name, column in self.events.columns.items() if name in _DENSE_COLUMNS}
        dense = {
            block: torch.from_numpy(
                dense_block(self.spec, block, wanted, np.empty((len(rows), self.spec.width(block)), np.float32))
            )
            for block in DENSE
        }
        mask = torch.from_numpy((places_Bh >= 0).astype(np.float32))
        return RankerBatch(slots, mask, dense, torch.from_numpy(self.labels[rows]))


# Raw columns that dense features of the ranker may read.
_DENSE_COLUMNS = frozenset(
    {"user_activity", "user_register_days", "hour", "duration_ms", "upload_age_days", "play_time_ms"}
)

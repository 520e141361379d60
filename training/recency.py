"""What was watched of late: a prior of every item, as of the beginning of each day that is trained on, and as of now.

    prior(n, at) = log(1 + Σ 2^(-(at - t) / half life)) over the item's training positives known at `at`, t their times

A KuaiFormer with `recency_days` adds it to an item's score, times one learnt weight. In training a target sees the
prior as of the beginning of its day (days counted back from the end of training), so that no target counts itself: what
is learnt is how much yesterday tells of today. What is saved and served is the prior as of the end, a row of the table
`recent`; incremental training writes it anew.

Shapes: P places of the index, N items of the catalogue, G days: 0 = no prior, g = the g-th day before the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from contract.errors import InputError
from training.days import DAY_MS
from training.retrieval_split import RetrievalSplit
from training.tables import SparseTables

DAYS_MAX = 30  # older targets are trained without a prior
TABLE = "recent"


@dataclass(frozen=True, eq=False)
class Recency:
    """Priors of a split.

    day_P   int64 [P], the day of every place
    log_NG  float32 [N, G], the prior as of each day's beginning; 0 for day 0
    now_N   float32 [N], the prior as of the end of training
    """

    day_P: NDArray[np.int64]
    log_NG: NDArray[np.float32]
    now_N: NDArray[np.float32]


def recency_of(split: RetrievalSplit, half_life_days: float) -> Recency:
    """The priors of a split's training positives. Raises InputError where none of them has a time."""
    index, trained = split.index, split.train_places()
    trained = trained[(split.row_P[trained] >= 0) & (index.time_ms[trained] >= 0)]
    if not len(trained):
        raise InputError(
            "recency_days needs times", where=f"data '{split.name}'", fix="leave it out: these data have none"
        )
    time_ms, known_ms, row = index.time_ms[trained], index.known_ms[trained], split.row_P[trained]
    end_ms = split.cut_ms if split.cut_ms is not None else int(known_ms.max()) + 1

    def prior(at_ms: int) -> NDArray[np.float32]:
        known = (time_ms < at_ms) & (known_ms <= at_ms)
        weight = np.exp2(-(at_ms - time_ms[known]) / (half_life_days * DAY_MS))
        return np.log1p(np.bincount(row[known], weight, split.n_items)).astype(np.float32)

    day_P = (end_ms - 1 - index.time_ms) // DAY_MS + 1
    n_days = min(DAYS_MAX, (end_ms - 1 - int(time_ms.min())) // DAY_MS + 1)
    day_P = np.where((index.time_ms >= 0) & (day_P >= 1) & (day_P <= n_days), day_P, 0)
    nothing = np.zeros(split.n_items, np.float32)
    days = [nothing, *(prior(end_ms - day * DAY_MS) for day in range(1, n_days + 1))]
    return Recency(day_P, np.stack(days, axis=1), prior(end_ms))


def write_recency(tables: SparseTables, video_id: NDArray[np.uint64], now_N: NDArray[np.float32]) -> None:
    """Set the table `recent` to these priors; rows of other items, and the default row, are 0."""
    weight = tables.weights[TABLE]
    slots = tables.slots(TABLE, video_id)
    known = torch.from_numpy(np.flatnonzero(slots > 0))
    with torch.no_grad():
        weight.zero_()
        weight[torch.from_numpy(slots)[known], 0] = torch.from_numpy(now_N)[known].to(weight)

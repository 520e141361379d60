"""The place of every query's target in the whole catalogue: found by comparison, not by sorting.

Histories that several queries share are scored once, the shortest first; memory is bounded by one batch of scores.

Shapes: Q queries, H different histories, N items, B histories of a batch, q queries of a batch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from contract.errors import InputError
from training.retrieval_metrics import place_of
from training.retrieval_split import Queries, RetrievalSplit

SCORES_AT_ONCE = 1 << 24  # float32: 64 MiB
HISTORIES_AT_ONCE = 256
Ids = NDArray[np.int64]
Floats = NDArray[np.float32]


class Scorer(Protocol):
    """What evaluation takes. One that keeps things may also have `refresh()`, called as an evaluation begins."""

    name: str

    def scores(self, split: RetrievalSplit, user: Ids, end: Ids) -> Floats:
        """Scores of the whole catalogue for histories [split.start(user), end): float32 [B, N], higher is better.

        user = -1 with end = 0 is a user without any positive. Only places of the history may be read.
        """
        ...


@dataclass(frozen=True, eq=False)
class Histories:
    """The different histories of some queries, shortest first.

    user, end   int64 [H]
    of_query    int64 [Q], the history of each query
    """

    user: Ids
    end: Ids
    of_query: Ids

    @staticmethod
    def of(split: RetrievalSplit, queries: Queries) -> Histories:
        pairs, of_query = np.unique(np.stack([queries.user, queries.end], axis=1), axis=0, return_inverse=True)
        order = np.argsort(np.minimum(pairs[:, 1] - split.start(pairs[:, 0]), split.history), kind="stable")
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        return Histories(pairs[order, 0], pairs[order, 1], place[of_query.reshape(-1)])

    def __len__(self) -> int:
        return len(self.user)


@dataclass(frozen=True, eq=False)
class Batch:
    """Scores of some histories and the queries that ask for them.

    query      int64 [q]       numbers of the queries
    row        int64 [q]       history of the batch
    scores_BN  float32 [B, N]  −inf where masked
    masked_BN  bool [B, N]     None when the split masks nothing
    seconds    what scoring took
    """

    query: Ids
    row: Ids
    scores_BN: Floats
    masked_BN: NDArray[np.bool_] | None
    seconds: float


def scored_batches(split: RetrievalSplit, queries: Queries, scorer: Scorer) -> Iterator[Batch]:
    """All queries, in batches of histories. Raises InputError for scores of another shape, or NaN."""
    histories = Histories.of(split, queries)
    step = max(1, min(HISTORIES_AT_ONCE, SCORES_AT_ONCE // split.n_items))
    order = np.argsort(histories.of_query, kind="stable")
    for first in range(0, len(histories), step):
        user, end = histories.user[first : first + step], histories.end[first : first + step]
        began = time.perf_counter()
        scores_BN = _checked(scorer, split, user, end)
        seconds = time.perf_counter() - began
        masked_BN = None
        if split.mask_history:
            rows_BL = split.history_rows(user, end, split.history)
            row, column = np.nonzero(rows_BL >= 0)
            masked_BN = np.zeros(scores_BN.shape, bool)
            masked_BN[row, rows_BL[row, column]] = True
            scores_BN = np.where(masked_BN, np.float32(-np.inf), scores_BN)
        low, high = np.searchsorted(histories.of_query[order], [first, first + step])
        mine = order[low:high]
        yield Batch(mine, histories.of_query[mine] - first, scores_BN, masked_BN, seconds)


def _checked(scorer: Scorer, split: RetrievalSplit, user: Ids, end: Ids) -> Floats:
    scores_BN: Floats = np.require(scorer.scores(split, user, end), np.float32, ["C", "W"])
    if scores_BN.shape != (len(user), split.n_items):
        raise InputError(
            "a scorer must score the whole catalogue",
            where=scorer.name,
            got=scores_BN.shape,
            allowed=(len(user), split.n_items),
        )
    if np.isnan(scores_BN.min(initial=0.0)):
        raise InputError("scores are NaN", where=scorer.name, fix="the model diverged, or divides by nothing")
    return scores_BN


def rank_targets(batch: Batch, item: Ids) -> tuple[NDArray[np.float64], Ids]:
    """Rank of each query's target and the number of other candidates, [q] twice. item: catalogue rows [q].

    A target that its own history masks can't be found: it stands behind all candidates.
    """
    above, equal, hidden = (np.zeros(len(item), np.int64) for _ in range(3))
    n_masked_B = np.zeros(len(batch.scores_BN), np.int64) if batch.masked_BN is None else batch.masked_BN.sum(axis=1)
    for q, (row, target) in enumerate(zip(batch.row, item, strict=True)):
        scores_N = batch.scores_BN[row]
        value = scores_N[target]
        above[q] = np.count_nonzero(scores_N > value)
        equal[q] = np.count_nonzero(scores_N == value)
        if value == -np.inf:  # as low as what is masked, which is no candidate
            equal[q] -= n_masked_B[row]
        hidden[q] = batch.masked_BN is not None and batch.masked_BN[row, target]
    others = batch.scores_BN.shape[1] - n_masked_B[batch.row] - 1 + hidden
    return np.where(hidden, others + 1.0, place_of(above, equal)), others


def top_rows(batch: Batch, k: int) -> list[Ids]:
    """The first k candidates of each history, best first, ties in the catalogue's order: int64 [≤ k] each."""
    k = min(k, batch.scores_BN.shape[1])
    least_B = torch.from_numpy(batch.scores_BN).topk(k, dim=1, sorted=True).values[:, -1].numpy()
    found = []
    for b, scores_N in enumerate(batch.scores_BN):
        rows = np.flatnonzero(scores_N >= least_B[b])
        if batch.masked_BN is not None:
            rows = rows[~batch.masked_BN[b, rows]]
        found.append(rows[np.argsort(-scores_N[rows], kind="stable")[:k]])
    return found

"""From ranks to figures: recall, NDCG, MRR, AUC of every query, and their means with intervals over users drawn whole.

A query has one relevant item, so recall@k is the hit rate@k. Ranks start at 1; among equal scores the target takes the
middle place, so that a constant score is worth a random order.

Shapes: Q queries, M figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from contract.errors import InputError
from contract.stats import DRAWS, Interval, cluster_bootstrap

CUTOFFS = (10, 20, 50, 100, 500, 1000)
NDCG_CUTOFFS = (10, 20)
COVERAGE_CUTOFFS = (10, 50)
CLAIM_SHARE = 0.05  # of the catalogue: a cut-off above is shown and carries no claim
TIES = "one relevant item a query, so recall@k is hit rate@k; ties: the middle place"


@dataclass(frozen=True, eq=False)
class Ranks:
    """What became of each query.

    query    int64 [Q]    number of the query in its split
    user_id  uint64 [Q]   MISSING_KEY = unknown
    history  int64 [Q]    items of the history that the protocol allows
    target   uint64 [Q]   id of the item to be found
    rank     float64 [Q]  its place among the candidates, from 1
    others   int64 [Q]    candidates beside the target: the catalogue less what was masked
    """

    query: NDArray[np.int64]
    user_id: NDArray[np.uint64]
    history: NDArray[np.int64]
    target: NDArray[np.uint64]
    rank: NDArray[np.float64]
    others: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.query)

    def same_queries(self, other: Ranks) -> bool:
        """Whether both answer the same questions: same users, histories, targets and candidates."""
        names = ("query", "user_id", "history", "target", "others")
        return all(np.array_equal(getattr(self, name), getattr(other, name)) for name in names)


def place_of(above: NDArray[np.int64], equal: NDArray[np.int64]) -> NDArray[np.float64]:
    """Rank of a target with `above` candidates above it and `equal` as high, itself counted: the middle place."""
    return above + 1.0 + (equal - 1) / 2.0


def figure_names(n_items: int) -> list[str]:
    """Names of the figures over a catalogue of so many items: no recall of the whole catalogue."""
    recall = [f"recall@{k}" for k in CUTOFFS if k < n_items]
    return [*recall, *(f"ndcg@{k}" for k in NDCG_CUTOFFS), "mrr", "auc"]


def figures(ranks: Ranks, n_items: int) -> NDArray[np.float64]:
    """Every figure of every query: float64 [Q, M], columns as `figure_names` says."""
    rank = ranks.rank
    columns = [rank <= k for k in CUTOFFS if k < n_items]
    columns += [np.where(rank <= k, 1.0 / np.log2(rank + 1.0), 0.0) for k in NDCG_CUTOFFS]
    others = np.maximum(ranks.others, 1)
    # Share of the other candidates below the target. One that its own history masks stands behind them all: 0.
    return np.stack([*columns, 1.0 / rank, (ranks.others + 1.0 - rank) / others], axis=1).astype(np.float64)


def means(ranks: Sequence[Ranks], n_items: int, *, seed: int = 0, draws: int = DRAWS) -> dict[str, Interval]:
    """Name -> mean over queries and its 95 % interval, users drawn whole. draws = 0: no bounds (NaN).

    Several ranks of the same queries (seeds of one model) are averaged query by query.
    """
    found = cluster_bootstrap(_averaged(ranks, n_items), ranks[0].user_id, seed, draws)
    return dict(zip(figure_names(n_items), found, strict=True))


def differences(
    ours: Sequence[Ranks], theirs: Sequence[Ranks], n_items: int, *, seed: int = 0, draws: int = DRAWS
) -> dict[str, Interval]:
    """Paired: the mean of ours − theirs over the same queries, each side averaged query by query.

    Raises InputError when the queries differ.
    """
    _same_queries([*ours, *theirs])
    paired = _averaged(ours, n_items) - _averaged(theirs, n_items)
    found = cluster_bootstrap(paired, ours[0].user_id, seed, draws)
    return dict(zip(figure_names(n_items), found, strict=True))


def _averaged(ranks: Sequence[Ranks], n_items: int) -> NDArray[np.float64]:
    """Figures of every query, the mean over results: float64 [Q, M]. Raises InputError when the queries differ."""
    _same_queries(ranks)
    total = sum(figures(one, n_items) for one in ranks)
    return np.asarray(total, np.float64) / len(ranks)


def _same_queries(ranks: Sequence[Ranks]) -> None:
    if not all(one.same_queries(ranks[0]) for one in ranks):
        raise InputError(
            "results of different queries can't be compared",
            got=" and ".join(str(len(one)) for one in ranks) + " queries",
            fix="evaluate all of them on the same data, split and cut",
        )


def claims(name: str, n_items: int) -> bool:
    """Whether a figure carries a claim: its cut-off, if it has one, is at most 5 % of the catalogue."""
    cutoff = name.partition("@")[2]
    return not cutoff or int(cutoff) <= CLAIM_SHARE * n_items

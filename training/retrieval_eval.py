"""How good retrieval is: full ranking of the catalogue, one query per positive of the days held out, histories frozen.

Shapes: Q queries, N items, U users, B users of a batch, D width, K interests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from contract.catalogue import Catalogue
from contract.errors import InputError
from contract.events import Events
from contract.history import PositiveIndex, is_positive
from training.kuaiformer import KuaiFormer, score
from training.kuaiformer_data import HistorySlots, item_slots
from training.tables import SparseTables

CUTOFFS = (10, 50)
USERS_AT_ONCE = 256


@dataclass(frozen=True)
class Queries:
    """Positives to be found: user [Q], catalogue row [Q], and what was left out because it is not in the catalogue."""

    user_id: NDArray[np.uint64]
    row: NDArray[np.int64]
    left_out: int
    cut_ms: int

    @staticmethod
    def after(events: Events, catalogue: Catalogue, cut_ms: int) -> Queries:
        """Raises InputError when no positive of the catalogue was shown at or after the cut."""
        later = is_positive(events["long_view"], events["like"]) & (events["time_ms"] >= cut_ms)
        row = catalogue.index_of(events["video_id"][later])
        if not (row >= 0).any():
            raise InputError("no positive to be found after the cut", got=f"{len(events)} events, cut at {cut_ms} ms")
        return Queries(events["user_id"][later][row >= 0], row[row >= 0], int((row < 0).sum()), cut_ms)


def ranking_metrics(
    queries: Queries, n_items: int, scores_of: Callable[[NDArray[np.uint64]], NDArray[np.float32]]
) -> dict[str, float]:
    """Recall@{10,50} and NDCG@10 over queries. scores_of: users [B] -> scores [B, n_items].

    Among equal scores the target takes the middle place, so that a constant score is worth a random order.
    """
    ranks = np.concatenate([ranks for ranks in _ranks(queries, scores_of)])
    found = {f"recall@{k}": float((ranks <= k).mean()) for k in CUTOFFS if k < n_items}
    found["ndcg@10"] = float(np.where(ranks <= 10, 1.0 / np.log2(ranks + 1.0), 0.0).mean())
    return found


def _ranks(
    queries: Queries, scores_of: Callable[[NDArray[np.uint64]], NDArray[np.float32]]
) -> Iterator[NDArray[np.float64]]:
    users, user_of_query = np.unique(queries.user_id, return_inverse=True)
    order = np.argsort(user_of_query, kind="stable")
    for first in range(0, len(users), USERS_AT_ONCE):
        scores_BN = scores_of(users[first : first + USERS_AT_ONCE])
        low, high = np.searchsorted(user_of_query[order], [first, first + USERS_AT_ONCE])
        mine = order[low:high]
        of_target = scores_BN[user_of_query[mine] - first, queries.row[mine]]
        rows = scores_BN[user_of_query[mine] - first]
        above = (rows > of_target[:, None]).sum(axis=1)
        equal = (rows == of_target[:, None]).sum(axis=1)
        yield above + 1.0 + (equal - 1) / 2.0


def user_interests(
    net: KuaiFormer, tables: SparseTables, history: HistorySlots, users: NDArray[np.uint64], time_ms: int = -1
) -> torch.Tensor:
    """Interests of users as of a time (-1 = after all of the index): float32 [B, K, D]."""
    start, end = history.index.bounds(users, np.full(len(users), time_ms))
    slots, mask = history.window(start, end)
    interests: torch.Tensor = net.encoder(tables.rows(net.spec, "history_rows", slots), mask)
    return interests


def item_vectors(net: KuaiFormer, tables: SparseTables, catalogue: Catalogue) -> torch.Tensor:
    """Vectors of all items: float32 [N, D]."""
    vectors: torch.Tensor = net.item(tables.rows(net.spec, "item_rows", item_slots(catalogue, net.spec, tables)))
    return vectors


@torch.no_grad()
def evaluate_retrieval(
    net: KuaiFormer, tables: SparseTables, events: Events, catalogue: Catalogue, cut_ms: int
) -> dict[str, float]:
    """Metrics of the net on positives at or after `cut_ms`; histories are those known at the cut, frozen."""
    training = net.training
    net.eval()
    tables.eval()
    queries = Queries.after(events, catalogue, cut_ms)
    history = HistorySlots(PositiveIndex.from_events(events), net.spec, tables)
    items_ND = item_vectors(net, tables, catalogue)

    def scores_of(users: NDArray[np.uint64]) -> NDArray[np.float32]:
        scores: NDArray[np.float32] = score(user_interests(net, tables, history, users, cut_ms), items_ND).numpy()
        return scores

    metrics = ranking_metrics(queries, len(catalogue), scores_of)
    net.train(training)
    tables.train(training)
    return metrics


def evaluate_popularity(events: Events, catalogue: Catalogue, cut_ms: int) -> dict[str, float]:
    """The floor: items by how many positives they had before the cut, the same order for everyone."""
    queries = Queries.after(events, catalogue, cut_ms)
    earlier = is_positive(events["long_view"], events["like"]) & (events["time_ms"] < cut_ms)
    row = catalogue.index_of(events["video_id"][earlier])
    counts_N = np.bincount(row[row >= 0], minlength=len(catalogue)).astype(np.float32)
    return ranking_metrics(queries, len(catalogue), lambda users: np.repeat(counts_N[None], len(users), axis=0))


def protocol(events: Events, catalogue: Catalogue, cut_ms: int) -> str:
    """One line that says what a figure means."""
    queries = Queries.after(events, catalogue, cut_ms)
    left = f", {queries.left_out} positives outside the catalogue left out" if queries.left_out else ""
    return (
        f"full ranking of {len(catalogue)} videos; one query per positive (long_view or like) from {cut_ms} ms on: "
        f"{len(queries.row)} queries of {len(np.unique(queries.user_id))} users{left}; "
        "history = positives known at the cut, frozen; seen items not masked"
    )

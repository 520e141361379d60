"""The first form of retrieval's evaluation, for callers that hand in events and a cut; goes when the last one has gone.

Shapes: Q queries, N items, B users of a batch, D width, K interests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from contract.catalogue import Catalogue
from contract.errors import InputError
from contract.events import Events
from contract.history import is_positive
from training.readers.log_data import LogData, tables_of
from training.retrieval_metrics import Ranks, means
from training.retrieval_rank import Batch, rank_targets
from training.retrieval_split import RetrievalSplit, split_of


def split_at(events: Events, catalogue: Catalogue, cut_ms: int) -> RetrievalSplit:
    """The split of a log cut at `cut_ms`."""
    return split_of(LogData(events, catalogue, tables_of(events)[1]), "events", cut_ms=cut_ms)


@dataclass(frozen=True)
class Queries:
    """Positives to be found: user [Q], catalogue row [Q], and what was left out because it is not in the catalogue."""

    user_id: NDArray[np.uint64]
    row: NDArray[np.int64]
    left_out: int
    cut_ms: int

    @staticmethod
    def after(events: Events, catalogue: Catalogue, cut_ms: int) -> Queries:
        later = is_positive(events["long_view"], events["like"]) & (events["time_ms"] >= cut_ms)
        row = catalogue.index_of(events["video_id"][later])
        if not (row >= 0).any():
            raise InputError("no positive to be found after the cut", got=f"{len(events)} events, cut at {cut_ms} ms")
        return Queries(events["user_id"][later][row >= 0], row[row >= 0], int((row < 0).sum()), cut_ms)


def ranking_metrics(
    queries: Queries, n_items: int, scores_of: Callable[[NDArray[np.uint64]], NDArray[np.float32]]
) -> dict[str, float]:
    """Figures over queries. scores_of: users [B] -> scores [B, n_items]."""
    users, row = np.unique(queries.user_id, return_inverse=True)
    n = len(queries.row)
    batch = Batch(np.arange(n), row, scores_of(users), None, 0.0)
    rank, others = rank_targets(batch, queries.row)
    ranks = Ranks(np.arange(n), queries.user_id, np.zeros(n, np.int64), queries.row.astype(np.uint64), rank, others)
    return {name: one.mean for name, one in means([ranks], n_items, draws=0).items()}


def user_interests(net: Any, tables: Any, history: Any, users: NDArray[np.uint64], time_ms: int = -1) -> torch.Tensor:
    """Interests of users as of a time (-1 = after all of the index): float32 [B, K, D]. history: HistorySlots."""
    start, end = history.index.bounds(users, np.full(len(users), time_ms))
    slots, mask = history.window(start, end)
    interests: torch.Tensor = net.encoder(tables.rows(net.spec, "history_rows", slots), mask)
    return interests


def evaluate_retrieval(net: Any, tables: Any, events: Events, catalogue: Catalogue, cut_ms: int) -> dict[str, float]:
    """Figures of the net on positives at or after `cut_ms`."""
    from training.retrieval_eval import KuaiFormerScorer, evaluate

    return evaluate(split_at(events, catalogue, cut_ms), "val", KuaiFormerScorer(net, tables), quick=True).values


def evaluate_popularity(events: Events, catalogue: Catalogue, cut_ms: int) -> dict[str, float]:
    """Figures of popularity."""
    from training.retrieval_eval import Popularity, evaluate

    return evaluate(split_at(events, catalogue, cut_ms), "val", Popularity(), quick=True).values


def protocol(events: Events, catalogue: Catalogue, cut_ms: int) -> str:
    """One line that says what a figure means."""
    return split_at(events, catalogue, cut_ms).queries["val"].protocol

"""How good retrieval is: every item of the catalogue ranked for every query. One harness for whatever can score.

    split = split_of(open_data("ml-1m:../shared/data/ml-1m"), "ml-1m")
    print(evaluate(split, "val", Popularity(), dump="popularity.parquet"))

A scorer is any object with a name and `scores(split, user, end)`.

Shapes: Q queries, N items, B users of a batch, D width, K interests.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from contract.catalogue import Catalogue
from contract.stats import DRAWS, percentiles
from contract.vocabulary import MISSING_KEY
from training.devices import to_device
from training.kuaiformer import KuaiFormer
from training.retrieval_dump import DumpWriter
from training.retrieval_metrics import COVERAGE_CUTOFFS, Ranks
from training.retrieval_rank import Floats, Histories, Ids, Scorer, rank_targets, scored_batches, top_rows
from training.retrieval_result import RetrievalResult
from training.retrieval_split import Queries, RetrievalSplit
from training.segments import HistorySlots, item_slots
from training.tables import SparseTables

TIMED, WARM_UP = 100, 3


class Popularity:
    """The floor: items by how often they are training positives, the same order for everyone."""

    name = "popularity"

    def __init__(self) -> None:
        self._split: RetrievalSplit | None = None
        self._counts_N = np.zeros(0, np.float32)

    def scores(self, split: RetrievalSplit, user: Ids, end: Ids) -> Floats:
        if self._split is not split:
            self._split, self._counts_N = split, split.counts().astype(np.float32)
        return np.broadcast_to(self._counts_N, (len(user), split.n_items))


class KuaiFormerScorer:
    """A KuaiFormer as a scorer: max over its interests of the inner product with every item's vector (Eq. 9).

    Rows of histories and items are looked up once a split. Runs where the net's weights lie.
    """

    def __init__(self, net: KuaiFormer, tables: SparseTables, name: str = "kuaiformer"):
        self.net, self.tables, self.name = net, tables, name
        self._lengths = np.array(net.config.lengths)
        self._split: RetrievalSplit | None = None
        self._history: HistorySlots
        self._items_ND: torch.Tensor | None = None

    def refresh(self) -> None:
        """Forget the items' vectors: the weights may have moved. `evaluate` calls this."""
        self._items_ND = None

    @torch.no_grad()
    def scores(self, split: RetrievalSplit, user: Ids, end: Ids) -> Floats:
        with evaluating(self.net, self.tables):
            if self._split is not split:
                self._split, self._items_ND = split, None
                self._history = HistorySlots(split.index, self.net.spec, self.tables)
            if self._items_ND is None:
                self._items_ND = item_vectors(self.net, self.tables, split.items)
            found: Floats = best_scores(self.interests(split, user, end), self._items_ND).float().cpu().numpy()
        return found

    def interests(self, split: RetrievalSplit, user: Ids, end: Ids) -> torch.Tensor:
        """float32 [B, K, D] of histories [start(user), end), the protocol's last places of them."""
        start = np.maximum(split.start(user), end - split.history)
        # Padded to the shortest input that the encoder takes and that holds every history: the same answers.
        shortest = np.searchsorted(self._lengths, (end - start).max(initial=1))
        length = int(self._lengths[np.minimum(shortest, len(self._lengths) - 1)])
        slots, mask_BL = to_device(self._history.window(start, end, length), _device(self.net))
        interests: torch.Tensor = self.net.encoder(self.tables.rows(self.net.spec, "history_rows", slots), mask_BL)
        return interests


@contextmanager
def evaluating(*modules: torch.nn.Module) -> Iterator[None]:
    """Eval mode inside, what it was before afterwards."""
    before = [module.training for module in modules]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module, mode in zip(modules, before, strict=True):
            module.train(mode)


def best_scores(interests_BKD: torch.Tensor, items_ND: torch.Tensor) -> torch.Tensor:
    """`kuaiformer.score` (Eq. 9), [B, N], one interest at a time: [B, K, N] of a large catalogue is never held."""
    best_BN = interests_BKD[:, 0] @ items_ND.T
    for k in range(1, interests_BKD.shape[1]):
        torch.maximum(best_BN, interests_BKD[:, k] @ items_ND.T, out=best_BN)
    return best_BN


def item_vectors(net: KuaiFormer, tables: SparseTables, catalogue: Catalogue) -> torch.Tensor:
    """Vectors of all items: float32 [N, D]."""
    slots = to_device(item_slots(catalogue, net.spec, tables), _device(net))
    vectors: torch.Tensor = net.item(tables.rows(net.spec, "item_rows", slots))
    return vectors


def _device(net: torch.nn.Module) -> torch.device:
    return next(net.parameters()).device


def evaluate(
    split: RetrievalSplit,
    which: str | Queries,
    scorer: Scorer,
    *,
    quick: bool = False,
    dump: str | Path | None = None,
    top: int = 100,
    seed: int = 0,
    draws: int = DRAWS,
    about: Mapping[str, Any] | None = None,
) -> RetrievalResult:
    """Rank the catalogue for every query of a split ("val", "test") or for some of its queries (`Queries.take`).

    quick  ranks alone: no coverage, no latencies, no intervals; for validation while training
    dump   a Parquet file for the first `top` items of every query with their scores
    seed   of the bootstrap and of the histories that are timed one by one; draws: of the bootstrap
    about  facts to stand beside the figures
    Raises InputError for an unknown split and for scores that are NaN or of another shape.
    """
    began = time.perf_counter()
    getattr(scorer, "refresh", lambda: None)()
    queries = split.chosen(which) if isinstance(which, str) else which
    ranks = _unranked(split, queries)
    shown = {k: np.zeros(split.n_items, bool) for k in COVERAGE_CUTOFFS if not quick and k < split.n_items}
    depth = max([*shown, top if dump is not None else 0], default=0)
    seconds: list[tuple[int, float]] = []
    with DumpWriter(dump, top) if dump is not None else nullcontext() as writer:
        for batch in scored_batches(split, queries, scorer):
            seconds.append((len(batch.scores_BN), batch.seconds))
            ranks.rank[batch.query], ranks.others[batch.query] = rank_targets(batch, queries.item[batch.query])
            lists = top_rows(batch, depth) if depth else []
            for k, shown_N in shown.items():
                for rows in lists:
                    shown_N[rows[:k]] = True
            if writer is not None:
                chosen = [lists[row][:top] for row in batch.row]
                scores = [batch.scores_BN[row, rows] for row, rows in zip(batch.row, chosen, strict=True)]
                writer.add(ranks, batch.query, [split.items.video_id[rows] for rows in chosen], scores)
        speed = {} if quick else _speed(split, queries, scorer, seconds, seed)
        if speed:
            speed["seconds"] = time.perf_counter() - began
        result = RetrievalResult.of(
            ranks,
            n_items=split.n_items,
            seed=seed,
            draws=0 if quick else draws,
            name=scorer.name,
            data=split.name,
            split=which if isinstance(which, str) else "part",
            protocol=queries.protocol + ("" if isinstance(which, str) else f"; {len(queries)} of these queries"),
            coverage={f"coverage@{k}": float(shown_N.mean()) for k, shown_N in shown.items()},
            speed=speed,
            about=about,
        )
        if writer is not None:
            writer.finish(result)
    return result


def _unranked(split: RetrievalSplit, queries: Queries) -> Ranks:
    user_id = np.full(len(queries), MISSING_KEY, np.uint64)
    known = queries.user >= 0
    user_id[known] = split.index.user_id[queries.user[known]]
    return Ranks(
        query=np.arange(len(queries)),
        user_id=user_id,
        history=np.minimum(queries.end - split.start(queries.user), split.history),
        target=split.items.video_id[queries.item],
        rank=np.zeros(len(queries)),
        others=np.zeros(len(queries), np.int64),
    )


def _speed(
    split: RetrievalSplit, queries: Queries, scorer: Scorer, batches: Sequence[tuple[int, float]], seed: int
) -> dict[str, Any]:
    """Scoring of the whole catalogue: histories per second, and milliseconds of one history and of a full batch.

    The first batch prepares what scorers keep for a split; it counts only where there is no other.
    """
    counted = batches[1:] or batches
    largest = max(rows for rows, _ in batches)
    whole = percentiles([1000 * seconds for rows, seconds in counted if rows == largest])
    histories = Histories.of(split, queries)
    chosen = np.random.default_rng(seed).permutation(len(histories))[: TIMED + WARM_UP]
    one_ms = []
    for h in chosen:
        began = time.perf_counter()
        scorer.scores(split, histories.user[h : h + 1], histories.end[h : h + 1])
        one_ms.append(1000 * (time.perf_counter() - began))
    one = percentiles(one_ms[WARM_UP:] or one_ms)
    return {
        "histories": len(histories),
        "queries_per_second": sum(rows for rows, _ in counted) / max(sum(s for _, s in counted), 1e-9),
        "batch": largest,
        **{f"one_{key}_ms": one[key] for key in ("p50", "p90", "p99")},
        **{f"batch_{key}_ms": whole[key] for key in ("p50", "p90", "p99") if key in whole},
    }

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
from contract.history import KUAIFORMER_HISTORY
from contract.stats import DRAWS, percentiles
from contract.vocabulary import MISSING_KEY
from training.kuaiformer import KuaiFormer, score
from training.retrieval_dump import DumpWriter
from training.retrieval_legacy import (  # noqa: F401, for callers of before
    Queries,
    evaluate_popularity,
    evaluate_retrieval,
    protocol,
    ranking_metrics,
    user_interests,
)
from training.retrieval_metrics import COVERAGE_CUTOFFS, Ranks
from training.retrieval_rank import Floats, Histories, Ids, Scorer, rank_targets, scored_batches, top_rows
from training.retrieval_result import RetrievalResult
from training.retrieval_split import Queries as SplitQueries
from training.retrieval_split import RetrievalSplit
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
        # What the encoder takes, ascending; a batch is padded to the shortest that holds its histories.
        self.lengths = np.array(getattr(net.config, "lengths", None) or (KUAIFORMER_HISTORY,))
        self._split: RetrievalSplit | None = None
        self._slots: dict[str, Ids] = {}
        self._items_ND: torch.Tensor | None = None

    def refresh(self) -> None:
        """Forget the items' vectors: the weights may have moved. `evaluate` calls this."""
        self._items_ND = None

    @torch.no_grad()
    def scores(self, split: RetrievalSplit, user: Ids, end: Ids) -> Floats:
        with _evaluating(self.net, self.tables):
            if self._split is not split:
                self._prepare(split)
            if self._items_ND is None:
                self._items_ND = item_vectors(self.net, self.tables, split.items)
            found: Floats = score(self.interests(split, user, end), self._items_ND).float().cpu().numpy()
        return found

    def interests(self, split: RetrievalSplit, user: Ids, end: Ids) -> torch.Tensor:
        """float32 [B, K, D] of histories [start(user), end), the protocol's last places of them."""
        longest = int(np.minimum(end - split.start(user), split.history).max(initial=1))
        length = int(self.lengths[np.minimum(np.searchsorted(self.lengths, longest), len(self.lengths) - 1)])
        places_BL = split.windows(user, end, length)
        places_BL = np.where(places_BL >= (end - split.history)[:, None], places_BL, -1)
        device = next(self.net.parameters()).device
        # Place -1 reads the row of padding behind the last positive.
        slots = {name: torch.from_numpy(found[places_BL]).to(device) for name, found in self._slots.items()}
        mask_BL = torch.from_numpy((places_BL >= 0).astype(np.float32)).to(device)
        interests: torch.Tensor = self.net.encoder(self.tables.rows(self.net.spec, "history_rows", slots), mask_BL)
        return interests

    def _prepare(self, split: RetrievalSplit) -> None:
        found = self.tables.field_slots(self.net.spec, "history_rows", split.index.columns)
        self._slots = {name: np.concatenate([slots, np.full((1, slots.shape[1]), -1)]) for name, slots in found.items()}
        self._split, self._items_ND = split, None


@contextmanager
def _evaluating(*modules: torch.nn.Module) -> Iterator[None]:
    """Eval mode inside, what it was before afterwards."""
    before = [module.training for module in modules]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module, mode in zip(modules, before, strict=True):
            module.train(mode)


def item_vectors(net: KuaiFormer, tables: SparseTables, catalogue: Catalogue) -> torch.Tensor:
    """Vectors of all items: float32 [N, D]."""
    columns = {name: getattr(catalogue, name) for name in ("video_id", "author_id", "tags", "duration_ms")}
    device = next(net.parameters()).device
    found = tables.field_slots(net.spec, "item_rows", columns)
    slots = {name: torch.from_numpy(one).to(device) for name, one in found.items()}
    vectors: torch.Tensor = net.item(tables.rows(net.spec, "item_rows", slots))
    return vectors


def evaluate(
    split: RetrievalSplit,
    which: str | SplitQueries,
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


def _unranked(split: RetrievalSplit, queries: SplitQueries) -> Ranks:
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
    split: RetrievalSplit, queries: SplitQueries, scorer: Scorer, batches: Sequence[tuple[int, float]], seed: int
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

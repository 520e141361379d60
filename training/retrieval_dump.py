"""Results as Parquet: one row a query, the protocol in the file's metadata. Anyone can work the metrics out again.

| column | type | |
|---|---|---|
| query | int64 | number of the query in its split |
| user_id | uint64 | null = unknown |
| history | int64 | items of the history that the protocol allows |
| target | uint64 | id of the item to be found |
| rank | double | its place among the candidates, from 1; the middle place among equal scores |
| others | int64 | candidates beside the target |
| items | list<uint64> | the first items, best first; dumps only |
| scores | list<float> | their scores; dumps only |

Metadata "kir-retrieval": JSON with format, protocol, facts. recall@k = mean(rank <= k), ndcg@k = mean of
1 / log2(rank + 1) where rank <= k and 0 elsewhere, mrr = mean(1 / rank), auc = mean((others + 1 − rank) / others).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from contract.errors import InputError
from contract.vocabulary import MISSING_KEY
from training.retrieval_metrics import COVERAGE_CUTOFFS, Ranks, place_of
from training.retrieval_result import RetrievalResult

FORMAT = "kir-retrieval/1"
METADATA = b"kir-retrieval"
RANK_COLUMNS = ("query", "user_id", "history", "target", "rank", "others")
_RANK_FIELDS = [
    pa.field("query", pa.int64(), nullable=False),
    pa.field("user_id", pa.uint64()),
    pa.field("history", pa.int64(), nullable=False),
    pa.field("target", pa.uint64(), nullable=False),
    pa.field("rank", pa.float64(), nullable=False),
    pa.field("others", pa.int64(), nullable=False),
]
_LIST_FIELDS = [pa.field("items", pa.list_(pa.uint64())), pa.field("scores", pa.list_(pa.float32()))]
ROWS_AT_ONCE = 8192


class DumpWriter:
    """Writes aside as batches come; `finish` adds the metadata, flushes and renames. Left without it, nothing stays.

    top: length of the lists `items` and `scores`; 0 = the file has none.
    """

    def __init__(self, path: str | Path, top: int = 0):
        self.path = Path(path)
        self._top = top
        self._fields = _RANK_FIELDS + (_LIST_FIELDS if top else [])
        self._aside = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")

    def __enter__(self) -> DumpWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self._aside, "wb")
        self._writer = pq.ParquetWriter(self._file, pa.schema(self._fields), compression="zstd")
        return self

    def add(
        self,
        ranks: Ranks,
        rows: NDArray[np.int64],
        items: Sequence[NDArray[np.uint64]] = (),
        scores: Sequence[NDArray[np.float32]] = (),
    ) -> None:
        """Some queries by their rows in `ranks`, with one list each (none for a file without lists)."""
        columns: dict[str, Any] = {name: getattr(ranks, name)[rows] for name in RANK_COLUMNS}
        columns["user_id"] = pa.array(columns["user_id"], pa.uint64(), mask=columns["user_id"] == MISSING_KEY)
        if self._top:
            offsets = np.append(0, np.cumsum([len(one) for one in items])).astype(np.int32)
            for name, lists, kind in (("items", items, np.uint64), ("scores", scores, np.float32)):
                flat = np.concatenate(lists) if lists else np.zeros(0)
                columns[name] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat.astype(kind)))
        self._writer.write_table(pa.table(columns, schema=pa.schema(self._fields)))

    def finish(self, result: RetrievalResult) -> Path:
        facts: dict[str, Any] = {"format": FORMAT, "coverage": dict(result.coverage), "speed": dict(result.speed)}
        facts |= {name: getattr(result, name) for name in ("name", "data", "split", "protocol", "n_items")}
        facts |= {"about": dict(result.about), "top": self._top}
        self._writer.add_key_value_metadata({METADATA.decode(): json.dumps(facts, allow_nan=False)})
        self._writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        os.replace(self._aside, self.path)
        return self.path

    def __exit__(self, *error: object) -> None:
        if self._writer.is_open:
            self._writer.close()
        self._file.close()
        self._aside.unlink(missing_ok=True)


def write_result(path: str | Path, result: RetrievalResult) -> Path:
    """Ranks and facts without lists."""
    with DumpWriter(path) as writer:
        for first in range(0, max(len(result.ranks), 1), ROWS_AT_ONCE):
            writer.add(result.ranks, np.arange(first, min(first + ROWS_AT_ONCE, len(result.ranks))))
        return writer.finish(result)


def read_result(path: str | Path) -> RetrievalResult:
    """Metrics worked out anew from the file's ranks, and coverage from its lists as far as they reach.

    Raises InputError for a file that is absent, of another format, or whose ranks and lists contradict each other.
    """
    path = Path(path)
    try:
        file = pq.ParquetFile(path)
    except FileNotFoundError:
        raise InputError("no such result file", where=path) from None
    except (pa.ArrowException, OSError) as error:
        raise InputError("not a readable Parquet file", where=path, got=str(error)) from None
    with file:
        facts = _facts(path, file)
        reach = facts.pop("top")
        names = [k for k in COVERAGE_CUTOFFS if k <= reach and f"coverage@{k}" in facts["coverage"]]
        shown = {k: np.zeros(0, np.uint64) for k in names}
        parts = []
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            parts.append(_ranks_of(table))
            if reach:
                lists = _Lists.of(table)
                _check_lists(path, parts[-1], lists)
                shown = {k: np.union1d(seen, lists.items[lists.place < k]) for k, seen in shown.items()}
    facts["coverage"] |= {f"coverage@{k}": len(seen) / facts["n_items"] for k, seen in shown.items()}
    about = facts.pop("about")
    seed, draws = about.pop("bootstrap_seed"), about.pop("bootstrap_draws")
    return RetrievalResult.of(_in_order(parts), seed=seed, draws=draws, about=about, **facts)


def _facts(path: Path, file: Any) -> dict[str, Any]:
    raw = (file.metadata.metadata or {}).get(METADATA)
    try:
        facts = json.loads(raw) if raw else {}
    except ValueError:
        facts = {}
    if not isinstance(facts, dict) or facts.pop("format", None) != FORMAT or "top" not in facts:
        raise InputError(
            "not a file of ranked results", where=path, allowed=FORMAT, fix="write one with kir evaluate --dump FILE"
        )
    absent = sorted({*RANK_COLUMNS, *(("items", "scores") if facts["top"] else ())} - set(file.schema_arrow.names))
    if absent:
        raise InputError("the file of ranked results lacks columns", where=path, got=absent)
    return dict(facts)


def _ranks_of(table: Any) -> Ranks:
    filled = table.column("user_id").fill_null(MISSING_KEY)
    return Ranks(**{n: np.asarray(filled if n == "user_id" else table.column(n)) for n in RANK_COLUMNS})


def _in_order(parts: Sequence[Ranks]) -> Ranks:
    whole = {name: np.concatenate([getattr(part, name) for part in parts]) for name in RANK_COLUMNS}
    order = np.argsort(whole["query"], kind="stable")
    return Ranks(**{name: column[order] for name, column in whole.items()})


@dataclass(frozen=True, eq=False)
class _Lists:
    """The lists of q queries one after another: E entries.

    query   int64 [E], row of the query
    place   int64 [E], place in its list, from 0
    items   uint64 [E]
    scores  float32 [E]
    size    int64 [q]
    """

    query: NDArray[np.int64]
    place: NDArray[np.int64]
    items: NDArray[np.uint64]
    scores: NDArray[np.float32]
    size: NDArray[np.int64]

    @staticmethod
    def of(table: Any) -> _Lists:
        items, scores = (table.column(name).combine_chunks() for name in ("items", "scores"))
        size = np.asarray(items.value_lengths()).astype(np.int64)
        query = np.repeat(np.arange(len(size)), size)
        place = np.arange(len(query)) - np.repeat(np.cumsum(size) - size, size)
        return _Lists(query, place, np.asarray(items.flatten()), np.asarray(scores.flatten()), size)


def _check_lists(path: Path, ranks: Ranks, lists: _Lists) -> None:
    """A target in its list must stand there as its rank says; one that is not must rank behind the list."""
    q = len(ranks)
    within = lists.place > 0
    if (lists.scores[within] > lists.scores[np.flatnonzero(within) - 1]).any():
        raise InputError("a list of the dump is not in order of its scores", where=path)
    last_Q = np.full(q, np.inf, np.float32)
    last_Q[lists.query] = lists.scores  # the last write of each query stays: its lowest score
    value_Q = last_Q.copy()
    hit = lists.items == ranks.target[lists.query]
    value_Q[lists.query[hit]] = lists.scores[hit]
    found_Q = np.bincount(lists.query[hit], minlength=q) > 0
    above = np.bincount(lists.query, lists.scores > value_Q[lists.query], minlength=q).astype(np.int64)
    equal = np.bincount(lists.query, lists.scores == value_Q[lists.query], minlength=q).astype(np.int64)
    place = place_of(above, equal)
    # Scores equal to the list's last may go on behind it, then the list gives a bound alone. A target that is not in
    # the list may tie with its end: the middle of that tie, itself included, is the best it can have.
    exact = found_Q & (value_Q > last_Q)
    bound = np.where(found_Q, place, np.where(lists.size > 0, place_of(above, equal + 1), 1.0))
    wrong = np.where(exact, ranks.rank != place, ranks.rank < bound)
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        raise InputError(
            "ranks and lists of the dump contradict each other",
            where=f"{path}, query {int(ranks.query[first])}",
            got=f"rank {ranks.rank[first]:g}, by its list {place[first]:g}",
        )

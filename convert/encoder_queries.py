"""Real histories as the encoder takes them: what the int8 gate and the index's recall are measured on.

`--data` names them as in `kir train`. A query is a user's history at the checkpoint's cut (leave-one-out data: `val`)
and the item that came next. Without data there are stand-ins: histories of items drawn from the catalogue.

Shapes: Q queries, L history, R columns of history_rows, I items of the exported catalogue, K interests, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.catalogue import Catalogue
from contract.errors import InputError
from contract.history import HISTORY_COLUMNS, HistoryIndex
from contract.vocabulary import NULL_INT
from convert.hard_pages import INT32_MAX
from convert.phone import Rows
from training.checkpoint import Checkpoint
from training.readers import LeaveOneOut, open_data
from training.retrieval_split import Queries, RetrievalSplit, split_of

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]
STAND_IN_HISTORY = 32  # items of a drawn history


@dataclass(frozen=True, eq=False)
class EncoderQueries:
    """Q histories, worked out one at a time: all at once would be Q · L · R floats.

    source   what they are, in words, for config.json
    columns  HISTORY_COLUMNS of all places, and place_QL int64 [Q, L], right-aligned, padding -1
    target_Q int64 [Q] row of the exported catalogue that came next; -1 where nothing did (stand-ins)
    seen     whether a history's items are left out of its ranking (the data's protocol)
    """

    source: str
    rows: Rows
    columns: Mapping[str, NDArray[Any]]
    place_QL: Ids
    target_Q: Ids
    seen: bool
    items: Catalogue

    def __len__(self) -> int:
        return len(self.place_QL)

    def feeds(self, query: int) -> dict[str, Floats]:
        """history_rows [1, L, R] and history_mask [1, L] of one query; padding rows are zero."""
        places = self.place_QL[query]
        held = {name: column[places[places >= 0]] for name, column in self.columns.items()}
        block = self.rows.block("history_rows", held)
        mask = (places >= 0).astype(np.float32)
        rows = np.zeros((len(places), block.shape[1]), np.float32)
        rows[places >= 0] = block
        return {"history_rows": rows[None], "history_mask": mask[None]}

    def hard(self) -> Iterator[dict[str, Floats]]:
        """Feeds that no query has: of a user without history, of one with a single item, of a full list, and of a full
        list whose numbers stand at both ends of what a column can hold."""
        length, held = self.place_QL.shape[1], np.unique(self.place_QL[self.place_QL >= 0])
        full = np.resize(held, length)
        ends = np.where(np.arange(length) % 2 == 0, 0, INT32_MAX)
        most = {name: column[full] for name, column in self.columns.items()}
        most |= {name: ends.astype(most[name].dtype) for name in ("duration_ms", "play_time_ms", "gap_ms")}
        for columns, places in (
            (self.columns, full[:0]), (self.columns, full[:1]), (self.columns, full), (most, np.arange(length)),
        ):  # fmt: skip
            padded = np.full((1, length), -1, np.int64)
            padded[0, length - len(places) :] = places
            yield replace(self, columns=columns, place_QL=padded).feeds(0)

    def seen_rows(self, query: int) -> Ids:
        """Rows of the exported catalogue that this query's ranking leaves out."""
        places = self.place_QL[query]
        if not self.seen:
            return places[:0]
        rows = self.items.index_of(self.columns["video_id"][places[places >= 0]])
        return rows[rows >= 0]


def real_queries(
    checkpoint: Checkpoint, items: Catalogue, data: str, *, length: int, limit: int, seed: int = 0
) -> EncoderQueries:
    """At most `limit` queries of `data`, drawn by `seed`, whose target is in the exported catalogue.

    Where the data end at the checkpoint's cut, each user's last positive is the target: the model was trained on it,
    which does not matter between two forms of one model. Raises InputError for data without a query.
    """
    split, queries, which = _split(checkpoint, data)
    target = items.index_of(split.items.video_id[queries.item])
    usable = np.flatnonzero((target >= 0) & (queries.user >= 0) & (queries.end > split.start(queries.user)))
    if not len(usable):
        raise InputError("no history of these data ends in an item of the catalogue", where=data, got=len(queries))
    if len(usable) > limit:
        usable = np.sort(np.random.default_rng(seed).choice(usable, limit, replace=False))
    place_QL = split.windows(queries.user[usable], queries.end[usable], length)
    return EncoderQueries(
        source=f"{len(usable)} histories of {data.partition(':')[0]}, {which}",
        rows=_rows(checkpoint),
        columns=split.index.columns,
        place_QL=place_QL,
        target_Q=target[usable],
        seen=split.mask_history,
        items=items,
    )


def drawn_queries(
    checkpoint: Checkpoint, items: Catalogue, *, length: int, limit: int, seed: int = 0
) -> EncoderQueries:
    """Stand-ins without data: histories of items of the catalogue, each played to its end."""
    rng = np.random.default_rng(seed)
    held = min(length, STAND_IN_HISTORY, len(items))
    rows_Qh = np.stack([rng.choice(len(items), held, replace=False) for _ in range(limit)])
    columns: dict[str, NDArray[Any]] = {
        name: getattr(items, name) for name in ("video_id", "author_id", "tags", "duration_ms")
    }
    columns["play_time_ms"] = items.duration_ms
    columns["gap_ms"] = np.full(len(items), NULL_INT, HISTORY_COLUMNS["gap_ms"][0])
    place_QL = np.full((limit, length), -1, np.int64)
    place_QL[:, length - held :] = rows_Qh
    none = np.full(limit, -1, np.int64)
    source = f"{limit} histories drawn from the catalogue"
    return EncoderQueries(source, _rows(checkpoint), columns, place_QL, none, False, items)


def _rows(checkpoint: Checkpoint) -> Rows:
    return Rows(checkpoint.spec, checkpoint.tables, checkpoint.tables.numpy_rows())


def _split(checkpoint: Checkpoint, data: str) -> tuple[RetrievalSplit, Queries, str]:
    """The split, its queries, and in words where their targets stand."""
    opened, name = open_data(data), data.partition(":")[0]
    trained = checkpoint.config["training"]
    offset = float(trained.get("utc_offset_hours", 0.0))
    try:
        split = split_of(opened, name, cut_ms=trained.get("trained_until_ms"), utc_offset_hours=offset)
        which = "targets of val" if isinstance(opened, LeaveOneOut) else "targets after the model's cut"
        return split, split.chosen("val"), which
    except InputError:
        split = split_of(opened, name, holdout_days=0)
    return split, _last_of_each(split), "targets the model was trained on"


def _last_of_each(split: RetrievalSplit) -> Queries:
    index: HistoryIndex = split.index
    user = np.flatnonzero(np.diff(index.offsets) >= 2)
    end = index.offsets[user + 1] - 1
    known = split.row_P[end] >= 0
    return Queries(user[known], end[known], split.row_P[end][known], "each user's last positive")

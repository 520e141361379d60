"""What retrieval is trained on and what it must find: one form for logs (cut by day) and leave-one-out sequences.

    split = split_of(open_data("ml-1m:../shared/data/ml-1m"), "ml-1m")
    split = split_of(open_data("kuairand:../shared/data/kuairand-pure"), "kuairand", holdout_days=2, utc_offset_hours=8)

A place is the number of a positive in `index`, users side by side, oldest first. A query is (user, end, item): the
history is the user's places below `end`, `item` is what must be found in the catalogue.

Shapes: U users, P places, Q queries, N items of the catalogue.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from contract.catalogue import Catalogue
from contract.errors import InputError
from contract.events import Events
from contract.history import HISTORY_COLUMNS, HistoryIndex, is_positive
from contract.vocabulary import MISSING_KEY, NULL_INT
from training.days import cut_before_last_days, held_out
from training.readers import LeaveOneOut, LogData

Ids = NDArray[np.int64]
HISTORY = {"amazon-beauty": 50}  # of LRURec's protocol; 200 for the others of that kind


@dataclass(frozen=True, eq=False)
class Queries:
    """user int64 [Q] number in index.user_id, -1 = unknown there; end int64 [Q] place; item int64 [Q] catalogue row."""

    user: Ids
    end: Ids
    item: Ids
    protocol: str

    def __len__(self) -> int:
        return len(self.item)

    def take(self, rows: NDArray[np.integer] | NDArray[np.bool_]) -> Queries:
        return Queries(self.user[rows], self.end[rows], self.item[rows], self.protocol)


@dataclass(frozen=True, eq=False)
class RetrievalSplit:
    """Positives, catalogue, what may be trained on, and the queries of each split.

    name          of the data, printed above tables
    index         all positives
    items         the catalogue that is ranked, N rows
    row_P         int64 [P] catalogue row of each place, -1 = not in the catalogue
    train_end     int64 [U] user u trains on places [index.offsets[u], train_end[u])
    known_end_P   int64 [P] the history that place p may see as a target is [offsets of its user, known_end_P[p])
    queries       "val", "test" -> Queries
    mask_history  whether what stands in a query's history is left out of its ranking
    history       a query's history is cut to its last so many places (of the protocol; models may use fewer)
    cut_ms        of a log: trained on what lies before, queries from there on (`days.held_out`); None elsewhere
    """

    name: str
    index: HistoryIndex
    items: Catalogue
    row_P: Ids
    train_end: Ids
    known_end_P: Ids
    queries: Mapping[str, Queries]
    mask_history: bool
    history: int
    cut_ms: int | None = None

    @property
    def n_items(self) -> int:
        return len(self.items)

    def start(self, user: Ids) -> Ids:
        """First place of each user's history; 0 for unknown users, whose `end` is 0 as well."""
        return np.where(user >= 0, self.index.offsets[np.maximum(user, 0)], 0)

    def windows(self, user: Ids, end: Ids, length: int) -> Ids:
        """Places of the last `length` positives before `end`: int64 [n, length], right-aligned; padding -1."""
        return self.index.windows(self.start(user), end, length)

    def history_rows(self, user: Ids, end: Ids, length: int) -> Ids:
        """Catalogue rows of those places: int64 [n, length], -1 in the padding and for items not in the catalogue."""
        places = self.windows(user, end, length)
        rows: Ids = np.where(places >= 0, self.row_P[np.maximum(places, 0)], -1)
        return rows

    def train_places(self) -> Ids:
        """All places that may be trained on, ascending: int64 [n]."""
        return np.flatnonzero(np.arange(len(self.index)) < self.train_end[self.index.user_P])

    def counts(self) -> NDArray[np.int64]:
        """How often each item of the catalogue is a training positive: int64 [N]."""
        rows = self.row_P[self.train_places()]
        return np.bincount(rows[rows >= 0], minlength=self.n_items)

    def chosen(self, name: str) -> Queries:
        """The queries of a split. Raises InputError where the data have no such split."""
        if name not in self.queries:
            raise InputError("these data have no such split", got=name, allowed=sorted(self.queries))
        return self.queries[name]


def split_of(
    data: LogData | LeaveOneOut,
    name: str,
    *,
    holdout_days: int = 1,
    cut_ms: int | None = None,
    utc_offset_hours: float = 0.0,
    history: int | None = None,
) -> RetrievalSplit:
    """The split of any data. Logs: the last `holdout_days` days (or all from `cut_ms` on) are `val`; 0: no queries.

    utc_offset_hours  where the log's users live: a cut at their midnight counts days as the log files them (`days_of`)
    Leave-one-out data have `val` and `test`; the day arguments do not apply to them.
    """
    if isinstance(data, LeaveOneOut):
        return _of_sequences(data, name, history or HISTORY.get(name, 200))
    if cut_ms is None and holdout_days:
        cut_ms = cut_before_last_days(data.events, holdout_days, utc_offset_hours)
    late = None if cut_ms is None else held_out(data.events, cut_ms, utc_offset_hours)
    return _of_log(data.events, data.items, name, cut_ms, late, history or 256)


def _of_log(
    events: Events, items: Catalogue, name: str, cut_ms: int | None, late: NDArray[np.bool_] | None, history: int
) -> RetrievalSplit:
    """late: which events lie behind the cut, bool [n]; None = not cut."""
    index = HistoryIndex.from_events(events)
    n, user_P = len(index.user_id), index.user_P
    _, known_end_P = index.bounds(index.user_id[user_P], index.time_ms)
    # Where the log has no times its order is all there is: a positive sees those that stand before it.
    known_end_P = np.where(index.time_ms < 0, np.arange(len(index)), known_end_P)
    train_end, queries = index.offsets[1:], {}
    if cut_ms is not None and late is not None:
        # Trained on: what stands before the user's first positive behind the cut, which the log may file under the next
        # day though it was shown in the last minutes of this one. Seen by a query: what of it was known at the cut.
        train_end = index.offsets[1:].copy()
        late_P = np.flatnonzero(late[index.event])
        np.minimum.at(train_end, user_P[late_P], late_P)
        known_end = np.minimum(index.bounds(index.user_id, np.full(n, cut_ms))[1], train_end)
        queries["val"] = _queries_after(events, items, index, cut_ms, late, known_end)
    row_P = items.index_of(index.columns["video_id"])
    return RetrievalSplit(name, index, items, row_P, train_end, known_end_P, queries, False, history, cut_ms)


def _queries_after(
    events: Events, items: Catalogue, index: HistoryIndex, cut_ms: int, late: NDArray[np.bool_], known_end: Ids
) -> Queries:
    later = is_positive(events["long_view"], events["like"]) & late
    item = items.index_of(events["video_id"][later])
    if not (item >= 0).any():
        raise InputError("no positive to be found after the cut", got=f"{len(events)} events, cut at {cut_ms} ms")
    user = np.searchsorted(index.user_id, events["user_id"][later][item >= 0])
    left = f", {int((item < 0).sum())} positives outside the catalogue left out" if (item < 0).any() else ""
    protocol = (
        f"full ranking of {len(items)} videos; one query per positive (long_view or like) from {cut_ms} ms on: "
        f"{int((item >= 0).sum())} queries of {len(np.unique(user))} users{left}; "
        "history = positives known at the cut, frozen; seen items not masked"
    )
    return Queries(user, known_end[user], item[item >= 0], protocol)


def _of_sequences(data: LeaveOneOut, name: str, history: int) -> RetrievalSplit:
    n_train = np.diff(data.offsets)
    held = [(data.val_items >= 0).astype(np.int64), (data.test_items >= 0).astype(np.int64)]
    offsets = np.append(0, np.cumsum(n_train + held[0] + held[1]))
    train_end = offsets[:-1] + n_train
    row_P = np.empty(offsets[-1], np.int64)
    user_P = np.repeat(np.arange(data.n_users), np.diff(offsets))
    row_P[np.arange(len(row_P)) < train_end[user_P]] = data.train_items
    has_val, has_test = (np.flatnonzero(h) for h in held)
    row_P[train_end[has_val]] = data.val_items[has_val]
    row_P[offsets[has_test + 1] - 1] = data.test_items[has_test]
    columns = {key: np.full((len(row_P), *tail), null, dtype) for key, (dtype, tail, null) in HISTORY_COLUMNS.items()}
    items = Catalogue(
        video_id=data.item_ids.astype(np.uint64),
        author_id=np.full(data.n_items, MISSING_KEY, np.uint64),
        tags=data.item_tags,
        duration_ms=np.full(data.n_items, NULL_INT, np.int32),
        upload_ms=np.full(data.n_items, NULL_INT, np.int64),
    )
    columns["video_id"], columns["tags"] = items.video_id[row_P], items.tags[row_P]
    no_time = np.full(len(row_P), NULL_INT, np.int64)
    places = np.arange(len(row_P))
    index = HistoryIndex(columns, places, no_time, no_time, data.user_ids.astype(np.uint64), offsets)
    queries = {}
    for split, users, end in (
        ("val", has_val, train_end[has_val]),
        ("test", has_test, offsets[has_test + 1] - 1),
    ):
        protocol = (
            f"full ranking of {data.n_items} items; leave-one-out, {split}: {len(users)} queries, one a user; "
            f"history = all items before it (last {history} at most), masked"
            + (", the val item included" * (split == "test"))
        )
        queries[split] = Queries(users, end, row_P[end], protocol)
    return RetrievalSplit(name, index, items, row_P, train_end, places, queries, True, history)

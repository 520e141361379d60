"""Replay on real logs: what the reranker would have shown of pages whose every outcome is known.

A page is `size` consecutive impressions of one user in the window, in logged order, repeats of a video left out. At
each step the edge runtime picks from what is left of the page and then sees the logged feedback of its pick
(`per_swipe`), or sees it only with the next page (`one_shot`). Orders are compared by nDCG of long_view over the whole
page: the logged one; that of the server's pXTR of long_view alone (`server`), which is what a page would show without
a reranker, so what the reranker has to beat; and those of the reranker, whose fusion has other wishes than long_view
(watched time), hence once more by its score of that label alone (`by_view`). Pages whose labels are all the same say
nothing and are counted apart. Rows are int8 as a server sends them; pXTR are those of a ranker that saw earlier days
only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.edge_arm import EdgeChooser
from benchmarks.stats import cluster_bootstrap_mean
from contract.errors import InputError
from contract.features import block_keys
from contract.history import HistoryIndex
from contract.page import CANDIDATE, ROWS_OK, USER, Candidates, Page, Rows
from contract.rows import INT8, encode_rows
from contract.spec import FeatureSpec
from contract.user_profile import profiles_at
from contract.vocabulary import PXTR_HEADS
from edge import Engine, InstalledModel

PROTOCOL = (
    "A page is that many consecutive impressions of one user, repeats of a video left out; nDCG of long_view over the "
    "page, users drawn whole for the 95 % intervals. The reranker starts cold with each user's first page. server: by "
    "its pXTR of long_view alone; by view: per swipe by the score of effective_view (long_view) alone, not the fusion."
)
JUDGED = "effective_view"  # the reranker's task whose label is long_view
ORDERS = ("logged", "server", "one_shot", "per_swipe", "by_view")
# Paired differences of a row: name -> (order, minus that order).
GAINS = {
    "ndcg_gain": ("per_swipe", "logged"),
    "swipe_gain": ("per_swipe", "one_shot"),
    "server_gain": ("per_swipe", "server"),
    "view_gain": ("by_view", "server"),
}


@dataclass(frozen=True)
class LoggedResponse:
    play_time_ms: int
    signals: NDArray[np.int8]
    has_next: bool | None = None


class LoggedPages:
    """Makes pages from rows of a log, with the rows of a KIR checkpoint as the embedding server would send them."""

    def __init__(self, events: Any, spec: FeatureSpec, tables: Any, dense_version: str, rows_revision: int):
        self._events, self._spec, self._slots = events, spec, tables.slots
        self._tables = tables.numpy_rows()
        self._index = HistoryIndex.from_events(events, every=True)
        self._version = (dense_version, rows_revision)

    def page(self, rows: NDArray[np.int64]) -> Page:
        e, first = self._events, rows[:1]
        profile = profiles_at(self._index, e["user_id"][first], e["time_ms"][first], first)
        candidates = Candidates(
            video_id=e["video_id"][rows],
            author_id=e["author_id"][rows],
            tags=e["tags"][rows],
            duration_ms=e["duration_ms"][rows],
            upload_age_days=e["upload_age_days"][rows],
            pxtr=e["pxtr"][rows],
        )
        return Page(
            page_id=f"log-{rows[0]}",
            candidates=candidates,
            server_time_ms=int(e["time_ms"][rows[0]]),
            dense_version=self._version[0],
            rows_revision=self._version[1],
            spec_fingerprint=self._spec.fingerprint,
            rows_status=ROWS_OK if self._spec.tables else "not_needed",
            user_activity=int(e["user_activity"][rows[0]]),
            user_register_days=int(e["user_register_days"][rows[0]]),
            hour=int(e["hour"][rows[0]]),
            user_profile=profile["user_profile"][0],
            rows=self._rows(rows, profile["recent_authors"]),
        )

    def _rows(self, rows: NDArray[np.int64], recent_authors: NDArray[np.uint64]) -> Rows:
        columns: dict[str, NDArray[Any]] = {
            name: self._events[name][rows] for name in ("user_id", "video_id", "author_id", "tags")
        }
        wanted: dict[str, list[NDArray[np.int64]]] = {name: [] for name in self._spec.tables}
        slots: dict[tuple[str, str], NDArray[np.int64]] = {}
        feature_table: dict[tuple[str, str], str] = {}
        for owner, block, part in ((USER, "user_rows", slice(0, 1)), (CANDIDATE, "candidate_rows", slice(None))):
            of = {name: column[part] for name, column in columns.items()}
            keys = block_keys(self._spec, block, {**of, "recent_authors": recent_authors})
            for column in self._spec.columns(block):
                name, table = column.field.name, column.field.table
                found = self._slots(table, keys[name])
                slots[owner, name], feature_table[owner, name] = found, table
                wanted[table].append(np.unique(found[found > 0]))
        tables = {}
        for table, parts in wanted.items():
            kept = np.unique(np.concatenate([np.zeros(1, np.int64), *parts]))
            tables[table] = encode_rows(self._tables[table][kept], INT8)
            for key, name in feature_table.items():
                if name == table:
                    slots[key] = np.where(slots[key] < 0, -1, np.searchsorted(kept, np.maximum(slots[key], 0)))
        return Rows(tables, slots, feature_table)


def logged_pages(events: Any, size: int, start_ms: int) -> Iterator[list[NDArray[np.int64]]]:
    """Per user with at least one whole page from `start_ms` on: his pages, as rows of the log. A rest is left out."""
    late = np.flatnonzero(events["time_ms"] >= start_ms)
    order = late[np.lexsort((events["time_ms"][late], events["user_id"][late]))]
    users = events["user_id"][order]
    for rows in np.split(order, np.flatnonzero(users[1:] != users[:-1]) + 1):
        rows = _without_repeats(events, rows)
        pages = [rows[i : i + size] for i in range(0, len(rows) - size + 1, size)]
        if pages:
            yield pages


def _without_repeats(events: Any, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first impression of each video: a phone shows one once, and official logs have exact copies of rows."""
    first = np.sort(np.unique(events["video_id"][rows], return_index=True)[1])
    return rows[first]


def ndcg(labels: Sequence[int]) -> float:
    """nDCG of binary labels in the order shown, over the whole list; NaN when they are all the same."""
    gains = np.asarray(labels, float)
    if gains.min() == gains.max():
        return float("nan")
    discounts = 1.0 / np.log2(np.arange(2, len(gains) + 2))
    return float((gains * discounts).sum() / (np.sort(gains)[::-1] * discounts).sum())


def replay_log(
    events: Any,
    installed: InstalledModel,
    tables: Any,
    *,
    sizes: Sequence[int] = (3, 6, 8),
    start_ms: int,
    max_pages: int = 3000,
    rows_revision: int = 0,
) -> dict[str, Any]:
    """Every size's table row: pages, nDCG of ORDERS and the paired differences of GAINS.

    Raises InputError for a model that does not predict what is judged.
    """
    manifest, engine = installed.manifest, Engine(installed)
    if JUDGED not in manifest.tasks:
        raise InputError(
            "the replay judges by long_view", where=manifest.dense_version, got=manifest.tasks, allowed=JUDGED
        )
    by_view = Engine(replace(installed, manifest=replace(manifest, fusion={JUDGED: 1.0})))
    arms = {"one_shot": (engine, False), "per_swipe": (engine, True), "by_view": (by_view, True)}
    signals = events.signals
    maker = LoggedPages(events, manifest.spec, tables, manifest.dense_version, rows_revision)
    rows = []
    for size in sizes:
        found: list[list[float]] = []
        same = 0
        for user, pages in enumerate(logged_pages(events, size, start_ms)):
            if len(found) + same >= max_pages:
                break
            labels = [[int(v == 1) for v in events["long_view"][page]] for page in pages]
            shown = {
                name: _orders(events, signals, chooser, maker, pages, live) for name, (chooser, live) in arms.items()
            }
            shown |= {"logged": [list(range(size))] * len(pages), "server": server_orders(events, pages)}
            for number, page_labels in enumerate(labels):
                values = [ndcg([page_labels[i] for i in shown[name][number]]) for name in ORDERS]
                if np.isnan(values[0]):
                    same += 1
                else:
                    found.append([float(user), *values])
        rows.append(_row(size, np.array(found).reshape(-1, 1 + len(ORDERS)), same))
    return {"protocol": PROTOCOL, "sizes": [row for row in rows if row["pages"]]}


def server_orders(events: Any, pages: Sequence[NDArray[np.int64]]) -> list[list[int]]:
    """Each page by pXTR of long_view, best first; ties and nulls, which count as 0, as they were logged."""
    chance = np.nan_to_num(events["pxtr"][:, PXTR_HEADS.index("long_view")])
    return [np.argsort(-chance[rows], kind="stable").tolist() for rows in pages]


def _orders(
    events: Any,
    signals: NDArray[np.int8],
    engine: Engine,
    maker: LoggedPages,
    pages: Sequence[NDArray[np.int64]],
    per_swipe: bool,
) -> list[list[int]]:
    """The order in which the edge shows each of a user's pages."""
    first = pages[0][0]
    times = events["time_ms"]
    chooser = EdgeChooser(engine, int(events["user_id"][first]), int(first), int(times[first]), per_swipe)
    orders = []
    for rows in pages:
        page = maker.page(rows)
        chooser.page(page, int(times[rows[0]]))
        remaining, order = list(range(len(rows))), []
        for step in range(len(rows)):
            now_ms = int(times[rows[step]])
            index = chooser.choose(remaining, now_ms)
            remaining.remove(index)
            order.append(index)
            row = rows[index]
            response = LoggedResponse(int(events["play_time_ms"][row]), signals[row])
            chooser.observe(index, response, now_ms, now_ms + max(0, response.play_time_ms))
        orders.append(order)
    return orders


def _row(size: int, found: NDArray[np.float64], same: int) -> dict[str, Any]:
    if not len(found):
        return {"size": size, "pages": 0, "pages_all_same": same}
    users, by = found[:, 0], dict(zip(ORDERS, found[:, 1:].T, strict=True))
    means = {name: float(values.mean()) for name, values in by.items()}
    apart = {name: cluster_bootstrap_mean(by[a] - by[b], users).to_json() for name, (a, b) in GAINS.items()}
    return {"size": size, "pages": len(found), "pages_all_same": same, **means, **apart}


def within_user(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The ranker's within-user protocol figures, as the report's table shows them."""
    names = ("gauc", "ndcg@5", "primary", "item_rate_gauc", "item_rate_ndcg@5", "item_rate_primary")
    return {name: float(metrics[name]) for name in names if name in metrics}

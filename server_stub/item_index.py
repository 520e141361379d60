"""Items by vector, searched by inner product and changed while they serve.

A search works on one state from beginning to end; a change makes the next state and puts it in place with one
assignment, so that searches need no lock and never see half a change. An exact index is copied whole. An approximate
one is left as it is: replaced and removed rows are passed over, and what is new stands in a small exact part beside it,
until the next export builds the index afresh.

Shapes: K queries, D width, I rows of the base index, M results, N new vectors.
"""

from __future__ import annotations

import copy
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.errors import InputError, VersionMismatch

Ids = NDArray[np.uint64]
Floats = NDArray[np.float32]
SLACK = 16  # results asked for beyond n where rows are passed over; more are asked for when these do not do


@dataclass(frozen=True, eq=False)
class _State:
    """base: a faiss index over the vectors of base_ids [I]; gone bool [I]: rows to pass over; fresh: beside them."""

    base: Any
    base_ids: Ids
    gone: NDArray[np.bool_]
    n_gone: int
    fresh_ids: Ids
    fresh: Floats


class ItemIndex:
    """Thread-safe. index: a faiss inner-product index, never changed; ids: uint64 [I], row i of it is ids[i].

    Raises InputError for an id that stands twice, VersionMismatch when index and ids differ in number.
    """

    def __init__(self, index: Any, ids: Ids, where: object = "item index"):
        if index.ntotal != len(ids):
            raise VersionMismatch("index and item_ids differ", where=where, got=index.ntotal, allowed=len(ids))
        if len(np.unique(ids)) != len(ids):
            raise InputError("item_ids holds an id twice", where=where)
        self.width = int(index.d)
        self._where = where
        self._writing = threading.Lock()
        none = np.zeros((0, self.width), np.float32)
        self._state = _State(index, ids, np.zeros(len(ids), bool), 0, ids[:0], none)

    def copy(self) -> ItemIndex:
        """The same items; what is updated in one is not in the other. Costs nothing: states are never changed."""
        other = copy.copy(self)
        other._writing = threading.Lock()
        return other

    @property
    def ids(self) -> Ids:
        """All ids that can be found, in no particular order."""
        state = self._state
        return np.concatenate([state.base_ids[~state.gone], state.fresh_ids])

    def __len__(self) -> int:
        state = self._state
        return len(state.base_ids) - state.n_gone + len(state.fresh_ids)

    @property
    def fresh(self) -> int:
        """Vectors that stand beside an approximate index: a reason to export again when they are many."""
        return len(self._state.fresh_ids)

    def search(self, queries_KD: Floats, n: int) -> tuple[Ids, Floats]:
        """The best n of each query: ids [K, M] and scores [K, M], best first, M <= n; score -inf where nothing is."""
        state = self._state
        queries_KD = np.ascontiguousarray(queries_KD, np.float32)
        scores, ids = _search_base(state, queries_KD, n)
        if len(state.fresh_ids):
            more = queries_KD @ state.fresh.T
            best = np.argpartition(-more, min(n, more.shape[1]) - 1, axis=1)[:, :n]
            scores = np.concatenate([scores, np.take_along_axis(more, best, 1)], axis=1)
            ids = np.concatenate([ids, state.fresh_ids[best]], axis=1)
            order = np.argsort(-scores, axis=1, kind="stable")
            scores, ids = np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)
        return ids[:, :n], scores[:, :n]

    def update(self, ids: Ids, vectors_ND: Floats, removed: Ids | None = None) -> tuple[int, int]:
        """Add new items, replace those that are here, take `removed` away; the next search sees all of it.

        Returns (added, replaced). Raises InputError, and changes nothing, for an id that stands twice, another width,
        or values that are not finite.
        """
        ids = np.ascontiguousarray(ids, np.uint64)
        vectors_ND = np.ascontiguousarray(vectors_ND, np.float32)
        if ids.ndim != 1 or vectors_ND.shape != (len(ids), self.width):
            allowed = (len(ids), self.width)
            raise InputError(
                "vectors do not fit ids and width", where=self._where, got=vectors_ND.shape, allowed=allowed
            )
        if len(np.unique(ids)) != len(ids):
            raise InputError("an item's update holds an id twice", where=self._where)
        if not np.isfinite(vectors_ND).all():
            bad = ids[~np.isfinite(vectors_ND).all(axis=1)][:3].tolist()
            raise InputError("item vectors are not finite", where=self._where, got=f"items {bad}")
        removed = ids[:0] if removed is None else np.asarray(removed, np.uint64)
        with self._writing:
            state = self._state
            known = int(np.isin(ids, state.base_ids[~state.gone]).sum() + np.isin(ids, state.fresh_ids).sum())
            left = np.concatenate([ids, removed])
            gone = state.gone | np.isin(state.base_ids, left)
            stays = ~np.isin(state.fresh_ids, left)
            fresh_ids = np.concatenate([state.fresh_ids[stays], ids])
            fresh = np.concatenate([state.fresh[stays], vectors_ND])
            changed = _State(state.base, state.base_ids, gone, int(gone.sum()), fresh_ids, fresh)
            self._state = _folded(changed) if _is_exact(state.base) else changed
        return len(ids) - known, known


def _search_base(state: _State, queries_KD: Floats, n: int) -> tuple[Floats, Ids]:
    """The base's best n that are not gone: scores and ids [K, M], those that are gone or were not found -inf."""
    total = len(state.base_ids)
    if not total:
        return np.zeros((len(queries_KD), 0), np.float32), np.zeros((len(queries_KD), 0), np.uint64)
    ask = min(total, n + (SLACK + 2 * n * state.n_gone // total if state.n_gone else 0))
    while True:
        scores, places = state.base.search(queries_KD, ask)
        usable = (places >= 0) & ~state.gone[np.maximum(places, 0)]
        # Fewer than asked for means that there is nothing more to be had from this query.
        enough = (usable.sum(axis=1) >= n) | (places < 0).any(axis=1)
        if ask == total or not state.n_gone or enough.all():
            break
        ask = min(total, 2 * ask)
    scores = np.where(usable, scores, -np.inf).astype(np.float32)
    ids = state.base_ids[np.maximum(places, 0)]
    if state.n_gone:  # close the gaps that passed-over rows leave
        order = np.argsort(-scores, axis=1, kind="stable")[:, :n]
        scores, ids = np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)
    return scores, ids


def _is_exact(index: Any) -> bool:
    import faiss

    return isinstance(faiss.downcast_index(index), faiss.IndexFlat)


def _folded(state: _State) -> _State:
    """The same items in a new exact index."""
    import faiss

    kept = np.flatnonzero(~state.gone)
    held = faiss.rev_swig_ptr(state.base.get_xb(), len(state.base_ids) * state.base.d)
    base = faiss.IndexFlat(state.base.d, state.base.metric_type)
    base.add(np.concatenate([held.reshape(-1, state.base.d)[kept], state.fresh]))
    ids = np.concatenate([state.base_ids[kept], state.fresh_ids])
    return _State(base, ids, np.zeros(len(ids), bool), 0, ids[:0], state.fresh[:0])

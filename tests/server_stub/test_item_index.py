"""Items that change while they are searched: every state a search sees is whole, exact ones are exact."""

from __future__ import annotations

import threading
from typing import Any

import faiss
import numpy as np
import pytest

from contract.errors import InputError, VersionMismatch
from server_stub.item_index import ItemIndex

WIDTH = 12
KINDS = ("Flat", "IVF16,Flat", "IVF16,SQ8", "HNSW16,Flat")


def vectors_of(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, WIDTH)).astype(np.float32)


def ids_of(n: int, first: int = 100) -> np.ndarray:
    return np.arange(first, first + n, dtype=np.uint64)


def index_of(kind: str, vectors: np.ndarray) -> Any:
    """Approximate kinds with settings at which they find everything."""
    index = faiss.index_factory(WIDTH, kind, faiss.METRIC_INNER_PRODUCT)
    if not index.is_trained:
        index.train(vectors)
    index.add(vectors)
    if kind.startswith("IVF"):
        index.nprobe = 16
    if kind.startswith("HNSW"):
        index.hnsw.efSearch = len(vectors)
    return index


def slow(held: dict[int, np.ndarray], query: np.ndarray, n: int) -> list[int]:
    """The obvious search over a dict."""
    return sorted(held, key=lambda video: -float(held[video] @ query))[:n]


@pytest.fixture(params=KINDS)
def index(request: pytest.FixtureRequest) -> ItemIndex:
    return ItemIndex(index_of(request.param, vectors_of(700)), ids_of(700))


def held_in(n: int = 700) -> dict[int, np.ndarray]:
    return dict(zip(ids_of(n).tolist(), vectors_of(n), strict=True))


def overlap(index: ItemIndex, held: dict[int, np.ndarray], n: int = 20) -> float:
    queries = vectors_of(8, seed=9)
    ids, scores = index.search(queries, n)
    assert (np.diff(scores, axis=1) <= 0).all()
    assert all(len(set(row)) == len(row) for row in ids.tolist())
    shares = [len(set(row) & set(slow(held, q, n))) / n for row, q in zip(ids.tolist(), queries, strict=True)]
    return float(np.mean(shares))


class TestUpdate:
    def test_before_any_change(self, index: ItemIndex) -> None:
        assert overlap(index, held_in()) > 0.98
        assert len(index) == 700
        assert sorted(index.ids.tolist()) == ids_of(700).tolist()

    def test_new_changed_and_removed_items(self, index: ItemIndex) -> None:
        held = held_in()
        best = slow(held, vectors_of(8, seed=9)[0], 30)
        changed, removed = np.array(best[:10], np.uint64), np.array(best[10:25], np.uint64)
        new = ids_of(40, first=5000)
        vectors = vectors_of(50, seed=3)
        assert index.update(np.concatenate([changed, new]), vectors, removed) == (40, 10)
        for video in removed.tolist():
            del held[video]
        held.update(zip([*changed.tolist(), *new.tolist()], vectors, strict=True))
        assert overlap(index, held) > 0.98
        assert len(index) == 700 + 40 - 15
        assert sorted(index.ids.tolist()) == sorted(held)

    def test_an_item_may_change_often(self, index: ItemIndex) -> None:
        held = held_in()
        for seed in range(5):
            vectors = 3.0 * vectors_of(6, seed=seed)
            counts = index.update(ids_of(6, first=798), vectors)  # two known at first, four new; then all known
            assert counts == ((4, 2) if seed == 0 else (0, 6))
            held.update(zip(ids_of(6, first=798).tolist(), vectors, strict=True))
            assert overlap(index, held) > 0.98
        assert len(index) == 704

    def test_what_was_removed_may_come_back(self, index: ItemIndex) -> None:
        index.update(ids_of(0), vectors_of(0), ids_of(3))
        assert len(index) == 697
        assert index.update(ids_of(3), vectors_of(3)) == (3, 0)
        assert overlap(index, held_in()) > 0.98

    def test_removing_what_a_search_would_find_leaves_full_lists(self, index: ItemIndex) -> None:
        """All of the best 300 of one query go: the search must look further than its slack."""
        held = held_in()
        query = vectors_of(8, seed=9)[:1]
        gone = np.array(slow(held, query[0], 300), np.uint64)
        index.update(ids_of(0), vectors_of(0), gone)
        ids, scores = index.search(query, 20)
        assert np.isfinite(scores).all()
        assert not np.isin(ids, gone).any()
        left = {video: vector for video, vector in held.items() if video not in set(gone.tolist())}
        assert len(set(ids[0].tolist()) & set(slow(left, query[0], 20))) >= 19

    def test_more_asked_than_there_is(self, index: ItemIndex) -> None:
        index.update(ids_of(0), vectors_of(0), ids_of(690))
        ids, scores = index.search(vectors_of(2, seed=5), 50)
        for row, score in zip(ids, scores, strict=True):
            assert set(row[np.isfinite(score)].tolist()) == set(ids_of(10, first=790).tolist())

    def test_everything_removed(self, index: ItemIndex) -> None:
        index.update(ids_of(0), vectors_of(0), ids_of(700))
        assert len(index) == 0
        assert not np.isfinite(index.search(vectors_of(2), 5)[1]).any()
        index.update(ids_of(1, first=7), vectors_of(1, seed=4))
        assert index.search(vectors_of(1), 5)[0][0, 0] == 7


class TestForm:
    def test_an_exact_index_stays_whole_and_an_approximate_one_grows_a_part(self) -> None:
        for kind, beside in (("Flat", 0), ("IVF16,Flat", 2)):
            index = ItemIndex(index_of(kind, vectors_of(700)), ids_of(700))
            index.update(ids_of(2, first=9000), vectors_of(2, seed=1))
            assert index.fresh == beside

    def test_a_copy_goes_its_own_way(self, index: ItemIndex) -> None:
        other = index.copy()
        other.update(ids_of(5, first=9000), vectors_of(5, seed=2), ids_of(3))
        assert (len(index), len(other)) == (700, 702)
        assert overlap(index, held_in()) > 0.98


class TestRefusals:
    @pytest.mark.parametrize(
        ("ids", "vectors", "match"),
        [
            (ids_of(2), vectors_of(3), "do not fit"),
            (ids_of(2), vectors_of(2)[:, :5], "do not fit"),
            (np.array([7, 7], np.uint64), vectors_of(2), "twice"),
            (ids_of(2), vectors_of(2) * np.array([[1.0], [np.inf]], np.float32), r"not finite; got items \[101\]"),
        ],
    )
    def test_a_bad_update_changes_nothing(
        self, index: ItemIndex, ids: np.ndarray, vectors: np.ndarray, match: str
    ) -> None:
        with pytest.raises(InputError, match=match):
            index.update(ids, vectors, ids_of(5))
        assert len(index) == 700
        assert overlap(index, held_in()) > 0.98

    def test_index_and_ids_belong_together(self) -> None:
        with pytest.raises(VersionMismatch, match="differ"):
            ItemIndex(index_of("Flat", vectors_of(4)), ids_of(5))
        with pytest.raises(InputError, match="twice"):
            ItemIndex(index_of("Flat", vectors_of(2)), np.array([3, 3], np.uint64))


class TestConcurrency:
    @pytest.mark.parametrize("kind", ["Flat", "IVF16,Flat"])
    def test_searches_see_whole_updates_only(self, kind: str) -> None:
        """Each update gives all of 40 items the same new length, so any answer must hold one length alone.

        An index changed under a search, or ids and vectors of two states, would mix lengths, miss items or crash.
        """
        base, group = vectors_of(700), ids_of(40)
        base[:40] = 0.0
        base[:40, 0] = 100.0
        index = ItemIndex(index_of(kind, base), ids_of(700))
        query = np.zeros((2, WIDTH), np.float32)
        query[:, 0] = 1.0
        stop, seen = threading.Event(), []

        def search() -> None:
            while not stop.is_set():
                seen.extend(zip(*index.search(query, 40), strict=True))

        def update(offset: int) -> None:
            for step in range(60):
                vectors = np.zeros((40, WIDTH), np.float32)
                vectors[:, 0] = 101.0 + offset + step
                index.update(group, vectors)

        searchers = [threading.Thread(target=search) for _ in range(3)]
        writers = [threading.Thread(target=update, args=(offset,)) for offset in (0, 1000)]
        for thread in (*searchers, *writers):
            thread.start()
        for thread in writers:
            thread.join()
        stop.set()
        for thread in searchers:
            thread.join()
        assert seen
        assert [row for row, _ in seen if set(row.tolist()) != set(group.tolist())] == []
        assert [score for _, score in seen if len(np.unique(score)) != 1] == []
        assert len(index) == 700  # no update of one writer was lost to the other

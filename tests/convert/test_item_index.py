"""The item index: exact while it can be, else the quickest that finds enough, and its setting survives the disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from contract.errors import InputError
from convert import item_index
from convert.item_index import EXACT, IndexChoice, Tried, _raised, _settings, choose_index, kinds, one_thread, recall_at


def clustered(n: int, width: int = 32, clusters: int = 60, seed: int = 0) -> np.ndarray:
    """Unit vectors in clusters, as item vectors come."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(clusters, width))
    vectors = centres[rng.integers(0, clusters, n)] + 0.6 * rng.normal(size=(n, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return clustered(4000)


@pytest.fixture(scope="module")
def queries(vectors: np.ndarray) -> np.ndarray:
    return clustered(60, seed=0) * 1.5


@pytest.fixture(scope="module")
def choice(vectors: np.ndarray, queries: np.ndarray) -> IndexChoice:
    return choose_index(vectors, queries, recall=0.95, k=20, exact_up_to=100)


class TestExact:
    def test_a_small_catalogue_is_searched_exactly(self, vectors: np.ndarray, queries: np.ndarray) -> None:
        choice = choose_index(vectors, queries[:0])
        assert (choice.kind, choice.tried) == (EXACT, ())
        want = np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :5]
        assert recall_at(want, choice.index.search(queries, 5)[1]) == 1.0

    def test_nothing_to_measure_with(self, vectors: np.ndarray) -> None:
        with pytest.raises(InputError, match="query vectors"):
            choose_index(vectors, vectors[:0], exact_up_to=100)

    @pytest.mark.parametrize("recall", [0.0, -0.1, 1.01, float("nan")])
    def test_a_recall_that_is_no_share(self, vectors: np.ndarray, recall: float) -> None:
        with pytest.raises(InputError, match="recall is a share"):
            choose_index(vectors, vectors[:4], recall=recall)

    def test_where_nothing_reaches_the_recall_exact_ships(
        self, vectors: np.ndarray, queries: np.ndarray, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def one_list(index: Any) -> Iterator[list[tuple[str, Callable[[], None]]]]:
            yield [("nprobe=1", partial(setattr, faiss.extract_index_ivf(index), "nprobe", 1))]

        monkeypatch.setattr(item_index, "_settings", one_list)
        monkeypatch.setattr(item_index, "kinds", lambda n, width: ["IVF200,Flat"])
        choice = choose_index(vectors, queries, recall=0.98, exact_up_to=100)
        assert choice.kind == EXACT
        assert [t.kind for t in choice.tried] == [EXACT, "IVF200,Flat"]
        assert choice.tried[1].recall < 0.98


class TestChoice:
    def test_every_kind_was_tried_and_the_quickest_good_one_ships(self, choice: IndexChoice) -> None:
        assert {t.kind for t in choice.tried} == {EXACT, *kinds(4000, 32)}
        good = [t for t in choice.tried if t.recall >= 0.95]
        assert min(good, key=lambda t: t.ms).kind == choice.kind

    def test_the_recall_told_is_the_recall_had(
        self, choice: IndexChoice, vectors: np.ndarray, queries: np.ndarray
    ) -> None:
        truth = np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :20]
        found = recall_at(truth, choice.index.search(queries, 20)[1])
        told = next(t for t in choice.tried if (t.kind, t.setting) == (choice.kind, choice.setting))
        assert found == pytest.approx(told.recall, abs=1e-9)
        assert found >= 0.95

    def test_a_kind_stops_at_its_first_setting_that_is_enough(self, choice: IndexChoice) -> None:
        for kind in kinds(4000, 32):
            found = [t.recall for t in choice.tried if t.kind == kind]
            assert all(recall < 0.95 for recall in found[:-1])

    @pytest.mark.parametrize("kind", kinds(4000, 32))
    def test_settings_survive_the_disk(
        self, kind: str, vectors: np.ndarray, queries: np.ndarray, tmp_path: Path
    ) -> None:
        index = faiss.index_factory(32, kind, faiss.METRIC_INNER_PRODUCT)
        index.train(vectors)
        index.add(vectors)
        next(_settings(index))[2][1]()
        faiss.write_index(index, str(tmp_path / "items.faiss"))
        again = faiss.read_index(str(tmp_path / "items.faiss"))
        np.testing.assert_array_equal(again.search(queries, 10)[1], index.search(queries, 10)[1])

    def test_a_higher_setting_finds_no_less(self, vectors: np.ndarray, queries: np.ndarray) -> None:
        vectors = np.random.default_rng(1).normal(size=vectors.shape).astype(np.float32)  # in no clusters
        truth = np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :20]
        index = faiss.index_factory(32, "IVF200,Flat", faiss.METRIC_INNER_PRODUCT)
        index.train(vectors)
        index.add(vectors)
        found = []
        for _, make in next(_settings(index)):
            make()
            found.append(recall_at(truth, index.search(queries, 20)[1]))
        assert found == sorted(found)
        assert found[0] < found[-1]

    def test_a_series_that_stalls_ends(self, vectors: np.ndarray, queries: np.ndarray) -> None:
        """Product codes with few candidates refined: more lists bring nothing, more candidates do."""
        truth = np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :20]
        index = faiss.index_factory(32, "IVF64,PQ8x4fs,RFlat", faiss.METRIC_INNER_PRODUCT)
        index.train(vectors)
        index.add(vectors)
        tried = [setting for setting, _ in _raised(index, queries, truth, 1.0)]
        first = [setting for setting in tried if setting.endswith("k_factor=4")]
        assert 1 < len(first) < 5  # of probes 4, 8, 16, 32
        assert any(setting.endswith("k_factor=10") for setting in tried)

    def test_the_table_and_the_json(self, choice: IndexChoice) -> None:
        assert choice.table().count("*") == 1
        assert f"{choice.kind:<24} {choice.setting}" in choice.table()
        saved = json.loads(json.dumps(choice.to_json(asked="a test")))
        assert saved["asked"] == "a test"
        assert len(saved["tried"]) == len(choice.tried)
        assert set(saved["tried"][0]) == set(Tried.__annotations__)


class TestParts:
    def test_recall_is_a_mean_of_shares(self) -> None:
        truth, found = np.array([[1, 2, 3, 4], [5, 6, 7, 8]]), np.array([[4, 3, 2, 9], [8, 7, 6, 5]])
        assert recall_at(truth, found) == pytest.approx((0.75 + 1.0) / 2)

    def test_graphs_are_left_out_where_building_takes_minutes(self) -> None:
        assert "HNSW32,Flat" in kinds(200_000, 64)
        assert "HNSW32,Flat" not in kinds(200_001, 64)
        assert not any("PQ" in kind for kind in kinds(60_000, 33))

    def test_threads_are_given_back(self) -> None:
        before = faiss.omp_get_max_threads()
        inside = []

        def fail() -> None:
            with one_thread():
                inside.append(faiss.omp_get_max_threads())
                raise ValueError("inside")

        with pytest.raises(ValueError, match="inside"):
            fail()
        assert inside == [1]
        assert faiss.omp_get_max_threads() == before

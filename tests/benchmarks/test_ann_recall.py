"""The index benchmark: made-up vectors in clusters, a table and a JSON that say the same, updates among them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.ann_recall import clustered, measure_ann, moved
from benchmarks.cli import add_bench_arguments, run_bench
from contract.errors import InputError


@pytest.fixture(scope="module")
def measured() -> tuple[dict[str, Any], str]:
    return measure_ann(3000, 16, queries=40, recall=0.9)


class TestVectors:
    def test_unit_and_clustered(self) -> None:
        vectors = clustered(2000, 16, np.random.default_rng(0))
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
        nearest = np.sort(vectors[:200] @ vectors.T, axis=1)[:, -6:-1].mean()
        spread = np.random.default_rng(0).normal(size=(2000, 16))
        spread /= np.linalg.norm(spread, axis=1, keepdims=True)
        assert nearest > np.sort(spread[:200] @ spread.T, axis=1)[:, -6:-1].mean() + 0.05

    def test_queries_are_near_items(self) -> None:
        rng = np.random.default_rng(0)
        vectors = clustered(500, 16, rng)
        queries = moved(vectors, 50, rng)
        assert (queries @ vectors.T).max(axis=1).min() > 0.9
        assert (queries @ vectors.T).max() < 1.0 - 1e-4


class TestResult:
    def test_what_stands_in_it(self, measured: tuple[dict[str, Any], str]) -> None:
        result = json.loads(json.dumps(measured[0]))
        assert (result["items"], result["width"], result["vectors"]) == (3000, 16, "clustered")
        assert result["tried"][0] == {**result["tried"][0], "kind": "Flat", "recall": 1.0}
        chosen = [t for t in result["tried"] if f"{t['kind']} {t['setting']}".strip() == result["chosen"]]
        assert len(chosen) == 1
        assert chosen[0]["recall"] >= 0.9
        assert min(t["ms"] for t in result["tried"] if t["recall"] >= 0.9) == chosen[0]["ms"]

    def test_updates_of_every_size(self, measured: tuple[dict[str, Any], str]) -> None:
        rows = measured[0]["updates"]
        assert [row["items"] for row in rows] == [1, 100, 1000]
        assert all(value > 0 for row in rows for value in row.values())

    def test_the_same_vectors_every_time(self) -> None:
        found = [clustered(300, 8, np.random.default_rng(3)) for _ in range(2)]
        np.testing.assert_array_equal(found[0], found[1])


class TestCommand:
    def run(self, *words: str) -> int:
        parser = argparse.ArgumentParser()
        add_bench_arguments(parser)
        return run_bench(parser.parse_args(["ann", *words]))

    def test_an_exports_own_vectors(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        np.save(tmp_path / "item_vectors.npy", clustered(1500, 8, np.random.default_rng(0)))
        assert self.run("--retrieval", str(tmp_path), "--json", str(tmp_path / "ann.json")) == 0
        lines = capsys.readouterr().out.splitlines()
        result = json.loads((tmp_path / "ann.json").read_text())
        assert (result["items"], result["width"]) == (1500, 8)
        assert sum(line.endswith("*") for line in lines) == 1

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no item vectors here"):
            self.run("--retrieval", str(tmp_path))
        with pytest.raises(InputError, match="start at 1"):
            self.run("--items", "0")

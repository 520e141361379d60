"""Outputs of a device against golden ones and against this machine's."""

from __future__ import annotations

import base64
import hashlib
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.device.parity import parity, parity_to_host
from contract.manifest import FileEntry, Golden, Variant
from edge import InstalledModel
from tests.edge.tiny_model import shared_cdn

TOLERANCE = 1e-3


def encoded(**outputs: NDArray[Any]) -> dict[str, str]:
    return {name: base64.b64encode(np.asarray(value, np.float32).tobytes()).decode() for name, value in outputs.items()}


@pytest.fixture
def installed(tmp_path: Path) -> InstalledModel:
    """kir-a with golden outputs of the swipe that are known: 0, 1, 2 … by candidate; float32's a tenth above."""
    model = InstalledModel.open_published(shared_cdn())
    graph = model.manifest.graph("swipe", "N4")
    scores = np.repeat(np.arange(4, dtype=np.float32)[:, None], graph.outputs[0].shape[-1], axis=1)[None]
    file = io.BytesIO()
    np.savez(file, scores=scores, **{"float32.scores": scores + np.float32(0.1)})
    (tmp_path / "golden.npz").write_bytes(file.getvalue())
    entry = FileEntry(hashlib.sha256(file.getvalue()).hexdigest(), len(file.getvalue()))
    golden = Golden(model.manifest.golden.rows_revision, {"swipe/N4": "golden.npz"})
    variants = tuple(Variant(name, graph.variants[0].file, TOLERANCE) for name in ("int8", "float32", "float16"))
    graphs = tuple(replace(g, variants=variants, ship="int8") if g is graph else g for g in model.manifest.graphs)
    manifest = replace(
        model.manifest, golden=golden, graphs=graphs, files={**model.manifest.files, "golden.npz": entry}
    )
    return InstalledModel(manifest, {**model.paths, "golden.npz": tmp_path / "golden.npz"})


def found(installed: InstalledModel, variant: str, scores: NDArray[Any]) -> dict[str, Any]:
    graph = installed.manifest.graph("swipe", "N4")
    return parity(installed, graph, graph.variant(variant), encoded(scores=scores))


def golden(shift: float = 0.0) -> NDArray[np.float32]:
    tasks = len(InstalledModel.open_published(shared_cdn()).manifest.tasks)
    return np.repeat(np.arange(4, dtype=np.float32)[:, None] + np.float32(shift), tasks, axis=1)


class TestGolden:
    def test_the_shipped_variant_has_its_own(self, installed: InstalledModel) -> None:
        got = found(installed, "int8", golden())
        assert got == {"reference": "int8", "max_abs": 0.0, "tolerance": TOLERANCE, "ok": True, "ranking": True}

    def test_beyond_the_tolerance_it_fails(self, installed: InstalledModel) -> None:
        assert found(installed, "int8", golden(0.9 * TOLERANCE))["ok"]
        assert found(installed, "int8", golden(1.1 * TOLERANCE))["ok"] is False

    def test_float32_has_its_own_too(self, installed: InstalledModel) -> None:
        got = found(installed, "float32", golden(0.1))
        assert (got["reference"], got["ok"]) == ("float32", True)

    def test_another_variant_tells_a_distance_and_no_verdict(self, installed: InstalledModel) -> None:
        got = found(installed, "float16", golden(0.3))
        assert (got["reference"], got["ok"]) == ("float32", None)
        assert got["max_abs"] == pytest.approx(0.2)

    def test_another_order_is_told(self, installed: InstalledModel) -> None:
        assert found(installed, "float16", golden()[::-1])["ranking"] is False

    @pytest.mark.parametrize("bad", [np.full((4, 1), np.nan), np.zeros((3, 1))])
    def test_no_numbers_or_another_size_is_infinitely_far(self, installed: InstalledModel, bad: NDArray[Any]) -> None:
        got = found(installed, "int8", bad)
        assert (got["max_abs"], got["ok"]) == (np.inf, False)

    def test_a_graph_without_a_case_has_no_verdict(self, installed: InstalledModel) -> None:
        graph = installed.manifest.graph("page", "N4")
        got = parity(installed, graph, graph.variant(), encoded(query=golden()))
        assert (got["reference"], got["max_abs"], got["ok"]) == ("none", None, None)


@pytest.mark.parametrize(
    ("shift", "exact", "ok"), [(0.0, True, True), (TOLERANCE / 2, False, True), (2 * TOLERANCE, False, False)]
)
def test_a_device_beside_this_machine(shift: float, exact: bool, ok: bool) -> None:
    here, there = encoded(scores=np.zeros(4)), encoded(scores=np.full(4, shift))
    got = parity_to_host(here, there, TOLERANCE)
    assert (got["exact"], got["ok"]) == (exact, ok)


def test_an_output_that_is_absent_is_no_agreement() -> None:
    assert parity_to_host(encoded(scores=np.zeros(4)), {}, 1.0)["ok"] is False

"""litert-torch as a second opinion: the contract's names, and the same numbers by code that onnx2tf has no part in."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from contract.errors import ConversionError, InputError
from convert.frontends import LITERT_TORCH, ONNX2TF
from convert.frontends.cross_check import cross_check
from convert.frontends.litert_torch import Named, convert_torch
from convert.tflite import TfliteGraph
from tests.convert.small_graphs import block, feeds_of, layers


def test_absent_it_says_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "litert_torch", None)
    with pytest.raises(InputError, match=r"needs litert-torch.*kir convert setup --litert-torch"):
        convert_torch(layers(), tmp_path / "x.tflite")


def test_a_free_length_is_refused(tmp_path: Path) -> None:
    graph = replace(layers(), dynamic={"left": {1: "n"}})
    with pytest.raises(ConversionError, match=r"layers/N5: litert-torch takes fixed shapes only.*'left'"):
        convert_torch(graph, tmp_path / "x.tflite")


def test_outputs_by_name_in_the_graphs_order() -> None:
    graph = layers()
    found = Named(graph.module, graph.outputs)(**graph.inputs)
    assert list(found) == ["hidden", "scores"]
    torch.testing.assert_close(found["scores"], graph.module(**graph.inputs)[1])


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert_torch(layers(), tmp_path_factory.mktemp("litert") / "layers.tflite")


@pytest.mark.slow
class TestConverted:
    def test_names_shapes_and_types_are_the_contracts(self, path: Path) -> None:
        for side, want in zip(TfliteGraph(path).tensors(), layers().contract(), strict=True):
            assert {tensor.name: tensor for tensor in side} == {tensor.name: tensor for tensor in want}

    def test_the_numbers_are_torchs(self, path: Path) -> None:
        graph, file = layers(), TfliteGraph(path)
        for feeds in feeds_of(graph):
            for name, value in graph.run(feeds).items():
                np.testing.assert_allclose(file.run(feeds)[name], value, atol=1e-5)

    def test_inputs_in_another_order_are_the_same_graph(self, path: Path, tmp_path: Path) -> None:
        graph = layers()
        swapped = replace(graph, inputs=dict(reversed(graph.inputs.items())))
        file = TfliteGraph(convert_torch(swapped, tmp_path / "swapped.tflite"))
        feeds = feeds_of(graph)[0]
        np.testing.assert_array_equal(file.run(feeds)["scores"], TfliteGraph(path).run(feeds)["scores"])

    def test_it_agrees_where_a_sequence_is_as_long_as_wide(self, tmp_path: Path) -> None:
        graph = block(16)
        check = cross_check(graph, feeds_of(graph), tmp_path, (ONNX2TF, LITERT_TORCH))
        assert check.verdict == "all agree with torch"
        assert [one.front_end for one in check.opinions] == [ONNX2TF, LITERT_TORCH]

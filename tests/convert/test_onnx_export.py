"""torch -> ONNX: names, opset, one file, the same bytes every time, and the same numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from contract.errors import ConversionError
from contract.manifest import Tensor
from convert.onnx_export import DYNAMO, OPSET, OnnxGraph, TorchGraph, export_onnx
from convert.source import KirSource


class TwoSided(nn.Module):
    """Two readers of one constant, so that there is something to merge."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 3)
        self.register_buffer("shared", torch.arange(36.0).reshape(6, 6) / 36)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = torch.relu(self.first(left) @ self.shared) + right @ self.shared
        return hidden, self.second(hidden)


def two_sided(outputs: tuple[str, ...] = ("hidden", "scores")) -> TorchGraph:
    torch.manual_seed(0)
    inputs = {"left": torch.randn(1, 4, 6), "right": torch.randn(1, 4, 6)}
    dynamic = {name: {1: "n"} for name in (*inputs, *outputs)}
    return TorchGraph("two", "N4", TwoSided(), inputs, outputs, dynamic)


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    return export_onnx(two_sided(), tmp_path / "deep" / "two.onnx")


def test_names_and_opset(exported: Path) -> None:
    model = onnx.load(exported)
    assert [v.name for v in model.graph.input] == ["left", "right"]
    assert [v.name for v in model.graph.output] == ["hidden", "scores"]
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [OPSET]


def test_the_same_bytes_every_time(exported: Path, tmp_path: Path) -> None:
    assert export_onnx(two_sided(), tmp_path / "again.onnx").read_bytes() == exported.read_bytes()


def test_no_path_of_this_machine_is_inside(exported: Path) -> None:
    raw = exported.read_bytes()
    for folder in (Path(__file__).resolve().parents[2], exported.parent):
        assert str(folder).encode() not in raw


def test_equal_constants_are_kept_once(exported: Path) -> None:
    graph = onnx.load(exported).graph
    sizes = [tuple(constant.dims) for constant in graph.initializer]
    assert sizes.count((6, 6)) == 2  # the first layer's weight and the shared matrix
    assert not [node for node in graph.node if node.op_type == "Constant"]


class TestOrderOfInputs:
    """The tracing exporter deals names out in the order of forward's parameters, whatever order it is given them in."""

    def test_each_name_stays_with_its_input(self, tmp_path: Path) -> None:
        graph = two_sided()
        swapped = replace(graph, inputs={name: graph.inputs[name] for name in ("right", "left")})
        runner = OnnxGraph(export_onnx(swapped, tmp_path / "swapped.onnx"))
        assert runner.inputs == ("left", "right")
        feeds = {name: tensor.numpy() for name, tensor in graph.inputs.items()}
        for name, want in graph.run(feeds).items():
            np.testing.assert_allclose(runner.run(feeds)[name], want, atol=1e-5)

    def test_any_order_gives_the_same_file(self, exported: Path, tmp_path: Path) -> None:
        graph = two_sided()
        swapped = replace(graph, inputs=dict(reversed(graph.inputs.items())))
        assert export_onnx(swapped, tmp_path / "swapped.onnx").read_bytes() == exported.read_bytes()


class TestDynamo:
    def test_the_same_names_opset_and_numbers(self, tmp_path: Path) -> None:
        graph = replace(two_sided(), dynamic=None)
        path = export_onnx(graph, tmp_path / "dynamo.onnx", DYNAMO)
        assert [entry.version for entry in onnx.load(path).opset_import if entry.domain == ""] == [OPSET]
        runner = OnnxGraph(path)
        assert (runner.inputs, runner.outputs) == (("left", "right"), ("hidden", "scores"))
        feeds = {name: tensor.numpy() for name, tensor in graph.inputs.items()}
        for name, want in graph.run(feeds).items():
            np.testing.assert_allclose(runner.run(feeds)[name], want, atol=1e-5)

    @pytest.mark.parametrize("exporter", [DYNAMO, "tracing"])
    def test_a_free_axis_and_an_unknown_exporter_are_refused(self, tmp_path: Path, exporter: str) -> None:
        with pytest.raises(ConversionError, match=f"two/N4: no such export; got {exporter}"):
            export_onnx(two_sided(), tmp_path / "x.onnx", exporter)


def test_equal_weights_are_read_directly(tmp_path: Path) -> None:
    """torch writes the second down as an Identity of the first, through which a converter loses its order."""
    graph = two_sided()
    module = graph.module
    assert isinstance(module, TwoSided)
    module.second = nn.Linear(6, 6)
    with torch.no_grad():
        module.second.bias.copy_(module.first.bias)
    model = onnx.load(export_onnx(graph, tmp_path / "equal.onnx")).graph
    assert not [node for node in model.node if node.op_type in ("Identity", "Constant")]
    assert [tuple(constant.dims) for constant in model.initializer].count((6,)) == 1
    feeds = {name: tensor.numpy() for name, tensor in graph.inputs.items()}
    got = OnnxGraph(tmp_path / "equal.onnx").run(feeds)
    np.testing.assert_allclose(got["scores"], graph.run(feeds)["scores"], atol=1e-5)


@pytest.mark.parametrize("n", [1, 4, 7])
def test_a_free_axis_takes_any_length(exported: Path, n: int) -> None:
    rng = np.random.default_rng(n)
    feeds = {name: rng.normal(size=(1, n, 6)).astype(np.float32) for name in ("left", "right")}
    got, want = OnnxGraph(exported).run(feeds), two_sided().run(feeds)
    for name in ("hidden", "scores"):
        np.testing.assert_allclose(got[name], want[name], atol=1e-5)


def test_the_contract_is_read_off_a_run() -> None:
    inputs, outputs = two_sided().contract()
    assert inputs == (Tensor("left", (1, 4, 6)), Tensor("right", (1, 4, 6)))
    assert outputs == (Tensor("hidden", (1, 4, 6)), Tensor("scores", (1, 4, 3)))


def test_a_wrong_number_of_outputs_is_told() -> None:
    with pytest.raises(ConversionError, match="number of outputs"):
        two_sided(("hidden",)).contract()


def test_a_graph_that_can_not_be_traced_is_one_error(tmp_path: Path) -> None:
    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError("no forward today")

    with pytest.raises(ConversionError, match="no forward today"):
        export_onnx(TorchGraph("bad", "N1", Broken(), {"x": torch.zeros(1)}, ("y",)), tmp_path / "bad.onnx")


@pytest.mark.parametrize("content", [b"", b"not onnx at all"])
def test_onnxruntime_refuses_in_one_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.onnx").write_bytes(content)
    with pytest.raises(ConversionError, match="refuses"):
        OnnxGraph(tmp_path / "bad.onnx")


def test_the_swipe_graph_of_kir_is_the_same_in_onnxruntime(source: KirSource, tmp_path: Path) -> None:
    graph = source.graphs["swipe/N9"]
    runner = OnnxGraph(export_onnx(graph, tmp_path / "swipe.onnx"))
    feeds = {name: tensor.numpy() for name, tensor in graph.inputs.items()}
    np.testing.assert_allclose(runner.run(feeds)["scores"], graph.run(feeds)["scores"], atol=1e-5)


def test_keys_and_file_stems() -> None:
    assert two_sided().key == "two/N4"
    assert two_sided().file_stem == "two-N4"

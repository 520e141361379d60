"""Front ends side by side: whoever is off is named, and when all are off together, the export is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from contract.errors import ConversionError, InputError
from convert.frontends.cross_check import ALLOWED, CrossCheck, CrossChecks, apart, cross_check, cross_check_job
from convert.onnx_export import TorchGraph
from convert.subject import GraphSubject
from tests.convert.tiny_tflite import ROWS, WIDTH, bias, chain, samples, scaled, weights

ALL = ("onnx2tf", "onnx2tf-dynamo", "litert-torch")
Write = Callable[[str], bytes]


class Chain(nn.Module):
    """What `tiny_tflite.chain(2)` is made of."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        with torch.no_grad():
            for i, layer in enumerate(self.layers):
                layer.weight.copy_(torch.as_tensor(weights(i)))
                layer.bias.copy_(torch.as_tensor(bias(i)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x * self.factor


def checked(tmp_path: Path, write: Write, factor: float = 1.0) -> CrossCheck:
    """write: front end -> its file; it may raise."""
    graph = TorchGraph("chain", "N4", Chain(factor).eval(), {"x": torch.zeros(1, ROWS, WIDTH)}, ("y",))

    def convert(graph: TorchGraph, directory: Path, name: str) -> tuple[Path, Path]:
        path = directory / f"{name}.tflite"
        path.write_bytes(write(name))
        return path, path

    return cross_check(graph, samples(4), tmp_path, ALL, convert=convert)


def test_all_agree(tmp_path: Path) -> None:
    check = checked(tmp_path, lambda name: chain(2))
    assert (check.off, check.verdict) == ((), "all agree with torch")
    assert all(one.max_abs < 1e-5 for one in check.opinions)
    assert check.apart == (
        ("onnx2tf", "onnx2tf-dynamo", 0.0),
        ("onnx2tf", "litert-torch", 0.0),
        ("onnx2tf-dynamo", "litert-torch", 0.0),
    )


@pytest.mark.parametrize("culprit", ALL)
def test_one_is_off(tmp_path: Path, culprit: str) -> None:
    """The planted fault: one front end scales a layer by 1.01."""
    check = checked(tmp_path, lambda name: chain(2, scaled(1)) if name == culprit else chain(2))
    assert check.off == (culprit,)
    assert check.verdict == f"off: {culprit}"
    assert f"{culprit}!" in check.table()
    assert check.table().count("!") == 1


def test_two_off_in_different_ways_are_both_named(tmp_path: Path) -> None:
    factors = {"onnx2tf": 1.0, "onnx2tf-dynamo": 1.01, "litert-torch": 0.9}
    check = checked(tmp_path, lambda name: chain(2, scaled(0, factors[name])))
    assert check.verdict == "off: onnx2tf-dynamo, litert-torch"


def test_all_off_together_is_the_exports_fault(tmp_path: Path) -> None:
    check = checked(tmp_path, lambda name: chain(2), factor=1.01)
    assert set(check.off) == set(ALL)
    assert check.verdict.startswith("all agree with each other and none with torch")


def test_one_that_fails_is_told_with_its_reason(tmp_path: Path) -> None:
    def write(name: str) -> bytes:
        if name == "litert-torch":
            raise ConversionError("no lowering", got="aten.fancy")
        return chain(2)

    check = checked(tmp_path, write)
    assert check.verdict == "all agree with torch"
    assert "litert-torch    not possible: no lowering; got aten.fancy" in check.table()
    assert [len(pair) for pair in check.apart] == [3]


def test_when_none_made_a_file(tmp_path: Path) -> None:
    def write(name: str) -> bytes:
        raise ConversionError("no")

    assert checked(tmp_path, write).verdict == "no front end made a file"


def test_it_gives_a_dict(tmp_path: Path) -> None:
    found = json.loads(json.dumps(checked(tmp_path, lambda name: chain(2, scaled(0))).to_json()))
    assert found["off"] == list(ALL)
    assert found["opinions"][0]["front_end"] == "onnx2tf"
    assert found["n_feeds"] == 4


def test_what_is_allowed_grows_with_the_values(tmp_path: Path) -> None:
    assert checked(tmp_path, lambda name: chain(2)).allowed == ALLOWED
    assert checked(tmp_path, lambda name: chain(2), factor=1000.0).allowed > 10 * ALLOWED


def test_no_number_is_infinitely_far() -> None:
    one, other = [{"y": np.zeros(2)}], [{"y": np.array([0.0, np.nan])}]
    assert apart(one, other) == apart(other, one) == float("inf")


def test_nothing_to_compare_on(tmp_path: Path) -> None:
    graph = TorchGraph("chain", "", Chain().eval(), {"x": torch.zeros(1, ROWS, WIDTH)}, ("y",))
    with pytest.raises(ConversionError, match="chain: nothing to compare"):
        cross_check(graph, [], tmp_path)


def test_a_name_that_is_no_front_end(tmp_path: Path) -> None:
    graph = TorchGraph("chain", "", Chain().eval(), {"x": torch.zeros(1, ROWS, WIDTH)}, ("y",))
    with pytest.raises(InputError, match="unknown front end; got tvm"):
        cross_check(graph, samples(1), tmp_path, ("tvm",))


class TestModels:
    """Every graph of a model, on what its samples feed it."""

    def subject(self) -> GraphSubject:
        graph = TorchGraph("chain", "N4", Chain().eval(), {"x": torch.zeros(1, ROWS, WIDTH)}, ("y",))
        return GraphSubject(graph, samples(3), lambda sample, outputs: outputs["y"])

    def checked(self, tmp_path: Path, write: Write, graphs: tuple[str, ...] = ()) -> CrossChecks:
        def convert(graph: TorchGraph, directory: Path, name: str) -> tuple[Path, Path]:
            path = directory / f"{name}.tflite"
            path.write_bytes(write(name))
            return path, path

        said: list[str] = []
        found = cross_check_job(self.subject(), tmp_path, ALL, graphs, convert=convert, progress=said.append)
        assert [line.split()[0] for line in said] == ["chain/N4"]
        return found

    def test_who_agrees(self, tmp_path: Path) -> None:
        found = self.checked(tmp_path, lambda name: chain(2, scaled(1)) if name == "litert-torch" else chain(2))
        assert [one.n_feeds for one in found.checks] == [3]
        assert {name: found.agrees(name) for name in (*ALL, "tensorflow")} == {
            "onnx2tf": True,
            "onnx2tf-dynamo": True,
            "litert-torch": False,
            "tensorflow": False,  # was not asked
        }
        assert "off: litert-torch" in found.table()
        assert json.loads(json.dumps(found.to_json()))["graphs"][0]["graph"] == "chain/N4"

    def test_a_file_that_could_not_be_made_is_no_agreement(self, tmp_path: Path) -> None:
        def write(name: str) -> bytes:
            raise ConversionError("no")

        assert not self.checked(tmp_path, write).agrees("onnx2tf")

    def test_a_graph_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(
            InputError, match=r"--graph names what is not there; got \['swipe'\]; allowed: \['chain/N4'\]"
        ):
            self.checked(tmp_path, lambda name: chain(2), ("swipe",))

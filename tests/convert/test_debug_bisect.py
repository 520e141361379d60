"""The node that is converted wrongly, down to a model that still fails: faults of onnx2tf itself, and planted ones."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from contract.errors import ConversionError, InputError
from contract.manifest import Tensor
from convert.debug_bisect import INPUTS, MINIMAL, Bisection, bisect
from convert.debug_inputs import load_inputs
from convert.debug_taps import OnnxTaps
from tests.convert import tiny_onnx


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bisect")


@pytest.fixture(scope="module")
def elu(folder: Path) -> Bisection:
    """onnx2tf 2.6.9 takes Elu's alpha for 1 and says nothing."""
    return bisect(tiny_onnx.write_net(folder / "elu.onnx"), tiny_onnx.samples())


class TestElu:
    def test_the_node_is_named(self, elu: Bisection) -> None:
        assert not elu.agrees
        assert elu.node == "Elu 'bend' (node 2)"
        assert "output 'bent': noise:signal" in elu.what

    def test_the_minimal_model_is_that_node_alone(self, elu: Bisection) -> None:
        model = onnx.load_from_string(elu.minimal)
        onnx.checker.check_model(model)
        assert [node.op_type for node in model.graph.node] == ["Elu"]
        assert elu.nodes == (elu.node,)
        assert {name: value.shape for name, value in elu.inputs.items()} == {"biased": (2, *tiny_onnx.SHAPE)}

    def test_few_conversions_find_it(self, elu: Bisection) -> None:
        assert elu.n_nodes == 5
        assert elu.tried <= 6

    def test_what_was_written_fails_again(self, elu: Bisection, folder: Path) -> None:
        place = elu.save(folder / "why")
        samples = load_inputs(place / INPUTS, OnnxTaps(place / MINIMAL).inputs)
        again = bisect(place / MINIMAL, samples)
        assert (again.node, again.n_nodes) == ("Elu 'bend' (node 0)", 1)
        assert json.loads((place / "bisect.json").read_text())["node"] == elu.node


class TestOtherFaultsOfOnnx2tf:
    def test_a_softmax_over_an_inner_axis_comes_out_transposed(self, tmp_path: Path) -> None:
        nodes = [helper.make_node("LogSoftmax", ["x"], ["y"], axis=1)]
        path = tiny_onnx.write(tmp_path / "log.onnx", nodes, {"x": (1, 5, 6)}, ["y"], {})
        found = bisect(path, [{"x": np.random.default_rng(0).normal(size=(1, 5, 6)).astype(np.float32)}])
        assert found.node.startswith("LogSoftmax")
        assert found.what == "output 'y' has shape [1, 6, 5], ONNX gives [1, 5, 6]"

    def test_an_operator_that_it_cannot_write_fails_with_its_reason(self, tmp_path: Path) -> None:
        nodes = [helper.make_node("Mod", ["x", "c"], ["y"], name="rest", fmod=1)]
        path = tiny_onnx.write(tmp_path / "mod.onnx", nodes, {"x": (1, 6)}, ["y"], {"c": np.ones(6, np.float32)})
        found = bisect(path, [{"x": np.full((1, 6), 2.5, np.float32)}])
        assert found.node == "Mod 'rest' (node 0)"
        assert "onnx2tf" in found.what
        assert [node.op_type for node in onnx.load_from_string(found.minimal).graph.node] == ["Mod"]


def test_a_sound_graph_agrees(folder: Path, tmp_path: Path) -> None:
    found = bisect(tiny_onnx.write_net(folder / "sound.onnx", tiny_onnx.SOUND), tiny_onnx.samples())
    assert (found.agrees, found.tried, found.minimal) == (True, 1, b"")
    assert "agrees with ONNX" in found.table()
    found.save(tmp_path / "why")
    assert [path.name for path in (tmp_path / "why").iterdir()] == ["bisect.json"]


class TestPlantedConverters:
    """Faults that a converter may have, planted in a small one that is right (tests/convert/tiny_onnx.py)."""

    @pytest.fixture
    def sound(self, tmp_path: Path) -> Path:
        return tiny_onnx.write_net(tmp_path / "sound.onnx", tiny_onnx.SOUND)

    def test_without_a_fault_it_agrees(self, sound: Path) -> None:
        assert bisect(sound, tiny_onnx.samples(), tiny_onnx.convert).agrees

    def test_a_converter_that_swaps_axes_of_its_inputs(self, sound: Path) -> None:
        """What onnx2tf does when it is not told to keep them: with x [1, 4, 6] the file wants [1, 6, 4]."""

        def swap(source: Path, target: Path, inputs: tuple[Tensor, ...]) -> None:
            tiny_onnx.convert(source, target, inputs, swapped=("x",))

        found = bisect(sound, tiny_onnx.samples(), swap)
        assert found.node == "MatMul 'multiply' (node 0)"
        assert found.what == "input 'x' has another shape: the file wants [1, 6, 4], ONNX has [1, 4, 6]"

    @pytest.mark.parametrize("kind", ["MatMul", "Add", "Relu", "Softmax"])
    def test_one_that_gets_an_operator_wrong(self, sound: Path, kind: str) -> None:
        def spoil(source: Path, target: Path, inputs: tuple[Tensor, ...]) -> None:
            tiny_onnx.convert(source, target, inputs, wrong=kind)

        found = bisect(sound, tiny_onnx.samples(), spoil)
        assert found.node.startswith(kind)
        assert [name.partition(" ")[0] for name in found.nodes] == [kind]

    def test_one_that_stops_at_a_node_with_a_past(self, sound: Path) -> None:
        """It fails on the second product only where the first is there: both stay in the minimal model."""

        def stumble(source: Path, target: Path, inputs: tuple[Tensor, ...]) -> None:
            kinds = [node.op_type for node in onnx.load(str(source)).graph.node]
            if kinds.count("MatMul") == 2:
                raise ConversionError("converter failed", got="two products")
            tiny_onnx.convert(source, target, inputs)

        found = bisect(sound, tiny_onnx.samples(), stumble)
        assert found.node == "MatMul 'multiply_again' (node 3)"
        assert found.what == "converter failed: two products"
        assert [name.partition(" ")[0] for name in found.nodes] == ["MatMul", "Add", "Relu", "MatMul"]

    def test_one_that_fails_on_no_part_of_it(self, sound: Path) -> None:
        """A prefix that fails in the company of another output only is the minimal model itself."""
        nodes = [
            helper.make_node("Relu", ["x"], ["a"]),
            helper.make_node("Add", ["x", "a"], ["b"]),
            helper.make_node("Add", ["a", "b"], ["y"]),
        ]
        path = tiny_onnx.write(sound.with_name("fork.onnx"), nodes, {"x": tiny_onnx.SHAPE}, ["y", "a"], {})

        def stumble(source: Path, target: Path, inputs: tuple[Tensor, ...]) -> None:
            if [value.name for value in onnx.load(str(source)).graph.output] != ["a", "y"]:
                return tiny_onnx.convert(source, target, inputs)
            tiny_onnx.convert(source, target, inputs, renamed={"y": "z"})

        found = bisect(path, tiny_onnx.samples(), stumble)
        assert found.node.startswith("Add 'y'")
        assert len(found.nodes) == 3

    def test_one_that_renames_an_output(self, sound: Path) -> None:
        def rename(source: Path, target: Path, inputs: tuple[Tensor, ...]) -> None:
            tiny_onnx.convert(source, target, inputs, renamed={"y": "z"})

        found = bisect(sound, tiny_onnx.samples(), rename)
        assert found.node == "Softmax 'share' (node 4)"
        assert found.what == "the TFLite file has no output ['y']"

    def test_one_that_writes_what_litert_refuses(self, sound: Path) -> None:
        def truncate(source: Path, target: Path, inputs: tuple[Tensor, ...]) -> None:
            tiny_onnx.convert(source, target, inputs)
            if "Relu" in {node.op_type for node in onnx.load(str(source)).graph.node}:
                target.write_bytes(target.read_bytes()[:-99])

        found = bisect(sound, tiny_onnx.samples(), truncate)
        assert found.node == "Relu 'bend' (node 2)"
        assert found.what.startswith("LiteRT refuses the file")


class TestTable:
    def test_it_tells_how_to_see_it_again(self, elu: Bisection) -> None:
        text = replace(elu, directory="why").table()
        assert "kir convert debug why/minimal.onnx --inputs why/minimal.npz --bisect --out why/again" in text
        assert "minimal failing model: 1 nodes: Elu 'bend' (node 2)" in text

    def test_without_a_directory_it_does_not(self, elu: Bisection) -> None:
        assert "minimal.onnx" not in elu.table()

    def test_json_has_shapes_and_no_bytes(self, elu: Bisection) -> None:
        data = json.loads(json.dumps(elu.to_json()))
        assert data["inputs"] == {"biased": [2, 1, 4, 6]}
        assert data["agrees"] is False
        assert "minimal" not in data


def test_nothing_to_run_it_on(folder: Path) -> None:
    with pytest.raises(InputError, match="nothing to run"):
        bisect(tiny_onnx.write_net(folder / "elu.onnx"), [])


def test_a_file_that_is_none(tmp_path: Path) -> None:
    shutil.copy(__file__, tmp_path / "bad.onnx")
    with pytest.raises(ConversionError, match="not a valid ONNX"):
        bisect(tmp_path / "bad.onnx", tiny_onnx.samples())

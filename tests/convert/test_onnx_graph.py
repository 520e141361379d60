"""Sub-models of an ONNX graph: what they hold, what they are fed, and that they compute what the whole does there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from contract.errors import ConversionError, InputError
from convert.debug_taps import OnnxTaps
from convert.onnx_graph import OnnxParts, Piece, dtype_of, load_onnx
from tests.convert import tiny_onnx


@pytest.fixture
def parts(tmp_path: Path) -> OnnxParts:
    taps = OnnxTaps(tiny_onnx.write_net(tmp_path / "net.onnx"))
    (sample,) = tiny_onnx.samples(1)
    return OnnxParts(taps.model, {**sample, **taps.run(sample)})


def run(piece: Piece | None, values: Any) -> dict[str, Any]:
    assert piece is not None
    onnx.checker.check_model(piece.model)
    session = onnxruntime.InferenceSession(piece.model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {name: values[name] for name in piece.inputs})
    return dict(zip(piece.outputs, found, strict=True))


class TestPrefix:
    @pytest.mark.parametrize(("last", "output"), [(0, "first"), (1, "biased"), (2, "bent"), (3, "second"), (4, "y")])
    def test_it_ends_in_what_is_read_behind_it(self, parts: OnnxParts, last: int, output: str) -> None:
        piece = parts.prefix(last)
        assert piece is not None
        assert (piece.inputs, piece.outputs, piece.nodes) == (("x",), (output,), tuple(range(last + 1)))
        np.testing.assert_allclose(run(piece, parts.values)[output], parts.values[output], atol=1e-6)

    def test_a_tensor_read_later_is_an_output_too(self, tmp_path: Path) -> None:
        nodes = [
            helper.make_node("Relu", ["x"], ["a"]),
            helper.make_node("Neg", ["a"], ["b"]),
            helper.make_node("Add", ["a", "b"], ["y"]),
        ]
        taps = OnnxTaps(tiny_onnx.write(tmp_path / "fork.onnx", nodes, {"x": (2, 3)}, ["y", "a"], {}))
        sample = {"x": np.ones((2, 3), np.float32)}
        piece = OnnxParts(taps.model, {**sample, **taps.run(sample)}).prefix(1)
        assert piece is not None
        assert piece.outputs == ("a", "b")

    def test_what_follows_from_constants_is_neither_fed_nor_compared(self, tmp_path: Path) -> None:
        nodes = [helper.make_node("Neg", ["c"], ["minus"]), helper.make_node("Add", ["x", "minus"], ["y"])]
        constants = {"c": np.ones(3, np.float32)}
        taps = OnnxTaps(tiny_onnx.write(tmp_path / "fixed.onnx", nodes, {"x": (2, 3)}, ["y"], constants))
        sample = {"x": np.ones((2, 3), np.float32)}
        parts = OnnxParts(taps.model, {**sample, **taps.run(sample)})
        assert parts.prefix(0) is None
        piece = parts.cone(["y"], 1)
        assert piece is not None
        assert piece.inputs == ("x",)
        np.testing.assert_array_equal(run(piece, parts.values)["y"], np.zeros((2, 3)))

    def test_integers_are_compared_as_the_graphs_outputs_alone(self, tmp_path: Path) -> None:
        nodes = [
            helper.make_node("Shape", ["x"], ["shape"]),
            helper.make_node("Reshape", ["x", "shape"], ["flat"]),
            helper.make_node("ArgMax", ["flat"], ["best"], axis=1, keepdims=0),
        ]
        path = tmp_path / "places.onnx"
        graph = helper.make_graph(
            nodes, "g", [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, (2, 3))],
            [helper.make_tensor_value_info("best", onnx.TensorProto.INT64, (2,))],
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
        model.ir_version = 9
        path.write_bytes(model.SerializeToString())
        taps = OnnxTaps(path)
        sample = {"x": np.ones((2, 3), np.float32)}
        parts = OnnxParts(taps.model, {**sample, **taps.run(sample)})
        outputs = [piece.outputs if piece else () for piece in (parts.prefix(i) for i in range(3))]
        assert outputs == [(), ("flat",), ("best",)]


class TestCone:
    @pytest.mark.parametrize(
        ("depth", "inputs", "nodes"),
        [(1, ("biased",), (2,)), (2, ("first",), (1, 2)), (3, ("x",), (0, 1, 2)), (9, ("x",), (0, 1, 2))],
    )
    def test_so_many_nodes_before(
        self, parts: OnnxParts, depth: int, inputs: tuple[str, ...], nodes: tuple[int, ...]
    ) -> None:
        piece = parts.cone(["bent"], depth)
        assert piece is not None
        assert (piece.inputs, piece.nodes) == (inputs, nodes)
        np.testing.assert_allclose(run(piece, parts.values)["bent"], parts.values["bent"], atol=1e-6)

    def test_shapes_are_those_of_the_run(self, parts: OnnxParts) -> None:
        piece = parts.cone(["bent"], 1)
        assert piece is not None
        dims = piece.model.graph.input[0].type.tensor_type.shape.dim
        assert tuple(dim.dim_value for dim in dims) == tiny_onnx.SHAPE

    def test_no_outputs_no_piece(self, parts: OnnxParts) -> None:
        assert parts.cone([], 3) is None


def test_a_node_in_words(parts: OnnxParts) -> None:
    assert parts.describe(2) == "Elu 'bend' (node 2)"
    parts.nodes[2].name = ""
    assert parts.describe(2) == "Elu 'bent' (node 2)"


def test_constants_among_the_inputs_are_not_fed(tmp_path: Path) -> None:
    path = tiny_onnx.write_net(tmp_path / "net.onnx")
    model = load_onnx(path)
    model.graph.input.append(helper.make_tensor_value_info("w1", onnx.TensorProto.FLOAT, (6, 6)))
    assert OnnxParts(model, {}).inputs == ("x",)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("tensor(float)", "float32"), ("tensor(int64)", "int64"), ("tensor(bool)", "bool"), ("tensor(double)", "float64")],
)
def test_onnxruntimes_types(name: str, dtype: str) -> None:
    assert dtype_of(name) == np.dtype(dtype)


class TestLoading:
    def test_an_absent_file(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no such file"):
            load_onnx(tmp_path / "none.onnx")

    @pytest.mark.parametrize("content", [b"", b"nothing", b"\x08\x09"])
    def test_a_file_that_is_none(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "bad.onnx").write_bytes(content)
        with pytest.raises(ConversionError, match="not a valid ONNX"):
            load_onnx(tmp_path / "bad.onnx")

"""Tensors between input and output: those of the file as it ships, and of ONNX node by node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.errors import ConversionError, InputError
from convert import flatbuffer
from convert.debug_taps import Layer, OnnxTaps, TensorRunner, TfliteTaps, layers_of, open_taps, tapped, unique_names
from convert.model import ConversionResult
from convert.quantize import load_recipe, quantize
from convert.tflite import TfliteGraph
from tests.convert import tiny_onnx
from tests.convert import tiny_tflite as tiny


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_chain(tmp_path_factory.mktemp("chain") / "chain.tflite")


@pytest.fixture(scope="module")
def quantised(chain: Path) -> Path:
    return quantize(chain, load_recipe("int8-dynamic"), chain.with_name("int8.tflite"))


class TestTflite:
    def test_every_layer_is_what_the_weights_make(self, chain: Path) -> None:
        (sample,) = tiny.samples(1)
        found, at = TfliteTaps(chain).run(sample), sample["x"]
        for i, name in enumerate(("fc0", "fc1", "fc2", "y")):
            at = at @ tiny.weights(i).T.astype(np.float32) + tiny.bias(i).astype(np.float32)
            np.testing.assert_allclose(found[name], at, atol=1e-5, err_msg=name)

    def test_outputs_are_bit_for_bit_those_of_the_file(self, quantised: Path) -> None:
        """Dynamic int8 of XNNPACK and of the builtin kernels differ: taps must not change which runs."""
        taps, plain = TfliteTaps(quantised), TfliteGraph(quantised)
        for sample in tiny.samples():
            np.testing.assert_array_equal(taps.run(sample)["y"], plain.run(sample)["y"])

    def test_on_a_real_graph_too(self, conversion: ConversionResult) -> None:
        path = conversion.directory / "graphs" / "swipe-N9.int8-dynamic.tflite"
        with np.load(conversion.directory / "golden" / "swipe-N9.npz") as file:
            feeds = dict(file)
        found = TfliteTaps(path).run(feeds)
        np.testing.assert_array_equal(found["scores"], TfliteGraph(path).run(feeds)["scores"])
        assert len(found) > 15

    def test_what_it_is_fed(self, chain: Path) -> None:
        taps = TfliteTaps(chain)
        assert taps.inputs == {"x": ((1, 4, 8), np.dtype("float32"))}
        assert taps.outputs == ("y",)
        assert taps.n_bytes == chain.stat().st_size

    def test_the_original_model_is_left_alone(self, chain: Path) -> None:
        model = flatbuffer.unpack(chain.read_bytes())
        tapped(model)
        assert flatbuffer.pack(model) == chain.read_bytes()

    def test_names_that_two_tensors_share_are_left_out(self, chain: Path, tmp_path: Path) -> None:
        def same(model: Any) -> None:
            model.subgraphs[0].tensors[3].name = model.subgraphs[0].tensors[6].name

        path = tmp_path / "twice.tflite"
        path.write_bytes(tiny.edited(chain.read_bytes(), same))
        assert "fc0" not in unique_names(flatbuffer.unpack(path.read_bytes()).subgraphs[0])
        assert set(TfliteTaps(path).run(tiny.samples(1)[0])) == {"fc2", "y"}

    def test_indices_are_no_values(self) -> None:
        net = tiny.Net()
        net.tensor("x", (4,))
        net.tensor("axis", (1,), "int32", np.array([0]))
        net.tensor("best", (1,), "int32")
        net.operator("ARG_MAX", ("x", "axis"), "best", "ArgMaxOptions", outputType=flatbuffer.schema.TensorType.INT32)
        net.tensor("y", (4,))
        net.operator("ADD", ("x", "x"), "y", "AddOptions")
        model = tapped(flatbuffer.unpack(net.bytes(["x"], ["y"])))
        assert [flatbuffer.text(model.subgraphs[0].tensors[n].name) for n in model.subgraphs[0].outputs] == ["y"]


class TestLayers:
    def test_in_the_order_they_run(self, chain: Path) -> None:
        model = flatbuffer.unpack(chain.read_bytes())
        assert layers_of(model, ["y", "fc1"]) == [Layer(1, "FULLY_CONNECTED", "fc1"), Layer(3, "FULLY_CONNECTED", "y")]

    def test_names_that_are_not_there_give_none(self, chain: Path) -> None:
        assert layers_of(flatbuffer.unpack(chain.read_bytes()), ["elsewhere"]) == []


class TestRunner:
    def test_quantised_inputs_and_outputs_look_like_float(self) -> None:
        def quantise(model: Any) -> None:
            for tensor in model.subgraphs[0].tensors:
                tensor.type = flatbuffer.schema.TensorType.INT8
                tensor.quantization.scale, tensor.quantization.zeroPoint = [0.1], [5]

        net = tiny.Net()
        net.tensor("x", (1, 4))
        net.tensor("y", (4,))
        net.operator("RESHAPE", ("x",), "y", "ReshapeOptions", newShape=[4])
        runner = TensorRunner(tiny.edited(net.bytes(["x"], ["y"]), quantise), "int8")
        found = runner.run({"x": np.array([[0.1, -0.52, 3.0, 900.0]], np.float32)})["y"]
        np.testing.assert_allclose(found, [0.1, -0.5, 3.0, 12.2], atol=1e-5)

    def test_another_shape(self, chain: Path) -> None:
        with pytest.raises(InputError, match="another shape") as caught:
            TensorRunner(chain.read_bytes(), chain).run({"x": np.zeros((1, 8, 4), np.float32)})
        assert (caught.value.got, caught.value.allowed) == ([1, 8, 4], [1, 4, 8])

    def test_a_missing_input(self, chain: Path) -> None:
        with pytest.raises(InputError, match="inputs are missing"):
            TensorRunner(chain.read_bytes(), chain).run({"z": np.zeros(3)})

    def test_a_file_that_litert_refuses(self, chain: Path) -> None:
        with pytest.raises(ConversionError, match="LiteRT refuses"):
            TensorRunner(chain.read_bytes()[:-100], chain)

    def test_a_file_that_fails_when_it_runs(self) -> None:
        net = tiny.Net()
        net.tensor("x", (3, 2))
        net.tensor("at", (1, 1), "int32", np.array([[-7]]))
        net.tensor("y", (1, 2))
        net.operator("GATHER_ND", ("x", "at"), "y", "GatherNdOptions")
        runner = TensorRunner(net.bytes(["x"], ["y"]), "gather")
        with pytest.raises(ConversionError, match="LiteRT can't run"):
            runner.run({"x": np.zeros((3, 2), np.float32)})


class TestOnnx:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tiny_onnx.write_net(tmp_path / "net.onnx")

    def test_every_node_can_be_read(self, path: Path) -> None:
        taps = OnnxTaps(path)
        (sample,) = tiny_onnx.samples(1)
        found = taps.run(sample)
        assert taps.inputs == {"x": ((1, 4, 6), np.dtype("float32"))}
        assert taps.outputs == ("y",)
        assert set(found) == {"first", "biased", "bent", "second", "y"}
        np.testing.assert_allclose(found["biased"], found["first"] + tiny_onnx.BIAS, atol=1e-6)

    def test_a_missing_input(self, path: Path) -> None:
        with pytest.raises(InputError, match="input is missing"):
            OnnxTaps(path).run({})

    def test_an_input_of_another_shape(self, path: Path) -> None:
        with pytest.raises(ConversionError, match="onnxruntime can't run"):
            OnnxTaps(path).run({"x": np.zeros((1, 6, 4), np.float32)})

    def test_a_file_that_is_none(self, tmp_path: Path) -> None:
        (tmp_path / "bad.onnx").write_bytes(b"nothing")
        with pytest.raises(ConversionError, match="not a valid ONNX"):
            OnnxTaps(tmp_path / "bad.onnx")


class TestOpening:
    def test_by_the_ending(self, chain: Path, tmp_path: Path) -> None:
        assert isinstance(open_taps(chain), TfliteTaps)
        assert isinstance(open_taps(tiny_onnx.write_net(tmp_path / "net.onnx")), OnnxTaps)

    def test_another_ending(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"neither \.tflite nor \.onnx"):
            open_taps(tmp_path / "model.pt")

    @pytest.mark.parametrize("name", ["none.tflite", "none.onnx"])
    def test_an_absent_file(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(InputError, match="no such file"):
            open_taps(tmp_path / name)

"""What each front end gets wrong on its own, a row of docs/conversion.md each: planted here, so that it is seen when a
newer version mends it or the pipeline stops avoiding it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch import nn

from contract.errors import ConversionError
from contract.manifest import Tensor
from convert.frontends import ONNX2TF, TENSORFLOW, check_builtin
from convert.frontends.cross_check import cross_check
from convert.frontends.tensorflow_arm import INT16X8, convert_by_tensorflow, convert_saved_model, write_saved_model
from convert.onnx_export import DYNAMO, TorchGraph, export_onnx
from convert.quiet import quiet
from convert.tflite import TfliteGraph, convert_onnx, run_onnx2tf
from tests.convert import tiny_onnx
from tests.convert.small_graphs import block, feeds_of

pytestmark = pytest.mark.slow


def by_onnx2tf(onnx_path: Path, out: Path, backend: str = "flatbuffer_direct", **settings: Any) -> Path:
    """onnx2tf as its manual has it; gives the folder."""
    with quiet("onnx2tf"):
        run_onnx2tf(
            input_onnx_file_path=str(onnx_path), output_folder_path=str(out), tflite_backend=backend, **settings
        )
    return out


def operators_of(path: Path) -> set[str]:
    return set(TfliteGraph(path).operators)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_onnx(block(5), tmp_path_factory.mktemp("faults") / "block.onnx")


@pytest.fixture(scope="module")
def opset_18(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = export_onnx(block(5), tmp_path_factory.mktemp("faults") / "18.onnx", DYNAMO, 18)
    assert "Erf" in {node.op_type for node in onnx.load(path).graph.node}
    return path


class TestOnnx2tf:
    @pytest.mark.parametrize("backend", ["flatbuffer_direct", "tf_converter"])
    def test_left_alone_it_swaps_the_axes_of_an_input(self, exported: Path, tmp_path: Path, backend: str) -> None:
        """[1, N, D] becomes [1, D, N]; the numbers are right for whoever transposes."""
        (path,) = by_onnx2tf(exported, tmp_path / "out", backend).glob("*_float32.tflite")
        (tokens,), _ = TfliteGraph(path).tensors()
        assert tokens.shape == (1, 16, 5)

    def test_its_own_float16_file_changes_the_interface(self, exported: Path, tmp_path: Path) -> None:
        out = by_onnx2tf(exported, tmp_path / "out", keep_shape_absolutely_input_names=["tokens"])
        (path,) = out.glob("*_float16.tflite")
        assert {tensor.dtype for side in TfliteGraph(path).tensors() for tensor in side} == {"float16"}

    def test_its_own_full_int8_refuses_the_root_of_a_norm(self, exported: Path, tmp_path: Path) -> None:
        np.save(tmp_path / "tokens.npy", np.concatenate([feeds["tokens"] for feeds in feeds_of(block(5), 10)]))
        pages = [["tokens", str(tmp_path / "tokens.npy"), 0.0, 1.0]]
        with pytest.raises(ConversionError, match="flatbuffer_direct fast path failed") as raised:
            by_onnx2tf(
                exported,
                tmp_path / "out",
                keep_shape_absolutely_input_names=["tokens"],
                output_integer_quantized_tflite=True,
                custom_input_op_name_np_data_path=pages,
            )
        reason = raised.value.__cause__.__cause__  # what onnx2tf says is wrapped twice
        assert "Unsupported op for strict full integer quantization" in str(reason)
        assert "SQRT" in str(reason)

    def test_opset_18_spells_gelu_so_that_a_sign_stays_outside_xnnpack(
        self, exported: Path, opset_18: Path, tmp_path: Path
    ) -> None:
        inputs, _ = block(5).contract()
        spelt = convert_onnx(opset_18, tmp_path / "18.tflite", inputs)
        builtin = convert_onnx(exported, tmp_path / "20.tflite", inputs)
        assert {"ABS", "SIGN", "EXP"} <= operators_of(spelt)
        assert "GELU" not in operators_of(spelt)
        assert "GELU" in operators_of(builtin)
        assert TfliteGraph(spelt).partitions > TfliteGraph(builtin).partitions

    def test_opset_23_keeps_fused_attention_which_no_litert_has(self, tmp_path: Path) -> None:
        graph = block(5, fused=True)
        path = convert_onnx(
            export_onnx(graph, tmp_path / "23.onnx", DYNAMO, 23), tmp_path / "23.tflite", graph.contract()[0]
        )
        with pytest.raises(ConversionError, match=r"no builtins; got ONNX_ATTENTION, which writes \S+"):
            check_builtin(path)
        with pytest.raises(ConversionError, match="LiteRT refuses"):
            TfliteGraph(path)


class TestTensorflowBackend:
    def test_a_sequence_as_long_as_a_feature_is_wide_is_silently_wrong(self, tmp_path: Path) -> None:
        """16 tokens of width 16; the converter exits well, and its file passes every check of its interface."""
        graph = block(16)
        check = cross_check(graph, feeds_of(graph), tmp_path, (ONNX2TF, TENSORFLOW))
        assert check.off == (TENSORFLOW,)
        assert check.opinions[1].max_abs > 0.1
        assert check.opinions[0].max_abs < 1e-5

    @pytest.mark.parametrize("through", ["constant", "identity"])
    def test_a_bias_that_comes_through_an_identity_loses_its_order(self, tmp_path: Path, through: str) -> None:
        """torch writes equal weights once, with an Identity for the second; ours are read directly."""
        name = "b" if through == "constant" else "same"
        nodes = [
            *([helper.make_node("Identity", ["b"], ["same"])] if through == "identity" else []),
            helper.make_node("MatMul", ["x", "w"], ["product"]),
            helper.make_node("Add", ["product", name], ["y"]),
        ]
        constants = {"w": tiny_onnx.weights(1), "b": tiny_onnx.BIAS}
        path = tiny_onnx.write(tmp_path / "x.onnx", nodes, {"x": tiny_onnx.SHAPE}, ["y"], constants)
        tensors = (Tensor("x", tiny_onnx.SHAPE),), (Tensor("y", tiny_onnx.SHAPE),)
        file = TfliteGraph(convert_by_tensorflow(path, tmp_path / "x.tflite", *tensors))
        x = tiny_onnx.samples(1)[0]["x"]
        off = np.abs(file.run({"x": x})["y"] - (x @ tiny_onnx.weights(1) + tiny_onnx.BIAS)).max()
        assert off > 0.1 if through == "identity" else off < 1e-5

    def test_opset_18_gelu_has_no_builtin_here(self, opset_18: Path, tmp_path: Path) -> None:
        with pytest.raises(ConversionError, match="Erf"):
            convert_by_tensorflow(opset_18, tmp_path / "18.tflite", *block(5).contract())

    def test_int16_activations_end_the_process_that_loads_them(self, exported: Path, tmp_path: Path) -> None:
        graph = block(5)
        saved = write_saved_model(exported, tmp_path / "saved", graph.contract()[0])
        with pytest.raises(ConversionError, match=r"can't load the file; got LiteRT died loading it \(signal 6\)"):
            convert_saved_model(saved, tmp_path / "x.tflite", graph.contract()[1], INT16X8, feeds_of(graph))


class Widened(nn.Module):
    """A row spread over N by `expand`."""

    def forward(self, row: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return torch.cat([row.unsqueeze(1).expand(1, 5, 4), tokens], -1) * 2


class TestLitertTorch:
    def test_expand_stays_outside_xnnpack(self, tmp_path: Path) -> None:
        inputs = {"row": torch.randn(1, 4), "tokens": torch.randn(1, 5, 3)}
        graph = TorchGraph("widened", "N5", Widened().eval(), inputs, ("out",))
        check = cross_check(graph, feeds_of(graph), tmp_path, ("litert-torch", ONNX2TF))
        assert check.verdict == "all agree with torch"
        assert "BROADCAST_TO" in operators_of(tmp_path / "widened-N5.litert-torch.tflite")

    def test_a_free_length_fails(self) -> None:
        """In words of its own; so it is refused before (convert/frontends/litert_torch.py)."""
        import litert_torch

        length = torch.export.Dim("n", min=2, max=9)
        with pytest.raises(Exception, match=r"(?i)shape|dynamic|size|positive"), quiet("litert-torch"):
            litert_torch.convert(
                block(5).module, sample_kwargs=dict(block(5).inputs), dynamic_shapes={"tokens": {1: length}}
            )

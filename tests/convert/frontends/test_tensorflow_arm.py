"""The reference arm: TensorFlow's converter in its modes, on a SavedModel that onnx2tf writes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from contract.errors import ConversionError, InputError
from convert.frontends.tensorflow_arm import (
    CALIBRATED,
    DYNAMIC,
    FLOAT16,
    FLOAT32,
    INT8,
    convert_saved_model,
    write_saved_model,
)
from convert.onnx_export import export_onnx
from convert.tflite import TfliteGraph, check_contract
from tests.convert.small_graphs import block, feeds_of

GRAPH = block(5, width=32)  # wide enough for TensorFlow's dynamic int8, which passes over fewer than 1024 weights


class TestRefusals:
    @pytest.mark.parametrize("mode", ["int4", ""])
    def test_an_unknown_mode(self, mode: str, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"unknown mode.*allowed: \('float32'"):
            convert_saved_model(tmp_path, tmp_path / "x.tflite", (), mode)

    @pytest.mark.parametrize("mode", CALIBRATED)
    def test_a_mode_without_feeds(self, mode: str, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=f"needs feeds to calibrate on; got {mode}"):
            convert_saved_model(tmp_path, tmp_path / "x.tflite", (), mode)

    def test_without_onnx2tf_one_sentence_says_what_to_type(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "onnx2tf", None)
        (tmp_path / "x.onnx").touch()
        with pytest.raises(InputError, match="kir convert setup"):
            write_saved_model(tmp_path / "x.onnx", tmp_path / "out", ())


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    return write_saved_model(export_onnx(GRAPH, folder / "block.onnx"), folder / "model", GRAPH.contract()[0])


@pytest.mark.slow
class TestModes:
    # Largest difference allowed, of values up to 4.
    @pytest.mark.parametrize(("mode", "allowed"), [(FLOAT32, 1e-5), (FLOAT16, 0.01), (DYNAMIC, 0.1), (INT8, 0.3)])
    def test_the_contracts_interface_and_torchs_numbers(
        self, saved: Path, tmp_path: Path, mode: str, allowed: float
    ) -> None:
        inputs, outputs = GRAPH.contract()
        path = convert_saved_model(saved, tmp_path / "x.tflite", outputs, mode, feeds_of(GRAPH, 20))
        file = TfliteGraph(path)
        check_contract(file, inputs, outputs)  # names, and float32 in and out in every mode
        for feeds in feeds_of(GRAPH, 3, seed=8):
            apart = np.abs(file.run(feeds)["scores"] - GRAPH.run(feeds)["scores"]).max()
            assert apart < allowed
            assert mode == FLOAT32 or apart > 1e-5

    def test_what_is_no_saved_model(self, tmp_path: Path) -> None:
        with pytest.raises(ConversionError, match=r"TensorFlow's converter \(float32\) for x\.tflite failed"):
            convert_saved_model(tmp_path, tmp_path / "x.tflite", GRAPH.contract()[1])

    def test_what_is_no_onnx(self, tmp_path: Path) -> None:
        (tmp_path / "bad.onnx").write_bytes(b"nothing")
        with pytest.raises(ConversionError, match=r"onnx2tf's TensorFlow backend on bad\.onnx failed"):
            write_saved_model(tmp_path / "bad.onnx", tmp_path / "model", GRAPH.contract()[0])

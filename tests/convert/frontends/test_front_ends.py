"""Front ends by name: each ends in the same check, and those of onnx2tf agree with torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.errors import ConversionError, InputError
from convert import frontends
from convert.frontends import FRONT_ENDS, ONNX2TF, ONNX2TF_DYNAMO, check_builtin, convert_float, export_and_convert
from convert.tflite import TfliteGraph
from tests.convert.small_graphs import feeds_of, layers
from tests.convert.tiny_tflite import chain, edited


@pytest.mark.parametrize("name", [ONNX2TF, ONNX2TF_DYNAMO])
def test_by_onnx2tf(name: str, tmp_path: Path) -> None:
    graph = layers()
    onnx, path = export_and_convert(graph, tmp_path, name)
    assert (onnx.name, path.name) == (f"layers-N5.{name}.onnx", f"layers-N5.{name}.tflite")
    file = TfliteGraph(path)
    assert "GELU" in file.operators
    for feeds in feeds_of(graph):
        for output, value in graph.run(feeds).items():
            np.testing.assert_allclose(file.run(feeds)[output], value, atol=1e-5)


def test_the_exporter_is_the_front_ends() -> None:
    assert {name: frontends.exporter_of(name) for name in FRONT_ENDS} == {
        "onnx2tf": "trace",
        "onnx2tf-dynamo": "dynamo",
        "litert-torch": "trace",
        "tensorflow": "trace",
    }


def test_an_unknown_name_lists_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unknown front end; got tflite; allowed: \('onnx2tf'"):
        convert_float(layers(), tmp_path / "x.onnx", tmp_path / "x.tflite", "tflite")


class TestTheCheck:
    """What a front end wrote is held to the contract before anything is made of it."""

    def convert(self, raw: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        def convert_onnx(onnx: Any, path: Path, inputs: Any) -> Path:
            path.write_bytes(raw)
            return path

        monkeypatch.setattr(frontends, "convert_onnx", convert_onnx)
        return convert_float(layers(), tmp_path / "x.onnx", tmp_path / "x.tflite")

    def test_other_names_and_shapes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ConversionError, match=r"x\.tflite: inputs differ from the contract"):
            self.convert(chain(2), tmp_path, monkeypatch)

    def test_an_operator_that_is_no_builtin(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def change(model: Any) -> None:
            model.operatorCodes[0].customCode = "FlexErf"

        with pytest.raises(ConversionError, match=r"x\.tflite: file needs operators that are no builtins.*FlexErf"):
            self.convert(edited(chain(2), change), tmp_path, monkeypatch)

    def test_a_file_that_is_none(self, tmp_path: Path) -> None:
        (tmp_path / "x.tflite").write_bytes(chain(2)[:100])
        with pytest.raises(ConversionError, match=r"x\.tflite: TFLite file is truncated"):
            check_builtin(tmp_path / "x.tflite")

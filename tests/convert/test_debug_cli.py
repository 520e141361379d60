"""kir convert debug: which paths go with which mode, what is written, and what stands on stdout and stderr."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import kir
from convert import debug_bisect
from convert.model import ConversionResult
from convert.quantize import load_recipe, quantize
from tests.convert import makers, tiny_onnx
from tests.convert import tiny_tflite as tiny


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A float file and a variant that loses fc1."""
    folder = tmp_path_factory.mktemp("files")
    source = tiny.write_chain(folder / "float.tflite", change=tiny.loud())
    return source, quantize(source, load_recipe("int8-dynamic"), folder / "int8.tflite")


def words(*parts: object) -> list[str]:
    return ["convert", "debug", *map(str, parts)]


class TestTwoFiles:
    def test_layer_mend_json_and_page(
        self, files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out, data = tmp_path / "why", tmp_path / "why.json"
        assert kir.main(words(*files, "--recipe", "int8-dynamic", "--out", out, "--json", data)) == 0
        text = capsys.readouterr().out
        assert "first bad layer: FULLY_CONNECTED 'fc1'" in text
        assert "no_quantize" in text
        assert sorted(path.name for path in out.iterdir()) == [
            "debug.html", "debug.json", "int8-dynamic-mended.json", "int8-dynamic-mended.tflite"
        ]  # fmt: skip
        assert json.loads(data.read_text()) == json.loads((out / "debug.json").read_text())

    def test_inputs_and_seed_reach_the_library(
        self, files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        np.savez(tmp_path / "mine.npz", x=tiny.samples(1)[0]["x"])
        assert kir.main(words(*files, "--inputs", tmp_path / "mine.npz")) == 0
        assert ", mine.npz\n" in capsys.readouterr().out
        assert kir.main(words(*files, "--seed", 5)) == 0
        assert "8 random samples of seed 5" in capsys.readouterr().out

    def test_an_output_directory_is_not_overwritten_unless_asked(
        self, files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert kir.main(words(*files, "--out", tmp_path)) == 2
        assert "pass --overwrite" in capsys.readouterr().err
        assert kir.main(words(*files, "--out", tmp_path, "--overwrite")) == 0
        assert (tmp_path / "debug.html").is_file()


class TestWrongPaths:
    @pytest.mark.parametrize(
        ("parts", "what"),
        [
            (["one.tflite"], "a converted directory, or a reference and a variant"),
            (["one.onnx"], "goes with --bisect"),
            (["a.tflite", "b.tflite", "c.tflite"], "a converted directory, or a reference"),
            (["none.tflite", "none.tflite"], "no such file"),
            (["nowhere", "--graph", "swipe/N9"], "not a converted model"),
            (["model.onnx", "--bisect"], "name a directory with --out"),
            (["a.onnx", "b.onnx", "--bisect", "--out", "why"], "takes a converted directory or one .onnx file"),
            (["a.tflite", "--bisect", "--out", "why"], "takes a converted directory or one .onnx file"),
            (["a.tflite", "b.tflite", "--recipe", "int3"], "unknown quantisation recipe"),
        ],
    )
    def test_one_line_says_what_goes(
        self,
        parts: list[str],
        what: str,
        capsys: pytest.CaptureFixture[str],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert kir.main(words(*parts)) == 2
        captured = capsys.readouterr()
        assert what in captured.err
        assert len(captured.err.splitlines()) == 1
        assert list(tmp_path.iterdir()) == []


class TestConverted:
    def test_a_variant_of_a_graph(self, conversion: ConversionResult, capsys: pytest.CaptureFixture[str]) -> None:
        assert kir.main(words(conversion.directory, "--graph", "place/N9", "--variant", "int8-dynamic")) == 0
        assert "place-N9.int8-dynamic.tflite against" in capsys.readouterr().out

    def test_graphs_and_variants_are_listed(
        self, conversion: ConversionResult, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert kir.main(words(conversion.directory, "--graph", "place/N9", "--variant", "int4")) == 2
        assert "int8-weight-only" in capsys.readouterr().err
        assert kir.main(words(conversion.directory)) == 2
        assert "watch/T1" in capsys.readouterr().err


class TestBisect:
    def test_an_onnx_file(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        nodes = [tiny_onnx.BENT]
        onnx = tiny_onnx.write(tmp_path / "net.onnx", nodes, {"biased": tiny_onnx.SHAPE}, ["bent"], {})
        out = tmp_path / "why"
        assert kir.main(words(onnx, "--bisect", "--out", out)) == 0
        text = capsys.readouterr().out
        assert "first node that is converted wrongly: Elu 'bend' (node 0)" in text
        assert f"kir convert debug {out}/minimal.onnx --inputs {out}/minimal.npz --bisect --out {out}/again" in text
        assert {path.name for path in out.iterdir()} == {"bisect.json", "minimal.onnx", "minimal.npz"}

    def test_a_float_file_that_was_changed_is_told_from_a_wrong_conversion(
        self, conversion: ConversionResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        copy = Path(shutil.copytree(conversion.directory, tmp_path / "model"))
        path = copy / "graphs" / "watch-T1.float32.tflite"
        makers.edit_tflite(path, makers.scale_largest_weight(1.01))
        assert kir.main(words(copy, "--graph", "watch/T1", "--bisect", "--out", tmp_path / "why")) == 0
        text = capsys.readouterr().out
        assert "a fresh conversion agrees with ONNX and this file does not: convert again" in text
        assert "first bad layer" in text

    def test_a_sound_graph(
        self,
        conversion: ConversionResult,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        # Its float file is the fresh conversion, byte for byte; converting it once more would only take time.
        monkeypatch.setattr(debug_bisect._Search, "_disagrees", lambda *_: None)
        assert kir.main(words(conversion.directory, "--graph", "swipe/N9", "--bisect", "--out", tmp_path / "why")) == 0
        assert "TFLite float agrees with ONNX" in capsys.readouterr().out

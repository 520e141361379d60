"""kir convert setup and cross-check."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import kir
from convert import front_end_cli, frontends
from convert.frontends import cross_check as module
from convert.frontends.litert_torch import LITERT_CONVERTER, LITERT_TORCH, LITERT_TORCH_COMPANIONS
from convert.tflite import ONNX2TF
from tests.convert import zoo


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What pip is asked for."""
    calls: list[list[str]] = []

    def run(words: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        calls.append(words[words.index("-q") + 1 :])
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr(subprocess, "run", run)
    return calls


def test_the_names_are_the_front_ends() -> None:
    assert front_end_cli.FRONT_ENDS == frontends.FRONT_ENDS


class TestSetup:
    def test_without_the_flag_litert_torch_stays_out(self, pip: list[list[str]]) -> None:
        assert kir.main(["convert", "setup"]) == 0
        assert pip[-1] == ["--no-deps", "--ignore-requires-python", ONNX2TF]
        assert not any("litert-torch" in word for words in pip for word in words)

    def test_with_it_what_conversion_imports_comes_and_nothing_of_the_rest(self, pip: list[list[str]]) -> None:
        """litert-torch's own dependencies would lower two pins of ours."""
        assert kir.main(["convert", "setup", "--litert-torch"]) == 0
        assert pip[-2:] == [[*LITERT_TORCH_COMPANIONS], ["--no-deps", LITERT_CONVERTER, LITERT_TORCH]]
        assert all("==" in pin for pin in (*LITERT_TORCH_COMPANIONS, LITERT_CONVERTER, LITERT_TORCH))

    def test_a_pip_that_fails_is_told(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def run(words: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
            return subprocess.CompletedProcess(words, int(LITERT_TORCH in words))

        monkeypatch.setattr(subprocess, "run", run)
        assert kir.main(["convert", "setup", "--litert-torch"]) == 2
        assert f"pip could not install it; got --no-deps {LITERT_CONVERTER} {LITERT_TORCH}" in capsys.readouterr().err


def test_what_is_not_installed_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "litert_torch", None)
    assert frontends.installed() == ("onnx2tf", "onnx2tf-dynamo", "tensorflow")


class TestCrossCheck:
    def run(self, checkpoint: Path, *words: str) -> int:
        return kir.main(["convert", "cross-check", str(checkpoint), "--windows", "4", *words])

    def test_the_shipping_front_end_is_with_torch(
        self, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = ("--graph", "swipe/N9", "--front-end", "onnx2tf", "--json", str(tmp_path / "check.json"))
        assert self.run(checkpoint, *words) == 0
        told = capsys.readouterr()
        assert "all agree with torch" in told.out
        assert "swipe/N9" in told.err
        (found,) = json.loads((tmp_path / "check.json").read_text())["graphs"]
        assert (found["graph"], found["off"]) == ("swipe/N9", [])
        assert found["n_feeds"] >= 4

    def test_a_graph_that_is_not_there(self, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run(checkpoint, "--graph", "swipe/N99") == 2
        assert "swipe/N99" in capsys.readouterr().err

    def test_a_front_end_that_is_none(self, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            self.run(checkpoint, "--front-end", "tvm")
        assert "litert-torch" in capsys.readouterr().err

    @pytest.mark.parametrize("max_abs", [0.5, float("nan")])
    def test_when_it_is_off_the_status_says_so(
        self, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], max_abs: float
    ) -> None:
        opinion = module.Opinion("onnx2tf", max_abs, 1, 1, 1)
        off = module.CrossChecks((module.CrossCheck("swipe/N9", (opinion,), (), 1e-4, 4),))
        monkeypatch.setattr(module, "cross_check_job", lambda *_, **__: off)
        assert self.run(checkpoint, "--front-end", "onnx2tf") == 1
        assert "off: onnx2tf" in capsys.readouterr().out

    def test_a_module_is_asked_about_as_well(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "mlp.json").write_text(json.dumps(zoo.CONTRACTS["mlp"]))
        words = [
            "--module",
            "tests.convert.zoo:mlp",
            "--contract",
            str(tmp_path / "mlp.json"),
            "--front-end",
            "onnx2tf",
        ]
        assert kir.main(["convert", "cross-check", *words]) == 0
        assert "all agree with torch" in capsys.readouterr().out

    def test_no_samples(self, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert kir.main(["convert", "cross-check", str(checkpoint), "--windows", "0"]) == 2
        assert "--windows starts at 1" in capsys.readouterr().err

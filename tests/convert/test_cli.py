"""kir convert, publish and verify: flags, exit status, and what stands on stdout and stderr."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import kir
from contract.errors import VerificationFailed
from convert import bundle as bundle_module
from convert import cli, model
from convert.model import ConversionResult
from convert.quantize import DEFAULT_RECIPES
from convert.report import Gates
from convert.tflite import ONNX2TF
from tests.convert import makers


def test_importing_the_commands_is_light() -> None:
    code = "import sys, convert.cli; sys.exit(any(m in sys.modules for m in ('torch', 'onnx', 'numpy', 'tensorflow')))"
    assert (
        subprocess.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL, cwd=Path(kir.__file__).parent).returncode
        == 0
    )


def test_the_commands_defaults_are_the_librarys() -> None:
    assert cli.DEFAULT_RECIPES == DEFAULT_RECIPES


class TestModel:
    @pytest.fixture
    def asked(self, conversion: ConversionResult, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
        """What the command asked `convert_model` for, where `ckpt` is a directory."""
        (tmp_path / "ckpt").mkdir()
        monkeypatch.chdir(tmp_path)
        found: dict[str, Any] = {}

        def convert(checkpoint: Path, out: Path, **kwargs: Any) -> ConversionResult:
            found.update(checkpoint=checkpoint, out=out, **kwargs)
            return conversion

        monkeypatch.setattr(model, "convert_model", convert)
        return found

    def test_flags_reach_the_library(
        self, asked: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = ["convert", "model", "ckpt", "--out", "out", "--recipe", "int8-dynamic", "--data", "log.parquet"]
        assert kir.main([*words, "--windows", "9", "--seed", "3", "--json", str(tmp_path / "deep" / "r.json")]) == 0
        assert asked["checkpoint"] == Path("ckpt")
        assert asked["recipes"] == ("int8-dynamic",)
        assert (asked["data"], asked["windows"], asked["seed"]) == ("log.parquet", 9, 3)
        assert asked["overwrite"] is False
        assert "bytes to a phone" in capsys.readouterr().out
        assert "verification" in json.loads((tmp_path / "deep" / "r.json").read_text())

    def test_all_recipes_by_default(self, asked: dict[str, Any]) -> None:
        assert kir.main(["convert", "model", "ckpt", "--out", "out"]) == 0
        assert asked["recipes"] == DEFAULT_RECIPES

    def test_a_stated_bound_reaches_the_gates(self, asked: dict[str, Any]) -> None:
        assert kir.main(["convert", "model", "ckpt", "--out", "out", "--gate", "tau=.99", "--gate", "gauc_loss=0"]) == 0
        assert asked["gates"] == Gates(tau=0.99, gauc_loss=0.0)

    @pytest.mark.parametrize(
        ("gate", "words"),
        [
            ("ndcg=.9", "no such gate; got ndcg=.9"),
            ("tau", "is a number"),
            ("tau=high", "is a number"),
            ("tau=98", "out of range"),
            ("snr_db=-1", "out of range"),
            ("cosine=nan", "out of range"),
        ],
    )
    def test_a_bound_that_is_none_is_refused_at_once(
        self, asked: dict[str, Any], gate: str, words: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert kir.main(["convert", "model", "ckpt", "--out", "out", "--gate", gate]) == 2
        assert words in capsys.readouterr().err

    def test_a_failed_verification_is_status_1(
        self, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def fail(*_: Any, **__: Any) -> None:
            raise VerificationFailed("swipe/N9 in TFLite float: differs from torch")

        monkeypatch.setattr(model, "convert_model", fail)
        assert kir.main(["convert", "model", "ckpt", "--out", "out"]) == 1
        assert capsys.readouterr().err == "kir convert: swipe/N9 in TFLite float: differs from torch\n"

    @pytest.mark.parametrize(
        ("words", "told"),
        [
            (["ckpt", "--recipe", "int8-dynamc"], "unknown quantisation recipe"),
            (["ckpt", "--gate", "tau=2"], "out of range"),
            (["nowhere"], "no such checkpoint"),
            (["ckpt", "--seed", "-1"], "--seed starts at 0; got -1"),
            (["ckpt", "--calibrate", "0"], "--calibrate starts at 1; got 0"),
            (["ckpt", "--json", "."], "--json is a directory; got ."),
            (["--module", "a:b", "--contract", "none.json"], "no such contract"),
        ],
    )
    def test_what_was_typed_is_refused_before_torch_is_imported(
        self, tmp_path: Path, words: list[str], told: str
    ) -> None:
        (tmp_path / "ckpt").mkdir()
        code = (
            "import sys, kir; code = kir.main(sys.argv[1:]); "
            "sys.exit(9 if {'torch', 'tensorflow', 'onnx'} & set(sys.modules) else code)"
        )
        command = [sys.executable, "-c", code, "convert", "model", *words, "--out", "out"]
        environment = {**os.environ, "PYTHONPATH": str(Path(kir.__file__).parent)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert (done.returncode, told in done.stderr) == (2, True), done.stderr

    def test_a_word_that_is_no_job_is_taken_for_a_checkpoint(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert kir.main(["convert", "nowhere", "--out", "o"]) == 2
        told = capsys.readouterr().err
        assert "nowhere: no such checkpoint" in told
        assert "cross-check" in told

    @pytest.mark.parametrize("job", ["cross-check", "debug"])
    def test_a_seed_below_zero_is_refused_by_every_job(self, job: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert kir.main(["convert", job, "x", "--seed", "-1"]) == 2
        assert "--seed starts at 0; got -1" in capsys.readouterr().err

    def test_a_ci_may_ask_that_float_does_not_ship(self, asked: dict[str, Any]) -> None:
        assert kir.main(["convert", "model", "ckpt", "--out", "out"]) == 0
        assert asked["no_float"] is False
        assert kir.main(["convert", "model", "ckpt", "--out", "out", "--no-float"]) == 0
        assert asked["no_float"] is True

    def test_outcomes_are_printed_where_asked(self, asked: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
        assert kir.main(["convert", "model", "ckpt", "--out", "out"]) == 0
        plain = capsys.readouterr().out
        assert kir.main(["convert", "model", "ckpt", "--out", "out", "--outcomes", "--whole"]) == 0
        more = capsys.readouterr().out
        assert more.startswith(plain)
        assert "no outcomes" in more[len(plain) :], "stand-ins are watched by nobody"
        assert asked["whole"] is True

    def test_a_missing_checkpoint_is_status_2(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert kir.main(["convert", "model", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 2
        assert "no such checkpoint" in capsys.readouterr().err


class TestServer:
    def test_it_writes_a_bundle_and_adds_rows(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        first, second = (makers.make_kir(tmp_path / f"kir{i}", seed=i) for i in range(2))
        words = ["convert", "server", "--out", str(tmp_path / "bundle"), "--kir", str(first.path)]
        words += ["--retrieval", str(makers.make_kuaiformer(tmp_path / "retrieval").path)]
        words += ["--ranker", str(makers.make_ranker(tmp_path / "ranker").path)]
        words += ["--catalogue", str(makers.make_catalogue(tmp_path / "catalogue.parquet"))]
        words += ["--users", str(makers.make_users(tmp_path / "users.parquet"))]
        assert kir.main(words) == 0
        assert kir.main(["convert", "rows", str(second.path), "--bundle", str(tmp_path / "bundle")]) == 0
        out = capsys.readouterr().out
        assert first.version in out
        assert second.version in out

    def test_two_kir_checkpoints_in_either_spelling(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[list[Path]] = []

        class Nothing:
            def table(self) -> str:
                return ""

        monkeypatch.setattr(bundle_module, "write_bundle", lambda out, **kw: seen.append(kw["kir"]) or Nothing())
        base = [
            "convert",
            "server",
            "--out",
            "b",
            "--retrieval",
            "r",
            "--ranker",
            "k",
            "--catalogue",
            "c",
            "--users",
            "u",
        ]
        assert kir.main([*base, "--kir", "one", "two"]) == 0
        assert kir.main([*base, "--kir", "one", "--kir", "two"]) == 0
        assert seen == [[Path("one"), Path("two")]] * 2


class TestPublishAndVerify:
    def test_the_round(self, conversion: ConversionResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        cdn = str(tmp_path / "cdn")
        assert kir.main(["publish", str(conversion.directory), "--cdn", cdn]) == 0
        assert "pointer moved" in capsys.readouterr().out
        assert kir.main(["publish", "--rollback", conversion.version, "--cdn", cdn]) == 0
        assert "pointer unchanged" in capsys.readouterr().out
        assert kir.main(["verify", "--cdn", cdn, "--json", str(tmp_path / "check.json")]) == 0
        captured = capsys.readouterr()
        assert f"* {conversion.version}" in captured.out
        assert "agree with their golden tensors" in captured.err
        assert json.loads((tmp_path / "check.json").read_text())["current"] == conversion.version

    def test_a_damaged_cdn_is_status_2_and_names_the_file(
        self, conversion: ConversionResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert kir.main(["publish", str(conversion.directory), "--cdn", str(tmp_path)]) == 0
        victim = next((tmp_path / "models" / conversion.version).glob("*.tflite"))
        victim.write_bytes(victim.read_bytes()[:-1])
        assert kir.main(["verify", "--cdn", str(tmp_path)]) == 2
        assert victim.name in capsys.readouterr().err

    @pytest.mark.parametrize("words", [[], ["dir", "--rollback", "kir-1"]])
    def test_a_directory_or_a_version_and_not_both(self, words: list[str], tmp_path: Path) -> None:
        assert kir.main(["publish", *words, "--cdn", str(tmp_path)]) == 2


class TestSetup:
    def test_it_installs_onnx2tf_without_its_dependencies(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        calls: list[list[str]] = []

        def run(words: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
            calls.append(words)
            return subprocess.CompletedProcess(words, 0)

        monkeypatch.setattr(subprocess, "run", run)
        assert kir.main(["convert", "setup"]) == 0
        assert all(words[:4] == [sys.executable, "-m", "pip", "install"] for words in calls)
        assert calls[-1][-3:] == ["--no-deps", "--ignore-requires-python", ONNX2TF]
        assert "pip install --no-deps" in capsys.readouterr().err

    def test_a_pip_that_fails_is_told(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(subprocess, "run", lambda words, **_: subprocess.CompletedProcess(words, 1))
        assert kir.main(["convert", "setup"]) == 2
        assert "pip could not install" in capsys.readouterr().err

    def test_the_pins_are_pyprojects(self, repository: Path) -> None:
        from convert.tflite import ONNX2TF_COMPANIONS

        text = (repository / "pyproject.toml").read_text()
        assert all(f'"{pin}"' in text for pin in ONNX2TF_COMPANIONS)
        assert ONNX2TF in text

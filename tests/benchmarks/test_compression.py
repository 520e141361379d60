"""The compression bench: bytes as they are sent, arms as they are asked for, differences to the plain net."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import kir
from benchmarks import compression
from benchmarks.compression import (
    LABELS,
    RECIPES,
    VARIANTS,
    Arm,
    Download,
    Files,
    Told,
    compression_table,
    run_compression,
)  # fmt: skip
from contract.errors import InputError
from contract.stats import Interval
from convert.jobs import open_events
from convert.tfmot import Cluster, Prune
from training.checkpoint import Checkpoint, load_checkpoint
from training.kir_train import train_kir
from training.within_user import ScoredLog, WithinUserResult, evaluate

DATA = "sim:users=40,items=150,days=2"


def scored(seed: int) -> WithinUserResult:
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(20, dtype=np.uint64), 10)
    label = np.tile(np.arange(10) % 2, 20).astype(np.int8)
    return evaluate(ScoredLog("toy", user, user, user.astype(np.int64), label, label + rng.normal(size=200)))


def arm(how: str, epochs: int, seed: int, zstd: int) -> Arm:
    files = {recipe: Files(Download(1000, 800, zstd), 0.9, 0.8) for recipe in VARIANTS}
    return Arm(how, epochs, f"kir-{seed}", 0.5, files, {label: scored(seed) for label in LABELS})


class TestDownload:
    def test_each_file_is_sent_alone(self, tmp_path: Path) -> None:
        raw = np.random.default_rng(0).integers(256, size=3000).astype(np.uint8).tobytes()
        paths = [tmp_path / name for name in ("a", "b")]
        for path in paths:
            path.write_bytes(raw)
        found = Download.of(paths)
        assert found.files == 6000
        assert found.zlib == 2 * len(zlib.compress(raw, 9)) > 6000, "what the files share is sent twice"
        assert found.zstd == 2 * len(pa.Codec("zstd", compression_level=19).compress(raw, asbytes=True))

    def test_zeros_shrink(self, tmp_path: Path) -> None:
        (tmp_path / "zeros").write_bytes(bytes(3000))
        assert Download.of([tmp_path / "zeros"]).zstd < 100


class TestTable:
    @pytest.fixture
    def table(self) -> str:
        arms = [arm("plain", 0, 1, 500), arm("prune 50%", 0, 2, 400), arm("prune 50%", 1, 1, 400)]
        apart = {one.name: compression.differences(one, arms[0]) for one in arms[1:]}
        return compression_table(arms, apart, Told("runs/kir", DATA, 1, 500, 16, 0))

    def test_a_line_for_each_arm_and_recipe(self, table: str) -> None:
        lines = [line.split("  ") for line in table.splitlines()]
        names = [line[1] for line in lines if len(line) > 1 and line[1] != "arm"]
        assert names == [name for name in ("plain", "prune 50%", "prune 50%, 1 epochs") for _ in VARIANTS] + [
            "plain",
            "prune 50%",
            "prune 50%, 1 epochs",
        ]

    def test_the_download_is_told_against_the_plain_one(self, table: str) -> None:
        assert table.count("-20.0%") == 2 * len(VARIANTS)
        assert table.count("+0.0%") == len(VARIANTS)

    def test_the_same_scores_differ_by_nothing(self) -> None:
        same = compression.differences(arm("plain", 1, 1, 500), arm("plain", 0, 1, 500))
        assert same == {label: Interval(0.0, 0.0, 0.0) for label in LABELS}


class TestArms:
    def test_they_are_those_of_the_issue(self) -> None:
        hows = compression.transforms()
        assert list(hows) == ["plain", *(str(how) for how in hows.values() if how is not None)]
        assert list(hows.values())[1:] == [*map(Prune, (0.3, 0.5, 0.7)), *map(Cluster, (16, 32, 64))]

    def test_an_unknown_one_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="unknown arm; got prune 49%"):
            run_compression(tmp_path, DATA, tmp_path / "out", "", only=["prune 49%"])

    def test_an_existing_output_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="output directory exists"):
            run_compression(tmp_path, DATA, tmp_path, "")


class TestTheCommands:
    def test_flags_reach_the_bench(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        asked: dict[str, Any] = {}

        def run(checkpoint: Path, data: str, out: Path, command: str, **options: Any) -> tuple[dict[str, Any], str]:
            asked.update(checkpoint=checkpoint, data=data, command=command, **options)
            return {"benchmark": "compression"}, "the table"

        monkeypatch.setattr(compression, "run_compression", run)
        words = ["bench", "compression", "ckpt", "--data", DATA, "--only", "prune 50%,cluster 32", "--windows", "16"]
        assert kir.main(words) == 0
        assert asked["only"] == ["prune 50%", "cluster 32"]
        assert (asked["windows"], asked["epochs"], asked["min_weights"]) == (16, 1, 500)
        assert "--only 'prune 50%,cluster 32'" in asked["command"]
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["benchmark"] == "compression"

    def test_the_heads_bench_asks_the_library(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert kir.main(["bench", "head-qat", "nowhere", "--data", DATA, "--epochs", "0"]) == 2
        assert "numbers start at 1" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(900)
class TestForReal:
    """One arm on a toy log: bytes and ranking of real files."""

    @pytest.fixture(scope="class")
    @classmethod
    def ran(cls, tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, dict[str, Any], str]:
        out = tmp_path_factory.mktemp("compression")
        base = train_kir(open_events(DATA)[0], out / "kir", "tiny", epochs=2)
        result, table = run_compression(
            base.path, DATA, out / "out", "kir bench …", only=["prune 50%"], windows=16, log=lambda line: None
        )
        return load_checkpoint(base.path), result, table

    def test_zeros_and_download(self, ran: tuple[Checkpoint, dict[str, Any], str]) -> None:
        arms = ran[1]["arms"]
        assert list(arms) == ["plain", "plain, 1 epochs", "prune 50%", "prune 50%, 1 epochs"]
        for recipe in RECIPES:
            plain, *others = (arms[name]["files"][recipe] for name in ("plain", "prune 50%", "prune 50%, 1 epochs"))
            for one in others:
                assert one["download"]["zstd"] < 0.9 * plain["download"]["zstd"]
                assert one["download"]["files"] == pytest.approx(plain["download"]["files"], rel=0.02)
        assert arms["prune 50%, 1 epochs"]["zeros"] > arms["plain, 1 epochs"]["zeros"] + 0.2

    def test_the_plain_nets_int8_files_rank_as_its_float(self, ran: tuple[Checkpoint, dict[str, Any], str]) -> None:
        files = ran[1]["arms"]["plain"]["files"]["int8-weight-only"]
        assert files["tau"] > 0.95
        assert ran[1]["arms"]["prune 50%"]["files"]["int8-weight-only"]["tau"] < files["tau"]

    def test_gauc_is_paired_with_the_plain_net(self, ran: tuple[Checkpoint, dict[str, Any], str]) -> None:
        base, result, table = ran
        assert result["arms"]["plain"]["version"] == base.version
        for name, one in result["arms"].items():
            assert set(one["minus_plain"]) == (set(LABELS) if name != "plain" else set())
            assert name in table

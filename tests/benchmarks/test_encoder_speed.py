"""The encoder's benchmark: right answers first, ratios against a floor, a table and a JSON. No time is asserted."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import encoder_speed
from benchmarks.cli import add_bench_arguments, run_bench
from benchmarks.encoder_speed import EAGER, ORT, ORT_INT8, Runtime, measure_encoder
from benchmarks.kept_windows import KEPT, RAW_64, RAW_256, TARGET, WHOLE, measure_windows
from contract.errors import CheckpointError, InputError, VerificationFailed
from tests.convert import makers

SMALL: dict[str, Any] = {
    "width": 16, "heads": 2, "layers": 2, "hidden": 24, "interests": 2, "windows": (8, 4), "latest": 4,
    "video_width": 8, "attribute_width": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def measured() -> tuple[dict[str, Any], str]:
    return measure_encoder(batches=(1, 6), rounds=3, compiled=False, size=SMALL)


class TestResult:
    def test_what_stands_in_it(self, measured: tuple[dict[str, Any], str]) -> None:
        result = json.loads(json.dumps(measured[0]))
        assert (result["benchmark"], result["kind"], result["weights"]) == ("encoder", "host", "random")
        assert list(result["batches"]) == ["1", "6"]
        # At this size the mask's column weighs as much as what serving saves.
        assert 0.5 < result["mflop_per_user"]["as served"] / result["mflop_per_user"]["as trained"] < 1.05
        for row in result["batches"].values():
            assert list(row["runtimes"]) == [EAGER, ORT, ORT_INT8]
            assert row["floor_ms_per_user"] > 0
            assert row["floor_bfloat16_ms_per_user"] > 0
        assert result["machine"]["packages"]["onnxruntime"]

    def test_answers_were_compared(self, measured: tuple[dict[str, Any], str]) -> None:
        for row in measured[0]["batches"].values():
            assert row["runtimes"][EAGER]["agreement"] == {"max_abs": 0.0, "mean_cosine": pytest.approx(1.0)}
            assert 0.0 < row["runtimes"][ORT]["agreement"]["max_abs"] < 1e-5
            assert 0.99 < row["runtimes"][ORT_INT8]["agreement"]["mean_cosine"] < 1.0

    def test_figures_fit_each_other(self, measured: tuple[dict[str, Any], str]) -> None:
        for batch, row in measured[0]["batches"].items():
            eager, ort = row["runtimes"][EAGER], row["runtimes"][ORT]
            assert ort["over_eager"] == pytest.approx(ort["cpu_ms_per_user"]["p50"] / eager["cpu_ms_per_user"]["p50"])
            assert ort["users_per_cpu_s"] == pytest.approx(1e3 / ort["cpu_ms_per_user"]["p50"])
            assert ort["over_floor"]["p25"] <= ort["over_floor"]["p50"] <= ort["over_floor"]["p75"]
            assert ort["wall_ms_per_call"]["count"] == 3 * max(1, 6 // int(batch))

    def test_the_table_tells_each_runtime_once_a_batch(self, measured: tuple[dict[str, Any], str]) -> None:
        table = measured[1]
        assert table.count("torch eager") == table.count("onnxruntime int8") == 2
        assert "MFLOP a user as trained" in table
        assert all(len(line) < 130 for line in table.splitlines())

    def test_a_checkpoint_is_measured_at_its_own_size(self, tmp_path: Path) -> None:
        path = makers.make_kuaiformer(tmp_path / "net", windows=(4,), latest=4).path
        result, _ = measure_encoder(path, batches=(1,), rounds=1, compiled=False)
        assert (result["weights"], result["config"]["latest"]) == ("trained", 4)


class TestChecks:
    @pytest.mark.parametrize("name", [ORT, ORT_INT8])
    def test_a_runtime_that_answers_otherwise_is_not_timed(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        real = encoder_speed._runtimes

        def wrong(*given: Any) -> Any:
            runs = real(*given)
            right = runs[name]
            return {**runs, name: lambda feeds: right(feeds)[:, ::-1]}

        monkeypatch.setattr(encoder_speed, "_runtimes", wrong)
        with pytest.raises(VerificationFailed, match=f"{name} gives other answers"):
            measure_encoder(batches=(1,), rounds=1, compiled=False, size=SMALL)

    @pytest.mark.parametrize("changes", [{"rounds": 0}, {"batches": ()}, {"batches": (1, 0)}])
    def test_nothing_to_measure(self, changes: dict[str, Any]) -> None:
        with pytest.raises(InputError, match="start at 1"):
            measure_encoder(**{"batches": (1,), "rounds": 1, "compiled": False, "size": SMALL, **changes})

    def test_a_round_is_set_against_its_own_floor(self) -> None:
        """One warm call that does not count, then `calls`; the ratio is of their middle to the floor of the round."""
        seen: list[int] = []

        def run(feeds: dict[str, np.ndarray]) -> np.ndarray:
            seen.append(sum(range(20_000)))
            return feeds["x"]

        runtime = Runtime("test", run)
        for floor_s in (1.0, 2.0):
            runtime.timed({"x": np.zeros(1, np.float32)}, calls=3, floor_s=floor_s)
        assert (len(seen), len(runtime.cpu_ms), len(runtime.over_floor)) == (8, 6, 2)
        for number, floor_s in enumerate((1.0, 2.0)):
            own = runtime.cpu_ms[3 * number : 3 * number + 3]
            assert runtime.over_floor[number] == pytest.approx(np.median(own) / 1e3 / floor_s)


class TestCommand:
    def run(self, *words: str) -> int:
        parser = argparse.ArgumentParser()
        add_bench_arguments(parser)
        return run_bench(parser.parse_args(["encoder", *words]))

    def test_a_table_and_a_file(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = makers.make_kuaiformer(tmp_path / "net", windows=(4,), latest=4).path
        out = tmp_path / "results" / "encoder.json"
        words = ("--checkpoint", str(path), "--batches", "2", "--rounds", "1", "--no-compile", "--out", str(out))
        assert self.run(*words) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith("KuaiFormer's encoder, trained weights")
        assert json.loads(out.read_text())["benchmark"] == "encoder"

    def test_flags_that_contradict_or_lead_nowhere(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="--hidden"):
            self.run("--checkpoint", str(tmp_path), "--hidden", "8")
        with pytest.raises(CheckpointError):
            self.run("--checkpoint", str(tmp_path / "none"), "--no-compile")


@pytest.mark.slow
def test_torch_compile_takes_part() -> None:
    result, _ = measure_encoder(batches=(1,), rounds=1, size=SMALL)
    assert result["batches"]["1"]["runtimes"]["torch.compile"]["agreement"]["max_abs"] < 1e-4


class TestWindows:
    def test_every_arm_answers_and_ratios_are_to_raw_64(self) -> None:
        result, table = measure_windows("tiny", positives=(1, 20), answers=8, command="kir bench windows")
        assert [case["positives"] for case in result["cases"]] == [1, 20]
        for case in result["cases"]:
            assert case["over_raw_64"][RAW_64] == 1.0
            assert set(case["us"]) == set(case["over_raw_64"]) == {RAW_64, RAW_256, WHOLE, KEPT}
            assert case["met"] == (case["over_raw_64"][KEPT] <= TARGET)
            assert f"{case['positives']} new positives" in table
        assert result["command"] == "kir bench windows"

    @pytest.mark.parametrize("changes", [{"positives": ()}, {"positives": (0,)}, {"answers": 1}, {"preset": "huge"}])
    def test_what_is_refused(self, changes: dict[str, Any]) -> None:
        with pytest.raises(InputError):
            measure_windows(**{"preset": "tiny", "answers": 8, **changes})

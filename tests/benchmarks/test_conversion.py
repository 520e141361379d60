"""Recipes beside runtimes: every way to run a graph has its row, checked before it is timed. No time is asserted."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cli import add_bench_arguments, run_bench
from benchmarks.conversion import COMPILED, EAGER, LITERT, ORT, ORT_INT8, measure_conversion
from benchmarks.conversion_cli import run_conversion
from contract.errors import CheckpointError, InputError, VerificationFailed
from contract.parquet import write_events
from convert import verify
from tests.convert import makers

RECIPES = ("int8-weight-only",)


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_bench_arguments(parser)
    return parser.parse_args(["conversion", *words])


@pytest.mark.parametrize("words", [["--seed", "-1"], ["--windows", "0"], ["--json", "."]])
def test_what_was_typed_is_refused_before_the_work(words: list[str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words[0]):
        run_conversion(arguments(str(tmp_path), *words))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return makers.make_kir(tmp_path_factory.mktemp("kir") / "checkpoint", buckets=(9,)).path


@pytest.fixture(scope="module")
def measured(checkpoint: Path) -> tuple[dict[str, Any], str]:
    return measure_conversion(
        checkpoint, "kir bench conversion …", recipes=RECIPES, windows=12, rounds=2, calls=5, compiled=False,
        log=lambda line: None,
    )  # fmt: skip


class TestResult:
    def test_every_way_to_run_a_graph_has_a_row(self, measured: tuple[dict[str, Any], str]) -> None:
        result = json.loads(json.dumps(measured[0]))
        assert set(result["graphs"]) == {"page/N9", "watch/T1", "watch/T3", "swipe/N9", "place/N9", "whole/N9"}
        quantised = [LITERT + "float32", LITERT + "int8-weight-only"]
        assert list(result["graphs"]["swipe/N9"]["runs"]) == [*quantised, EAGER, ORT, ORT_INT8]
        assert list(result["graphs"]["whole/N9"]["runs"]) == [*quantised, EAGER, ORT, ORT_INT8], "here alone"

    def test_figures_fit_each_other(self, measured: tuple[dict[str, Any], str]) -> None:
        for graph in measured[0]["graphs"].values():
            assert graph["multiply_adds"] > 0
            assert graph["floor_us"] > 0
            for run in graph["runs"].values():
                assert run["wall_us"]["count"] == 2 * 5
                assert run["over_floor"] > 0

    def test_what_was_verified_stands_beside(self, measured: tuple[dict[str, Any], str]) -> None:
        result = measured[0]
        assert result["verification"]["n_samples"] == 12 + 3
        assert result["settings"]["data"] == "synthetic events over the model's keys"
        assert [recipe["name"] for recipe in result["recipes"]] == ["float32", *RECIPES]
        assert result["machine"]["packages"]["onnxruntime"]

    def test_the_table_has_a_block_for_each_graph(self, measured: tuple[dict[str, Any], str]) -> None:
        result, table = measured
        assert table.count("torch eager") == len(result["graphs"])
        assert "M multiply-adds, floor" in table
        assert "GAUC" in table


def test_the_compiled_net_stands_in_the_row_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile takes tens of seconds; here it gives the module back."""
    import torch

    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    makers.make_events(tmp_path / "log")
    checkpoint = makers.make_kuaiformer(tmp_path / "checkpoint", windows=(8, 8), latest=8)
    said: list[str] = []
    result, table = measure_conversion(
        checkpoint.path, "…", data=f"events:{tmp_path / 'log'}", recipes=RECIPES, windows=4, rounds=1, calls=2,
        log=said.append,
    )  # fmt: skip
    runs = result["graphs"]["encoder/L24"]["runs"]
    assert COMPILED in runs
    assert "torch.compile" in table
    # onnxruntime refuses a product by a constant of rank 5 in int8, and says so.
    assert (ORT_INT8 in runs) != any("leaves encoder/L24 out" in line for line in said)


@pytest.mark.slow
def test_recipes_with_fixed_ranges_are_calibrated_on_the_data(checkpoint: Path, tmp_path: Path) -> None:
    from convert.source import load_source
    from convert.windows import synthetic_events

    write_events(tmp_path / "events.parquet", synthetic_events(load_source(checkpoint)))
    told = {"windows": 8, "rounds": 1, "calls": 2, "compiled": False, "log": lambda line: None}
    result, _ = measure_conversion(
        checkpoint,
        "…",
        data=str(tmp_path / "events.parquet"),
        recipes=("int8-fc",),
        **told,  # type: ignore[arg-type]
    )
    assert LITERT + "int8-fc" in result["graphs"]["page/N9"]["runs"]


def test_without_data_all_recipes_but_those_that_calibrate(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from convert import build

    asked: list[str] = []

    def stop(graphs: Any, folder: Any, recipes: Any, *_: Any, **__: Any) -> None:
        asked.extend(recipe.name for recipe in recipes)
        raise InterruptedError

    monkeypatch.setattr(build, "build_all", stop)
    with pytest.raises(InterruptedError):
        measure_conversion(checkpoint, "…", windows=4, log=lambda line: None)
    assert {"float32", "float16", "int8-dynamic", "int4-dynamic"} <= set(asked)
    assert not {"int8-fc", "int8-full", "int16-act"} & set(asked)


@pytest.mark.slow
def test_a_wrong_graph_is_not_timed(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: Any, **__: Any) -> None:
        raise VerificationFailed("swipe/N9 in TFLite float: differs from torch")

    monkeypatch.setattr(verify, "verify", wrong)
    with pytest.raises(VerificationFailed):
        measure_conversion(checkpoint, "…", recipes=RECIPES, windows=4, log=lambda line: None)


class TestCommand:
    def test_its_flags_reach_the_measurement(
        self, monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
    ) -> None:
        from benchmarks import conversion

        asked: dict[str, Any] = {}

        def measure(checkpoint: Path, command: str, **told: Any) -> tuple[dict[str, Any], str]:
            asked.update(told, checkpoint=checkpoint, command=command)
            return {"benchmark": "conversion"}, "a table"

        monkeypatch.setattr(conversion, "measure_conversion", measure)
        words = ["ck", "--data", "sim:users=9", "--recipe", "float16", "--recipe", "int8-fc", "--no-compile"]
        assert run_bench(arguments(*words, "--json", str(tmp_path / "out.json"))) == 0
        assert asked["recipes"] == ["float16", "int8-fc"]
        assert (asked["data"], asked["compiled"], asked["windows"]) == ("sim:users=9", False, 256)
        assert asked["command"].startswith("kir bench conversion ck --data sim:users=9 --recipe float16")
        result = {"benchmark": "conversion", "command": asked["command"]}
        assert json.loads((tmp_path / "out.json").read_text()) == result
        assert "a table" in capsys.readouterr().out

    @pytest.mark.parametrize("flag", ["--rounds", "--calls", "--windows"])
    def test_counts_start_at_one(self, flag: str, checkpoint: Path) -> None:
        with pytest.raises(InputError, match=f"{flag}.* start"):
            run_bench(arguments(str(checkpoint), flag, "0"))

    def test_no_checkpoint(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError):
            run_bench(arguments(str(tmp_path / "none")))

"""Stages kept apart: what fits is taken as it is, what does not is made again, and a run goes on where one ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kir
from contract.errors import InputError
from convert import stages as module
from convert.build import build_all
from convert.calibration import CalibrationSet, CalibrationSource
from convert.quantize import FLOAT, load_recipes
from convert.stages import QUANTISE, STAGES, Stages
from tests.convert import zoo
from tests.convert.small_graphs import feeds_of, layers

RECIPES = load_recipes(["int8-weight-only"])
FILES = ["layers-N5.float32.tflite", "layers-N5.int8-weight-only.tflite", "layers-N5.onnx"]


class Maker:
    """Writes its content and counts."""

    def __init__(self, content: bytes = b"made"):
        self.content, self.calls = content, 0

    def __call__(self, path: Path) -> None:
        self.calls += 1
        path.write_bytes(self.content)


class TestKeeping:
    @pytest.fixture
    def keep(self, tmp_path: Path) -> Stages:
        return Stages.at(tmp_path / "work", "kir-1")

    def test_the_second_time_it_is_there(self, keep: Stages, tmp_path: Path) -> None:
        maker = Maker()
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            assert keep.made(tmp_path / name / "x.onnx", maker, stage="onnx").read_bytes() == b"made"
        assert (maker.calls, keep.reused) == (1, ["x.onnx"])

    @pytest.mark.parametrize(
        "change",
        [
            lambda keep, patch: patch.setattr(module, "code_sha256", lambda: "other code"),
            lambda keep, patch: patch.setattr(module, "tool_versions", lambda: {"torch": "9"}),
            lambda keep, patch: (keep.directory / "x.onnx").write_bytes(b"mad"),
            lambda keep, patch: (keep.directory / "x.onnx").unlink(),
            lambda keep, patch: (keep.directory / "x.onnx.json").write_text("{"),
            lambda keep, patch: (keep.directory / "x.onnx.json").unlink(),
        ],
        ids=["code", "tools", "truncated", "gone", "record damaged", "record gone"],
    )
    def test_anything_else_is_made_again(
        self, keep: Stages, tmp_path: Path, change: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        maker = Maker()
        keep.made(tmp_path / "x.onnx", maker, stage="onnx")
        change(keep, monkeypatch)
        keep.made(tmp_path / "x.onnx", maker, stage="onnx")
        assert (maker.calls, keep.reused) == (2, [])
        keep.made(tmp_path / "x.onnx", maker, stage="onnx")
        assert maker.calls == 2, "what was made again is kept again"

    def test_another_model_or_setting(self, keep: Stages, tmp_path: Path) -> None:
        maker = Maker()
        keep.made(tmp_path / "x.onnx", maker, stage="onnx", recipe={"rules": (1, 2)})
        Stages.at(keep.directory, "kir-2").made(tmp_path / "x.onnx", maker, stage="onnx", recipe={"rules": (1, 2)})
        keep.made(tmp_path / "x.onnx", maker, stage="onnx", recipe={"rules": (1, 3)})
        assert maker.calls == 3

    def test_a_maker_that_fails_leaves_nothing(self, keep: Stages, tmp_path: Path) -> None:
        def fail(path: Path) -> None:
            raise RuntimeError("no such layer")

        with pytest.raises(RuntimeError):
            keep.made(tmp_path / "x.onnx", fail, stage="onnx")
        assert keep.directory is not None
        assert list(keep.directory.iterdir()) == []

    def test_the_record_says_what_made_it(self, keep: Stages, tmp_path: Path) -> None:
        keep.made(tmp_path / "x.onnx", Maker(), stage="onnx", graph="swipe/N5")
        record = json.loads((tmp_path / "work" / "x.onnx.json").read_text())
        assert {"model": "kir-1", "stage": "onnx", "graph": "swipe/N5"}.items() <= record.items()
        assert {"tools", "code", "sha256"} <= set(record)

    def test_no_directory_keeps_nothing(self, tmp_path: Path) -> None:
        maker, nothing = Maker(), Stages.at(None, "kir-1")
        for _ in range(2):
            nothing.made(tmp_path / "x.onnx", maker, stage="onnx")
        assert (maker.calls, nothing.reused) == (2, [])

    def test_a_file_in_its_place(self, tmp_path: Path) -> None:
        (tmp_path / "work").write_text("")
        with pytest.raises(InputError, match="is a directory"):
            Stages.at(tmp_path / "work", "kir-1")


class TestBuilding:
    @pytest.mark.parametrize(("until", "there"), [("onnx", 0), ("tflite", 1), ("quantise", 2)])
    def test_it_ends_where_it_is_told(self, tmp_path: Path, until: str, there: int) -> None:
        (found,) = build_all([layers()], tmp_path, RECIPES, until=until).values()
        assert len(found.variants) == there
        assert list(found.seconds) == list(STAGES[: there + 1])

    def test_one_stage_after_another_makes_what_one_run_makes(self, tmp_path: Path) -> None:
        graph, counts = layers(), []
        (whole,) = build_all([graph], tmp_path / "whole", RECIPES).values()
        for i, until in enumerate((*STAGES, QUANTISE)):
            keep = Stages.at(tmp_path / "work", "layers-1")
            said: list[str] = []
            (found,) = build_all([graph], tmp_path / f"out{i}", RECIPES, said.append, stages=keep, until=until).values()
            counts.append(len(keep.reused))
            assert ("as they were" in said[0]) == bool(keep.reused)
        assert counts == [0, 1, 2, 3]
        assert found.onnx.read_bytes() == whole.onnx.read_bytes()
        for name in (FLOAT, "int8-weight-only"):
            assert found.variants[name].read_bytes() == whole.variants[name].read_bytes()

    def test_other_weights_under_the_same_version_are_converted_anew(self, tmp_path: Path) -> None:
        graph = layers()
        for i in range(2):
            keep = Stages.at(tmp_path / "work", "layers-1")
            (found,) = build_all([graph], tmp_path / f"out{i}", RECIPES, stages=keep).values()
            assert keep.reused == []
            with torch.no_grad():
                next(graph.module.parameters()).mul_(2.0)
        assert found.variants[FLOAT].read_bytes() != (tmp_path / "out0" / "layers-N5.float32.tflite").read_bytes()

    def test_early_stages_need_no_calibration(self, tmp_path: Path) -> None:
        (found,) = build_all([layers()], tmp_path, load_recipes(["int8-fc"]), until="tflite").values()
        assert set(found.variants) == {FLOAT}

    def test_other_pages_calibrate_anew(self, tmp_path: Path) -> None:
        graph, keep = layers(), Stages.at(tmp_path / "work", "layers-1")
        feeds = feeds_of(graph, 8)
        for i, factor in enumerate((1.0, 1.0, 3.0)):
            pages = [{name: np.float32(factor) * value for name, value in one.items()} for one in feeds]
            source = CalibrationSource("log.parquet", "ab" * 32, 8, 0)
            keep.reused.clear()
            build_all(
                [graph], tmp_path / f"out{i}", load_recipes(["int8-fc"]), stages=keep,
                calibration=CalibrationSet(source, {graph.key: pages}),
            )  # fmt: skip
            assert ("layers-N5.int8-fc.tflite" in keep.reused) == (i == 1)

    def test_what_a_check_refuses_is_kept_nowhere(self, tmp_path: Path) -> None:
        keep = Stages.at(tmp_path / "work", "layers-1")
        path = keep.made(tmp_path / "x.tflite", Maker(), stage="quantise")
        keep.drop(path)
        assert not path.exists()
        assert list((tmp_path / "work").iterdir()) == []


class TestCommand:
    def words(self, folder: Path, *more: str) -> list[str]:
        (folder / "mlp.json").write_text(json.dumps(zoo.CONTRACTS["mlp"]))
        contract = str(folder / "mlp.json")
        return ["convert", "model", "--module", "tests.convert.zoo:mlp", "--contract", contract, *more]

    def test_it_stops_and_goes_on(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        work = str(tmp_path / "work")
        for until, reused in (("onnx", 0), ("tflite", 1)):
            assert kir.main([*self.words(tmp_path), "--stages", work, "--until", until]) == 0
            assert f"{reused} of them as they were" in capsys.readouterr().out
        recipe = ["--recipe", "int8-weight-only", "--windows", "64"]
        kir.main([*self.words(tmp_path, *recipe), "--stages", work, "--out", str(tmp_path / "out")])
        assert "(2 files as they were)" in capsys.readouterr().err
        made_by = json.loads((tmp_path / "out" / "model.json").read_text())["made_by"]
        assert {"front_end", "seed", "windows", "tools", "code_sha256", "commit"} <= set(made_by)
        assert not [path for path in (tmp_path / "work").iterdir() if path.name.startswith(".")]

    @pytest.mark.parametrize(
        ("more", "what"),
        [
            ((), "takes --out, or --until"),
            (("--out", "o", "--until", "onnx", "--stages", "w"), "takes --out, or --until"),
            (("--until", "onnx"), "in --stages, which is missing"),
            (("--until", "onnx", "--stages", "w", "--auto", "size"), "does not go with --until"),
        ],
    )
    def test_what_does_not_go_together(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], what: str
    ) -> None:
        assert kir.main(self.words(tmp_path, *more)) == 2
        assert what in capsys.readouterr().err

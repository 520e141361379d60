"""convert_model: whole or not at all, and what it leaves on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from contract.errors import CheckpointError, ConversionError, InputError, VerificationFailed
from contract.manifest import Tensor
from contract.parquet import write_events
from contract.spec import FeatureSpec
from convert import model
from convert.debug_inputs import Converted
from convert.kir_job import KirJob
from convert.metadata import read_metadata
from convert.model import ConversionResult, convert_model, tensors_of
from convert.report import Gates
from convert.source import KirSource
from convert.windows import synthetic_events


class TestWhatItWrites:
    def test_the_directory(self, conversion: ConversionResult) -> None:
        names = {path.relative_to(conversion.directory).as_posix() for path in conversion.directory.rglob("*.*")}
        assert {"model.json", "verification.json", "card.md", "golden/session.json"} <= names
        assert {
            "graphs/swipe-N9.onnx",
            "graphs/swipe-N9.float32.tflite",
            "graphs/swipe-N9.int8-dynamic.tflite",
        } <= names
        assert not [name for name in names if "whole" in name and "int8" in name]

    def test_model_json_names_files_that_are_there(self, conversion: ConversionResult) -> None:
        about = json.loads((conversion.directory / "model.json").read_text())
        for graph in about["graphs"]:
            for path in (*graph["variants"].values(), graph["golden"]):
                assert (conversion.directory / path).is_file()
        assert [recipe["name"] for recipe in about["recipes"]] == ["float32", "int8-dynamic", "int8-weight-only"]
        assert about["dense_version"] == conversion.version

    def test_the_spec_comes_back(self, conversion: ConversionResult, source: KirSource) -> None:
        about = json.loads((conversion.directory / "model.json").read_text())
        assert FeatureSpec.from_json(about["spec"]).fingerprint == source.spec.fingerprint

    def test_the_card_says_what_it_is(self, conversion: ConversionResult) -> None:
        card = (conversion.directory / "card.md").read_text()
        assert card.startswith(f"# KIR {conversion.version}\n")
        assert "kir of a test" in card  # the training card
        assert "| kept of float torch | tau " in card

    def test_the_result_prints_and_gives_a_dict(self, conversion: ConversionResult) -> None:
        assert conversion.version in conversion.table()
        assert json.loads(json.dumps(conversion.to_json()))["version"] == conversion.version
        assert {"load", "convert", "verify", "golden"} <= set(conversion.seconds)

    def test_nothing_is_left_aside(self, conversion: ConversionResult) -> None:
        assert [path.name for path in conversion.directory.parent.iterdir()] == [conversion.directory.name]

    def test_tensors_come_back(self) -> None:
        assert tensors_of([{"name": "x", "shape": [1, 2], "dtype": "float32"}]) == (Tensor("x", (1, 2)),)


class TestRefusals:
    def test_an_existing_directory(self, checkpoint: Path, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        with pytest.raises(InputError, match="--overwrite"):
            convert_model(checkpoint, tmp_path / "out")

    def test_no_checkpoint(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError):
            convert_model(tmp_path / "nowhere", tmp_path / "out")
        assert list(tmp_path.iterdir()) == []

    def test_an_unknown_recipe_before_any_work(self, checkpoint: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="unknown quantisation recipe"):
            convert_model(checkpoint, tmp_path / "out", recipes=("int3",))


class Stub:
    """`build_all` replaced by the files of a conversion made before: the stages after it, in no time."""

    def __init__(self, built: Any):
        self.built = built

    def __call__(
        self,
        graphs: Any,
        directory: Path,
        recipes: Any,
        progress: Any,
        calibration: Any,
        *,
        front_end: str,
        stages: Any,
        whole_in_float: bool,
    ) -> Any:
        Path(directory).mkdir(parents=True)
        return self.built


@pytest.fixture
def quick(built: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "build_all", Stub(built))


@pytest.mark.usefixtures("quick")
class TestWholeOrNotAtAll:
    def test_a_missed_gate_leaves_nothing(self, checkpoint: Path, tmp_path: Path) -> None:
        with pytest.raises(VerificationFailed):
            convert_model(checkpoint, tmp_path / "new" / "out", windows=12, gates=Gates(float_max_abs=0.0))
        assert list((tmp_path / "new").iterdir()) == []

    def test_a_failed_conversion_keeps_the_old_directory(
        self, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: Any, **__: Any) -> None:
            raise ConversionError("planted")

        out = tmp_path / "out"
        out.mkdir()
        (out / "kept").write_text("old")
        (out / "model.json").write_text('{"format": "kir-converted/2"}')
        monkeypatch.setattr(model, "verify", fail)
        with pytest.raises(ConversionError, match="planted"):
            convert_model(checkpoint, out, overwrite=True)
        assert (out / "kept").read_text() == "old"

    def test_an_interruption_leaves_nothing(
        self, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(KirJob, "goldens", interrupt)
        with pytest.raises(KeyboardInterrupt):
            convert_model(checkpoint, tmp_path / "new" / "out", windows=12, gates=Gates(tau=0.5, top1=0.5))
        assert list((tmp_path / "new").iterdir()) == []

    def test_threads_are_given_back(self, checkpoint: Path, tmp_path: Path) -> None:
        torch.set_num_threads(2)
        with pytest.raises(VerificationFailed):
            convert_model(checkpoint, tmp_path / "out", windows=12, gates=Gates(float_max_abs=0.0))
        assert torch.get_num_threads() == 2

    @pytest.mark.parametrize("kind", ["events", "file"])
    def test_held_out_events_are_used_and_named(
        self, checkpoint: Path, source: KirSource, tmp_path: Path, kind: str
    ) -> None:
        events = synthetic_events(source, seed=5)
        data = events if kind == "events" else write_events(tmp_path / "held-out.parquet", events)
        gates = Gates(tau=0.5, top1=0.3)
        said: list[str] = []
        result = convert_model(checkpoint, tmp_path / "out", data=data, windows=12, gates=gates, progress=said.append)
        assert f"{len(events)} impressions" in result.verification.data
        assert ("held-out.parquet" in result.verification.data) == (kind == "file")
        assert said == ["load", "data", "convert", "data", "verify", "golden"]
        assert (tmp_path / "out" / "golden" / "watch-T1.npz").is_file()

    def test_what_others_wrote_is_not_overwritten(self, checkpoint: Path, tmp_path: Path) -> None:
        mine = tmp_path / "mine"
        mine.mkdir()
        (mine / "thesis.txt").write_text("years")
        (tmp_path / "file").write_text("years")
        theirs = tmp_path / "theirs"
        theirs.mkdir()
        (theirs / "config.json").write_text('{"format": "pt", "model_type": "bert"}')
        for out, words in (
            (theirs, r"not written by this project.*got \['config.json'\]"),
            (mine, r"not written by this project.*got \['thesis.txt'\]"),
            (tmp_path / "file", "a file is"),
        ):
            with pytest.raises(InputError, match=words):
                convert_model(checkpoint, out, overwrite=True)
        assert (mine / "thesis.txt").read_text() == (tmp_path / "file").read_text() == "years"

    def test_where_nothing_quantised_passes_it_is_told_and_the_worst_inputs_are_kept(
        self, checkpoint: Path, source: KirSource, tmp_path: Path
    ) -> None:
        """`kir convert debug` looks at them: a golden case may show nothing of what failed on an extreme page."""
        gates = Gates(snr_db=90.0)
        found = convert_model(checkpoint, tmp_path / "out", windows=12, gates=gates)
        assert found.verification.left_in_float == ("page/N9", "watch/T1", "watch/T3", "swipe/N9", "place/N9")
        assert "float32 ships: page/N9, watch/T1" in found.table()
        worst = tmp_path / "out" / "worst" / "swipe-N9.int8-dynamic.npz"
        with np.load(worst) as inputs:
            assert set(inputs.files) == set(source.graphs["swipe/N9"].inputs)
        assert Converted.read(tmp_path / "out", "swipe/N9", "int8-dynamic").case == worst
        with pytest.raises(VerificationFailed, match=r"nothing quantised passes; got page/N9.*--no-float"):
            convert_model(checkpoint, tmp_path / "none", windows=12, gates=gates, no_float=True)
        assert not (tmp_path / "none").exists()

    def test_overwriting_is_explicit_and_whole(self, checkpoint: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        out.mkdir()
        (out / "stale").write_text("old")
        (out / "model.json").write_text('{"format": "kir-converted/1"}')
        convert_model(checkpoint, out, windows=12, gates=Gates(tau=0.5, top1=0.3), overwrite=True)
        assert not (out / "stale").exists()
        assert np.load(out / "golden" / "swipe-N9.npz")["scores"].shape == (1, 9, 4)


def test_every_file_tells_what_it_is(conversion: ConversionResult) -> None:
    about = json.loads((conversion.directory / "model.json").read_text())
    recipes = {recipe["name"]: recipe for recipe in about["recipes"]}
    for graph in about["graphs"]:
        for name, path in graph["variants"].items():
            told = read_metadata((conversion.directory / path).read_bytes())
            assert told is not None
            assert (told["model_version"], told["graph"], told["bucket"]) == (
                conversion.version, graph["name"], graph["bucket"],
            )  # fmt: skip
            assert told["recipe"] == json.loads(json.dumps(recipes[name]))
            assert told["inputs"] == graph["inputs"]

"""Calibration: pages of another time than verification's, their source on record, ranges over all of them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kir
from contract.errors import ConversionError, InputError
from contract.parquet import write_events
from convert.build import BuiltGraph
from convert.calibration import PAGES, CalibrationSet, CalibrationSource, activation_ranges, not_covered
from convert.phone import Sample
from convert.quantize import FLOAT
from convert.report import Verification
from convert.source import KirSource
from convert.subject import KirSubject
from convert.tflite import TfliteGraph
from convert.windows import make_windows, synthetic_events
from tests.convert import zoo
from tests.convert.tiny_tflite import ROWS, WIDTH, samples, write_chain

MADE_UP = CalibrationSource("synthetic", "", 3, 0, synthetic=True)


class TestSource:
    def test_a_file_is_named_with_its_hash_and_without_its_path(self, tmp_path: Path) -> None:
        path = tmp_path / "log.parquet"
        path.write_bytes(b"events")
        found = CalibrationSource.of(path, 7, 3)
        assert found == CalibrationSource("log.parquet", hashlib.sha256(b"events").hexdigest(), 7, 3)
        assert str(tmp_path) not in json.dumps(found.__dict__)

    @pytest.mark.parametrize("spell", ["{}", "kuairand:{}"])
    def test_a_directory_is_hashed_over_names_and_contents(self, tmp_path: Path, spell: str) -> None:
        folder = tmp_path / "logs"
        (folder / "deep").mkdir(parents=True)
        (folder / "a").write_bytes(b"1")
        (folder / "deep" / "b").write_bytes(b"2")
        data = spell.format(folder)
        first = CalibrationSource.of(data, 1, 0)
        assert (first.name, first.synthetic) == ("logs", False)
        assert CalibrationSource.of(data, 1, 0) == first
        (folder / "deep" / "b").rename(folder / "b")
        assert CalibrationSource.of(data, 1, 0).sha256 != first.sha256

    def test_events_in_memory_are_hashed_by_content(self, source: KirSource) -> None:
        events = synthetic_events(source)
        first = CalibrationSource.of(events, PAGES, 0)
        assert first.sha256 == CalibrationSource.of(synthetic_events(source), PAGES, 0).sha256
        other = events.with_columns(hour=(events["hour"] + 1) % 24)
        assert CalibrationSource.of(other, PAGES, 0).sha256 != first.sha256

    def test_made_up_pages_are_refused(self) -> None:
        with pytest.raises(InputError, match=r"no real pages.*--data.*--allow-synthetic"):
            CalibrationSource.of(None, 10, 0)

    def test_unless_asked_for_and_then_it_is_on_record(self) -> None:
        found = CalibrationSource.of(None, 10, 4, allow_synthetic=True)
        assert found == CalibrationSource("synthetic", "", 10, 4, synthetic=True)

    def test_real_pages_are_not_marked_whatever_is_allowed(self, tmp_path: Path) -> None:
        path = tmp_path / "log.parquet"
        path.write_bytes(b"events")
        assert not CalibrationSource.of(path, 1, 0, allow_synthetic=True).synthetic

    @pytest.mark.parametrize("pages", [0, -3])
    def test_no_pages(self, pages: int) -> None:
        with pytest.raises(InputError, match=f"--calibrate.*got {pages}"):
            CalibrationSource.of(None, pages, 0, allow_synthetic=True)

    @pytest.mark.parametrize("data", ["nowhere.parquet", "kuairand:nowhere"])
    def test_a_path_that_is_not_there(self, data: str) -> None:
        with pytest.raises(InputError, match="nowhere"):
            CalibrationSource.of(data, 1, 0)


class TestRecord:
    def test_every_graph_has_what_its_chain_fed_it(self, source: KirSource, samples: list[Sample]) -> None:
        subject = KirSubject(source, tuple(samples))
        found = CalibrationSet.record(subject, MADE_UP)
        assert set(found.feeds) == set(source.graphs)
        for key, feeds in found.feeds.items():
            shapes = {name: tuple(tensor.shape) for name, tensor in source.graphs[key].inputs.items()}
            assert all({name: value.shape for name, value in one.items()} == shapes for one in feeds), key
        assert len(found.feeds["swipe/N9"]) == len(samples)

    def test_what_the_artifact_carries(self, source: KirSource, samples: list[Sample]) -> None:
        found = CalibrationSet.record(KirSubject(source, tuple(samples[:3])), MADE_UP).to_json()
        assert json.loads(json.dumps(found)) == found
        assert (found["name"], found["pages"], found["seed"], found["synthetic"]) == ("synthetic", 3, 0, True)
        assert found["runs"]["page/N9"] == 3
        assert found["runs"]["watch/T1"] >= 3

    def test_pages_come_from_before_those_verified_on(self, source: KirSource, tmp_path: Path) -> None:
        """A log whose last fifth is louder: calibration must not see it."""
        events = synthetic_events(source)
        late = events["time_ms"] >= np.quantile(events["time_ms"], 0.8)
        loud = events.with_columns(duration_ms=np.where(late, 290_000, 5_000).astype(np.int32))
        write_events(tmp_path / "log.parquet", loud)
        seen = {}
        for held_out in (False, True):
            windows = make_windows(source, loud, 12, held_out=held_out)
            feeds = CalibrationSet.record(KirSubject(source, tuple(windows)), MADE_UP).feeds["page/N9"]
            seen[held_out] = {one["candidate_dense"].tobytes() for one in feeds}
        assert not seen[True] & seen[False]


class TestRanges:
    def naive(self, path: Path, feeds: list[Any]) -> dict[str, tuple[float, float]]:
        """Least and greatest of every tensor, asked of an interpreter that keeps them all."""
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        kind = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        reader = Interpreter(
            str(path), experimental_preserve_all_tensors=True, experimental_op_resolver_type=kind, num_threads=1
        )
        reader.allocate_tensors()
        inputs = {one["name"]: one["index"] for one in reader.get_input_details()}
        found: dict[str, tuple[float, float]] = {}
        for feed in feeds:
            for name, index in inputs.items():
                reader.set_tensor(index, feed[name])
            reader.invoke()
            for one in reader.get_tensor_details():
                value = reader.get_tensor(one["index"])
                low, high = found.get(one["name"], (np.inf, -np.inf))
                found[one["name"]] = min(low, float(value.min())), max(high, float(value.max()))
        return found

    def test_they_are_the_least_and_greatest_over_all_feeds(self, tmp_path: Path) -> None:
        path, feeds = write_chain(tmp_path / "chain.tflite", 3), samples(5)
        feeds[1] = {"x": 50 * feeds[1]["x"]}  # a moving average would have half forgotten it
        found, want = activation_ranges(path, feeds), self.naive(path, feeds)
        assert set(found) == {"x", "fc0", "fc1", "y"}
        for name, ends in found.items():
            assert ends["min"].shape == ends["max"].shape == (1, 1, 1)
            np.testing.assert_allclose((ends["min"].item(), ends["max"].item()), want[name], rtol=1e-5)

    def test_on_a_real_graph_too(self, built: dict[str, BuiltGraph], source: KirSource, samples: list[Sample]) -> None:
        path = built["watch/T3"].variants[FLOAT]
        feeds = CalibrationSet.record(KirSubject(source, tuple(samples)), MADE_UP).feeds["watch/T3"]
        found, want = activation_ranges(path, feeds), self.naive(path, list(feeds))
        assert {"watched_rows", "past", "new", "memory_new"} <= set(found)
        ranks = {tensor.name: len(tensor.shape) for side in TfliteGraph(path).tensors() for tensor in side}
        for name, ends in found.items():
            assert ends["min"].ndim == ranks.get(name, ends["min"].ndim)
            np.testing.assert_allclose((ends["min"].item(), ends["max"].item()), want[name], rtol=1e-4, atol=1e-5)

    def test_no_page_reaches_the_graph(self, tmp_path: Path) -> None:
        with pytest.raises(ConversionError, match=r"chain\.tflite: no calibration page reaches.*more pages"):
            activation_ranges(write_chain(tmp_path / "chain.tflite"), [])

    @pytest.mark.parametrize(
        "feed", [{"z": np.zeros((1, ROWS, WIDTH), np.float32)}, {"x": np.zeros((1, 2), np.float32)}]
    )
    def test_a_feed_that_does_not_fit(self, tmp_path: Path, feed: dict[str, Any]) -> None:
        with pytest.raises(ConversionError, match=r"calibration of chain\.tflite failed"):
            activation_ranges(write_chain(tmp_path / "chain.tflite"), [feed])

    def test_values_that_are_no_number(self, tmp_path: Path) -> None:
        feed = {"x": np.full((1, ROWS, WIDTH), np.inf, np.float32)}
        with pytest.raises(ConversionError, match=r"not finite.*'x'"):
            activation_ranges(write_chain(tmp_path / "chain.tflite"), [feed])


class TestCoverage:
    def ranges(self, **ends: tuple[float, float]) -> Any:
        return {name: {"min": np.full((1, 1), low), "max": np.full((1, 1), high)} for name, (low, high) in ends.items()}

    def test_pages_alike_are_covered(self) -> None:
        held, seen = self.ranges(x=(-1, 1), y=(0, 9)), self.ranges(x=(-1.1, 1.2), y=(0.5, 3))
        assert not_covered(held, seen) == ""

    def test_what_is_clipped_most_is_named(self) -> None:
        held = self.ranges(x=(-1, 1), y=(0, 9), z=(0, 0))
        words = not_covered(held, self.ranges(x=(-1, 4), y=(-90, 3), z=(0, 0)))
        assert "2 of 3 activations are clipped, most 'y' (calibrated 0 … 9, verified on -90 … 3)" in words

    def test_a_range_of_no_width(self) -> None:
        assert "'x'" in not_covered(self.ranges(x=(0, 0)), self.ranges(x=(0, 1e-3)))

    def test_by_command(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Every second input is kept for calibration; these are a hundredth as loud as the others."""
        rng = np.random.default_rng(0)
        (tmp_path / "mlp.json").write_text(json.dumps(zoo.CONTRACTS["mlp"]))
        inputs: dict[str, Any] = {}
        for one in zoo.CONTRACTS["mlp"]["inputs"]:
            inputs[one["name"]] = rng.normal(size=(128, *one["shape"])).astype(np.float32)
            inputs[one["name"]][1::2] /= 100
        np.savez(tmp_path / "inputs.npz", **inputs)
        words = ["convert", "model", "--module", "tests.convert.zoo:mlp", "--contract", str(tmp_path / "mlp.json")]
        words += ["--data", str(tmp_path / "inputs.npz"), "--recipe", "int8-fc", "--out", str(tmp_path / "out")]
        assert kir.main(words) == 0
        assert "calibration does not cover what it is verified on" in capsys.readouterr().err
        about = json.loads((tmp_path / "out" / "model.json").read_text())
        assert "activations are clipped" in about["calibration"]["not_covered"]["mlp"]
        report = Verification.from_json(json.loads((tmp_path / "out" / "verification.json").read_text()))
        assert not report.row("mlp", "int8-fc").passed
        assert report.shipped["mlp"] == "float32"

"""A layer left in float by one rule more: what the rule says, what it does, and what is recommended in the end."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from contract.errors import ConversionError
from convert import mend as module
from convert.debug_taps import TfliteTaps
from convert.inspect_weights import weights_of
from convert.mend import Mend, mend, without
from convert.noise import Noise
from convert.quantize import Recipe, load_recipe, quantize
from tests.convert import tiny_tflite as tiny

INT8 = load_recipe("int8-dynamic")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_chain(tmp_path_factory.mktemp("mend") / "float.tflite", change=tiny.loud())


@pytest.fixture(scope="module")
def variant(source: Path) -> Path:
    return quantize(source, INT8, source.with_name("int8.tflite"))


def judge_of(source: Path) -> module.Judge:
    samples = tiny.samples()
    want = [TfliteTaps(source).run(sample)["y"] for sample in samples]

    def judge(path: Path) -> float:
        noise = Noise()
        for sample, one in zip(samples, want, strict=True):
            noise.add(one, TfliteTaps(path).run(sample)["y"])
        return noise.ratio

    return judge


class TestRule:
    def test_the_variants_rules_come_first_and_one_is_added(self) -> None:
        found = without(INT8, "fc1")
        assert found.recipe[:-1] == INT8.recipe
        assert found.recipe[-1]["algorithm_key"] == "no_quantize"
        assert (found.name, found.calibrate) == ("int8-dynamic-mended", False)
        assert "'fc1' in float" in found.doc

    def test_a_second_one_keeps_the_name(self) -> None:
        found = without(without(INT8, "fc1"), "y")
        assert found.name == "int8-dynamic-mended"
        assert len(found.recipe) == len(INT8.recipe) + 2

    def test_it_is_a_recipe_that_a_file_may_hold(self, tmp_path: Path) -> None:
        path = tmp_path / "mended.json"
        path.write_text(json.dumps(without(INT8, "fc1").to_json()))
        assert load_recipe(path) == without(INT8, "fc1")

    @pytest.mark.parametrize("name", ["a.b", "a+b", "blocks.0/q(1)"])
    def test_a_name_is_no_pattern(self, name: str) -> None:
        import re

        pattern = without(INT8, name).recipe[-1]["regex"]
        assert re.search(pattern, f"{name};")
        assert re.search(pattern, f"first;{name};last;")
        assert not re.search(pattern, f"not_{name};")
        assert not re.search(pattern, f"{name}_not;")
        assert not re.search(pattern, "aXb;aab;blocks-0/q1;")

    def test_that_layer_stays_float_and_no_other(self, source: Path, tmp_path: Path) -> None:
        from convert.flatbuffer import unpack

        path = quantize(source, without(INT8, "fc1"), tmp_path / "mended.tflite")
        types = {weight.tensor: weight.dtype for weight in weights_of(unpack(path.read_bytes()))}
        assert {name: types[name] for name in ("fc0_w", "fc1_w", "fc2_w", "fc3_w")} == {
            "fc0_w": "int8", "fc1_w": "float32", "fc2_w": "int8", "fc3_w": "int8"
        }  # fmt: skip


class TestMending:
    def test_it_stops_when_half_of_the_noise_is_gone(self, source: Path, variant: Path) -> None:
        found = mend(source, variant, INT8, ["fc1", "y", "fc2"], judge_of(source))
        assert [step.layers for step in found.steps] == [("fc1",)]
        assert found.best == found.steps[0]
        assert found.steps[0].noise < 0.5 * found.noise_before
        assert found.bytes_before == variant.stat().st_size
        assert not found.stale

    def test_a_layer_that_is_not_missed_is_taken_back(self, source: Path, variant: Path) -> None:
        found = mend(source, variant, INT8, ["fc2", "fc1"], judge_of(source))
        assert [step.layers for step in found.steps] == [("fc2",), ("fc2", "fc1")]
        assert found.best is not None
        assert found.best.layers == ("fc1",)
        assert len(found.rules) == 1
        assert "the best of them" in found.table()

    def test_when_nothing_helps_nothing_is_recommended(self, source: Path, variant: Path, tmp_path: Path) -> None:
        found = mend(source, variant, INT8, ["fc0"], judge_of(source))
        assert (found.best, found.rules) == (None, ())
        assert "none of them helps" in found.table()
        found.save(tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_no_more_than_a_few_layers_are_tried(
        self, source: Path, variant: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "MOST_STEPS", 1)
        found = mend(source, variant, INT8, ["fc0", "fc1"], judge_of(source))
        assert [step.layers for step in found.steps] == [("fc0",)]

    def test_a_variant_of_another_float_file_is_stale(self, source: Path, tmp_path: Path) -> None:
        other = tiny.write_chain(tmp_path / "other.tflite", change=tiny.scaled(0, 2.0))
        found = mend(source, quantize(other, INT8, tmp_path / "int8.tflite"), INT8, ["fc1"], judge_of(source))
        assert found.stale
        assert "convert again" in found.table()
        assert "made anew by its recipe" in found.table()

    def test_a_quantizer_that_refuses_is_told_with_what_was_made(
        self, source: Path, variant: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(floats: Path, recipe: Recipe, path: Path, ranges: object = None) -> Path:
            if len(recipe.recipe) > len(INT8.recipe) + 1:
                raise ConversionError("quantisation failed", got="two rules")
            return quantize(floats, recipe, path)

        monkeypatch.setattr(module, "quantize", refuse)
        found = mend(source, variant, INT8, ["fc0", "fc1"], judge_of(source))
        assert [step.layers for step in found.steps] == [("fc0",)]
        assert (found.best, found.error) == (None, "quantisation failed; got two rules")
        assert found.table().endswith("! quantisation failed; got two rules")

    def test_a_recipe_without_its_ranges_is_told(self, source: Path, variant: Path) -> None:
        found = mend(source, variant, load_recipe("int8-fc"), ["fc1"], judge_of(source))
        assert "needs calibration" in found.error
        assert (found.anew, found.steps, found.stale) == (None, (), False)


class TestSaving:
    def test_the_recipe_and_its_file(self, source: Path, variant: Path, tmp_path: Path) -> None:
        found = mend(source, variant, INT8, ["fc1"], judge_of(source))
        found.save(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "int8-dynamic-mended.json", "int8-dynamic-mended.tflite"
        ]  # fmt: skip
        recipe = load_recipe(tmp_path / "int8-dynamic-mended.json")
        again = quantize(source, recipe, tmp_path / "again.tflite")
        assert again.read_bytes() == (tmp_path / "int8-dynamic-mended.tflite").read_bytes()

    def test_json(self, source: Path, variant: Path) -> None:
        found = mend(source, variant, INT8, ["fc1"], judge_of(source))
        data = json.loads(json.dumps(found.to_json(), allow_nan=False))
        assert data["best"]["layers"] == ["fc1"]
        assert data["best"]["noise"] == found.steps[0].noise
        assert data["best"]["recipe"]["recipe"][-1] == found.rules[0]
        assert "content" not in data["best"]

    def test_infinite_noise_has_a_word_in_json_and_no_share(self) -> None:
        found = Mend(math.inf, 100)
        assert json.loads(json.dumps(found.to_json(), allow_nan=False))["noise_before"] == "inf"
        assert "left" not in found.table()
        assert np.isinf(found.noise_before)

"""Recipes are data: those that ship load, malformed ones are refused, and their files are smaller."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.errors import ConversionError, InputError
from convert.build import BuiltGraph
from convert.chain import run_halves
from convert.hard_pages import hard_samples
from convert.quantize import DEFAULT_RECIPES, FLOAT, load_recipe, load_recipes, quantize, recipe_names
from convert.source import KirSource
from convert.tflite import TfliteGraph
from convert.windows import synthetic_events

Built = dict[str, BuiltGraph]


@pytest.mark.parametrize("name", recipe_names())
def test_a_shipped_recipe_loads_and_has_its_files_name(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.doc
    assert json.loads(json.dumps(recipe.to_json()))["name"] == name


def test_the_shipped_recipes_are_the_quantizers_own() -> None:
    from ai_edge_quantizer import recipe as theirs

    every, norms = load_recipe("int8-dynamic").recipe
    assert [every] == theirs.dynamic_wi8_afp32()
    assert norms["algorithm_key"] == "no_quantize"
    assert list(load_recipe("int8-weight-only").recipe) == theirs.weight_only_wi8_afp32()


def test_norms_stay_float_for_a_quiet_tower_beside_a_loud_one(source: KirSource, built: Built, tmp_path: Path) -> None:
    """A norm's mean of squares is a product over both towers. Quantised with one scale a row, the quiet tower's mean
    is rounded to nothing, and keys and values come out hundreds of times too large."""
    graph = source.graphs["watch/T3"]
    record: dict[str, list[Any]] = {}
    for page in hard_samples(source, synthetic_events(source)):
        run_halves(page, source.layout, {key: one.run for key, one in source.graphs.items()}, record)
    shipped = load_recipe("int8-dynamic")
    files = {}
    for name, recipe in (("norms", shipped), ("all", replace(shipped, recipe=shipped.recipe[:1]))):
        path = quantize(built["watch/T3"].variants[FLOAT], recipe, tmp_path / f"{name}.tflite")
        files[name] = TfliteGraph(path)
    worst = dict.fromkeys(files, 0.0)
    for feeds in record["watch/T3"]:
        want = graph.run(feeds)
        for name, file in files.items():
            apart = max(float(np.abs(file.run(feeds)[output] - want[output]).max()) for output in want)
            worst[name] = max(worst[name], apart)
    assert worst["norms"] < 0.5
    assert worst["all"] > 100 * worst["norms"]


def test_only_dynamic_int8_multiplies_in_integers() -> None:
    assert [name for name in recipe_names() if load_recipe(name).integer] == ["int8-dynamic"]


def test_the_defaults_ship() -> None:
    assert set(DEFAULT_RECIPES) <= set(recipe_names())


def test_float_comes_first_and_once() -> None:
    assert [r.name for r in load_recipes(["int8-dynamic", FLOAT, "int8-dynamic"])] == [FLOAT, "int8-dynamic"]


def test_an_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(InputError, match="int8-weight-only"):
        load_recipe("int4")


class TestFiles:
    def write(self, tmp_path: Path, **changes: object) -> Path:
        data = {**load_recipe("int8-dynamic").to_json(), "name": "mine", **changes}
        path = tmp_path / "mine.json"
        path.write_text(json.dumps({k: v for k, v in data.items() if v != "drop"}))
        return path

    def test_a_recipe_of_ones_own(self, tmp_path: Path) -> None:
        assert [r.name for r in load_recipes([str(self.write(tmp_path))])] == [FLOAT, "mine"]

    @pytest.mark.parametrize("change", [{"name": "drop"}, {"quantizer": "tfmot"}, {"recipe": []}, {"quantizer": None}])
    def test_a_malformed_one_is_refused(self, tmp_path: Path, change: dict[str, object]) -> None:
        with pytest.raises(InputError, match="malformed"):
            load_recipe(self.write(tmp_path, **change))

    def test_two_of_one_name_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="one name"):
            load_recipes(["int8-dynamic", str(self.write(tmp_path, name="int8-dynamic"))])

    def test_text_that_is_no_json_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "bad.json").write_text("name: yaml")
        with pytest.raises(InputError, match="malformed"):
            load_recipe(tmp_path / "bad.json")


def test_int8_files_are_smaller(built: Built) -> None:
    for graph in built.values():
        sizes = {name: path.stat().st_size for name, path in graph.variants.items()}
        assert all(size < sizes[FLOAT] for name, size in sizes.items() if name != FLOAT), graph.key


def test_the_reference_graph_stays_float(built: Built) -> None:
    assert set(built["whole/N9"].variants) == {FLOAT}
    assert set(built["swipe/N9"].variants) == set(DEFAULT_RECIPES)


def test_the_same_bytes_every_time(built: Built, tmp_path: Path) -> None:
    graph = built["watch/T1"]
    again = quantize(graph.variants[FLOAT], load_recipe("int8-dynamic"), tmp_path / "again.tflite")
    assert again.read_bytes() == graph.variants["int8-dynamic"].read_bytes()


def test_float_is_a_copy(built: Built, tmp_path: Path) -> None:
    path = built["watch/T1"].variants[FLOAT]
    assert quantize(path, load_recipe(FLOAT), tmp_path / "copy.tflite").read_bytes() == path.read_bytes()
    assert quantize(path, load_recipe(FLOAT), path) == path


def test_a_file_that_is_none_fails_in_one_error(tmp_path: Path) -> None:
    (tmp_path / "bad.tflite").write_bytes(b"nothing")
    with pytest.raises(ConversionError, match="quantisation"):
        quantize(tmp_path / "bad.tflite", load_recipe("int8-dynamic"), tmp_path / "out.tflite")

"""Every recipe on a graph: what fits is made, what does not ends in one reason, and none sinks another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from contract.errors import ConversionError, InputError
from convert import build
from convert.build import BuiltGraph, build_all, build_graph
from convert.calibration import CalibrationSet, CalibrationSource
from convert.onnx_export import TorchGraph
from convert.probe import Probe
from convert.quantize import FLOAT, QUANTIZER, Recipe, load_recipe, load_recipes, recipe_names
from convert.tflite import TfliteGraph
from tests.convert.small_graphs import feeds_of, layers

SHIPPED = load_recipes(recipe_names())
STATIC = dict(load_recipe("int8-fc").recipe[0], operation="*")
IN_AND_OUT = tuple(load_recipe("int8-full").recipe[1:3])
SOURCE = CalibrationSource("log.parquet", "ab" * 32, 20, 0)


def static(name: str, *rules: dict[str, Any], bits: int = 8) -> Recipe:
    """Every operator static, with more rules behind."""
    config = STATIC["op_config"]
    activations = {**config["activation_tensor_config"], "num_bits": bits, "symmetric": bits == 16}
    every = {**STATIC, "op_config": {**config, "activation_tensor_config": activations}}
    return Recipe(name, "", QUANTIZER, (every, *rules), calibrate=True)


def blocks() -> Recipe:
    """int4 in blocks of 32, on layers that are 6 wide."""
    narrow = {"num_bits": 4, "symmetric": True, "granularity": "BLOCKWISE_32", "dtype": "INT"}
    rule = load_recipe("int8-dynamic").recipe[0]
    config = {**rule["op_config"], "weight_tensor_config": narrow}
    return Recipe("blocks", "", QUANTIZER, ({**rule, "operation": "FULLY_CONNECTED", "op_config": config},))


ODD = (blocks(), static("whole-int8"), static("all-int8", *IN_AND_OUT), static("all-int16", *IN_AND_OUT, bits=16))


def calibration(graph: TorchGraph) -> CalibrationSet:
    """Pages, and among them one without any spread for the norm to divide by."""
    first, *others = feeds_of(graph, 20)
    return CalibrationSet(SOURCE, {graph.key: [first, {**first, "left": 0 * first["left"]}, *others]})


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> BuiltGraph:
    """One graph by every recipe that ships, and by some that can't be."""
    graph = layers()
    return build_graph(graph, tmp_path_factory.mktemp("built"), (*SHIPPED, *ODD), calibration=calibration(graph))


@pytest.fixture
def quick(built: BuiltGraph, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Exporters and onnx2tf stand aside: the float file is the one made above."""

    def export_onnx(graph: TorchGraph, path: Path, exporter: str) -> Path:
        path.write_bytes(built.onnx.read_bytes())
        return path

    def convert_float(graph: TorchGraph, onnx: Path, path: Path, front_end: str) -> Path:
        path.write_bytes(built.variants[FLOAT].read_bytes())
        return path

    monkeypatch.setattr(build, "export_onnx", export_onnx)
    monkeypatch.setattr(build, "convert_float", convert_float)
    return


def test_every_recipe_that_ships_fits(built: BuiltGraph) -> None:
    assert set(built.variants) == set(recipe_names())
    assert all(path.is_file() for path in built.variants.values())
    assert set(built.integer) == {recipe.name for recipe in SHIPPED if recipe.integer}


def test_each_is_near_its_float_file(built: BuiltGraph) -> None:
    feeds = feeds_of(layers(), 4, seed=9)
    exact = TfliteGraph(built.variants[FLOAT])
    for name in set(recipe_names()) - {FLOAT}:
        file = TfliteGraph(built.variants[name])
        for feed in feeds:
            for output, value in exact.run(feed).items():
                assert 0 < np.abs(file.run(feed)[output] - value).max() < 0.6, (name, output)


def test_what_does_not_fit_has_a_reason_that_names_recipe_graph_and_cause(built: BuiltGraph) -> None:
    assert set(built.failed) == {recipe.name for recipe in ODD}
    for name, reason in built.failed.items():
        assert "layers-N5" in reason, name
        assert name in reason
    assert "not divisible by block size 32" in built.failed["blocks"]
    assert "inputs differ from the contract" in built.failed["whole-int8"]
    assert "int8" in built.failed["whole-int8"]


def test_a_file_that_did_not_fit_is_not_left_behind(built: BuiltGraph) -> None:
    made = {path.name for path in built.onnx.parent.glob("*.tflite")}
    assert made == {path.name for path in built.variants.values()}


def test_operators_that_fail_on_values_are_found_by_running(built: BuiltGraph) -> None:
    """The int8 divisor of a norm rounds to zero: the file loads, and ends in an error when it runs."""
    assert "fails to run" in built.failed["all-int8"]


def test_a_file_of_which_xnnpack_takes_nothing(built: BuiltGraph) -> None:
    """It has no int16, so a graph without a float operator left is not for a phone."""
    assert "XNNPACK took no part" in built.failed["all-int16"]


def test_an_output_that_a_static_layer_reads_goes_out_in_float(built: BuiltGraph) -> None:
    """`hidden` is an output and the second layer's input; the quantizer gave out the int8 copy made for that layer."""
    for name in ("int8-fc", "int16-act"):
        _, outputs = TfliteGraph(built.variants[name]).tensors()
        assert {(tensor.name, tensor.dtype) for tensor in outputs} == {("hidden", "float32"), ("scores", "float32")}


def test_a_file_that_ends_the_process_is_one_reason_too(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an operator without a kernel for such types does (tests/convert/frontends/test_faults.py has one)."""
    dead = Probe(error="LiteRT died loading it (signal 6)")
    monkeypatch.setattr(build, "probe", lambda paths: [dead for _ in paths])
    found = build_graph(
        layers(), tmp_path, load_recipes(["int8-fc", "int8-dynamic"]), calibration=calibration(layers())
    )
    assert set(found.variants) == {FLOAT, "int8-dynamic"}
    assert "int8-fc.tflite: LiteRT can't load the file; got LiteRT died loading it" in found.failed["int8-fc"]
    assert not list(tmp_path.glob("*int8-fc*"))


def test_no_page_reaches_the_graph(quick: None, tmp_path: Path) -> None:
    recipes = load_recipes(["int8-fc", "int8-dynamic"])
    found = build_graph(layers(), tmp_path, recipes, calibration=CalibrationSet(SOURCE, {"other/N5": []}))
    assert set(found.variants) == {FLOAT, "int8-dynamic"}
    assert "no calibration page reaches this graph" in found.failed["int8-fc"]


def test_static_recipes_need_pages_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"needs calibration pages; got \['int8-fc', 'int8-full'\].*--data"):
        build_all([layers()], tmp_path / "out", load_recipes(["int8-fc", "int8-full", "int8-dynamic"]))
    assert not (tmp_path / "out").exists()


def test_progress_tells_stages_and_what_is_not_possible(quick: None, tmp_path: Path) -> None:
    said: list[str] = []
    recipes = (*load_recipes(["int8-weight-only"]), blocks())
    found = build_all([layers()], tmp_path, recipes, said.append)
    assert set(found["layers/N5"].variants) == {FLOAT, "int8-weight-only"}
    assert said[0].startswith("  layers/N5    onnx ")
    assert said[1].startswith("  layers/N5    blocks not possible: quantisation of layers-N5")
    assert len(said) == 2


def test_a_pattern_that_fits_no_layer_is_told(quick: None, tmp_path: Path) -> None:
    said: list[str] = []
    recipe = load_recipe("int8-weight-only")
    typo = replace(recipe, name="mine", recipe=(*recipe.recipe, {**IN_AND_OUT[0], "operation": "*", "regex": "frist"}))
    build_all([layers()], tmp_path, (load_recipe(FLOAT), typo), said.append)
    assert said[-1] == "  'mine': no layer's name fits the pattern 'frist'"


def test_when_nothing_that_was_asked_for_fits_it_is_an_error(quick: None, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"no recipe fits any graph; 'blocks' on layers/N5: .*block size 32"):
        build_all([layers()], tmp_path, (load_recipe(FLOAT), blocks()))


def test_float_alone_asks_for_nothing_more(quick: None, tmp_path: Path) -> None:
    found = build_all([layers()], tmp_path, (load_recipe(FLOAT),))["layers/N5"]
    assert (set(found.variants), found.failed, found.integer) == ({FLOAT}, {}, ())


def test_the_reference_stays_float(quick: None, tmp_path: Path) -> None:
    whole = replace(layers(), name="whole")
    found = build_all([whole, layers()], tmp_path, load_recipes(["int8-dynamic"]))
    assert {key: set(one.variants) for key, one in found.items()} == {
        "whole/N5": {FLOAT},
        "layers/N5": {FLOAT, "int8-dynamic"},
    }


def test_a_wrong_float_file_is_the_end(built: BuiltGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def convert_float(graph: TorchGraph, onnx: Path, path: Path, front_end: str) -> Path:
        path.write_bytes(built.variants[FLOAT].read_bytes()[:300])
        return path

    monkeypatch.setattr(build, "export_onnx", lambda graph, path, exporter: path.write_bytes(b"an ONNX file"))
    monkeypatch.setattr(build, "convert_float", convert_float)
    with pytest.raises(ConversionError, match=r"float32\.tflite: TFLite file is truncated"):
        build_graph(layers(), tmp_path, load_recipes(["int8-dynamic"]))


def test_examples_that_torch_has_no_number_for_try_nothing(tmp_path: Path) -> None:
    """A root of a negative example is no fault of the converter's; pages that torch can answer still count."""

    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sqrt(self.linear(x))

    torch.manual_seed(0)
    graph = TorchGraph("root", "", Root().eval(), {"x": torch.randn(1, 4, 8)}, ("y",))
    assert not np.isfinite(graph.run({"x": graph.inputs["x"].numpy()})["y"]).all()
    found = build_graph(graph, tmp_path, load_recipes(["int8-weight-only"]))
    assert found.key == "root"
    assert set(found.variants) == {FLOAT, "int8-weight-only"}

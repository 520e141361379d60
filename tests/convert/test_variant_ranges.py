"""What a static variant was calibrated to is in its scales, and makes the same file again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert import flatbuffer
from convert.calibration import activation_ranges
from convert.debug_taps import TfliteTaps
from convert.quantize import load_recipe, quantize
from convert.variant_ranges import ranges_of
from tests.convert import tiny_tflite as tiny

# Given ranges, the quantizer loads the model with all tensors kept to see if they suffice; LiteRT warns of it.
pytestmark = pytest.mark.filterwarnings("ignore:.*experimental_preserve_all_tensors:UserWarning")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_chain(tmp_path_factory.mktemp("ranges") / "float.tflite")


@pytest.fixture(scope="module")
def calibrated(source: Path) -> dict[str, Any]:
    return dict(activation_ranges(source, tiny.samples(9, seed=1)))


def unpacked(path: Path) -> Any:
    return flatbuffer.unpack(path.read_bytes())


def seen(source: Path, n: int = 1) -> list[dict[str, Any]]:
    """What the float file gives on few samples: narrower than what was calibrated on many."""
    return [{**sample, **TfliteTaps(source).run(sample)} for sample in tiny.samples(n, seed=2)]


@pytest.mark.parametrize("name", ["int8-fc", "int8-full", "int16-act"])
def test_the_same_recipe_by_them_makes_the_same_file(
    name: str, source: Path, calibrated: dict[str, Any], tmp_path: Path
) -> None:
    recipe = load_recipe(name)
    variant = quantize(source, recipe, tmp_path / "variant.tflite", calibrated)
    ranges = ranges_of(unpacked(variant), unpacked(source), seen(source))
    again = quantize(source, recipe, tmp_path / "again.tflite", ranges)
    for sample in tiny.samples():
        np.testing.assert_allclose(TfliteTaps(again).run(sample)["y"], TfliteTaps(variant).run(sample)["y"], atol=1e-6)


def test_they_are_the_calibrated_ones_within_a_step(source: Path, calibrated: dict[str, Any], tmp_path: Path) -> None:
    variant = quantize(source, load_recipe("int8-full"), tmp_path / "variant.tflite", calibrated)
    ranges = ranges_of(unpacked(variant), unpacked(source), seen(source))
    for name in ("fc0", "fc1", "fc2"):
        low, high = (float(calibrated[name][end].reshape(())) for end in ("min", "max"))
        step = (high - low) / 255
        assert float(ranges[name]["min"].reshape(())) == pytest.approx(low, abs=1.01 * step)
        assert float(ranges[name]["max"].reshape(())) == pytest.approx(high, abs=1.01 * step)


def test_arrays_have_the_tensors_rank(source: Path) -> None:
    ranges = ranges_of(unpacked(source), unpacked(source), seen(source))
    assert {name: ends["min"].shape for name, ends in ranges.items()} == dict.fromkeys(
        ("x", "fc0", "fc1", "fc2", "y"), (1, 1, 1)
    )
    assert ranges["x"]["max"].dtype == np.float32


def test_layers_without_a_scale_have_what_the_samples_show(source: Path) -> None:
    samples = seen(source, n=3)
    ranges = ranges_of(unpacked(source), unpacked(source), samples)
    assert float(ranges["fc1"]["min"].reshape(())) == min(float(sample["fc1"].min()) for sample in samples)
    assert float(ranges["fc1"]["max"].reshape(())) == max(float(sample["fc1"].max()) for sample in samples)


def test_names_that_the_float_file_does_not_have_are_left_out(source: Path) -> None:
    samples = [{**seen(source)[0], "elsewhere": np.zeros(3, np.float32)}]
    assert "elsewhere" not in ranges_of(unpacked(source), unpacked(source), samples)


def test_a_tensor_quantised_where_it_is_read(source: Path) -> None:
    """x stays float, and its quantised copy holds the scale."""
    schema = flatbuffer.schema
    net = tiny.Net()
    net.tensor("x", (1, 4, 8))
    net.tensor("x_quantized", (1, 4, 8), "int8")
    net.tensor("y", (1, 4, 8))
    net.graph.tensors[1].quantization = schema.QuantizationParametersT(scale=[0.5], zeroPoint=[28])
    net.operator("QUANTIZE", ("x",), "x_quantized", "QuantizeOptions")
    net.operator("DEQUANTIZE", ("x_quantized",), "y", "DequantizeOptions")
    ranges = ranges_of(flatbuffer.unpack(net.bytes(["x"], ["y"])), unpacked(source), [])
    assert {name: (float(ends["min"].max()), float(ends["max"].max())) for name, ends in ranges.items()} == {
        "x": (-78.0, 49.5)
    }

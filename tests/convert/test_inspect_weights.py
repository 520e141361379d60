"""Bytes by layer: every constant once, under the layer that reads it, and the rest of the file as "other"."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from convert import flatbuffer
from convert.inspect_weights import Weight, quantisation, shortened, weights_of, weights_table
from convert.quantize import load_recipe, quantize
from tests.convert import tiny_tflite as tiny


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Recipe -> the chain by it."""
    folder = tmp_path_factory.mktemp("quantised")
    source = tiny.write_chain(folder / "float.tflite")
    names = ("int8-dynamic", "int8-weight-only")
    return {name: quantize(source, load_recipe(name), folder / f"{name}.tflite").read_bytes() for name in names}


def found(raw: bytes) -> tuple[Weight, ...]:
    return weights_of(flatbuffer.unpack(raw))


def test_every_constant_is_there_largest_first() -> None:
    weights = found(tiny.chain())
    assert [weight.n_bytes for weight in weights] == [256] * 4 + [32] * 4
    assert {weight.tensor for weight in weights} == {f"fc{i}_{part}" for i in range(4) for part in "wb"}


def test_it_stands_under_the_layer_that_reads_it() -> None:
    layers = {weight.tensor: (weight.layer, weight.operator) for weight in found(tiny.chain())}
    assert layers["fc1_w"] == ("fc1", "FULLY_CONNECTED")
    assert layers["fc3_b"] == ("y", "FULLY_CONNECTED")


def test_a_dequantised_constant_stands_under_the_layer_behind(quantised: dict[str, bytes]) -> None:
    weights = {weight.tensor: weight for weight in found(quantised["int8-weight-only"])}
    assert (weights["fc2_w"].layer, weights["fc2_w"].operator) == ("fc2", "FULLY_CONNECTED")
    assert (weights["fc2_w"].dtype, weights["fc2_w"].n_bytes) == ("int8", 64)


def test_quantised_weights_are_parameters_and_say_how(quantised: dict[str, bytes]) -> None:
    weights = {weight.tensor: weight for weight in found(quantised["int8-dynamic"])}
    assert weights["fc0_w"].quantisation == "8 scales along axis 0"
    assert all(weight.trained for weight in weights.values())
    assert sum(weight.n_values for weight in weights.values()) == 4 * (64 + 8)


def test_places_and_shapes_are_no_parameters() -> None:
    net = tiny.Net()
    net.tensor("x", (1, 4, 8))
    net.tensor("shape", (2,), "int32", np.array([4, 8]))
    net.tensor("y", (4, 8))
    net.operator("RESHAPE", ("x", "shape"), "y", "ReshapeOptions")
    (weight,) = found(net.bytes(["x"], ["y"]))
    assert (weight.tensor, weight.trained, weight.n_values) == ("shape", False, 2)


def test_a_buffer_that_two_tensors_share_counts_once() -> None:
    def share(model: object) -> None:
        tensors = {flatbuffer.text(t.name): t for t in model.subgraphs[0].tensors}  # type: ignore[attr-defined]
        tensors["fc1_w"].buffer = tensors["fc0_w"].buffer

    names = [weight.tensor for weight in found(tiny.edited(tiny.chain(), share))]
    assert "fc0_w" in names
    assert "fc1_w" not in names


class TestQuantisation:
    def told(self, **settings: object) -> str:
        tensor = flatbuffer.schema.TensorT(quantization=flatbuffer.schema.QuantizationParametersT())
        for name, value in settings.items():
            setattr(tensor.quantization, name, value)
        return quantisation(tensor)

    def test_none(self) -> None:
        assert self.told() == ""
        assert quantisation(flatbuffer.schema.TensorT()) == ""

    def test_one_scale(self) -> None:
        assert self.told(scale=[0.02], zeroPoint=[-3]) == "scale 0.02, zero -3"
        assert self.told(scale=[0.5]) == "scale 0.5, zero 0"

    def test_many(self) -> None:
        assert self.told(scale=[0.1] * 24, quantizedDimension=1) == "24 scales along axis 1"


class TestTable:
    def test_it_adds_up_to_the_file(self) -> None:
        raw = tiny.chain()
        lines = weights_table(found(raw), len(raw)).splitlines()[2:]
        assert sum(int(line.split()[-2].replace(",", "")) for line in lines) == len(raw)
        assert sum(float(line.split()[-1].rstrip("%")) for line in lines) == pytest.approx(100, abs=0.6)
        assert lines[-1].startswith("other")

    def test_many_small_constants_are_one_line(self) -> None:
        raw = tiny.chain(layers=15)
        text = weights_table(found(raw), len(raw))
        assert "10 smaller constants" in text
        assert len(text.splitlines()) == 2 + 20 + 2

    def test_long_names_keep_their_end(self) -> None:
        assert shortened("/blocks.0/attention/query/MatMul", 12) == "…uery/MatMul"
        assert shortened("short", 12) == "short"


def test_a_file_without_constants(tmp_path: Path) -> None:
    net = tiny.Net()
    net.tensor("x", (4,))
    net.tensor("y", (4,))
    net.operator("ADD", ("x", "x"), "y", "AddOptions")
    raw = net.bytes(["x"], ["y"])
    assert found(raw) == ()
    assert weights_table((), len(raw)).splitlines()[-1].endswith("100.0%")

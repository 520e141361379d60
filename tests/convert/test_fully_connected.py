"""BATCH_MATMUL by a constant becomes FULLY_CONNECTED: same numbers, same interface, nothing left over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.errors import ConversionError
from convert import flatbuffer
from convert.build import BuiltGraph
from convert.calibration import activation_ranges
from convert.flatbuffer import operator_name, schema, tensors
from convert.fully_connected import to_fully_connected
from convert.quantize import FLOAT, Recipe, load_recipe, quantize
from convert.tflite import TfliteGraph
from tests.convert.tiny_tflite import Net

ROWS, K, N = 4, 6, 5
RELU = schema.ActivationFunctionType.RELU
MATRIX = np.random.default_rng(0).normal(size=(K, N))
BIAS = np.linspace(-1, 1, N)
FEEDS = [{"x": np.random.default_rng(i).normal(size=(1, ROWS, K)).astype(np.float32)} for i in range(20)]


class Made:
    """A net with x [1, ROWS, K] and the constants `w` [K, N] and `b` [N]."""

    def __init__(self, matrix: Any = MATRIX) -> None:
        self.net = Net()
        self.net.tensor("x", (1, ROWS, K))
        self.net.tensor("w", matrix.shape, value=matrix)
        self.net.tensor("b", (N,), value=BIAS)

    def product(self, out: str, x: str = "x", w: str = "w", rows: bool = False) -> str:
        self.net.tensor(out, (1, ROWS, N))
        return self.net.operator("BATCH_MATMUL", (x, w), out, "BatchMatMulOptions", adjY=rows)

    def add(self, one: str, other: str, out: str, shape: tuple[int, ...] = (1, ROWS, N), activation: int = 0) -> str:
        self.net.tensor(out, shape)
        return self.net.operator("ADD", (one, other), out, "AddOptions", fusedActivationFunction=activation)

    def bytes(self, *outputs: str) -> bytes:
        return self.net.bytes(["x"], outputs)


def linear() -> bytes:
    made = Made()
    made.product("product")
    made.add("b", "product", "y", activation=RELU)  # the constant may stand first
    return made.bytes("y")


def transposed() -> bytes:
    made = Made(np.ascontiguousarray(MATRIX.T))
    made.product("y", rows=True)
    return made.bytes("y")


def shared() -> bytes:
    """One matrix and one bias, read twice."""
    made = Made()
    made.product("one")
    made.product("two")
    made.add("one", "b", "one_b")
    made.add("b", "two", "two_b")
    made.add("one_b", "two_b", "y")
    return made.bytes("y")


def product_goes_out() -> bytes:
    """The product itself is an output, so it can't be taken into its ADD."""
    made = Made()
    made.product("product")
    made.add("product", "b", "y")
    return made.bytes("product", "y")


def read_twice() -> bytes:
    made = Made()
    made.product("product")
    made.add("product", "b", "biased")
    made.add("product", "biased", "y")
    return made.bytes("y")


def bias_widens() -> bytes:
    """A constant that makes the sum larger than the product is no bias."""
    made = Made()
    made.product("product")
    made.net.tensor("wide", (2, ROWS, N), value=np.ones((2, ROWS, N)))
    made.add("product", "wide", "y", (2, ROWS, N))
    return made.bytes("y")


def kinds(raw: bytes) -> list[str]:
    model = flatbuffer.unpack(raw)
    return [operator_name(model, one) for one in flatbuffer.operators(model.subgraphs[0])]


def run(raw: bytes) -> dict[str, Any]:
    return TfliteGraph(raw).run(FEEDS[0])


@pytest.mark.parametrize(
    ("make", "want"),
    [
        (linear, ["FULLY_CONNECTED"]),
        (transposed, ["FULLY_CONNECTED"]),
        (shared, ["FULLY_CONNECTED", "FULLY_CONNECTED", "ADD"]),
        (product_goes_out, ["FULLY_CONNECTED", "ADD"]),
        (read_twice, ["FULLY_CONNECTED", "ADD", "ADD"]),
        (bias_widens, ["FULLY_CONNECTED", "ADD"]),
    ],
)
def test_the_same_numbers_by_other_operators(make: Callable[[], bytes], want: list[str]) -> None:
    raw = make()
    found = to_fully_connected(raw)
    assert kinds(found) == want
    assert TfliteGraph(found).tensors() == TfliteGraph(raw).tensors()
    for name, value in run(raw).items():
        np.testing.assert_allclose(run(found)[name], value, atol=1e-5, err_msg=name)


def test_the_activation_behind_a_bias_is_kept() -> None:
    y = run(to_fully_connected(linear()))["y"]
    np.testing.assert_allclose(y, np.maximum(FEEDS[0]["x"] @ MATRIX + BIAS, 0), atol=1e-5)
    assert (y == 0).any()


def test_nothing_is_left_over() -> None:
    """One matrix, one bias, the activations; no tensor, buffer or operator code that nothing names."""
    model = flatbuffer.unpack(to_fully_connected(shared()))
    graph = model.subgraphs[0]
    names = sorted(flatbuffer.text(tensor.name) for tensor in tensors(graph))
    assert names == ["b/bias", "one_b", "two_b", "w/transposed", "x", "y"]
    assert len(model.buffers) == 1 + 2
    assert len(model.operatorCodes) == 2


def test_the_same_bytes_every_time_and_nothing_to_do_twice() -> None:
    found = to_fully_connected(linear())
    assert found == to_fully_connected(linear())
    assert to_fully_connected(found) == found


def test_what_is_no_product_by_a_constant_stays(built: dict[str, BuiltGraph]) -> None:
    """Attention multiplies two activations."""
    counts = {key: kinds(graph.variants[FLOAT].read_bytes()) for key, graph in built.items()}
    assert counts["watch/T1"].count("BATCH_MATMUL") == 2
    assert counts["page/N9"].count("BATCH_MATMUL") == 0
    assert counts["page/N9"].count("FULLY_CONNECTED") == 6


@pytest.mark.parametrize("content", [b"", b"no flatbuffer", linear()[:200]])
def test_a_file_that_is_none_is_one_error(content: bytes) -> None:
    with pytest.raises(ConversionError, match=r"here\.tflite"):
        to_fully_connected(content, "here.tflite")


def test_static_int8_by_batch_matmul_gives_noise(tmp_path: Path) -> None:
    """Why this file exists: the quantizer gives the constant a scale per channel, and LiteRT's int8 BATCH_MATMUL uses
    another. The same recipe on FULLY_CONNECTED is as near as int8 gets."""
    rule = dict(load_recipe("int8-fc").recipe[0], operation="*")
    io = [{"regex": ".*", "operation": name, "algorithm_key": "no_quantize"} for name in ("INPUT", "OUTPUT")]
    recipe = Recipe("static", "", "ai-edge-quantizer", (rule, *io), calibrate=True)
    made = Made(MATRIX * np.logspace(-1, 1, N))  # channels of unlike size
    made.product("product")
    made.add("product", "b", "y")
    worst = {}
    for name, raw in (("products", made.bytes("y")), ("linear", to_fully_connected(made.bytes("y")))):
        path = tmp_path / f"{name}.tflite"
        path.write_bytes(raw)
        out = quantize(path, recipe, tmp_path / f"{name}.int8.tflite", activation_ranges(path, FEEDS))
        exact, rounded = TfliteGraph(raw), TfliteGraph(out)
        worst[name] = max(float(np.abs(rounded.run(f)["y"] - exact.run(f)["y"]).max()) for f in FEEDS)
        largest = max(float(np.abs(exact.run(f)["y"]).max()) for f in FEEDS)
    assert worst["linear"] < 0.03 * largest
    assert worst["products"] > 0.3 * largest

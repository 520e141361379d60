"""Open-ended slices get their size, XNNPACK takes them, and nothing else changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from contract.errors import ConversionError
from convert.build import BuiltGraph
from convert.flatbuffer import constant, operator_name, operators, tensors, text, unpack
from convert.quantize import FLOAT
from convert.slice_sizes import with_slice_sizes
from convert.tflite import TfliteGraph
from tests.convert.tiny_tflite import ROWS, WIDTH, Net, edited, samples

OPEN = (1, -1, 4)
WRITTEN = (1, ROWS, 4)


def halves(size: Sequence[int] = OPEN, dtype: str = "int32") -> bytes:
    """x [1, ROWS, 8] -> its two halves multiplied, cut by one shared size."""
    net = Net()
    net.tensor("x", (1, ROWS, WIDTH))
    net.tensor("size", (3,), dtype, value=np.array(size))
    for name, start in (("left", 0), ("right", 4)):
        net.tensor(f"{name}_at", (3,), dtype, value=np.array([0, 0, start]))
        net.tensor(name, (1, ROWS, 4))
        net.operator("SLICE", ("x", f"{name}_at", "size"), name, "SliceOptions")
    net.tensor("y", (1, ROWS, 4))
    net.operator("MUL", ("left", "right"), "y", "MulOptions")
    return net.bytes(["x"], ["y"])


def sizes_of(raw: bytes) -> list[list[int]]:
    model = unpack(raw)
    graph = model.subgraphs[0]
    slices = [one for one in operators(graph) if operator_name(model, one) == "SLICE"]
    raws = [constant(model, tensors(graph)[int(one.inputs[2])]) for one in slices]
    return [np.frombuffer(value or b"", "<i4").tolist() for value in raws]


def test_the_size_is_what_minus_one_comes_to() -> None:
    raw = halves()
    assert sizes_of(raw) == [list(OPEN)] * 2
    found = with_slice_sizes(raw)
    assert sizes_of(found) == [list(WRITTEN)] * 2
    for feeds in samples():
        np.testing.assert_array_equal(TfliteGraph(found).run(feeds)["y"], TfliteGraph(raw).run(feeds)["y"])


def test_xnnpack_takes_what_it_left_out() -> None:
    open_ended, written = TfliteGraph(halves()), TfliteGraph(with_slice_sizes(halves()))
    assert written.tensors() == open_ended.tensors()
    assert written.partitions == 1
    assert written.operators == ("SLICE", "SLICE", "MUL", "DELEGATE")


def test_the_old_size_is_gone_and_names_are_each_ones_own() -> None:
    names = [text(tensor.name) for tensor in tensors(unpack(with_slice_sizes(halves())).subgraphs[0])]
    assert "size" not in names
    assert len(names) == len(set(names))


def test_written_sizes_keep_their_bytes() -> None:
    raw = halves(WRITTEN)
    assert with_slice_sizes(raw) is raw


def free(*names: str) -> bytes:
    """The halves with tensors whose rows are said to be of any number."""

    def change(model: Any) -> None:
        for tensor in model.subgraphs[0].tensors:
            if text(tensor.name) in names:
                tensor.shapeSignature = [1, -1, int(tensor.shape[2])]

    return edited(halves(), change)


def test_an_input_of_free_length_keeps_its_slices_open() -> None:
    raw = free("x")
    assert with_slice_sizes(raw) is raw


def test_a_slice_that_only_says_so_is_written_out() -> None:
    """As onnx2tf leaves them."""
    assert sizes_of(with_slice_sizes(free("left", "right", "y"))) == [list(WRITTEN)] * 2


@pytest.mark.parametrize("content", [b"", b"nothing at all"])
def test_a_file_that_is_none(content: bytes) -> None:
    with pytest.raises(ConversionError, match="here: not a TFLite file"):
        with_slice_sizes(content, "here")


def test_kirs_graphs_have_no_open_slice_left(built: dict[str, BuiltGraph]) -> None:
    for key, graph in built.items():
        assert not any(-1 in size for size in sizes_of(graph.variants[FLOAT].read_bytes())), key
    assert any(sizes_of(graph.variants[FLOAT].read_bytes()) for graph in built.values())

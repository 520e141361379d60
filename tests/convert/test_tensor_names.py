"""Tensors take the names of the file's signature, whatever a tool called them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from contract.errors import ConversionError
from convert.tensor_names import float_outputs, named_by_signature
from convert.tflite import TfliteGraph
from tests.convert.tiny_tflite import ROWS, WIDTH, Net, chain, edited, samples


def renamed(**names: str) -> bytes:
    """The chain with tensors under other names than its signature has them."""

    def change(model: Any) -> None:
        for tensor in model.subgraphs[0].tensors:
            name = tensor.name.decode()
            tensor.name = names.get(name, name)

    return edited(chain(2), change)


def names_of(raw: bytes) -> list[str]:
    return [tensor.name for side in TfliteGraph(raw).tensors() for tensor in side]


def test_inputs_and_outputs_are_named_as_the_signature_has_them() -> None:
    raw = renamed(x="serving_default_x:0", y="PartitionedCall:0")
    assert names_of(raw) == ["serving_default_x:0", "PartitionedCall:0"]
    found = named_by_signature(raw)
    assert names_of(found) == ["x", "y"]
    np.testing.assert_array_equal(
        TfliteGraph(found).run(samples()[0])["y"], TfliteGraph(chain(2)).run(samples()[0])["y"]
    )


def test_a_name_taken_inside_makes_room() -> None:
    """As after the quantizer: the output is y_dequant, and y a tensor inside."""
    raw = renamed(y="y_dequant", fc0="y")
    found = named_by_signature(raw)
    assert names_of(found) == ["x", "y"]
    assert b"y/inner" in found


def test_numbered_outputs_get_the_contracts_names() -> None:
    found = named_by_signature(chain(2), {"y": "scores"})
    assert names_of(found) == ["x", "scores"]
    assert names_of(named_by_signature(found)) == ["x", "scores"]  # the signature says so too


def test_a_file_with_the_right_names_keeps_its_bytes() -> None:
    raw = chain(2)
    assert named_by_signature(raw) is raw


@pytest.mark.parametrize("count", [0, 2])
def test_another_number_of_signatures_is_refused(count: int) -> None:
    def change(model: Any) -> None:
        model.signatureDefs = model.signatureDefs * count

    with pytest.raises(ConversionError, match=rf"here: names need one graph.*got {count}"):
        named_by_signature(edited(chain(2), change), where="here")


class TestFloatOutputs:
    def copied(self, source: str = "x") -> bytes:
        """y = x + x; given out is the int8 copy of `source`."""
        net = Net()
        net.tensor("x", (1, ROWS, WIDTH))
        net.tensor("y", (1, ROWS, WIDTH))
        net.operator("ADD", ("x", "x"), "y", "AddOptions")
        net.tensor("copy", (1, ROWS, WIDTH), "int8")
        quantization = net.graph.tensors[-1].quantization
        quantization.scale, quantization.zeroPoint = [0.05], [0]
        net.operator("QUANTIZE", (source,), "copy")
        return net.bytes(["x"], ["copy"])

    def test_a_copy_in_integers_gives_way_to_its_source(self) -> None:
        raw = self.copied("y")
        assert [t.dtype for t in TfliteGraph(raw).tensors()[1]] == ["int8"]
        found = TfliteGraph(named_by_signature(float_outputs(raw)))
        assert [(t.name, t.dtype) for t in found.tensors()[1]] == [("copy", "float32")]
        np.testing.assert_allclose(found.run(samples()[0])["copy"], 2 * samples()[0]["x"], rtol=1e-6)

    def test_outputs_in_float_keep_their_bytes(self) -> None:
        raw = chain(2)
        assert float_outputs(raw) is raw

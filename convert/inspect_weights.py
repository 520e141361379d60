"""Bytes of a .tflite by layer: which constant, read by which operator, in which type, and its share of the file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from convert import flatbuffer

SHOWN = 20


@dataclass(frozen=True)
class Weight:
    """A constant. layer: first output of the operator that reads it. trained: float or quantised, so a parameter."""

    tensor: str
    layer: str
    operator: str
    shape: tuple[int, ...]
    dtype: str
    quantisation: str
    n_bytes: int
    trained: bool

    @property
    def n_values(self) -> int:
        return math.prod(self.shape)


def weights_of(model: Any) -> tuple[Weight, ...]:
    """Constants of all subgraphs, largest first. A buffer that several tensors share is counted once."""
    found: dict[int, Weight] = {}
    for graph in model.subgraphs:
        readers = _readers(model, graph)
        for number, tensor in enumerate(flatbuffer.tensors(graph)):
            content = flatbuffer.constant(model, tensor)
            if content is None or tensor.buffer in found:
                continue
            operator, layer = readers.get(number, ("", ""))
            dtype, told = flatbuffer.dtype_of(tensor), quantisation(tensor)
            found[tensor.buffer] = Weight(
                tensor=flatbuffer.text(tensor.name),
                layer=layer,
                operator=operator,
                shape=flatbuffer.shape_of(tensor),
                dtype=dtype,
                quantisation=told,
                n_bytes=len(content),
                trained=bool(told) or "float" in dtype,
            )
    return tuple(sorted(found.values(), key=lambda weight: (-weight.n_bytes, weight.tensor)))


def _readers(model: Any, graph: Any) -> dict[int, tuple[str, str]]:
    """Tensor number -> (operator, its output's name) of its first reader; a constant's DEQUANTIZE is looked through."""
    tensors = flatbuffer.tensors(graph)
    through: dict[int, int] = {}
    found: dict[int, tuple[str, str]] = {}
    for one in flatbuffer.operators(graph):
        inputs, outputs = flatbuffer.numbers(one.inputs), flatbuffer.numbers(one.outputs)
        name = flatbuffer.operator_name(model, one)
        if not outputs or outputs[0] < 0:
            continue
        if name == "DEQUANTIZE" and flatbuffer.constant(model, tensors[inputs[0]]) is not None:
            through[outputs[0]] = inputs[0]
        for number in inputs:
            reader = name, flatbuffer.text(tensors[outputs[0]].name)
            found.setdefault(through.get(number, number), reader)
            if number in through:
                found[through[number]] = reader
    return found


def quantisation(tensor: Any) -> str:
    """ "scale 0.02, zero 3", "24 scales along axis 0"; "" for a tensor that is not quantised."""
    told = tensor.quantization
    scales = [] if told is None or told.scale is None else list(told.scale)
    if not scales:
        return ""
    if len(scales) > 1:
        return f"{len(scales)} scales along axis {told.quantizedDimension}"
    zeros = [] if told.zeroPoint is None else list(told.zeroPoint)
    return f"scale {float(scales[0]):.4g}, zero {int(zeros[0]) if zeros else 0}"


def weights_table(weights: Sequence[Weight], n_bytes: int) -> str:
    """The largest constants, the smaller ones together, and what is no constant as "other"."""
    head = f"{'weights by layer':<44} {'reads it':<18} {'shape':<16} {'dtype':<8} {'bytes':>9} {'share':>6}"
    lines = [head, "-" * len(head)]
    for weight in weights[:SHOWN]:
        name = shortened(weight.layer or weight.tensor, 44)
        lines.append(_row(name, weight.operator, str(list(weight.shape)), weight.dtype, weight.n_bytes, n_bytes))
    small = weights[SHOWN:]
    if small:
        lines.append(_row(f"{len(small)} smaller constants", "", "", "", sum(w.n_bytes for w in small), n_bytes))
    other = n_bytes - sum(weight.n_bytes for weight in weights)
    lines.append(_row("other: operators, names, quantisation, metadata", "", "", "", other, n_bytes))
    return "\n".join(lines)


def _row(name: str, operator: str, shape: str, dtype: str, part: int, whole: int) -> str:
    return f"{name:<44} {operator:<18} {shape:<16} {dtype:<8} {part:>9,} {part / whole:>6.1%}"


def shortened(name: str, width: int) -> str:
    """The name's end, where names of one model differ."""
    return name if len(name) <= width else "…" + name[1 - width :]

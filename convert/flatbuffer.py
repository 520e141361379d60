"""A .tflite as the flatbuffer it is: read with care, its parts in words, written again. Nothing is loaded or run.

flatbuffers' Python reads what a vtable says; it has no verifier. So whatever a damaged file makes it do is one error
here, and what other parts of the file are named by number (tensors, buffers, operators) is checked before it is used.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterable
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from contract.errors import ConversionError

IDENTIFIER = b"TFL3"
LARGEST = 2**31 - 2**20  # bytes of constants; the rest is room for the graph
# What flatbuffers' Python does with offsets that lead nowhere.
_LOST = (struct.error, ValueError, IndexError, TypeError, AttributeError, OverflowError, MemoryError)


def unpack(raw: bytes, where: object = "") -> Any:
    """The schema's ModelT, all constants in it. Raises ConversionError for what is no whole, consistent TFLite file.

    From 256 KB of constants on, ai-edge-quantizer writes them behind the flatbuffer; packed again, they stand within.
    """
    if len(raw) < 8 or raw[4:8] != IDENTIFIER:
        got = "an empty file" if not raw else f"{len(raw)} bytes, identifier {raw[4:8]!r}"
        raise ConversionError("not a TFLite file", where=where, got=got, allowed="identifier TFL3")
    try:
        model = schema.ModelT.InitFromPackedBuf(raw, 0)
    except _LOST as error:
        raise ConversionError("TFLite file is truncated or damaged", where=where, got=str(error)) from None
    odd = _inconsistency(model)
    if odd:
        raise ConversionError("TFLite file contradicts itself", where=where, got=odd)
    _bring_in(model, raw, where)
    return model


def _bring_in(model: Any, raw: bytes, where: object) -> None:
    for buffer in _listed(model.buffers):
        if buffer.offset > 1:  # 0 and 1 both stand for "inside" in the schema
            end = buffer.offset + buffer.size
            if end > len(raw):
                got = f"{len(raw)} bytes, a constant up to {end}"
                raise ConversionError("TFLite file is truncated or damaged", where=where, got=got)
            buffer.data = np.frombuffer(raw, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0


def pack(model: Any) -> bytes:
    """Bytes of a ModelT; the same every time. Raises ConversionError from 2 GB on, which no flatbuffer holds."""
    n_bytes = sum(len(buffer.data) for buffer in model.buffers if buffer.data is not None)
    if n_bytes >= LARGEST:
        raise ConversionError("constants are too large for a flatbuffer", got=f"{n_bytes} bytes", allowed=LARGEST)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _inconsistency(model: Any) -> str:
    """The first number that names nothing; "" when there is none."""
    if not model.subgraphs:
        return "no subgraph"
    n_buffers, n_codes = len(model.buffers or ()), len(model.operatorCodes or ())
    for graph in model.subgraphs:
        n_tensors = len(_listed(graph.tensors))
        if any(not 0 <= tensor.buffer < n_buffers for tensor in _listed(graph.tensors)):
            return "a tensor names an absent buffer"
        for operator in _listed(graph.operators):
            if not 0 <= operator.opcodeIndex < n_codes:
                return "an operator names an absent operator code"
            named = [*_listed(operator.inputs), *_listed(operator.outputs)]
            if any(not -1 <= number < n_tensors for number in named):
                return "an operator names an absent tensor"
        if any(not 0 <= number < n_tensors for number in [*_listed(graph.inputs), *_listed(graph.outputs)]):
            return "an input or output names an absent tensor"
    return ""


def _listed(vector: Any) -> list[Any]:
    """A flatbuffer's vector, which is None when it is empty, and sometimes an array."""
    return [] if vector is None else list(vector)


def numbers(vector: Any) -> list[int]:
    """Tensor numbers of an operator or graph; −1 stands for an optional input that is absent."""
    return [int(number) for number in _listed(vector)]


def text(name: bytes | str | None) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else name or ""


def shape_of(tensor: Any) -> tuple[int, ...]:
    return tuple(numbers(tensor.shape))


@functools.cache
def _names(enumeration: type) -> dict[int, str]:
    return {value: name for name, value in vars(enumeration).items() if isinstance(value, int)}


def dtype_of(tensor: Any) -> str:
    """ "float32", "int8", "int4": the schema's word in small letters."""
    return _names(schema.TensorType).get(tensor.type, f"type {tensor.type}").lower()


def operator_name(model: Any, operator: Any) -> str:
    """ "FULLY_CONNECTED"; a custom operator by its own name."""
    code = model.operatorCodes[operator.opcodeIndex]
    number = flatbuffer_utils.get_builtin_code_from_operator_code(code)
    return text(code.customCode) or _names(schema.BuiltinOperator).get(number, f"operator {number}")


def constant(model: Any, tensor: Any) -> bytes | None:
    """Bytes of a constant; None for a tensor that is worked out."""
    data = model.buffers[tensor.buffer].data
    return None if data is None or not len(data) else np.asarray(data, np.uint8).tobytes()


def produced(graph: Any) -> set[int]:
    """Numbers of the tensors that operators write."""
    return {number for operator in _listed(graph.operators) for number in numbers(operator.outputs)}


def operators(graph: Any) -> Iterable[Any]:
    return _listed(graph.operators)


def tensors(graph: Any) -> list[Any]:
    return _listed(graph.tensors)

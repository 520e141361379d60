"""Sizes of SLICE written out, in the flatbuffer. XNNPACK leaves a SLICE to the builtin kernels when its size says −1
("to the end"), which is how onnx2tf writes a split; a graph then falls into several parts.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from convert import flatbuffer
from convert.flatbuffer import numbers, schema
from convert.fully_connected import drop_unused


def with_slice_sizes(raw: bytes, where: object = "") -> bytes:
    """The file with every −1 in a constant size replaced by what it comes to. Unchanged bytes when there is none.

    A graph with an input of free length keeps them. Raises ConversionError for a file that is none.
    """
    model = flatbuffer.unpack(raw, where)
    changed = False
    for graph in model.subgraphs:
        graph.tensors = flatbuffer.tensors(graph)
        # Of inputs alone: onnx2tf calls the lengths of a slice free though nothing before it is.
        if any(
            length < 0 for number in numbers(graph.inputs) for length in numbers(graph.tensors[number].shapeSignature)
        ):
            continue
        for operator in flatbuffer.operators(graph):
            if flatbuffer.operator_name(model, operator) == "SLICE" and _open_ended(model, graph, operator):
                source, begin, size = numbers(operator.inputs)
                operator.inputs = [source, begin, _size(model, graph, operator, size)]
                changed = True
    if not changed:
        return raw
    drop_unused(model)
    return flatbuffer.pack(model)


def _open_ended(model: Any, graph: Any, operator: Any) -> bool:
    """Whether the size is a constant with a −1."""
    size = flatbuffer.constant(model, graph.tensors[numbers(operator.inputs)[2]])
    return size is not None and -1 in np.frombuffer(size, _dtype(graph, operator))


def _dtype(graph: Any, operator: Any) -> str:
    wide = graph.tensors[numbers(operator.inputs)[2]].type == schema.TensorType.INT64
    return "<i8" if wide else "<i4"


def _size(model: Any, graph: Any, operator: Any, old: int) -> int:
    """The number of a new constant: the output's shape."""
    shape = np.array(flatbuffer.shape_of(graph.tensors[numbers(operator.outputs)[0]]), _dtype(graph, operator))
    model.buffers = [*model.buffers, schema.BufferT(data=np.frombuffer(shape.tobytes(), np.uint8))]
    tensor = graph.tensors[old]
    name = flatbuffer.text(tensor.name) + f"/{operator.outputs[0]}"  # several slices may have shared the old one
    graph.tensors.append(
        schema.TensorT(
            name=name,
            shape=[len(shape)],
            type=tensor.type,
            buffer=len(model.buffers) - 1,
            quantization=schema.QuantizationParametersT(),
        )
    )
    return len(graph.tensors) - 1

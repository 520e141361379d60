"""Inputs and outputs as the contract has them, where a tool names tensors after itself or gives out another.

TensorFlow writes "serving_default_query:0" and "PartitionedCall:1", litert-torch "serving_default_query", the quantizer
"scores_dequant". All of them keep the names in the file's signature.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from contract.errors import ConversionError
from convert import flatbuffer

INNER = "/inner"  # behind the name of a tensor inside that an input or output takes over


def named_by_signature(raw: bytes, renames: Mapping[str, str] | None = None, where: object = "") -> bytes:
    """The file with tensors named as its only signature names them. Unchanged bytes when they are already.

    renames: signature name -> the name to give, for signatures that number their outputs. Raises ConversionError for a
    file without exactly one signature.
    """
    model = flatbuffer.unpack(raw, where)
    signatures = model.signatureDefs or []
    if len(signatures) != 1 or len(model.subgraphs) != 1:
        raise ConversionError("names need one graph with one signature", where=where, got=len(signatures), allowed=1)
    wanted: dict[int, str] = {}
    for entry in (*(signatures[0].inputs or []), *(signatures[0].outputs or [])):
        name = flatbuffer.text(entry.name)
        entry.name = wanted[entry.tensorIndex] = (renames or {}).get(name, name)
    return flatbuffer.pack(model) if _rename(model.subgraphs[0], wanted) or renames else raw


def _rename(graph: Any, wanted: Mapping[int, str]) -> bool:
    """Whether a name changed. What else holds a wanted name gets a suffix, so that a name stands for one tensor."""
    changed = False
    for number, tensor in enumerate(flatbuffer.tensors(graph)):
        name = flatbuffer.text(tensor.name)
        target = wanted.get(number, name + INNER if name in wanted.values() else name)
        changed |= target != name
        tensor.name = target
    return changed


def float_outputs(raw: bytes, where: object = "") -> bytes:
    """The file with outputs that are merely a float tensor's copy in integers given out in float. Unchanged bytes when
    there are none.

    Where an output is also read by a layer that is static, ai-edge-quantizer 0.10.0 gives out that layer's int8 input.
    """
    model = flatbuffer.unpack(raw, where)
    moved: dict[int, int] = {}
    for graph in model.subgraphs:
        outputs, tensors = set(flatbuffer.numbers(graph.outputs)), flatbuffer.tensors(graph)
        copies = [op for op in flatbuffer.operators(graph) if flatbuffer.operator_name(model, op) == "QUANTIZE"]
        for operator in copies:
            (source,), (copy,) = flatbuffer.numbers(operator.inputs), flatbuffer.numbers(operator.outputs)
            if copy in outputs and flatbuffer.dtype_of(tensors[source]) == "float32":
                moved[copy] = source
        graph.outputs = [moved.get(number, number) for number in flatbuffer.numbers(graph.outputs)]
    if not moved or len(model.subgraphs) != 1:
        return raw
    for signature in model.signatureDefs or []:
        for entry in signature.outputs or []:
            entry.tensorIndex = moved.get(entry.tensorIndex, entry.tensorIndex)
    return flatbuffer.pack(model)

"""Ranges of activations as a static variant holds them: what it was calibrated to, read back from its scales.

So a static recipe can be changed and applied again without the pages it was calibrated on. Layers that the variant has
in float have no scale; their ranges come from what the float file gives on the samples at hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert import flatbuffer
from convert.quantize import Ranges
from convert.tensor_names import INNER

LIMITS = {"int8": (-128, 127), "int16": (-32767, 32767)}


def ranges_of(variant: Any, floats: Any, samples: Sequence[Mapping[str, NDArray[Any]]]) -> Ranges:
    """Tensor of the float file -> {"min", "max"}, arrays [1, …, 1] of its rank, as the quantizer takes them.

    variant, floats: unpacked models. samples: values of the float file's tensors, its inputs included.
    """
    tensors = flatbuffer.tensors(floats.subgraphs[0])
    rank = {flatbuffer.text(tensor.name): len(flatbuffer.shape_of(tensor)) for tensor in tensors}
    found: dict[str, tuple[float, float]] = {}
    for sample in samples:
        for name, value in sample.items():
            if name in rank and value.dtype.kind == "f" and value.size:
                low, high = found.get(name, (np.inf, -np.inf))
                found[name] = min(low, float(value.min())), max(high, float(value.max()))
    found.update({name: ends for name, ends in _held(variant).items() if name in rank})
    return {
        name: {
            end: np.full((1,) * rank[name], value, np.float32) for end, value in zip(("min", "max"), ends, strict=True)
        }
        for name, ends in found.items()
    }


def _held(variant: Any) -> dict[str, tuple[float, float]]:
    """Ranges in the variant's scales. A tensor that is quantised where it is read has them on its quantised copy."""
    graph = variant.subgraphs[0]
    tensors = flatbuffer.tensors(graph)
    found: dict[str, tuple[float, float]] = {}
    for operator in flatbuffer.operators(graph):
        copied = flatbuffer.operator_name(variant, operator) == "QUANTIZE"
        for number in flatbuffer.numbers(operator.outputs):
            ends = _ends(tensors[number])
            if ends is not None:
                named = tensors[flatbuffer.numbers(operator.inputs)[0]] if copied else tensors[number]
                found.setdefault(flatbuffer.text(named.name).removesuffix(INNER), ends)
    return found


def _ends(tensor: Any) -> tuple[float, float] | None:
    """Least and greatest value of a tensor with one scale; None for any other."""
    limits, told = LIMITS.get(flatbuffer.dtype_of(tensor)), tensor.quantization
    if limits is None or told is None or told.scale is None or len(told.scale) != 1:
        return None
    scale = float(told.scale[0])
    zero = int(told.zeroPoint[0]) if told.zeroPoint is not None and len(told.zeroPoint) else 0
    return (limits[0] - zero) * scale, (limits[1] - zero) * scale

"""Flatbuffers of a few layers, written by hand in microseconds, so that a test knows what is in them.

chain(): x [1, 4, 8] -> fc0 -> fc1 -> … -> y, each FULLY_CONNECTED with its own seeded weights and a bias.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from convert.flatbuffer import pack, unpack

WIDTH, ROWS = 8, 4
Array = NDArray[Any]
_TYPES = {"float32": schema.TensorType.FLOAT32, "int32": schema.TensorType.INT32, "int8": schema.TensorType.INT8}


class Net:
    """Tensors and operators by name, in the order they are added."""

    def __init__(self) -> None:
        self.model = schema.ModelT(version=3, description="by hand", buffers=[schema.BufferT()])
        self.model.operatorCodes, self.graph = [], schema.SubGraphT(name="main", tensors=[], operators=[])
        self.model.subgraphs = [self.graph]
        self.numbers: dict[str, int] = {}

    def tensor(self, name: str, shape: Sequence[int], dtype: str = "float32", value: Array | None = None) -> str:
        buffer = 0
        if value is not None:
            data = np.frombuffer(np.ascontiguousarray(value, dtype).tobytes(), np.uint8)
            self.model.buffers.append(schema.BufferT(data=data))
            buffer = len(self.model.buffers) - 1
        self.numbers[name] = len(self.graph.tensors)
        quantization = schema.QuantizationParametersT()
        tensor = schema.TensorT(list(shape), _TYPES[dtype], buffer, name, quantization)
        self.graph.tensors.append(tensor)
        return name

    def operator(self, kind: str, inputs: Sequence[str], output: str, options: str = "", **settings: Any) -> str:
        code = schema.OperatorCodeT(builtinCode=getattr(schema.BuiltinOperator, kind))
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        self.model.operatorCodes.append(code)
        one = schema.OperatorT(len(self.model.operatorCodes) - 1)
        one.inputs, one.outputs = [self.numbers[name] for name in inputs], [self.numbers[output]]
        if options:
            one.builtinOptionsType = getattr(schema.BuiltinOptions, options)
            one.builtinOptions = getattr(schema, f"{options}T")(**settings)
        self.graph.operators.append(one)
        return output

    def bytes(self, inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
        def maps(names: Sequence[str]) -> list[Any]:
            return [schema.TensorMapT(name, self.numbers[name]) for name in names]

        self.graph.inputs = [self.numbers[name] for name in inputs]
        self.graph.outputs = [self.numbers[name] for name in outputs]
        self.model.signatureDefs = [schema.SignatureDefT(maps(inputs), maps(outputs), "serving_default", 0)]
        return pack(self.model)


def weights(layer: int, seed: int = 0) -> Array:
    """[WIDTH, WIDTH] of layer `layer`, so scaled that a chain neither dies out nor blows up."""
    return np.random.default_rng([seed, layer]).normal(size=(WIDTH, WIDTH)) / np.sqrt(WIDTH)


def bias(layer: int) -> Array:
    """[WIDTH]; none on the first unit, which `loud` makes quiet."""
    return np.where(np.arange(WIDTH) == 0, 0.0, 0.1 * layer)


def chain(layers: int = 4, change: Callable[[int, Array], Array] = lambda layer, value: value) -> bytes:
    """`change` may alter the weights of a layer. Tensors: x, fc<i>_w, fc<i>_b, fc<i>; the last one is y."""
    net = Net()
    at = net.tensor("x", (1, ROWS, WIDTH))
    for i in range(layers):
        net.tensor(f"fc{i}_w", (WIDTH, WIDTH), value=change(i, weights(i)))
        net.tensor(f"fc{i}_b", (WIDTH,), value=bias(i))
        out = net.tensor("y" if i == layers - 1 else f"fc{i}", (1, ROWS, WIDTH))
        operands = (at, f"fc{i}_w", f"fc{i}_b")
        at = net.operator("FULLY_CONNECTED", operands, out, "FullyConnectedOptions", keepNumDims=True)
    return net.bytes(["x"], [at])


def write_chain(
    path: Path, layers: int = 4, change: Callable[[int, Array], Array] = lambda layer, value: value
) -> Path:
    path.write_bytes(chain(layers, change))
    return path


def loud(factor: float = 100.0) -> Callable[[int, Array], Array]:
    """The net as it was, and yet int8 loses every second layer (fc1, …): one column is so much louder that a row's step
    rounds the others off. What the column reads, the layer before makes quieter by as much.
    """

    def change(layer: int, value: Array) -> Array:
        value = value.copy()
        if layer % 2 == 0:
            value[0] /= factor
        else:
            value[:, 0] *= factor
        return value

    return change


def scaled(layer: int, factor: float = 1.01) -> Callable[[int, Array], Array]:
    """The planted fault: all weights of one layer times `factor`."""
    return lambda at, value: value * factor if at == layer else value


def edited(raw: bytes, change: Callable[[Any], None]) -> bytes:
    """Let `change` have the unpacked model, and pack it again."""
    model = unpack(raw)
    change(model)
    return pack(model)


def samples(n: int = 3, seed: int = 5) -> list[dict[str, Array]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(size=(1, ROWS, WIDTH)).astype(np.float32)} for _ in range(n)]

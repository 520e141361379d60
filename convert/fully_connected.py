"""BATCH_MATMUL by a constant, and the ADD of a constant behind it -> FULLY_CONNECTED, in the flatbuffer.

That is how onnx2tf's flatbuffer_direct writes a Linear layer on inputs of rank 3 and more. In float both forms are as
fast, but recipes need the second: LiteRT has int4 and float16 weights for FULLY_CONNECTED alone, XNNPACK takes static
int8 there alone, and a static int8 BATCH_MATMUL by a constant, which the quantizer writes with a scale per channel,
gives noise (docs/conversion.md has the figures).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert import flatbuffer
from convert.flatbuffer import numbers, schema

CODE = schema.BuiltinOperator.FULLY_CONNECTED
CODE_VERSION = 5  # the first with keep_num_dims


def to_fully_connected(raw: bytes, where: object = "") -> bytes:
    """A float file with the same tensors in and out, in which every product by a constant matrix is FULLY_CONNECTED.

    Tensor names stay; where an ADD was taken in as bias, its output's name does. Raises ConversionError for a file
    that is none.
    """
    model = flatbuffer.unpack(raw, where)
    for graph in model.subgraphs:
        _Rewriter(model, graph).run()
    drop_unused(model)
    return flatbuffer.pack(model)


@dataclass(frozen=True)
class _Product:
    """x [..., K] by a constant: weights [N, K] as FULLY_CONNECTED has them, and the suffix of their name."""

    operator: Any
    x: int
    source: int
    weights_NK: NDArray[np.float32]
    suffix: str


class _Rewriter:
    def __init__(self, model: Any, graph: Any):
        self.model, self.graph = model, graph
        self.graph.tensors = flatbuffer.tensors(graph)
        self.readers = _readers(graph)
        self.outputs = Counter(numbers(graph.outputs))
        self.made: dict[tuple[int, str], int] = {}  # constant as it was, and what for -> as FULLY_CONNECTED reads it
        self.gone: set[int] = set()  # id of the ADDs that became a bias
        self.code = -1

    def run(self) -> None:
        for operator in flatbuffer.operators(self.graph):
            product = self._product(operator)
            if product is not None:
                self._rewrite(product)
        self.graph.operators = [one for one in flatbuffer.operators(self.graph) if id(one) not in self.gone]

    def _product(self, operator: Any) -> _Product | None:
        """None for operators that are no product of a float tensor and a constant matrix."""
        if flatbuffer.operator_name(self.model, operator) != "BATCH_MATMUL" or operator.builtinOptions.adjX:
            return None
        x, source = numbers(operator.inputs)
        matrix = self._floats(source)
        if matrix is None or matrix.ndim != 2 or self._floats(x) is not None:
            return None
        if operator.builtinOptions.adjY:
            return _Product(operator, x, source, matrix, "/rows")
        return _Product(operator, x, source, matrix.T, "/transposed")

    def _rewrite(self, product: _Product) -> None:
        operator, out, bias, activation = product.operator, numbers(product.operator.outputs)[0], -1, 0
        add = self._bias_of(out, len(product.weights_NK))
        if add is not None:
            (constant,) = (number for number in numbers(add.inputs) if number != out)
            bias = self._constant(constant, "/bias", self._floats(constant).reshape(-1))
            out, activation = numbers(add.outputs)[0], add.builtinOptions.fusedActivationFunction
            self.gone.add(id(add))
        weights = self._constant(product.source, product.suffix, product.weights_NK)
        operator.opcodeIndex, operator.inputs, operator.outputs = self._code(), [product.x, weights, bias], [out]
        operator.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
        operator.builtinOptions = schema.FullyConnectedOptionsT(fusedActivationFunction=activation, keepNumDims=True)

    def _bias_of(self, product: int, n: int) -> Any:
        """The one ADD of a constant [n] that reads a product, when nothing else does."""
        readers = self.readers.get(product, [])
        if len(readers) != 1 or self.outputs[product]:
            return None
        (add,) = readers
        others = [number for number in numbers(add.inputs) if number != product]
        if flatbuffer.operator_name(self.model, add) != "ADD" or len(others) != 1:
            return None
        values = self._floats(others[0])
        shapes = [flatbuffer.shape_of(self.graph.tensors[i]) for i in (product, numbers(add.outputs)[0])]
        return add if values is not None and values.size == n and shapes[0] == shapes[1] else None

    def _floats(self, number: int) -> Any:
        """A float32 constant; None for what is worked out, and for other types."""
        tensor = self.graph.tensors[number]
        raw = flatbuffer.constant(self.model, tensor)
        if raw is None or tensor.type != schema.TensorType.FLOAT32:
            return None
        return np.frombuffer(raw, "<f4").reshape(flatbuffer.shape_of(tensor))

    def _constant(self, source: int, suffix: str, values: NDArray[np.float32]) -> int:
        """The number of a new constant made of an old one, once per old one and use."""
        if (source, suffix) not in self.made:
            raw = np.ascontiguousarray(values, "<f4").tobytes()
            self.model.buffers = [*self.model.buffers, schema.BufferT(data=np.frombuffer(raw, np.uint8))]
            self.graph.tensors.append(
                schema.TensorT(
                    name=flatbuffer.text(self.graph.tensors[source].name) + suffix,
                    shape=list(values.shape),
                    type=schema.TensorType.FLOAT32,
                    buffer=len(self.model.buffers) - 1,
                    quantization=schema.QuantizationParametersT(),
                )
            )
            self.made[source, suffix] = len(self.graph.tensors) - 1
        return self.made[source, suffix]

    def _code(self) -> int:
        if self.code < 0:
            code = schema.OperatorCodeT(builtinCode=CODE, deprecatedBuiltinCode=CODE, version=CODE_VERSION)
            self.model.operatorCodes = [*self.model.operatorCodes, code]
            self.code = len(self.model.operatorCodes) - 1
        return self.code


def _readers(graph: Any) -> dict[int, list[Any]]:
    """Tensor number -> the operators that read it, one entry per reading."""
    found: dict[int, list[Any]] = {}
    for operator in flatbuffer.operators(graph):
        for number in numbers(operator.inputs):
            found.setdefault(number, []).append(operator)
    return found


def drop_unused(model: Any) -> None:
    """Take out tensors, buffers and operator codes that nothing names; everything else is numbered anew."""
    codes = sorted({operator.opcodeIndex for graph in model.subgraphs for operator in flatbuffer.operators(graph)})
    model.operatorCodes = [model.operatorCodes[number] for number in codes]
    for index, graph in enumerate(model.subgraphs):
        operators = list(flatbuffer.operators(graph))
        named = (numbers(vector) for one in operators for vector in (one.inputs, one.outputs))
        used = {number for vector in (*named, numbers(graph.inputs), numbers(graph.outputs)) for number in vector}
        kept = sorted(used - {-1})
        graph.tensors = [flatbuffer.tensors(graph)[number] for number in kept]
        new = {old: number for number, old in enumerate(kept)} | {-1: -1}
        for operator in operators:
            operator.opcodeIndex = codes.index(operator.opcodeIndex)
            operator.inputs = _renumbered(operator.inputs, new)
            operator.outputs = _renumbered(operator.outputs, new)
        graph.inputs, graph.outputs = _renumbered(graph.inputs, new), _renumbered(graph.outputs, new)
        for signature in model.signatureDefs or []:
            if signature.subgraphIndex == index:
                for entry in (*(signature.inputs or []), *(signature.outputs or [])):
                    entry.tensorIndex = new[entry.tensorIndex]
    _drop_unused_buffers(model)


def _renumbered(vector: Any, new: dict[int, int]) -> list[int]:
    return [new[number] for number in numbers(vector)]


def _drop_unused_buffers(model: Any) -> None:
    """Buffer 0 is the empty one by convention and stays."""
    holders: Iterable[Any] = [
        *(tensor for graph in model.subgraphs for tensor in graph.tensors),
        *(model.metadata or []),
    ]
    kept = sorted({0} | {holder.buffer for holder in holders})
    new = {old: number for number, old in enumerate(kept)}
    model.buffers = [model.buffers[number] for number in kept]
    for holder in holders:
        holder.buffer = new[holder.buffer]

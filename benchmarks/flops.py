"""Matrix products of an ONNX graph, counted, and the least time this core can need for them.

The floor is arithmetic alone: every product at its own shape, by the quicker of torch and onnxruntime, its operands hot
in the cache, nothing in between. A graph also reads its weights from further away, and has norms, softmax and sums.

A product is batch x [m, k] @ [k, n], 2 · batch · m · k · n floating-point operations.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from contract.errors import InputError

BURST_S = 4e-4  # calls of one product are timed together, at least so long


@dataclass(frozen=True, order=True)
class Product:
    """batch independent products [m, k] @ [k, n]."""

    batch: int
    m: int
    k: int
    n: int

    @property
    def flops(self) -> int:
        return 2 * self.batch * self.m * self.k * self.n


def products_of(model: Any, batch: int) -> Counter[Product]:
    """How often a graph works out each product, at `batch` rows of its free axis.

    model: onnx.ModelProto before a runtime fuses anything; MatMul, Gemm and Attention (opset 23) are counted. Raises
    InputError where a shape stays open.
    """
    import onnx

    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in (*fixed.graph.input, *fixed.graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param:
                dimension.dim_value = batch
    inferred = onnx.shape_inference.infer_shapes(fixed, strict_mode=True, data_prop=True)
    shapes = {constant.name: tuple(constant.dims) for constant in inferred.graph.initializer}
    for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        shapes[value.name] = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
    found: Counter[Product] = Counter()
    for node in inferred.graph.node:
        if node.op_type in ("MatMul", "Gemm", "Attention"):
            sides = [shapes.get(name, ()) for name in node.input[:3]]
            if any(size < 1 for side in sides[:2] for size in side) or not sides[0]:
                raise InputError("a shape of the graph stays open", where=node.name, got=sides)
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            found.update(_of_node(node.op_type, sides, attributes))
    return found


def _of_node(kind: str, sides: list[tuple[int, ...]], attributes: Mapping[str, Any]) -> list[Product]:
    a, b = sides[0], sides[1]
    if kind == "Attention":  # inputs [B, T, H * E]
        heads, key_heads = attributes["q_num_heads"], attributes["kv_num_heads"]
        width, value_width = a[2] // heads, sides[2][2] // key_heads
        both = a[0] * heads
        return [Product(both, a[1], width, b[1]), Product(both, a[1], b[1], value_width)]
    if kind == "Gemm":
        m, k = a[::-1] if attributes.get("transA") else a
        n = b[0] if attributes.get("transB") else b[1]
        return [Product(1, m, k, n)]
    if len(b) == 2:  # one weight for all rows: a single product
        return [Product(1, math.prod(a[:-1]), a[-1], b[1])]
    return [Product(math.prod(np.broadcast_shapes(a[:-2], b[:-2])), a[-2], a[-1], b[-1])]


def total_flops(products: Mapping[Product, int]) -> int:
    return sum(product.flops * count for product, count in products.items())


@dataclass
class Floor:
    """Times every distinct product again at each `seconds()`; one thread, CPU time of the calling thread.

    Callers keep torch on one thread.
    """

    products: Mapping[Product, int]
    bfloat16: bool = False
    _calls: dict[Product, list[tuple[Callable[[], Any], int]]] = field(default_factory=dict)
    _overhead: Callable[[], Any] | None = None

    def __post_init__(self) -> None:
        for product in self.products:
            calls = [_by_torch(product, self.bfloat16)]
            if not self.bfloat16:
                calls.append(_by_onnxruntime(product))
            self._calls[product] = [(call, _repeats(call)) for call in calls]
        self._overhead = None if self.bfloat16 else _by_onnxruntime(Product(1, 1, 1, 1))

    def seconds(self) -> float:
        """The least time of all products now: of each, the quicker library's; what calling onnxruntime costs is not
        counted."""
        overhead = _timed(self._overhead, 50) if self._overhead else 0.0
        total = 0.0
        for product, count in self.products.items():
            times = [_timed(call, repeats) for call, repeats in self._calls[product]]
            if len(times) > 1:
                times[1] = max(times[1] - overhead, 0.5 * times[1])
            total += count * min(times)
        return total


def _timed(call: Callable[[], Any], repeats: int) -> float:
    """Seconds of CPU a call: the middle one of three bursts."""
    bursts = []
    for _ in range(3):
        start = time.thread_time()
        for _ in range(repeats):
            call()
        bursts.append((time.thread_time() - start) / repeats)
    return sorted(bursts)[1]


def _repeats(call: Callable[[], Any]) -> int:
    for _ in range(3):
        call()
    return max(1, round(BURST_S / max(_timed(call, 2), 1e-7)))


def _by_torch(product: Product, bfloat16: bool) -> Callable[[], Any]:
    import torch

    dtype = torch.bfloat16 if bfloat16 else torch.float32
    a = torch.randn(product.batch, product.m, product.k).to(dtype)
    b = torch.randn(product.batch, product.n, product.k).to(dtype)
    if product.batch == 1:
        return lambda: torch.nn.functional.linear(a[0], b[0])
    transposed = b.transpose(1, 2)
    return lambda: torch.bmm(a, transposed)


def _by_onnxruntime(product: Product) -> Callable[[], Any]:
    """A graph of that one product; where it stands once its right side is a constant, packed at loading."""
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    one = product.batch == 1
    a = rng.normal(size=(product.m, product.k) if one else (product.batch, product.m, product.k)).astype(np.float32)
    b = rng.normal(size=(product.k, product.n) if one else (product.batch, product.k, product.n)).astype(np.float32)
    inputs = [helper.make_tensor_value_info("a", TensorProto.FLOAT, a.shape)]
    constants = [numpy_helper.from_array(b, "b")] if one else []
    if not one:
        inputs.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, b.shape))
    output = helper.make_tensor_value_info("c", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "product", inputs, [output], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {"a": a} if one else {"a": a, "b": b}
    return lambda: session.run(None, feeds)

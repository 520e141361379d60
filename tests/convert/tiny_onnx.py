"""ONNX graphs of a few nodes, written by hand. Their bent node is Elu by default, which onnx2tf 2.6.9 converts as if
alpha were 1: a real fault, which it does not tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from tests.convert.tiny_tflite import Net

Array = NDArray[Any]
SHAPE = (1, 4, 6)
BIAS = np.linspace(-1, 1, 6).astype(np.float32)
BENT = helper.make_node("Elu", ["biased"], ["bent"], name="bend", alpha=0.3)
SOUND = helper.make_node("Relu", ["biased"], ["bent"], name="bend")


def weights(seed: int) -> Array:
    return np.random.default_rng(seed).normal(size=(6, 6)).astype(np.float32)


def write_net(path: Path, bend: Any = BENT, outputs: Sequence[str] = ("y",)) -> Path:
    """x [1, 4, 6] -> MatMul first -> Add biased -> bent -> MatMul second -> Softmax y."""
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["first"], name="multiply"),
        helper.make_node("Add", ["first", "b"], ["biased"], name="add"),
        bend,
        helper.make_node("MatMul", ["bent", "w2"], ["second"], name="multiply_again"),
        helper.make_node("Softmax", ["second"], ["y"], name="share", axis=-1),
    ]
    constants = {"w1": weights(1), "b": BIAS, "w2": weights(2)}
    return write(path, nodes, {"x": SHAPE}, outputs, constants)


def write(
    path: Path,
    nodes: Sequence[Any],
    inputs: dict[str, Sequence[int]],
    outputs: Sequence[str],
    constants: dict[str, Array],
) -> Path:
    floats = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        list(nodes),
        "tiny",
        [helper.make_tensor_value_info(name, floats, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, floats, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 9
    path.write_bytes(onnx.shape_inference.infer_shapes(model).SerializeToString())
    return path


def samples(n: int = 2, seed: int = 7) -> list[dict[str, Array]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(size=SHAPE).astype(np.float32)} for _ in range(n)]


def convert(
    source: Path,
    target: Path,
    inputs: Sequence[Any],
    *,
    wrong: str = "",
    swapped: Sequence[str] = (),
    renamed: Mapping[str, str] | None = None,
) -> None:
    """A converter for the operators here, quick and right, but for the faults asked for.

    wrong: an operator whose results are doubled; swapped: inputs whose last two axes are exchanged; renamed: outputs.
    """
    model = onnx.shape_inference.infer_shapes(onnx.load(str(source)))
    graph, net, names = model.graph, Net(), dict(renamed or {})
    told = [*graph.input, *graph.value_info, *graph.output]
    shapes = {one.name: [dim.dim_value for dim in one.type.tensor_type.shape.dim] for one in told}
    for one in graph.initializer:
        value = numpy_helper.to_array(one)
        net.tensor(one.name, value.shape, value=value)
    for tensor in inputs:
        _input(net, tensor.name, shapes[tensor.name], tensor.name in swapped)
    for node in graph.node:
        out, shape = names.get(node.output[0], node.output[0]), shapes[node.output[0]]
        kind, options = {
            "MatMul": ("BATCH_MATMUL", "BatchMatMulOptions"),
            "Add": ("ADD", "AddOptions"),
            "Relu": ("RELU", ""),
            "Softmax": ("SOFTMAX", "SoftmaxOptions"),
        }[node.op_type]
        settings = {"beta": 1.0} if node.op_type == "Softmax" else {}
        net.tensor(out + "/half" if node.op_type == wrong else out, shape)
        operands = [f"{name}/kept" if name in swapped else name for name in node.input]
        net.operator(kind, operands, out + "/half" if node.op_type == wrong else out, options, **settings)
        if node.op_type == wrong:
            net.tensor(out, shape)
            net.operator("ADD", [out + "/half"] * 2, out, "AddOptions")
    outputs = [names.get(value.name, value.name) for value in graph.output]
    target.write_bytes(net.bytes([tensor.name for tensor in inputs], outputs))


def _input(net: Net, name: str, shape: Sequence[int], swapped: bool) -> None:
    if not swapped:
        net.tensor(name, shape)
        return
    net.tensor(name, (*shape[:-2], shape[-1], shape[-2]))
    net.tensor(
        f"{name}/order", (len(shape),), "int32", np.array([*range(len(shape) - 2), len(shape) - 1, len(shape) - 2])
    )
    net.tensor(f"{name}/kept", shape)
    net.operator("TRANSPOSE", (name, f"{name}/order"), f"{name}/kept", "TransposeOptions")

"""An ONNX file taken apart: loaded and checked, and sub-models cut out of it, with the shapes of one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.errors import ConversionError, InputError


def load_onnx(path: str | Path) -> Any:
    """The model, checked. Raises InputError for an absent file, ConversionError for a damaged one."""
    import onnx

    if not Path(path).is_file():
        raise InputError("no such file", where=path)
    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf's and onnx's own types
        raise ConversionError("not a valid ONNX file", where=path, got=str(error)) from None
    return model


def dtype_of(onnxruntime_type: str) -> np.dtype[Any]:
    """ "tensor(float)" -> float32."""
    name = onnxruntime_type.removeprefix("tensor(").removesuffix(")")
    return np.dtype({"float": "float32", "double": "float64"}.get(name, name))


@dataclass(frozen=True)
class Piece:
    """A sub-model. inputs, outputs: names of its tensors; nodes: places in the whole graph."""

    model: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[int, ...]


class OnnxParts:
    """A graph as producers and readers. values: every tensor of one run, which give the pieces their shapes."""

    def __init__(self, model: Any, values: Mapping[str, NDArray[Any]]):
        self.model, self.values = model, values
        self.nodes = list(model.graph.node)
        constants = {one.name for one in model.graph.initializer}
        self.inputs = tuple(value.name for value in model.graph.input if value.name not in constants)
        self._outputs = tuple(value.name for value in model.graph.output)
        self.producer = {name: i for i, node in enumerate(self.nodes) for name in node.output if name}
        # What follows from constants alone is no activation: it is never fed nor compared.
        fixed = set(constants)
        for node in self.nodes:
            if all(not name or name in fixed for name in node.input):
                fixed |= set(node.output)
        self._fixed = fixed

    def prefix(self, last: int) -> Piece | None:
        """Nodes 0 … last; its outputs are the float tensors read behind it, and the graph's own. None without any."""
        read = {name for node in self.nodes[last + 1 :] for name in node.input} | set(self._outputs)
        written = [name for node in self.nodes[: last + 1] for name in node.output]
        return self.piece(self.inputs, [name for name in written if name in read and self._comparable(name)])

    def cone(self, outputs: Sequence[str], depth: int) -> Piece | None:
        """What lies up to `depth` nodes before `outputs`; tensors on its rim become inputs."""
        inside, rim = set[int](), list(outputs)
        for _ in range(depth):
            level = {self.producer[name] for name in rim if name in self.producer} - inside
            inside |= level
            rim = [name for i in sorted(level) for name in self.nodes[i].input]
        read = [name for i in sorted(inside) for name in self.nodes[i].input]
        rim = [n for n in dict.fromkeys(read) if n and n not in self._fixed and self.producer.get(n, -1) not in inside]
        return self.piece(rim, list(outputs))

    def piece(self, inputs: Sequence[str], outputs: Sequence[str]) -> Piece | None:
        """The sub-model between tensors, all of them with the static shapes of the run. None without outputs."""
        import onnx

        if not outputs:
            return None
        inside, waiting = set[int](), list(outputs)
        while waiting:
            name = waiting.pop()
            place = self.producer.get(name, -1)
            if place < 0 or place in inside or name in inputs:
                continue
            inside.add(place)
            waiting += self.nodes[place].input
        nodes = [self.nodes[i] for i in sorted(inside)]
        read = {name for node in nodes for name in node.input}
        used = [name for name in inputs if name in read]
        graph = onnx.helper.make_graph(
            nodes,
            "piece",
            [self._info(name) for name in used],
            [self._info(name) for name in outputs],
            [one for one in self.model.graph.initializer if one.name in read],
        )
        model = onnx.helper.make_model(graph, opset_imports=list(self.model.opset_import))
        model.ir_version = self.model.ir_version
        return Piece(onnx.shape_inference.infer_shapes(model), tuple(used), tuple(outputs), tuple(sorted(inside)))

    def describe(self, place: int) -> str:
        """ "Elu '/act/Elu' (node 3)"."""
        node = self.nodes[place]
        return f"{node.op_type} '{node.name or node.output[0]}' (node {place})"

    def _comparable(self, name: str) -> bool:
        """Floats; integers and flags only as the graph's own outputs: in between they are shapes and places."""
        kinds = "fiub" if name in self._outputs else "f"
        return name in self.values and self.values[name].dtype.kind in kinds and name not in self._fixed

    def _info(self, name: str) -> Any:
        import onnx

        value = self.values[name]
        return onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)

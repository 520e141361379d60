"""torch -> ONNX: fixed names, opset 20, one self-contained file, the same bytes every time.

Opset 20 because GELU is an operator there (18 spells it with Erf, 23 keeps fused attention: neither loads in LiteRT).

The tracing exporter, on purpose: on KIR's graphs it takes 0.1-0.4 s of CPU where the dynamo exporter takes 2.5-6 s, and
after onnx2tf both give the same operators and the same numbers (docs/conversion.md). It writes down one run, so a
graph must not branch on data; the verification chain compares it with eager torch on other inputs. The dynamo exporter
is the choice for a module that tracing can't follow (`convert/frontends`).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from contract.errors import ConversionError
from contract.manifest import Tensor
from convert.quiet import quiet

OPSET = 20
TRACE, DYNAMO = "trace", "dynamo"


@dataclass(frozen=True)
class TorchGraph:
    """One graph to export: a module whose forward takes `inputs` by name and gives `outputs` in order.

    inputs: example tensors; their shapes are the graph's. dynamic: input or output name -> {axis: name of its free
    length}, for the server's graphs only.
    """

    name: str
    bucket: str
    module: nn.Module
    inputs: Mapping[str, torch.Tensor]
    outputs: tuple[str, ...]
    dynamic: Mapping[str, Mapping[int, str]] | None = None

    @property
    def key(self) -> str:
        """ "swipe/N24"; the bare name when there is no bucket."""
        return f"{self.name}/{self.bucket}" if self.bucket else self.name

    @property
    def file_stem(self) -> str:
        return self.key.replace("/", "-")

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """The reference: eager torch on numpy arrays, by name."""
        with torch.no_grad():
            found = self.module(**{name: torch.as_tensor(feeds[name]) for name in self.inputs})
        found = found if isinstance(found, tuple) else (found,)
        return {name: tensor.numpy() for name, tensor in zip(self.outputs, found, strict=True)}

    def contract(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Input and output tensors with static shapes, from one run on the examples."""
        inputs = tuple(Tensor(name, tuple(t.shape), _dtype(t)) for name, t in self.inputs.items())
        with torch.no_grad():
            found = self.module(**self.inputs)
        found = found if isinstance(found, tuple) else (found,)
        if len(found) != len(self.outputs):
            raise ConversionError(
                "graph gives another number of outputs", where=self.key, got=len(found),
                allowed=f"{len(self.outputs)}: {', '.join(self.outputs)}",
            )  # fmt: skip
        outputs = tuple(Tensor(n, tuple(t.shape), _dtype(t)) for n, t in zip(self.outputs, found, strict=True))
        return inputs, outputs


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def export_onnx(graph: TorchGraph, path: str | Path, exporter: str = TRACE, opset: int = OPSET) -> Path:
    """Export and write; inputs in the order of the module's own signature. Raises ConversionError, also when names come
    out otherwise. exporter: TRACE, or DYNAMO (for fixed shapes only)."""
    import onnx

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    graph.module.eval()
    inputs = in_signature_order(graph)
    with quiet(f"ONNX export of {graph.key}"):
        torch.onnx.export(
            graph.module,
            args=(),
            kwargs=inputs,
            f=str(path),
            opset_version=opset,
            input_names=list(inputs),
            output_names=list(graph.outputs),
            **_exporter_settings(graph, exporter),
        )
        model = onnx.load(str(path))
        if not graph.dynamic and _foldable(model.graph):
            model = _folded(model)
        _merge_constants(model.graph)
        onnx.checker.check_model(model)
        path.write_bytes(model.SerializeToString(deterministic=True))
    names = [value.name for value in model.graph.input], [value.name for value in model.graph.output]
    if names != (list(inputs), list(graph.outputs)):
        allowed = (list(inputs), list(graph.outputs))
        raise ConversionError("ONNX names differ from the contract", where=path, got=names, allowed=allowed)
    return path


def in_signature_order(graph: TorchGraph) -> dict[str, torch.Tensor]:
    """Example inputs as the module's forward names them: the tracing exporter deals names out in that order, whatever
    order it is given them in, and would put a name on the wrong input."""
    order = [name for name in inspect.signature(graph.module.forward).parameters if name in graph.inputs]
    return {name: graph.inputs[name] for name in (*order, *(n for n in graph.inputs if n not in order))}


def _exporter_settings(graph: TorchGraph, exporter: str) -> dict[str, Any]:
    if exporter == TRACE:
        axes = {name: dict(axes) for name, axes in (graph.dynamic or {}).items()}
        return {"dynamo": False, "dynamic_axes": axes}
    if exporter != DYNAMO or graph.dynamic:
        raise ConversionError("no such export", where=graph.key, got=exporter, allowed=f"{TRACE}; {DYNAMO} if static")
    return {"dynamo": True, "external_data": False, "verbose": False}


def _foldable(graph: Any) -> bool:
    """Whether something is worked out from constants or shapes alone. onnx2tf takes what shapes feed for dynamic and
    silently makes axes 1; a product of two constants is quantised on both sides, which LiteRT refuses."""
    fixed = {constant.name for constant in graph.initializer}
    for node in graph.node:
        known = all(name in fixed for name in node.input if name)
        if node.op_type in ("Constant", "Identity") and known:
            fixed.update(node.output)
        elif known or node.op_type in ("Shape", "Size"):
            return True
    return False


def _folded(model: Any) -> Any:
    """What the fixed input shapes decide, worked out once."""
    import onnxsim

    found, agrees = onnxsim.simplify(model)
    if not agrees:
        raise ConversionError("folding shapes changed what the graph computes", got="onnxsim's own check failed")
    return found


def _merge_constants(graph: Any) -> None:
    """Keep one of equal constants, read directly. Tracing writes one down per reader, and of equal weights one with an
    Identity for each other, through which onnx2tf's TensorFlow backend loses the order of values."""
    for node in [node for node in graph.node if node.op_type == "Constant" and node.attribute[0].name == "value"]:
        constant = graph.initializer.add()
        constant.CopyFrom(node.attribute[0].t)
        constant.name = node.output[0]
        graph.node.remove(node)
    first: dict[bytes, str] = {}
    names: dict[str, str] = {}
    kept = []
    for constant in graph.initializer:
        name, constant.name = constant.name, ""
        content = constant.SerializeToString(deterministic=True)
        constant.name = name
        names[name] = first.setdefault(content, name)
        if names[name] == name:
            kept.append(constant)
    del graph.initializer[:]
    graph.initializer.extend(kept)
    outputs = {value.name for value in graph.output}
    for node in [node for node in graph.node if node.op_type == "Identity" and node.output[0] not in outputs]:
        if node.input[0] in names:
            names[node.output[0]] = names[node.input[0]]
            graph.node.remove(node)
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = names.get(name, name)


class OnnxGraph:
    """An ONNX file in onnxruntime, one thread, run by name."""

    def __init__(self, path: str | Path, threads: int = 1):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises its own types, which share no base
            raise ConversionError("onnxruntime refuses the file", where=path, got=str(error)) from None
        self.inputs = tuple(value.name for value in self._session.get_inputs())
        self.outputs = tuple(value.name for value in self._session.get_outputs())

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        found = self._session.run(None, {name: feeds[name] for name in self.inputs})
        return dict(zip(self.outputs, found, strict=True))

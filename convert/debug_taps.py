"""Every tensor between input and output of a graph, as numbers: of a .tflite as XNNPACK runs it, and of an ONNX file.

The tensors are made outputs of a copy of the file. That keeps the delegate, and the outputs bit for bit those of the
file that ships. Preserving all tensors, as the quantizer's own validator does (`ai_edge_quantizer.model_validator`),
means the builtin kernels: their dynamic int8 has another noise than XNNPACK's, up to three times it on KIR's graphs.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.errors import ConversionError, InputError
from convert import flatbuffer
from convert.quiet import quiet

Feeds = Mapping[str, NDArray[Any]]
Arrays = dict[str, NDArray[Any]]
NUMERIC = ("float32", "float16", "int8", "int16", "uint8")  # values, not places: int32 and int64 are indices and shapes


@dataclass(frozen=True)
class Layer:
    """An operator of the variant. name: its output tensor, which recipes' patterns are matched against."""

    place: int
    operator: str
    name: str


class TensorRunner:
    """A .tflite in LiteRT, one thread: real numbers in and out by tensor name, quantised on the way in and back out."""

    def __init__(self, raw: bytes, where: object):
        from ai_edge_quantizer.utils import tfl_interpreter_utils as theirs

        self.where, self._theirs = where, theirs
        try:
            with quiet(f"loading {where}"):
                self._interpreter = theirs.create_tfl_interpreter(raw, num_threads=1, preserve_all_tensors=False)
        except ConversionError as error:
            raise ConversionError("LiteRT refuses the file", where=where, got=error.got) from None
        self.inputs = {detail["name"]: detail for detail in self._interpreter.get_input_details()}
        self._outputs = {detail["name"]: detail for detail in self._interpreter.get_output_details()}

    def feed(self, name: str, value: NDArray[Any]) -> None:
        """Raises InputError for a shape that is not the tensor's."""
        detail = self.inputs[name]
        if tuple(value.shape) != tuple(detail["shape"]):
            raise InputError(
                f"input '{name}' has another shape", where=self.where, got=list(value.shape),
                allowed=[int(n) for n in detail["shape"]],
            )  # fmt: skip
        if value.dtype.kind == "f" and self._theirs.has_quantization_params(detail):
            from ai_edge_quantizer.algorithms.uniform_quantize import uniform_quantize_tensor
            from ai_edge_quantizer.qtyping import UniformQuantParams

            params = UniformQuantParams.from_tfl_tensor_details(detail)
            value = uniform_quantize_tensor.uniform_quantize(value, params)
        self._interpreter.set_tensor(detail["index"], np.ascontiguousarray(value, detail["dtype"]))

    def run(self, feeds: Feeds) -> Arrays:
        """Outputs by name. Raises InputError for an input that is missing."""
        if not set(self.inputs) <= set(feeds):
            raise InputError("inputs are missing", where=self.where, got=sorted(feeds), allowed=sorted(self.inputs))
        for name in self.inputs:
            self.feed(name, feeds[name])
        return self.again()

    def again(self) -> Arrays:
        """Outputs by name, of what was fed last. Raises ConversionError when LiteRT can't run the file."""
        try:
            with quiet(f"running {self.where}"):
                self._interpreter.invoke()
        except ConversionError as error:
            raise ConversionError("LiteRT can't run the file", where=self.where, got=error.got) from None
        return {n: self._theirs.get_tensor_data(self._interpreter, detail) for n, detail in self._outputs.items()}


def unique_names(graph: Any) -> dict[str, int]:
    """Tensor name -> number, of names that one tensor alone has."""
    names = [flatbuffer.text(tensor.name) for tensor in flatbuffer.tensors(graph)]
    counts = Counter(names)
    return {name: number for number, name in enumerate(names) if name and counts[name] == 1}


def tapped(model: Any) -> Any:
    """A copy of a ModelT whose outputs are all the numeric tensors that operators write."""
    found = copy.deepcopy(model)
    graph = found.subgraphs[0]
    tensors = flatbuffer.tensors(graph)
    named, outputs = set(unique_names(graph).values()), flatbuffer.numbers(graph.outputs)
    written = [n for n in flatbuffer.produced(graph) if n in named and flatbuffer.dtype_of(tensors[n]) in NUMERIC]
    graph.outputs = [*outputs, *(number for number in sorted(written) if number not in outputs)]
    found.signatureDefs = None
    return found


def layers_of(model: Any, names: Sequence[str]) -> list[Layer]:
    """Operators, in the order they run, of which the first output with one of `names` can be compared."""
    graph, wanted, found = model.subgraphs[0], set(names), list[Layer]()
    numbers = {number: name for name, number in unique_names(graph).items() if name in wanted}
    for place, operator in enumerate(flatbuffer.operators(graph)):
        name = next((numbers[n] for n in flatbuffer.numbers(operator.outputs) if n in numbers), "")
        if name:
            found.append(Layer(place, flatbuffer.operator_name(model, operator), name))
    return found


class TfliteTaps:
    """All tensors of a .tflite by name. model: the file unpacked; outputs: names of its own outputs."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        raw = read_file(self.path)
        self.n_bytes = len(raw)
        self.model = flatbuffer.unpack(raw, path)
        graph = self.model.subgraphs[0]
        self.outputs = tuple(flatbuffer.text(graph.tensors[n].name) for n in flatbuffer.numbers(graph.outputs))
        self._runner = TensorRunner(flatbuffer.pack(tapped(self.model)), path)

    @property
    def inputs(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Name -> shape and dtype."""
        details = self._runner.inputs.items()
        return {name: (tuple(int(n) for n in d["shape"]), np.dtype(d["dtype"])) for name, d in details}

    def run(self, feeds: Feeds) -> Arrays:
        return self._runner.run(feeds)


class OnnxTaps:
    """All float tensors of an ONNX file by name, from onnxruntime without its own rewriting of the graph."""

    def __init__(self, path: str | Path):
        import onnx
        import onnxruntime

        from convert.onnx_graph import dtype_of, load_onnx

        self.path = Path(path)
        self.model = load_onnx(path)
        self.outputs = tuple(value.name for value in self.model.graph.output)
        tapped_model = copy.deepcopy(self.model)
        for node in self.model.graph.node:
            for name in node.output:
                if name and name not in self.outputs:
                    tapped_model.graph.output.append(onnx.ValueInfoProto(name=name))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            raw = tapped_model.SerializeToString()
            self._session = onnxruntime.InferenceSession(raw, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises its own types, which share no base
            raise ConversionError("onnxruntime refuses the file", where=path, got=str(error)) from None
        self.inputs = {
            value.name: (tuple(n if isinstance(n, int) else 1 for n in value.shape), dtype_of(value.type))
            for value in self._session.get_inputs()
        }

    def run(self, feeds: Feeds) -> Arrays:
        names = [value.name for value in self._session.get_outputs()]
        try:
            found = self._session.run(names, {name: feeds[name] for name in self.inputs})
        except KeyError as error:
            raise InputError("input is missing", where=self.path, got=str(error), allowed=sorted(self.inputs)) from None
        except Exception as error:  # onnxruntime's own types
            raise ConversionError("onnxruntime can't run the file", where=self.path, got=str(error)) from None
        return dict(zip(names, found, strict=True))


def read_file(path: Path) -> bytes:
    if not path.is_file():
        raise InputError("no such file", where=path)
    return path.read_bytes()


def open_taps(path: str | Path) -> TfliteTaps | OnnxTaps:
    """By the file's ending. Raises InputError for another ending, ConversionError for a file that is damaged."""
    if Path(path).suffix == ".onnx":
        return OnnxTaps(path)
    if Path(path).suffix == ".tflite":
        return TfliteTaps(path)
    raise InputError("neither .tflite nor .onnx", where=path, allowed="reference.tflite or reference.onnx")

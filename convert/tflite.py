"""ONNX -> TFLite float32 (onnx2tf, flatbuffer_direct, in this process), and TFLite files run and checked by name.

The converter's exit code says nothing: what counts is that LiteRT loads the file, that names, shapes and types are the
contract's, that every operator is a builtin, and that XNNPACK took the graph.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.delegation import DELEGATE, left_outside
from contract.errors import ConversionError, InputError
from contract.manifest import Tensor
from convert.flatbuffer import numbers, operator_name, operators, tensors, text, unpack
from convert.fully_connected import to_fully_connected
from convert.quiet import quiet
from convert.slice_sizes import with_slice_sizes

ONNX2TF = "onnx2tf==2.6.9"
# What onnx2tf 2.6.9 imports and does not install, for it goes in without its dependencies.
ONNX2TF_COMPANIONS = (
    "onnx-graphsurgeon==0.6.1",
    "sng4onnx==2.0.1",
    "sne4onnx==2.0.1",
    "onnxsim==0.8.1",
    "onnxoptimizer==0.4.2",
    "psutil>=5.9.5,<8",
)
Feeds = Mapping[str, NDArray[Any]]


def run_onnx2tf(**settings: Any) -> None:
    """`onnx2tf.convert`, the same wherever it runs, and without what its import leaves behind.

    Where PATH has the command `onnxsim` it calls it three times, and elsewhere goes on without: 14 s a graph for
    another, larger file (constants repeated in `watch`). What needs folding, `onnx_export` has folded. And its import
    lifts Python's recursion limit for good: after it a deeply nested JSON file would end the process by a signal.
    Raises InputError when onnx2tf is absent.
    """
    limit = sys.getrecursionlimit()
    try:
        import onnx2tf

        sys.setrecursionlimit(2**31 - 1)  # as it sets it when it is first imported
        onnx2tf.convert(**{"verbosity": "error", "not_use_onnxsim": True, **settings})
    except ImportError as error:
        raise InputError(f"this step needs onnx2tf ({error})", fix="install it with: kir convert setup") from None
    finally:
        sys.setrecursionlimit(limit)


def convert_onnx(onnx_path: str | Path, path: str | Path, inputs: tuple[Tensor, ...]) -> Path:
    """Write the float32 TFLite file of an ONNX graph; products by a constant matrix as FULLY_CONNECTED.

    inputs: every input of rank 3 and more keeps its layout; left alone, onnx2tf swaps axes and says nothing.
    Raises InputError when onnx2tf is absent, ConversionError when it fails or writes no file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="kir-onnx2tf-") as scratch:
        copy = shutil.copyfile(onnx_path, Path(scratch) / Path(onnx_path).name)  # onnx2tf writes over what it is given
        with quiet(f"onnx2tf of {Path(onnx_path).name}"):
            run_onnx2tf(
                input_onnx_file_path=str(copy),
                output_folder_path=scratch,
                tflite_backend="flatbuffer_direct",
                keep_shape_absolutely_input_names=[t.name for t in inputs if len(t.shape) >= 3],
            )
        found = sorted(Path(scratch).glob("*_float32.tflite"))
        if len(found) != 1:
            got = sorted(p.name for p in Path(scratch).iterdir())
            raise ConversionError("onnx2tf wrote no float32 file", where=onnx_path, got=got)
        path.write_bytes(with_slice_sizes(to_fully_connected(found[0].read_bytes(), onnx_path), onnx_path))
    return path


class TfliteGraph:
    """A TFLite file in LiteRT on one thread, bound by tensor name, on the plain CPU path (`set_tensor`, `invoke`).

    left_out: how many operators XNNPACK does not run.
    """

    def __init__(self, model: str | Path | bytes, threads: int = 1):
        from ai_edge_litert.interpreter import Interpreter

        self.where = "a model in memory" if isinstance(model, bytes) else str(model)
        try:
            with quiet(f"loading {self.where}"):
                raw = model if isinstance(model, bytes) else Path(model).read_bytes()
                self._interpreter = Interpreter(model_content=raw, num_threads=threads)
                self._interpreter.allocate_tensors()
        except ConversionError as error:
            raise ConversionError("LiteRT refuses the file", where=self.where, got=error.got) from None
        self.n_bytes = len(raw)
        self._inputs = {d["name"]: d for d in self._interpreter.get_input_details()}
        self._outputs = {d["name"]: d for d in self._interpreter.get_output_details()}
        nodes = self._interpreter._get_ops_details()
        self.operators = tuple(str(op["op_name"]) for op in nodes)
        self.left_out = len(left_outside(nodes))

    @property
    def partitions(self) -> int:
        """How many parts XNNPACK runs; 0 = it took nothing."""
        return self.operators.count(DELEGATE)

    def tensors(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Inputs and outputs as the file has them."""
        inputs, outputs = (
            tuple(
                Tensor(d["name"], tuple(int(n) for n in d["shape"]), np.dtype(d["dtype"]).name) for d in side.values()
            )
            for side in (self._inputs, self._outputs)
        )
        return inputs, outputs

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """Outputs by name; each is a new array. Raises ConversionError when an operator fails on these values."""
        interpreter = self._interpreter
        for name, detail in self._inputs.items():
            interpreter.set_tensor(detail["index"], feeds[name])
        try:
            interpreter.invoke()
        except RuntimeError as error:
            raise ConversionError(
                "LiteRT loads the file and fails to run it", where=self.where, got=str(error)
            ) from None
        return {name: interpreter.get_tensor(detail["index"]) for name, detail in self._outputs.items()}

    def latency_us(self, feeds: Feeds, calls: int = 60) -> list[float]:
        """Microseconds of each of `calls` runs (set inputs, invoke, get outputs), after a tenth as many to warm up."""
        for _ in range(max(calls // 10, 3)):
            self.run(feeds)
        found = []
        for _ in range(calls):
            start = time.perf_counter_ns()
            self.run(feeds)
            found.append((time.perf_counter_ns() - start) / 1000.0)
        return found


def custom_operators(raw: bytes, where: object = "") -> dict[str, list[str]]:
    """Operators that are no builtins (Flex, custom), each with the tensors that it writes: they are named after layers.

    Empty for a file that every LiteRT runs.
    """
    model = unpack(raw, where)
    found: dict[str, list[str]] = {text(code.customCode): [] for code in model.operatorCodes or [] if code.customCode}
    for graph in model.subgraphs:
        for operator in operators(graph):
            if (name := operator_name(model, operator)) in found:
                found[name] += [text(tensors(graph)[number].name) for number in numbers(operator.outputs)]
    return found


def check_contract(graph: TfliteGraph, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:
    """Names, shapes and types equal the contract's, in any order; XNNPACK took part. Raises ConversionError."""
    for label, want, have in zip(("inputs", "outputs"), (inputs, outputs), graph.tensors(), strict=True):
        if {t.name: t for t in want} != {t.name: t for t in have}:
            differing = sorted({str(t) for t in want} ^ {str(t) for t in have})
            raise ConversionError(f"{label} differ from the contract", where=graph.where, got=differing)
    if graph.partitions == 0:
        raise ConversionError("XNNPACK took no part of the graph", where=graph.where, got=sorted(set(graph.operators)))

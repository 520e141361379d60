"""Every graph of a model made: ONNX, float TFLite, quantised variants. In one process: starting others costs more."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from contract.errors import ConversionError
from contract.manifest import Tensor
from convert.onnx_export import TorchGraph, export_onnx
from convert.quantize import FLOAT, Recipe, quantize
from convert.tflite import TfliteGraph, check_contract, convert_onnx, custom_operators

Progress = Callable[[str], None]


@dataclass(frozen=True)
class BuiltGraph:
    """Files of one graph. variants: recipe name -> .tflite; integer: those that multiply in int8."""

    name: str
    bucket: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    onnx: Path
    variants: Mapping[str, Path]
    seconds: Mapping[str, float]
    integer: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return f"{self.name}/{self.bucket}" if self.bucket else self.name


def build_graph(graph: TorchGraph, directory: str | Path, recipes: Sequence[Recipe]) -> BuiltGraph:
    """Export, convert, quantise and load one graph. Raises ConversionError naming the file that is wrong.

    Writes DIRECTORY/<name>-<bucket>.onnx and DIRECTORY/<name>-<bucket>.<recipe>.tflite.
    """
    directory = Path(directory)
    inputs, outputs = graph.contract()
    clock = [time.perf_counter()]
    onnx = export_onnx(graph, directory / f"{graph.file_stem}.onnx")
    clock.append(time.perf_counter())
    floats = convert_onnx(onnx, directory / f"{graph.file_stem}.{FLOAT}.tflite", inputs)
    clock.append(time.perf_counter())
    variants = {}
    for recipe in recipes:
        path = quantize(floats, recipe, directory / f"{graph.file_stem}.{recipe.name}.tflite")
        foreign = custom_operators(path.read_bytes())
        if foreign:
            raise ConversionError("file needs operators that are no builtins", where=path, got=foreign)
        check_contract(TfliteGraph(path), inputs, outputs)
        variants[recipe.name] = path
    clock.append(time.perf_counter())
    stages = ("onnx", "tflite", "quantise")
    seconds = {stage: clock[i + 1] - clock[i] for i, stage in enumerate(stages)}
    integer = tuple(recipe.name for recipe in recipes if recipe.integer)
    return BuiltGraph(graph.name, graph.bucket, inputs, outputs, onnx, variants, seconds, integer)


def build_all(
    graphs: Iterable[TorchGraph],
    directory: str | Path,
    recipes: Sequence[Recipe],
    progress: Progress = lambda line: None,
) -> dict[str, BuiltGraph]:
    """All graphs, by key in the order given; one line of progress each."""
    Path(directory).mkdir(parents=True, exist_ok=True)
    found: dict[str, BuiltGraph] = {}
    for graph in graphs:
        # `whole` is the reference and never leaves float.
        built = build_graph(
            graph, directory, [r for r in recipes if r.name == FLOAT] if graph.name == "whole" else recipes
        )
        found[built.key] = built
        took = "  ".join(f"{stage} {seconds:.1f} s" for stage, seconds in built.seconds.items())
        progress(f"  {built.key:<12} {took}")
    return found

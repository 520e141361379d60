"""Every graph of a model made: ONNX, float TFLite, quantised variants. In one process: starting others costs more.

A recipe that a graph does not take ends in one reason, kept beside the variants that were made; the others go on.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from contract.errors import ConversionError, InputError
from contract.manifest import Tensor
from convert.calibration import CalibrationSet, activation_ranges, sha256_of_feeds
from convert.chain import WHOLE, Feeds
from convert.files import sha256_of
from convert.frontends import ONNX2TF, check_builtin, convert_float, exporter_of
from convert.onnx_export import TorchGraph, export_onnx
from convert.probe import probe
from convert.quantize import FLOAT, Ranges, Recipe, load_recipe, quantize, recipe_names
from convert.stages import KEEP_NOTHING, ONNX, QUANTISE, STAGES, TFLITE, Stages, fingerprint
from convert.tflite import TfliteGraph, check_contract

Progress = Callable[[str], None]
TRIALS = 8  # calibration pages that every variant is run on: some operators fail on values, not on loading


@dataclass(frozen=True)
class BuiltGraph:
    """Files of one graph. variants: recipe name -> .tflite; integer: those that multiply in integers.

    failed: recipe name -> why this graph has no such variant.
    """

    name: str
    bucket: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    onnx: Path
    variants: Mapping[str, Path]
    seconds: Mapping[str, float]
    integer: tuple[str, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return f"{self.name}/{self.bucket}" if self.bucket else self.name


def build_graph(
    graph: TorchGraph,
    directory: str | Path,
    recipes: Sequence[Recipe],
    *,
    calibration: CalibrationSet | None = None,
    front_end: str = ONNX2TF,
    stages: Stages = KEEP_NOTHING,
    until: str = QUANTISE,
) -> BuiltGraph:
    """Export, convert, quantise, load and run one graph. Raises ConversionError when the float file is wrong.

    stages: files kept from earlier runs. until: the stage to end after; of later ones there is nothing.

    Writes DIRECTORY/<name>-<bucket>.onnx and DIRECTORY/<name>-<bucket>.<recipe>.tflite. A recipe whose file can't be
    made, loaded or run, or misses the contract, is in `failed` with the reason.
    """
    stem = Path(directory) / graph.file_stem
    inputs, outputs = graph.contract()
    clock = [time.perf_counter()]
    exporter = exporter_of(front_end)
    onnx = stages.made(
        stem.with_name(f"{stem.name}.onnx"),
        lambda path: export_onnx(graph, path, exporter),
        stage=ONNX, graph=graph.key, exporter=exporter, module=fingerprint(graph),
    )  # fmt: skip
    clock.append(time.perf_counter())
    if until == ONNX:
        return BuiltGraph(graph.name, graph.bucket, inputs, outputs, onnx, {}, _seconds(clock))
    floats = stages.made(
        stem.with_name(f"{stem.name}.{FLOAT}.tflite"),
        lambda path: convert_float(graph, onnx, path, front_end),
        stage=TFLITE, graph=graph.key, front_end=front_end, source=sha256_of(onnx),
    )  # fmt: skip
    clock.append(time.perf_counter())
    if until == TFLITE:
        return BuiltGraph(graph.name, graph.bucket, inputs, outputs, onnx, {FLOAT: floats}, _seconds(clock))
    variants, failed = _quantised(floats, graph.key, stem, recipes, calibration, stages)
    feeds = _feeds(calibration, graph.key)
    trials: list[Feeds] = [*feeds[:TRIALS], {name: tensor.numpy() for name, tensor in graph.inputs.items()}]
    trials = [one for one in trials if not _odd(graph.run(one))]
    for name, path in list(variants.items()):
        try:
            check_builtin(path)
            file = TfliteGraph(path)
            check_contract(file, inputs, outputs)
            _try(file, trials)
        except ConversionError as error:
            if name == FLOAT:
                raise
            failed[name] = str(error)
            stages.drop(variants.pop(name))
    clock.append(time.perf_counter())
    integer = tuple(recipe.name for recipe in recipes if recipe.integer and recipe.name in variants)
    return BuiltGraph(graph.name, graph.bucket, inputs, outputs, onnx, variants, _seconds(clock), integer, failed)


def _seconds(clock: Sequence[float]) -> dict[str, float]:
    """Stage -> wall time, of those that ran."""
    return {stage: clock[i + 1] - clock[i] for i, stage in enumerate(STAGES[: len(clock) - 1])}


def _feeds(calibration: CalibrationSet | None, key: str) -> list[Feeds]:
    return [] if calibration is None else list(calibration.feeds.get(key, ()))


def _quantised(
    floats: Path,
    key: str,
    stem: Path,
    recipes: Sequence[Recipe],
    calibration: CalibrationSet | None,
    stages: Stages,
) -> tuple[dict[str, Path], dict[str, str]]:
    """Recipe name -> file, and recipe name -> why there is none. What static recipes make is loaded in a child first:
    an operator without a kernel for such types may end the process."""
    variants: dict[str, Path] = {}
    failed: dict[str, str] = {}
    ranges: list[Ranges] = []

    def make(path: Path, recipe: Recipe) -> None:
        if recipe.calibrate and not ranges:
            ranges.append(activation_ranges(floats, _feeds(calibration, key)))
        quantize(floats, recipe, path, ranges[0] if ranges else None)

    source = sha256_of(floats)
    for recipe in recipes:
        path = stem.with_name(f"{stem.name}.{recipe.name}.tflite")
        if recipe.quantizer is None:
            variants[recipe.name] = quantize(floats, recipe, path)
            continue
        pages = None
        if recipe.calibrate and calibration is not None:
            pages = {**calibration.to_json(), "feeds": sha256_of_feeds(_feeds(calibration, key))}
        facts = {"stage": QUANTISE, "graph": key, "recipe": recipe.to_json(), "source": source, "calibration": pages}
        try:
            variants[recipe.name] = stages.made(path, functools.partial(make, recipe=recipe), **facts)
        except ConversionError as error:
            failed[recipe.name] = str(error)
    static = [recipe.name for recipe in recipes if recipe.calibrate and recipe.name in variants]
    for name, answer in zip(static, probe([variants[name] for name in static]), strict=True):
        if answer.error:
            failed[name] = str(ConversionError("LiteRT can't load the file", where=variants[name], got=answer.error))
            stages.drop(variants.pop(name))
    return variants, failed


def _try(file: TfliteGraph, trials: Sequence[Feeds]) -> None:
    """Raises ConversionError when a file does not run, or gives no number where torch does."""
    for feeds in trials:
        odd = _odd(file.run(feeds))
        if odd:
            raise ConversionError("outputs are not finite", where=file.where, got=odd)


def _odd(outputs: Mapping[str, Any]) -> list[str]:
    """Names of outputs that hold something infinite or no number."""
    return sorted(name for name, value in outputs.items() if not np.isfinite(value).all())


def build_all(
    graphs: Iterable[TorchGraph],
    directory: str | Path,
    recipes: Sequence[Recipe],
    progress: Progress = lambda line: None,
    calibration: CalibrationSet | None = None,
    *,
    front_end: str = ONNX2TF,
    stages: Stages = KEEP_NOTHING,
    until: str = QUANTISE,
    whole_in_float: bool = True,
) -> dict[str, BuiltGraph]:
    """All graphs, by key in the order given; one line of progress each, and one per recipe that a graph does not take.

    calibration: for recipes that fix the ranges of activations. whole_in_float: leave the reference as it is; a
    benchmark wants it quantised, too. Raises InputError when they have none, ConversionError
    when no recipe but float32 fits any graph.
    """
    hungry = [recipe.name for recipe in recipes if recipe.calibrate and until == QUANTISE]
    if hungry and calibration is None:
        raise InputError("recipe needs calibration pages", got=hungry, fix="give a log of real events with --data")
    Path(directory).mkdir(parents=True, exist_ok=True)
    found: dict[str, BuiltGraph] = {}
    for graph in graphs:
        reference = graph.name == WHOLE and whole_in_float
        chosen = [recipe for recipe in recipes if recipe.quantizer is None] if reference else recipes
        before = len(stages.reused)
        built = build_graph(
            graph, directory, chosen, calibration=calibration, front_end=front_end, stages=stages, until=until
        )
        found[built.key] = built
        took = "  ".join(f"{stage} {seconds:.1f} s" for stage, seconds in built.seconds.items())
        kept = len(stages.reused) - before
        progress(f"  {built.key:<12} {took}" + (f"  ({kept} files as they were)" if kept else ""))
        for name, reason in built.failed.items():
            progress(f"  {built.key:<12} {name} not possible: {reason}")
    _check_recipes(found, recipes, progress)
    return found


def _check_recipes(found: Mapping[str, BuiltGraph], recipes: Sequence[Recipe], progress: Progress) -> None:
    """Tell patterns of one's own recipes that fit no layer; raise when everything asked for failed. A shipped recipe is
    made for many graphs, and few have all that it names."""
    floats = [graph.variants[FLOAT] for graph in found.values() if graph.name != WHOLE and FLOAT in graph.variants]
    for recipe in recipes:
        own = recipe.name not in recipe_names() or recipe != load_recipe(recipe.name)
        for pattern in recipe.idle(floats) if floats and own else ():
            progress(f"  '{recipe.name}': no layer's name fits the pattern '{pattern}'")
    failed = [(key, name, why) for key, graph in found.items() for name, why in graph.failed.items()]
    if failed and not any(set(graph.variants) - {FLOAT} for graph in found.values()):
        key, name, why = failed[0]
        raise ConversionError(
            f"no recipe fits any graph; '{name}' on {key}: {why}", fix=f"for float alone: --recipe {FLOAT}"
        )

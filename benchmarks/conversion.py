"""Every recipe of a model beside every way to run it here: bytes, latency, and what each does to the ranking.

    kir bench conversion runs/kir --data events:runs/data                      # a few minutes
    kir bench conversion runs/kir --rounds 3 --no-compile --recipe int8-dynamic    # a minute
    kir bench conversion runs/kuaiformer --data ml-1m:PATH --json docs/results/conversion-encoder.json

The checkpoint is converted by all recipes and goes through the verification chain first, so that a time never stands
beside an answer that nobody checked. Then LiteRT's variants, torch eager, torch.compile and onnxruntime (float32 and
dynamic int8) take turns on one thread, on one held-out input. The floor is the graph's multiply-adds at the rate of a
256 x 256 x 256 product, timed anew in every round. Read the ratios. A recipe that can't be applied to a graph is listed
with the reason. Without `--data` the recipes that calibrate are left out: their ranges are those of real pages.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks.conversion_doc import LITERT
from benchmarks.flops import Floor, Product, products_of, total_flops
from benchmarks.stats import machine, percentiles
from contract.errors import InputError

if TYPE_CHECKING:
    from convert.build import BuiltGraph
    from convert.onnx_export import TorchGraph
    from convert.report import Verification

Call = Callable[[], Any]
EAGER, COMPILED, ORT, ORT_INT8 = "torch eager", "torch.compile", "onnxruntime", "onnxruntime int8"
SQUARE = Product(1, 256, 256, 256)  # its rate is the floor's: a graph's own products are quicker done than called


@dataclass
class Timed:
    """One way to run one graph: microseconds of wall time of each call, and over the floor of the same round."""

    call: Call
    wall_us: list[float] = field(default_factory=list)
    over_floor: list[float] = field(default_factory=list)

    def turn(self, calls: int, floor_us: float) -> None:
        self.call()
        mine = []
        for _ in range(calls):
            start = time.perf_counter_ns()
            self.call()
            mine.append((time.perf_counter_ns() - start) / 1e3)
        self.wall_us += mine
        self.over_floor.append(float(np.median(mine)) / floor_us if floor_us else float("nan"))


def measure_conversion(
    checkpoint: Path,
    command: str,
    *,
    data: str | None = None,
    recipes: Sequence[str] = (),
    windows: int = 256,
    rounds: int = 7,
    calls: int = 40,
    compiled: bool = True,
    seed: int = 0,
    log: Callable[[str], None] = print,
) -> tuple[dict[str, Any], str]:
    """Convert, verify, then time. Returns result and table.

    Raises as `convert_model`: a float graph that differs from torch ends it; a recipe that can't be applied does not.
    """
    if min(rounds, calls, windows) < 1:
        raise InputError("--rounds, --calls and --windows start at 1", got=(rounds, calls, windows))
    from convert.build import build_all
    from convert.calibration import PAGES, CalibrationSet, CalibrationSource
    from convert.jobs import open_job
    from convert.quantize import load_recipes, recipe_names
    from convert.verify import verify

    torch.set_num_threads(1)
    job = open_job(checkpoint)
    opened, words = job.open(data, seed)
    chosen = load_recipes(tuple(recipes or recipe_names()))
    if data is None and not recipes:  # fixed ranges are for real pages
        chosen = tuple(recipe for recipe in chosen if not recipe.calibrate)
    pages = None
    if any(recipe.calibrate for recipe in chosen):
        pages = CalibrationSet.record(job.calibration(opened, PAGES, seed), CalibrationSource.of(data, PAGES, seed))
    with tempfile.TemporaryDirectory(prefix="kir-bench-") as folder:
        built = build_all(job.graphs.values(), folder, chosen, log, pages, whole_in_float=False)
        subject = job.subject(opened, windows, seed)
        report = verify(subject, built, data=words)
        record: dict[str, Any] = {}
        subject.run(0, {key: graph.run for key, graph in job.graphs.items()}, record)
        graphs = {}
        for key, graph in job.graphs.items():
            log(f"timing {key}")
            feeds = record[key][-1] if key in record else {name: x.numpy() for name, x in graph.inputs.items()}
            graphs[key] = _times(graph, built[key], feeds, Path(folder), rounds, calls, compiled, log)
    result = {
        "benchmark": "conversion",
        "kind": "host",
        "command": command,
        "machine": machine(),
        "model": {"kind": job.kind, "version": job.version},
        "settings": {"data": words, "windows": windows, "rounds": rounds, "calls": calls, "seed": seed},
        "recipes": [recipe.to_json() for recipe in chosen],
        "verification": report.to_json(),
        "graphs": graphs,
    }
    return result, conversion_table(result, report)


def _times(
    graph: TorchGraph,
    built: BuiltGraph,
    feeds: Mapping[str, Any],
    folder: Path,
    rounds: int,
    calls: int,
    compiled: bool,
    log: Callable[[str], None],
) -> dict[str, Any]:
    import onnx

    flops = total_flops(products_of(onnx.load(str(built.onnx)), 1))
    gemm = Floor({SQUARE: 1})
    runs = {name: Timed(call) for name, call in _ways(graph, built, feeds, folder, compiled, log).items()}
    floors = []
    for number in range(rounds + 1):
        floor_us = gemm.seconds() * 1e6 * flops / SQUARE.flops
        for run in list(runs.values())[:: 1 if number % 2 else -1]:
            run.turn(calls if number else 1, floor_us)
        if number == 0:  # the first round warms caches and clocks
            for run in runs.values():
                run.wall_us.clear()
                run.over_floor.clear()
        else:
            floors.append(floor_us)
    return {
        "multiply_adds": flops // 2,
        "floor_us": float(np.median(floors)),
        "runs": {
            name: {"wall_us": percentiles(run.wall_us), "over_floor": float(np.median(run.over_floor))}
            for name, run in runs.items()
        },
    }


def _ways(
    graph: TorchGraph,
    built: BuiltGraph,
    feeds: Mapping[str, Any],
    folder: Path,
    compiled: bool,
    log: Callable[[str], None],
) -> dict[str, Call]:
    """Everything that runs this graph here, by name; LiteRT's variants first. What can't is told to `log`."""
    from convert.encoder_int8 import quantise
    from convert.onnx_export import OnnxGraph
    from convert.tflite import TfliteGraph

    def litert(path: Path) -> Call:
        file = TfliteGraph(path)
        return lambda: file.run(feeds)

    found = {LITERT + name: litert(path) for name, path in built.variants.items()}
    tensors = {name: torch.from_numpy(np.ascontiguousarray(feeds[name])) for name in graph.inputs}

    def by_torch(module: Any) -> Call:
        def run() -> Any:
            with torch.inference_mode():
                return module(**tensors)

        return run

    found[EAGER] = by_torch(graph.module)
    if compiled:
        with warnings.catch_warnings():  # torch imports parts of itself that it calls deprecated
            warnings.simplefilter("ignore", DeprecationWarning)
            call = by_torch(torch.compile(graph.module, dynamic=False))
            try:
                call()
                found[COMPILED] = call
            except Exception as error:  # inductor's own types; 2.13 fails on the ranker's attention
                log(f"  {COMPILED} leaves {graph.key} out: {' '.join(str(error).split())[:160]}")
    floats = OnnxGraph(built.onnx)
    found[ORT] = lambda: floats.run(feeds)
    try:
        integers = OnnxGraph(quantise(built.onnx, folder / f"{built.onnx.stem}.int8.onnx"))
        integers.run(feeds)
    except Exception as error:  # onnxruntime's own types share no base; it refuses some products by constants
        log(f"  {ORT_INT8} leaves {graph.key} out: {str(error).splitlines()[0][:160]}")
        return found
    return found | {ORT_INT8: lambda: integers.run(feeds)}


def conversion_table(result: Mapping[str, Any], report: Verification) -> str:
    """The verification's table, then a block for each graph with every way to run it."""
    told = result["model"]
    lines = [
        f"{told['kind']} {told['version']}; {result['machine']['cpu']}, one thread (kind: host); set inputs + run + "
        "get outputs",
        report.table(),
    ]
    for key, graph in result["graphs"].items():
        eager = graph["runs"][EAGER]["wall_us"]["p50"]
        lines.append("")
        lines.append(f"{key}: {graph['multiply_adds'] / 1e6:.2f} M multiply-adds, floor {graph['floor_us']:.0f} us")
        lines.append(f"{'':<26} {'p50 us':>8} {'p90':>8} {'p99':>8} {'x floor':>8} {'x eager':>8}")
        for name, run in graph["runs"].items():
            wall = run["wall_us"]
            lines.append(
                f"{name:<26} {wall['p50']:>8.0f} {wall['p90']:>8.0f} {wall['p99']:>8.0f} {run['over_floor']:>8.2f} "
                f"{wall['p50'] / eager:>8.2f}"
            )
    return "\n".join(lines)

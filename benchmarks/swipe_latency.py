"""What a swipe costs on this machine: the graphs a phone runs beside the whole net, side by side in one run.

    kir bench swipe --cdn demo-out/cdn --repeats 2000

Correctness first: page, watch and swipe must give the whole net's scores before anything is timed. Wall times of this
machine (kind: host), one thread; compare ratios, not milliseconds of a phone.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.stats import machine, percentiles
from contract.errors import VerificationFailed
from contract.golden import GoldenSession, PageStep
from edge import InstalledModel, ModelStore, replay


def measure_swipe(
    cdn: str, repeats: int, *, root: Path | None = None, unsigned: bool = False
) -> tuple[dict[str, Any], str]:
    """Returns the result and its table. Raises VerificationFailed when the golden cases do not replay here.

    root, unsigned: as `edge.ModelStore` takes them.
    """
    with tempfile.TemporaryDirectory() as cache:
        store = ModelStore(cache, cdn, fetch="all", root=root, unsigned=unsigned)
        version = store.update()
        assert version is not None
        installed = store.load(version)
        report = replay(installed)
        if not report.ok:
            raise VerificationFailed("golden cases do not replay on this machine", where=version, got=report.table())
        timed = {key: percentiles(samples) for key, samples in _time_graphs(installed, repeats).items()}
        page_bytes = _golden_page_bytes(installed)
    result = {
        "benchmark": "swipe",
        "kind": "host",
        "machine": machine(),
        "dense_version": version,
        "capacities": dict(installed.manifest.capacities),
        "invoke_us": timed,
        "page_bytes": page_bytes,
    }
    bucket = f"N{installed.manifest.buckets('swipe')[-1]}"
    half = timed[f"watch/T1 {_ship(installed, 'watch', 'T1')}"]["p50"]
    half += timed[f"swipe/{bucket} {_ship(installed, 'swipe', bucket)}"]["p50"]
    result["watch_and_swipe_over_whole"] = half / timed[f"whole/{bucket} float32"]["p50"]
    return result, _table(result)


def _ship(installed: InstalledModel, graph: str, bucket: str) -> str:
    return str(installed.manifest.graph(graph, bucket).ship)


def _time_graphs(installed: InstalledModel, repeats: int) -> dict[str, list[float]]:
    """Microseconds of set inputs + invoke + get outputs, every variant in turn so that noise falls on all alike."""
    calls = {}
    for graph in installed.manifest.graphs:
        case = np.load(Path(installed.paths[installed.manifest.golden.tensors[f"{graph.name}/{graph.bucket}"]]))
        for variant in graph.variants:
            if variant.file in installed.paths:
                feeds = {t.name: case[key] for t in graph.inputs if (key := _key(case, t.name))}
                calls[f"{graph.name}/{graph.bucket} {variant.name}"] = _caller(installed.read(variant.file), feeds)
    samples: dict[str, list[float]] = {key: [] for key in calls}
    for call in calls.values():
        for _ in range(50):
            call()
    for _ in range(repeats):
        for key, call in calls.items():
            start = time.perf_counter()
            call()
            samples[key].append((time.perf_counter() - start) * 1e6)
    return samples


def _key(case: Any, name: str) -> str:
    return next((key for key in case.files if key.split("/")[-1] == name and "output" not in key), "")


def _caller(content: bytes, feeds: dict[str, np.ndarray]) -> Callable[[], None]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    inputs = {d["name"]: d["index"] for d in interpreter.get_input_details()}
    outputs = [d["index"] for d in interpreter.get_output_details()]

    def call() -> None:
        for name, value in feeds.items():
            interpreter.set_tensor(inputs[name], value)
        interpreter.invoke()
        for index in outputs:
            interpreter.get_tensor(index)

    return call


def _golden_page_bytes(installed: InstalledModel) -> int:
    session = GoldenSession.from_bytes(installed.read(installed.manifest.golden.session))
    return max((len(step.page) for step in session.steps if isinstance(step, PageStep)), default=0)


def _table(result: dict[str, Any]) -> str:
    lines = [f"{result['dense_version']}: µs per call on {result['machine']['cpu']}, one thread (kind: host)"]
    lines.append(f"{'graph and variant':<30} {'p50':>8} {'p90':>8} {'p99':>8}")
    for key, row in result["invoke_us"].items():
        lines.append(f"{key:<30} {row['p50']:>8.1f} {row['p90']:>8.1f} {row['p99']:>8.1f}")
    lines.append(f"watch + swipe over the whole net (p50, as shipped): {result['watch_and_swipe_over_whole']:.2f}")
    return "\n".join(lines)

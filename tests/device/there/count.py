"""On the emulated device with a clock that counts instructions: what one call of each variant takes.

python count.py MODEL_FOLDER        ->  {"graph/bucket variant": median nanoseconds = instructions}
"""

from __future__ import annotations

import gc
import io
import json
import sys
from time import perf_counter_ns

import numpy as np

from edge import InstalledModel
from edge._graph import GraphRunner

WARM, RUNS = 3, 15


def count(runner: GraphRunner) -> int:
    """Median of the graph's own run. Setting inputs is left out: a copy's cost hangs on where a buffer lies."""
    invoke, taken = runner._invoke, []
    runner.give(runner.inputs)
    for _ in range(WARM + RUNS):
        start = perf_counter_ns()
        invoke()
        taken.append(perf_counter_ns() - start)
    return sorted(taken[WARM:])[RUNS // 2]


def main(folder: str) -> None:
    installed = InstalledModel.open_published(folder)
    counts = {}
    gc.disable()
    for graph in installed.manifest.graphs:
        if (graph.name, graph.bucket) == ("watch", "T1") or graph.name in ("swipe", "place", "page", "whole"):
            key = f"{graph.name}/{graph.bucket}"
            golden = np.load(io.BytesIO(installed.read(installed.manifest.golden.tensors[key])))
            for variant in graph.variants:
                runner = GraphRunner(installed.read(variant.file), graph)
                for tensor in graph.inputs:
                    runner.inputs[tensor.name][:] = golden[tensor.name].reshape(-1, *tensor.shape)[0]
                counts[f"{key} {variant.name}"] = count(runner)
    print(json.dumps(counts))


if __name__ == "__main__":
    main(sys.argv[1])

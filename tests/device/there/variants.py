"""Every variant of every graph on the inputs of its golden cases. The same file runs on a device and on this computer.

python variants.py MODEL_FOLDER OUT.npz       "graph/bucket variant tensor" -> output; "… delegated" -> 0 or 1
"""

from __future__ import annotations

import io
import sys

import numpy as np

from edge import InstalledModel
from edge._graph import GraphRunner


def outputs_of(folder: str) -> dict[str, np.ndarray]:
    installed = InstalledModel.open_published(folder)
    found = {}
    for graph in installed.manifest.graphs:
        key = f"{graph.name}/{graph.bucket}"
        golden = np.load(io.BytesIO(installed.read(installed.manifest.golden.tensors[key])))
        feeds = {t.name: golden[t.name].astype(np.float32).reshape(-1, *t.shape)[0] for t in graph.inputs}
        for variant in graph.variants:
            runner = GraphRunner(installed.read(variant.file), graph, allow_no_delegate=True, left_out=variant.left_out)
            found[f"{key} {variant.name} delegated"] = np.array(int(runner.delegated))
            for name, value in runner.run(feeds).items():
                found[f"{key} {variant.name} {name}"] = value
    return found


if __name__ == "__main__":
    np.savez(sys.argv[2], allow_pickle=False, **outputs_of(sys.argv[1]))

"""Published golden tensors run again on this machine: shipped variants, those of device classes, and float."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from contract.errors import VerificationFailed
from contract.manifest import MANIFEST_NAME, Graph, Manifest
from convert.quantize import FLOAT
from convert.tflite import TfliteGraph, check_contract


def check_goldens(directory: str | Path) -> str:
    """Raises VerificationFailed when a graph strays from its golden outputs by more than its tolerance.

    directory: a version directory whose hashes were checked. Returns one line that says what was run.
    """
    directory = Path(directory)
    manifest = Manifest.from_bytes((directory / MANIFEST_NAME).read_bytes(), str(directory / MANIFEST_NAME))
    worst = 0.0
    for graph, name in _cases(manifest):
        with np.load(io.BytesIO((directory / name).read_bytes()), allow_pickle=False) as file:
            case = {key: file[key] for key in file.files}
        for prefix, variant in (("", graph.variant()), (f"{FLOAT}.", graph.variant(FLOAT))):
            runner = TfliteGraph(directory / variant.file)
            check_contract(runner, graph.inputs, graph.outputs)
            found = runner.run({t.name: case[t.name] for t in graph.inputs})
            for tensor in graph.outputs:
                apart = float(np.abs(found[tensor.name] - case[prefix + tensor.name]).max())
                worst = max(worst, apart)
                if not apart <= variant.tolerance:
                    raise VerificationFailed(
                        f"{graph.name}/{graph.bucket} {variant.name}: '{tensor.name}' strays from its golden output",
                        where=directory,
                        got=f"{apart:.3g}",
                        allowed=f"{variant.tolerance:g}",
                    )
    return (
        f"{manifest.dense_version}: {len(manifest.graphs)} graphs agree with their golden tensors, max abs {worst:.2g}"
    )


def _cases(manifest: Manifest) -> list[tuple[Graph, str]]:
    """Graphs and their golden files: as they ship, then as each class has them where that is another file."""
    found: dict[tuple[str, str], Graph] = {}
    for name in ("", *(one.name for one in manifest.device_classes)):
        seen = manifest.of_class(name)
        for graph in seen.graphs:
            key = f"{graph.name}/{graph.bucket}"
            found.setdefault((key, seen.golden.tensors[key]), graph)
    return [(graph, file) for (_, file), graph in found.items()]

"""Write golden vectors of a published model for the plain Java core of the Android app (android/core).

    python -m benchmarks.jvm MODEL_DIR OUT_DIR        # MODEL_DIR: a version directory or a CDN; a few seconds

    OUT_DIR/model.txt            what the core needs of the manifest, a name and its values a line
    OUT_DIR/cases.txt, .npz      single functions: rows, feature blocks, ages, fusion, beam search
    OUT_DIR/session-<name>.txt   what happened to an EdgeSession, step by step, and what came of it
    OUT_DIR/session-<name>.npz   pages, and every run of a graph: tensors in, tensors out

The same model gives the same bytes. `kir.edge.core.VectorCheck OUT_DIR` (android/core/src/check) holds the core against
them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from benchmarks.jvm.cases import Vectors, write_cases
from benchmarks.jvm.recording import RecordingEngine
from benchmarks.jvm.sessions import write_sessions
from contract.errors import InputError, KirError
from edge import InstalledModel


def write_vectors(model: InstalledModel, out: Path) -> None:
    """Everything above into a folder that is not there yet, or empty. Raises InputError, and as `Engine` does."""
    if out.exists() and any(out.iterdir()):
        raise InputError("folder is not empty", where=out, fix="name a new one")
    out.mkdir(parents=True, exist_ok=True)
    engine = RecordingEngine(model)
    (out / "model.txt").write_text("\n".join(model_lines(engine)) + "\n")
    write_cases(engine, Vectors(out, "cases"), np.random.default_rng(0x6A766D))
    write_sessions(engine, out)


def model_lines(engine: RecordingEngine) -> list[str]:
    """The manifest's part that a swipe needs, one name and its values a line."""
    manifest = engine.manifest
    numbers = {
        "capacity": [engine.capacity],
        "beams": [engine.beams],
        "placed": [engine.placed],
        "planes": [engine.planes],
        "width": [engine.width],
        "memory_width": [engine.memory_width],
        "buckets": engine.buckets,
        "watch_buckets": engine.watch_buckets,
        "has_place": [int(manifest.buckets("place") == engine.buckets)],
    }
    lines = [f"dense_version {engine.dense_version}", f"fingerprint {engine.spec.fingerprint}"]
    lines += [" ".join([name, *map(str, values)]) for name, values in numbers.items()]
    lines += [f"task {task} {float(weight)!r}" for task, weight in zip(manifest.tasks, engine.fusion_T, strict=True)]
    if manifest.list_reward is not None:
        lines.append(f"survival {manifest.list_reward.survival}")
        lines += [f"reward {task} {float(weight)!r}" for task, weight in manifest.list_reward.value.items()]
    lines += [
        f"field {f.name} {f.feature} {f.block} {f.width} {f.table or '-'} {f.max_len}" for f in engine.spec.fields
    ]
    return lines


def main(argv: list[str] | None = None) -> int:
    """Exit status 0, or 2 and one line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.jvm", description=str(__doc__).splitlines()[0])
    parser.add_argument("model", type=Path, help="version directory or CDN directory")
    parser.add_argument("out", type=Path, help="new folder")
    args = parser.parse_args(argv)
    try:
        write_vectors(InstalledModel.open_published(args.model), args.out)
    except KirError as error:
        print(f"benchmarks.jvm: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

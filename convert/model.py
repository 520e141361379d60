"""One KIR checkpoint converted and verified, into a directory that `kir publish` takes.

from convert.model import convert_model
result = convert_model("checkpoints/kir", "converted", events="events.parquet")
print(result.table())

DIR/model.json            version, spec, capacities, graphs, recipes, when
DIR/verification.json     the report
DIR/graphs/*.onnx *.tflite
DIR/golden/*.npz session.json
DIR/card.md
"""

from __future__ import annotations

import datetime
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from contract.errors import InputError
from contract.events import Events
from contract.manifest import Tensor
from contract.parquet import read_events
from convert.build import BuiltGraph, Progress, build_all
from convert.card import model_card
from convert.chain import run_halves, run_place
from convert.files import sha256_of
from convert.golden import make_session, tensor_case
from convert.quantize import DEFAULT_RECIPES, FLOAT, load_recipes
from convert.report import Gates, Verification
from convert.source import KirSource, load_source
from convert.tflite import TfliteGraph
from convert.verify import distance_to_whole, verify
from convert.windows import make_windows, synthetic_events

FORMAT = "kir-converted/1"
MODEL, REPORT, CARD, SESSION = "model.json", "verification.json", "card.md", "golden/session.json"
WINDOWS = 256


@dataclass(frozen=True)
class ConversionResult:
    """A converted, verified model on disk. seconds: stage -> wall time."""

    directory: Path
    dense_version: str
    verification: Verification
    seconds: Mapping[str, float]

    def table(self) -> str:
        stages = "  ".join(f"{stage} {seconds:.1f} s" for stage, seconds in self.seconds.items())
        return f"{self.dense_version} -> {self.directory}\n{self.verification.table()}\n{stages}"

    def to_json(self) -> dict[str, Any]:
        return {
            "directory": str(self.directory),
            "dense_version": self.dense_version,
            "verification": self.verification.to_json(),
            "seconds": dict(self.seconds),
        }


def convert_model(
    checkpoint: str | Path,
    out: str | Path,
    *,
    events: str | Path | Events | None = None,
    recipes: Sequence[str] = DEFAULT_RECIPES,
    gates: Gates | None = None,
    windows: int = WINDOWS,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress = lambda line: None,
) -> ConversionResult:
    """Export, convert, quantise, verify, and make goldens. Written aside and renamed: OUT appears whole or not at all.

    events: held-out events (file, directory or Events); None verifies on synthetic ones.
    recipes: names in convert/recipes or JSON files. Raises CheckpointError, ConversionError, VerificationFailed, and
    InputError when OUT exists and `overwrite` is not set.
    """
    out = Path(out)
    if out.exists() and not overwrite:
        raise InputError("output directory exists", where=out, fix="choose another --out, or pass --overwrite")
    chosen = load_recipes(tuple(recipes))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # graphs this small lose by a second thread
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(f".{out.name}.{os.getpid()}.part")
    shutil.rmtree(aside, ignore_errors=True)
    clock = _Clock(progress)
    try:
        source = clock.time("load", lambda: load_source(checkpoint))
        log, data = clock.time("data", lambda: _events(source, events, seed))
        built = clock.time("convert", lambda: build_all(source.graphs.values(), aside / "graphs", chosen, progress))
        samples = clock.time("data", lambda: list(make_windows(source, log, windows, seed)))
        report = clock.time("verify", lambda: verify(source, built, samples, gates=gates, data=data))
        session = clock.time("golden", lambda: write_goldens(source, built, report, log, aside, seed))
        report.save(aside / REPORT)
        (aside / CARD).write_text(model_card(source, report))
        about = _about(source, built, [recipe.to_json() for recipe in chosen], session)
        about["files"] = {
            path.relative_to(aside).as_posix(): sha256_of(path) for path in sorted(aside.rglob("*")) if path.is_file()
        }
        (aside / MODEL).write_text(json.dumps(about, indent=2, sort_keys=True) + "\n")
        shutil.rmtree(out, ignore_errors=True)
        os.replace(aside, out)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    finally:
        torch.set_num_threads(threads)
    return ConversionResult(out, source.dense_version, report, clock.seconds)


class _Clock:
    def __init__(self, progress: Progress):
        self.seconds: dict[str, float] = {}
        self._progress = progress

    def time(self, stage: str, job: Any) -> Any:
        self._progress(stage)
        start = time.perf_counter()
        found = job()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
        return found


def _events(source: KirSource, events: str | Path | Events | None, seed: int) -> tuple[Events, str]:
    """Events to verify on, and in words where they came from."""
    if events is None:
        return synthetic_events(source, seed), "synthetic events over the model's keys"
    log = events if isinstance(events, Events) else read_events(events)
    name = "events" if isinstance(events, Events) else Path(events).name
    return log, f"{name}: {len(log)} impressions, windows from the last fifth"


def write_goldens(
    source: KirSource, built: Mapping[str, BuiltGraph], report: Verification, log: Events, out: Path, seed: int
) -> dict[str, Any]:
    """golden/<graph>.npz and golden/session.json. Returns how far the shipped variants stray from the session."""
    floats = {key: TfliteGraph(graph.variants[FLOAT]).run for key, graph in built.items()}
    shipped = {key: TfliteGraph(built[key].variants[name]).run for key, name in report.shipped.items()}
    session, samples = make_session(
        source,
        log,
        lambda sample: run_halves(sample, source.layout, shipped),
        lambda sample, items: run_place(sample, source.layout, shipped, items),
        seed,
    )
    found, feeds = distance_to_whole(source, samples, shipped, floats)
    (out / "golden").mkdir()
    for key in built:
        # Graphs of a bucket that the session does not touch are tried on their example inputs.
        case = feeds.get(key) or {name: tensor.numpy() for name, tensor in source.graphs[key].inputs.items()}
        raw = tensor_case(case, shipped[key](case), floats[key](case))
        (out / "golden" / f"{key.replace('/', '-')}.npz").write_bytes(raw)
    (out / SESSION).write_bytes(session.to_bytes())
    return found


def _about(
    source: KirSource, built: Mapping[str, BuiltGraph], recipes: list[dict[str, Any]], session: dict[str, Any]
) -> dict[str, Any]:
    graphs = [
        {
            "name": one.name,
            "bucket": one.bucket,
            "inputs": [asdict(t) for t in one.inputs],
            "outputs": [asdict(t) for t in one.outputs],
            "variants": {name: f"graphs/{path.name}" for name, path in one.variants.items()},
            "golden": f"golden/{one.key.replace('/', '-')}.npz",
        }
        for one in built.values()
    ]
    return {
        "format": FORMAT,
        "dense_version": source.dense_version,
        "rows_revision": source.rows_revision,
        "created_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "spec": source.spec.to_json(),
        "capacities": dict(source.capacities),
        "fusion": dict(source.fusion),
        "tasks": list(source.tasks),
        **({"list_reward": asdict(source.list_reward)} if source.list_reward else {}),
        "graphs": graphs,
        "recipes": recipes,
        "session": session,
        "provenance": dict(source.provenance),
    }


def tensors_of(data: Sequence[Mapping[str, Any]]) -> tuple[Tensor, ...]:
    """The inverse of what `model.json` holds of a tensor list."""
    return tuple(Tensor(str(t["name"]), tuple(int(n) for n in t["shape"]), str(t["dtype"])) for t in data)

"""One model converted and verified, into a directory; that of a KIR is what `kir publish` takes.

from convert.model import convert_model
result = convert_model("checkpoints/kir", "converted", data="events.parquet")
print(result.table())

DIR/model.json            kind, version, graphs, recipes, when; for KIR spec, capacities, fusion
DIR/verification.json     the report
DIR/graphs/*.onnx *.tflite
DIR/golden/*.npz          and session.json for KIR
DIR/worst/*.npz           of each variant that misses a gate the inputs on which it is noisiest, for `kir convert debug`
DIR/card.md
"""

from __future__ import annotations

import datetime
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from contract.errors import ConversionError, InputError
from contract.files import check_vacant
from contract.manifest import Tensor
from convert.auto import PREFER, with_auto
from convert.build import BuiltGraph, Progress, build_all
from convert.calibration import PAGES, CalibrationSet, CalibrationSource, activation_ranges, not_covered
from convert.chain import Feeds
from convert.files import sha256_of, written_aside
from convert.frontends import ONNX2TF, exporter_of
from convert.jobs import Job, open_job
from convert.metadata import embed, graph_facts, tool_versions
from convert.provenance import code_sha256, commit
from convert.quantize import DEFAULT_RECIPES, FLOAT, Recipe, load_recipes
from convert.report import Gates, Verification
from convert.stages import QUANTISE, STAGES, Stages, StagesResult
from convert.subject import Subject
from convert.verify import AUTO, SPEED, verify

FORMAT = "kir-converted/2"
MODEL, REPORT, CARD, WORST = "model.json", "verification.json", "card.md", "worst"
WINDOWS = 256
SEARCHED = 64  # held-out samples that a search tries everything on, before the choice is made on all


@dataclass(frozen=True)
class ConversionResult:
    """A converted, verified model on disk. seconds: stage -> wall time."""

    directory: Path
    version: str
    verification: Verification
    seconds: Mapping[str, float]

    def table(self) -> str:
        stages = "  ".join(f"{stage} {seconds:.1f} s" for stage, seconds in self.seconds.items())
        return f"{self.version} -> {self.directory}\n{self.verification.table()}\n{stages}"

    def to_json(self) -> dict[str, Any]:
        return {
            "directory": str(self.directory),
            "version": self.version,
            "verification": self.verification.to_json(),
            "seconds": dict(self.seconds),
        }


def convert_model(
    what: str | Path | Job,
    out: str | Path,
    *,
    data: Any = None,
    recipes: Sequence[str] = DEFAULT_RECIPES,
    gates: Gates | None = None,
    windows: int = WINDOWS,
    seed: int = 0,
    auto: str | None = None,
    calibrate: int = PAGES,
    allow_synthetic: bool = False,
    front_end: str = ONNX2TF,
    stages: str | Path | None = None,
    whole: bool = False,
    no_float: bool = False,
    overwrite: bool = False,
    progress: Progress = lambda line: None,
) -> ConversionResult:
    """Export, convert, quantise, verify, and make goldens. Written aside and renamed: OUT appears whole or not at all.

    what     a checkpoint directory (KIR, ranker, KuaiFormer), or a job such as `convert.foreign.ModuleJob`
    data     held-out data as the job opens it: a log (file, directory, KIND:PATH or Events) for KIR and the ranker,
             KIND:PATH for the encoder, .npz for a module. None: stand-ins, where a job has any
    recipes  names in convert/recipes or JSON files
    windows  held-out samples to verify on
    auto     "size" or "speed": a recipe for each graph is found by search (convert/auto.py), and the smallest or the
             fastest variant inside the gates ships; None: the fastest of `recipes`
    calibrate, allow_synthetic  earlier samples that recipes with fixed ranges are calibrated on; whether stand-ins may
             serve where there are no data
    front_end  how torch becomes a float TFLite file (convert/frontends)
    stages     a directory that keeps what each stage makes, for the next run to start from (convert/stages.py)
    whole      apply the recipes to KIR's whole net too, which no phone loads; a search leaves it out
    no_float   fail where a graph would ship in float because nothing quantised passes
    Raises CheckpointError, ConversionError, VerificationFailed, and InputError when OUT exists and `overwrite` is not
    set.
    """
    out = Path(out)
    check_vacant(out, overwrite)
    if auto is not None and auto not in PREFER:
        raise InputError("--auto is unknown", got=auto, allowed=PREFER)
    exporter_of(front_end)
    chosen = load_recipes(tuple(recipes))
    clock = _Clock(progress)
    with _one_thread(), written_aside(out, overwrite) as aside:
        job = _job(clock, what)
        opened = _opened(clock, job, data, seed)
        pages = opened.calibration(chosen, calibrate, seed, allow_synthetic)
        keep = Stages.at(stages, job.version)
        built = clock.time(
            "convert",
            lambda: build_all(
                job.graphs.values(),
                aside / "graphs",
                chosen,
                progress,
                pages,
                front_end=front_end,
                stages=keep,
                whole_in_float=not whole,
            ),
        )
        subject = clock.time("data", lambda: job.subject(opened.data, windows, seed))
        searched: dict[str, Any] = {}
        recipes_of: Mapping[str, Recipe] = {}
        if auto is not None:
            part = job.subject(opened.data, min(windows, SEARCHED), seed + 1)
            built, found = clock.time(
                "search",
                lambda: with_auto(
                    built,
                    part,
                    chosen,
                    aside / "graphs",
                    prefer=auto,
                    gates=gates,
                    calibration=pages,
                    every=subject,
                    log=progress,
                ),
            )
            searched = {"auto": {name: one.to_json() for name, one in found.items()}, "prefer": auto}
            recipes_of = {name: one.recipe for name, one in found.items()}
        _embed(built, job.version, {recipe.name: recipe for recipe in chosen}, recipes_of)
        worst, words, prefer = _kept_in(aside / WORST), opened.words, auto or SPEED
        report = clock.time(
            "verify", lambda: verify(subject, built, gates=gates, data=words, prefer=prefer, worst=worst)
        )
        if no_float:
            report.hold_quantised()
        uncovered: dict[str, str] = {}
        if pages is not None:
            uncovered = clock.time("verify", lambda: _not_covered(report, built, pages, subject, chosen))
        for key, words in uncovered.items():
            progress(f"  {key:<12} {words}")
        session = clock.time("golden", lambda: job.goldens(built, report, opened.data, aside, seed))
        report.save(aside / REPORT)
        (aside / CARD).write_text(job.card(report))
        made_by = {
            "front_end": front_end,
            "seed": seed,
            "windows": windows,
            "auto": auto,
            "tools": tool_versions(),
            "code_sha256": code_sha256(),
            "commit": commit(),
        }
        about = {**_about(job, built, chosen), **job.about(), **session, **searched, "made_by": made_by}
        if pages is not None:
            about["calibration"] = {**pages.to_json(), "not_covered": uncovered}
        about["files"] = {
            path.relative_to(aside).as_posix(): sha256_of(path) for path in sorted(aside.rglob("*")) if path.is_file()
        }
        (aside / MODEL).write_text(json.dumps(about, indent=2, sort_keys=True) + "\n")
    return ConversionResult(out, job.version, report, clock.seconds)


def convert_until(
    until: str,
    what: str | Path | Job,
    stages: str | Path,
    *,
    data: Any = None,
    recipes: Sequence[str] = DEFAULT_RECIPES,
    seed: int = 0,
    calibrate: int = PAGES,
    allow_synthetic: bool = False,
    front_end: str = ONNX2TF,
    whole: bool = False,
    progress: Progress = lambda line: None,
) -> StagesResult:
    """The stages up to `until`, kept in `stages`; nothing is verified. Arguments as `convert_model` takes them.

    `convert_model` with the same arguments goes on from them. Raises as `convert_model` does.
    """
    if until not in STAGES:
        raise InputError("unknown stage", got=until, allowed=STAGES)
    exporter_of(front_end)
    chosen = load_recipes(tuple(recipes))
    clock = _Clock(progress)
    with _one_thread():
        job, pages = _job(clock, what), None
        if until == QUANTISE:
            pages = _opened(clock, job, data, seed).calibration(chosen, calibrate, seed, allow_synthetic)
        keep = Stages.at(stages, job.version)
        with tempfile.TemporaryDirectory(dir=stages, prefix=".") as folder:
            build_all(
                job.graphs.values(), folder, chosen, progress, pages,
                front_end=front_end, stages=keep, until=until, whole_in_float=not whole,
            )  # fmt: skip
            found = sorted(Path(stages) / path.name for path in Path(folder).iterdir())
            files = tuple(path for path in found if path.is_file())
    return StagesResult(Path(stages), job.version, until, files, tuple(keep.reused))


@dataclass(frozen=True)
class _Opened:
    """A job with its data. words: of the data, for the report."""

    job: Job
    data: Any
    words: str
    given: Any

    def calibration(
        self, recipes: Sequence[Recipe], pages: int, seed: int, allow_synthetic: bool
    ) -> CalibrationSet | None:
        """What the recipes need of it; None when none does."""
        if not any(recipe.calibrate for recipe in recipes):
            return None
        source = CalibrationSource.of(self.given, pages, seed, allow_synthetic=allow_synthetic)
        return CalibrationSet.record(self.job.calibration(self.data, pages, seed), source)


def _job(clock: _Clock, what: str | Path | Job) -> Job:
    job: Job = clock.time("load", lambda: open_job(what) if isinstance(what, str | Path) else what)
    return job


def _opened(clock: _Clock, job: Job, data: Any, seed: int) -> _Opened:
    opened, words = clock.time("data", lambda: job.open(data, seed))
    return _Opened(job, opened, words, data)


def _not_covered(
    report: Verification,
    built: Mapping[str, BuiltGraph],
    pages: CalibrationSet,
    subject: Subject,
    recipes: Sequence[Recipe],
) -> dict[str, str]:
    """Graph -> what calibration missed, of graphs in which a calibrated variant misses the gates."""
    static = {recipe.name for recipe in recipes if recipe.calibrate}
    lost = sorted({row.graph for row in report.rows if row.variant in static and not row.passed})
    if not lost:
        return {}
    seen = CalibrationSet.record(subject, pages.source).feeds
    found = {}
    for key in lost:
        path = built[key].variants[FLOAT]
        try:
            found[key] = not_covered(activation_ranges(path, pages.feeds[key]), activation_ranges(path, seen[key]))
        except ConversionError as error:  # a diagnosis must not cost the conversion
            found[key] = f"what calibration missed can't be told: {error.got}"
    return {key: words for key, words in found.items() if words}


def _kept_in(folder: Path) -> Callable[[str, str, Feeds], None]:
    def keep(key: str, variant: str, feeds: Feeds) -> None:
        folder.mkdir(exist_ok=True)
        arrays: dict[str, Any] = dict(feeds)
        np.savez(folder / f"{key.replace('/', '-')}.{variant}.npz", **arrays)

    return keep


@contextmanager
def _one_thread() -> Iterator[None]:
    """Graphs this small lose by a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _embed(
    built: Mapping[str, BuiltGraph], version: str, recipes: Mapping[str, Recipe], found: Mapping[str, Recipe]
) -> None:
    """Tell every file what it is. found: recipes of the search, by graph name."""
    for graph in built.values():
        for name, path in graph.variants.items():
            recipe = found[graph.name] if name == AUTO else recipes[name]
            facts = graph_facts(
                model_version=version,
                graph=graph.name,
                bucket=graph.bucket,
                inputs=graph.inputs,
                outputs=graph.outputs,
                recipe=recipe.to_json(),
                onnx=graph.onnx,
            )
            path.write_bytes(embed(path.read_bytes(), facts, path))


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


def _about(job: Job, built: Mapping[str, BuiltGraph], recipes: Sequence[Recipe]) -> dict[str, Any]:
    graphs = [
        {
            "name": one.name,
            "bucket": one.bucket,
            "inputs": [asdict(t) for t in one.inputs],
            "outputs": [asdict(t) for t in one.outputs],
            "variants": {name: f"graphs/{path.name}" for name, path in one.variants.items()},
            "golden": f"golden/{one.key.replace('/', '-')}.npz",
            "failed": dict(one.failed),
        }
        for one in built.values()
    ]
    return {
        "format": FORMAT,
        "kind": job.kind,
        "version": job.version,
        "created_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "graphs": graphs,
        "recipes": [recipe.to_json() for recipe in recipes],
    }


def tensors_of(data: Sequence[Mapping[str, Any]]) -> tuple[Tensor, ...]:
    """The inverse of what `model.json` holds of a tensor list."""
    return tuple(Tensor(str(t["name"]), tuple(int(n) for n in t["shape"]), str(t["dtype"])) for t in data)

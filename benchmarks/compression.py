"""What pruning and clustering save of the download, and what they cost in ranking, each with and without training on.

kir bench compression runs/kir --data events:runs/data --out runs/compression          (`tiny`: 20 minutes on one core)
kir bench compression runs/kir --data events:runs/data --only "prune 50%" --epochs 1   (with the plain net: 5 minutes)

Arms: the net as it is, pruned by 30, 50 and 70 %, clustered to 16, 32 and 64 values (convert/compress.py); each as
TFMOT left it, and trained on with masks or centroids held. The net trained on without any is the control: what it
gains or loses by itself is no merit of a mask. Bytes: the int8 files that a phone loads (every graph but `whole`),
summed, then each file sent alone, compressed by zlib 9 and zstd 19; on a scale per channel, and on one per matrix.
Kendall tau and first choice: the graphs of an arm, in float and in int8, against the float net it was made of, on
held-out windows.
GAUC: of the arm's float net on all held-out impressions, minus that of the net it was made of, users drawn whole.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.rerank_ablation import LABELS, held_out_results
from benchmarks.stats import machine
from contract.errors import InputError
from contract.stats import Interval

if TYPE_CHECKING:
    from convert.tfmot import Transform
    from training.checkpoint import Checkpoint
    from training.kir_data import KirData
    from training.within_user import WithinUserResult

PLAIN = "plain"
SHARES, CENTROIDS = (0.3, 0.5, 0.7), (16, 32, 64)
RECIPES = ("int8-weight-only", "int8-per-tensor")
VARIANTS = {"float32": "none: float", RECIPES[0]: "per channel", RECIPES[1]: "per matrix"}
ZLIB_LEVEL, ZSTD_LEVEL = 9, 19
WINDOWS = 256


@dataclass(frozen=True)
class Download:
    """Bytes of the files that a phone loads: as they are, and each compressed by itself."""

    files: int
    zlib: int
    zstd: int

    @staticmethod
    def of(paths: Sequence[Path]) -> Download:
        import pyarrow as pa

        raws = [path.read_bytes() for path in paths]
        codec = pa.Codec("zstd", compression_level=ZSTD_LEVEL)
        by_zlib = [zlib.compress(raw, ZLIB_LEVEL) for raw in raws]
        by_zstd = [codec.compress(raw, asbytes=True) for raw in raws]
        return Download(*(sum(map(len, sent)) for sent in (raws, by_zlib, by_zstd)))


@dataclass(frozen=True)
class Files:
    """One variant of an arm: its download, and its graphs' ranking beside the plain float net's."""

    download: Download
    tau: float
    top1: float


@dataclass(frozen=True, eq=False)
class Arm:
    """how: "plain", "prune 50%", …; epochs: trained on with it held; zeros: share of all the net's weights."""

    how: str
    epochs: int
    version: str
    zeros: float
    files: Mapping[str, Files]
    results: Mapping[str, WithinUserResult]

    @property
    def name(self) -> str:
        return f"{self.how}, {self.epochs} epochs" if self.epochs else self.how


@dataclass(frozen=True)
class Told:
    """What all arms of a run share."""

    checkpoint: str
    data: str
    epochs: int
    min_weights: int
    windows: int
    seed: int


def run_compression(
    checkpoint: Path,
    data: str,
    out: Path,
    command: str,
    *,
    only: Sequence[str] = (),
    epochs: int = 1,
    min_weights: int = 500,
    windows: int = WINDOWS,
    seed: int = 0,
    log: Callable[[str], object] = print,
) -> tuple[dict[str, Any], str]:
    """Make and judge every arm. Returns result and table. Raises InputError for an unknown arm and an existing OUT."""
    from convert.compress import compress
    from convert.jobs import open_events
    from training.checkpoint import load_checkpoint
    from training.kir_data import prepare

    hows = transforms()
    unknown = sorted(set(only) - set(hows))
    if unknown:
        raise InputError("unknown arm", got=", ".join(unknown), allowed=", ".join(hows))
    if out.exists():
        raise InputError("output directory exists", where=out, fix="choose another --out")
    told = Told(str(checkpoint), data, epochs, min_weights, windows, seed)
    base = load_checkpoint(checkpoint, kind="kir")
    events, words = open_events(data)
    prepared = prepare(events, int(base.model_config["watched"]))
    judge = Judge(base, events, prepared, out, told)
    arms = [judge.arm(PLAIN, 0, base)]
    for how in [name for name in hows if not only or name in only or name == PLAIN]:
        for passes in sorted({0, epochs} - ({0} if how == PLAIN else set())):
            path = out / f"{how.replace(' ', '-').replace('%', '')}-{passes}"
            compress(checkpoint, path, hows[how], prepared, epochs=passes, min_weights=min_weights, seed=seed)
            arms.append(judge.arm(how, passes, load_checkpoint(path, kind="kir")))
            log(_headline(arms[-1]))
    apart = {arm.name: differences(arm, arms[0]) for arm in arms[1:]}
    result = {
        "benchmark": "compression",
        "command": command,
        "machine": machine(),
        "settings": {**asdict(told), "log": words, "zlib": ZLIB_LEVEL, "zstd": ZSTD_LEVEL},
        "arms": {arm.name: _arm_json(arm, apart.get(arm.name, {})) for arm in arms},
    }
    return result, compression_table(arms, apart, told)


def transforms() -> dict[str, Transform | None]:
    """Arm -> what TFMOT does to it; None: nothing."""
    from convert.tfmot import Cluster, Prune

    made: list[Transform] = [*(Prune(share) for share in SHARES), *(Cluster(n) for n in CENTROIDS)]
    return {PLAIN: None, **{str(how): how for how in made}}


class Judge:
    """Everything that arms are held against: the plain float net's values on held-out windows, and the log."""

    def __init__(self, base: Checkpoint, events: Any, prepared: KirData, out: Path, told: Told):
        from convert.source import load_source
        from convert.subject import KirSubject
        from convert.windows import make_windows

        self.prepared, self.events, self.out, self.told = prepared, events, out, told
        source = load_source(base.path)
        subject = KirSubject(source, tuple(make_windows(source, events, told.windows, told.seed)))
        self.want = [subject.values(i, subject.reference(i)) for i in range(len(subject))]

    def arm(self, how: str, epochs: int, checkpoint: Checkpoint) -> Arm:
        from training.kir import load_kir

        net = load_kir(checkpoint).folded()
        weights = [layer.weight for layer in net.modules() if hasattr(layer, "in_features")]
        zeros = sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
        results = held_out_results(f"{how}-{epochs}", checkpoint, self.prepared)
        return Arm(how, epochs, checkpoint.version, zeros, self.files(checkpoint), results)

    def files(self, checkpoint: Checkpoint) -> dict[str, Files]:
        from convert.build import build_all
        from convert.measure import ranking
        from convert.quantize import load_recipes
        from convert.source import load_source
        from convert.subject import KirSubject
        from convert.tflite import TfliteGraph
        from convert.windows import make_windows

        source = load_source(checkpoint.path)
        graphs = [graph for graph in source.graphs.values() if graph.name != "whole"]
        built = build_all(graphs, self.out / "graphs" / checkpoint.version, load_recipes(RECIPES))
        told = self.told
        subject = KirSubject(source, tuple(make_windows(source, self.events, told.windows, told.seed)))
        found = {}
        for recipe in VARIANTS:
            paths = [graph.variants[recipe] for graph in built.values()]
            runs = {key: TfliteGraph(graph.variants[recipe]).run for key, graph in built.items()}
            got = [subject.values(i, subject.run(i, runs)) for i in range(len(subject))]
            near = ranking(self.want, got)
            found[recipe] = Files(Download.of(paths), near.tau, near.top1)
        return found


def differences(arm: Arm, plain: Arm) -> dict[str, Interval]:
    """GAUC of an arm minus the plain net's, by label."""
    from training.within_user import compare

    return {label: compare(arm.results[label], plain.results[label])["gauc"] for label in LABELS}


def _headline(arm: Arm) -> str:
    files = arm.files[RECIPES[0]]
    gauc = ", ".join(f"{label} GAUC {arm.results[label].metrics['gauc'].mean:.4f}" for label in LABELS)
    return f"{arm.name}: zstd {files.download.zstd}, tau {files.tau:.4f}, {gauc}"


def _arm_json(arm: Arm, apart: Mapping[str, Interval]) -> dict[str, Any]:
    return {
        "how": arm.how,
        "epochs": arm.epochs,
        "version": arm.version,
        "zeros": arm.zeros,
        "files": {recipe: asdict(files) for recipe, files in arm.files.items()},
        "gauc": {label: found.metrics["gauc"].to_json() for label, found in arm.results.items()},
        "minus_plain": {label: gap.to_json() for label, gap in apart.items()},
    }


def compression_table(arms: Sequence[Arm], apart: Mapping[str, Mapping[str, Interval]], told: Told) -> str:
    """A line for each arm and recipe: bytes and ranking; then a line for each arm: GAUC."""
    from training.retrieval_result import difference_text

    head = f"protocol: {told.checkpoint} on {told.data}, matrices from {told.min_weights} weights, seed {told.seed}; "
    head += (
        f"tau and first choice against the plain float net, {told.windows} held-out windows; − plain: zstd, same scale"
    )
    rows = [["arm", "zeros", "int8 scale", "files", "zlib", "zstd", "− plain", "tau", "top-1"]]
    for arm in arms:
        for recipe, files in arm.files.items():
            one, less = files.download, files.download.zstd / arms[0].files[recipe].download.zstd - 1.0
            sizes = [str(one.files), str(one.zlib), str(one.zstd), f"{less:+.1%}"]
            ranks = [f"{files.tau:.4f}", f"{files.top1:.3f}"]
            rows.append([arm.name, f"{arm.zeros:.0%}", VARIANTS[recipe], *sizes, *ranks])
    gaucs = [["arm", *(f"{label} GAUC, − plain" for label in LABELS)]]
    for arm in arms:
        cells = [arm.name]
        for label in LABELS:
            gap = apart.get(arm.name, {}).get(label)
            text = "" if gap is None else f"  {difference_text(gap)}" + " *" * gap.excludes_zero
            cells.append(f"{arm.results[label].metrics['gauc'].mean:.4f}{text}")
        gaucs.append(cells)
    return "\n".join(
        [head, *_aligned(rows), "", *_aligned(gaucs), "* the interval excludes 0; 95 %, users drawn whole"]
    )


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]

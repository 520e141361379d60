"""What each part of the reranker is worth: one change at a time, all judged on the same held-out impressions.

kir bench rerank-ablation --data events:runs/data --epochs 1 --only full,one-shot --out runs/rerank     (a minute)

Arms are trained on one log and scored on its last share. Two labels: effective_view by its own score, and a watched
share above the log's mean by the fused value, the one a swipe ranks by. GAUC is weighted by positives, differences are
paired with users drawn whole (training/within_user.py). Beside them what a swipe costs: multiply-adds of `swipe` in
the largest bucket and `watch` of one video. `one-shot` asks the model of `full` with what was known as the page came.
An arm that is done isn't trained again, so a long table may be made in pieces.

Shapes: n held-out impressions, T tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.stats import machine
from contract.errors import InputError
from contract.stats import Interval

if TYPE_CHECKING:
    from contract.events import Events
    from training.checkpoint import Checkpoint
    from training.kir_data import KirData, View
    from training.within_user import WithinUserResult

FEEDBACK = ("play_ratio", "watch_time", "signals", "stays", "posture", "gap", "surprise")
LABELS = ("effective_view", "watch_share")
REFERENCE = "full"


@dataclass(frozen=True)
class Arm:
    """changes: of the preset; without: fields left out; seen, gaps: `kir_data.View`; of: whose model it asks."""

    group: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    seen: str = "swipe"
    gaps: bool = True
    pxtr_only: bool = False
    preset: str = ""
    of: str = ""

    def view(self) -> View:
        from training.kir_data import View

        return View(self.seen, self.gaps)


ARMS: dict[str, Arm] = {
    REFERENCE: Arm("reference"),
    "one-shot": Arm("per swipe or per page", seen="page", of=REFERENCE),
    "one-shot-trained": Arm("per swipe or per page", seen="page"),
    "no-feedback": Arm("real-time feedback", without=FEEDBACK),
    "no-watched-list": Arm("real-time feedback", seen="nothing"),
    "no-gaps": Arm("crossings", gaps=False),
    "no-surprise": Arm("crossings", without=("surprise",)),
    "no-crossings": Arm("crossings", without=("surprise", "play_ratio"), gaps=False),
    "id-stack": Arm("stacks", changes={"towers": ("id",)}),
    "pxtr-stack": Arm("stacks", changes={"towers": ("pxtr",)}),
    "no-stack": Arm("stacks", changes={"blocks": 0}),
    "mean-of-stacks": Arm("reading the list", changes={"reads": "mean"}),
    "no-placed": Arm("placed context", changes={"placed": 0}),
    "fm": Arm("DeepFM", changes={"fm": 8}),
    "no-skip": Arm("the server's scores", changes={"skip": False}),
    "pxtr-only": Arm("sparse rows", pxtr_only=True),
    "L10": Arm("watched list", changes={"watched": 10}),
    "L20": Arm("watched list", changes={"watched": 20}),
    "L50": Arm("watched list", changes={"watched": 50}),
    "kir2020": Arm("presets", preset="kir2020"),
    "kir2022": Arm("presets", preset="kir2022"),
}
SHAPE = ("reads", "placed", "experts", "tasks", "loss", "towers", "blocks", "fm", "skip")  # presets but sizes


@dataclass(frozen=True, eq=False)
class Judged:
    """One arm: its results by label, and multiply-adds of a swipe with the watch step of one video."""

    name: str
    results: Mapping[str, WithinUserResult]
    swipe_macs: int


def arm_changes(arm: Arm, preset: str) -> dict[str, Any]:
    """The arm's changes of `preset`. Another preset's arm keeps the sizes of `preset`, so that shapes are compared."""
    from training.kir_config import KirConfig

    found = dict(arm.changes)
    if arm.preset:
        other, sizes = KirConfig.of(arm.preset), KirConfig.of(preset)
        found |= {name: getattr(other, name) for name in SHAPE}
        found["blocks"] = sizes.blocks if other.blocks else 0
    return found


def run_rerank_ablation(
    data: str,
    out: Path,
    command: str,
    *,
    preset: str = "tiny",
    epochs: int = 4,
    seed: int = 0,
    only: Sequence[str] = (),
    log: Callable[[str], object] = print,
) -> tuple[dict[str, Any], str]:
    """Train what is missing, judge all asked for. Returns result and table.

    Raises InputError for unknown arms, and for a directory that holds arms of other settings.
    """
    unknown = sorted(set(only) - set(ARMS))
    if unknown:
        raise InputError("unknown arm", got=", ".join(unknown), allowed=", ".join(ARMS))
    names = [name for name in ARMS if not only or name in only or name == REFERENCE]
    events = _events(data)
    told = {"data": data, "preset": preset, "epochs": epochs, "seed": seed, "impressions": len(events)}
    judged = []
    for name in names:
        checkpoint = _checkpoint(name, events, out, told, log)
        judged.append(_judge(name, checkpoint, events))
        log(f"{name}: " + ", ".join(f"{k} GAUC {r.metrics['gauc'].mean:.4f}" for k, r in judged[-1].results.items()))
    apart = _differences(judged)
    result = {
        "benchmark": "rerank-ablation",
        "command": command,
        "machine": machine(),
        "settings": told,
        "reference": REFERENCE,
        "arms": {
            one.name: {
                "group": ARMS[one.name].group,
                "swipe_macs": one.swipe_macs,
                "results": {label: found.to_dict() for label, found in one.results.items()},
                "minus_reference": {label: apart[one.name][label].to_json() for label in apart[one.name]},
            }
            for one in judged
        },
    }
    return result, ablation_table(judged, apart, told)


def _events(data: str) -> Events:
    from training.readers import LogData, open_data

    opened = open_data(data)
    if not isinstance(opened, LogData):
        raise InputError("the reranker needs a log of impressions", got=data, fix="events:FOLDER of kir annotate")
    return opened.events


def _checkpoint(
    name: str, events: Events, out: Path, told: Mapping[str, Any], log: Callable[[str], object]
) -> Checkpoint:
    """The arm's model: an earlier run's, or trained now."""
    import json

    from contract.files import replacing
    from training.checkpoint import load_checkpoint
    from training.kir_train import train_kir

    name = ARMS[name].of or name
    folder, note = out / name, out / f"{name}.json"
    if folder.exists():
        try:
            held = json.loads(note.read_text())
        except (OSError, ValueError):
            raise InputError(
                "a directory that no finished arm left", where=folder, fix="remove it, or choose another --out"
            ) from None
        if held != dict(told):
            raise InputError(
                "this directory holds an arm of other settings", where=folder, got=held, allowed=dict(told),
                fix="choose another --out",
            )  # fmt: skip
        return load_checkpoint(folder, kind="kir")
    log(f"{name}: training")
    arm = ARMS[name]
    checkpoint = train_kir(
        events,
        folder,
        str(told["preset"]),
        seed=int(told["seed"]),
        epochs=int(told["epochs"]),
        changes=arm_changes(arm, str(told["preset"])),
        without=arm.without,
        view=arm.view(),
        pxtr_only=arm.pxtr_only,
    )
    with replacing(note) as file:
        file.write(json.dumps(dict(told)).encode())
    return checkpoint


def _judge(name: str, checkpoint: Checkpoint, events: Events) -> Judged:
    from training.kir import load_kir
    from training.kir_data import prepare

    net = load_kir(checkpoint)
    found = held_out_results(name, checkpoint, prepare(events, net.config.watched), ARMS[name].view())
    return Judged(name, found, swipe_macs(net))


def held_out_results(
    name: str, checkpoint: Checkpoint, data: KirData, view: View | None = None
) -> dict[str, WithinUserResult]:
    """A checkpoint of the reranker on the share of the log that it was told to keep out, by LABELS."""
    from contract.vocabulary import TASKS
    from training.kir import load_kir
    from training.kir_data import Batches
    from training.kir_eval import fused, score
    from training.kir_train import KirTask, split_by_time
    from training.within_user import ScoredLog, evaluate

    facts = checkpoint.config["training"]
    net = load_kir(checkpoint)
    held_out = ~split_by_time(data, float(facts["held_out"]))
    batches = Batches(data, net.spec, checkpoint.tables, held_out, windows=256, view=view)
    scores_nT, rows = score(KirTask(net, checkpoint.tables), batches)
    order = np.argsort(rows)
    scores_nT, rows = scores_nT[order], rows[order]
    tasks, labels_nT = net.config.tasks, data.labels_nT[rows]
    share_n = labels_nT[:, TASKS.index("watch_time")]
    threshold = float(facts["watch_share_threshold"])
    found = {}
    for label, value_n, score_n in (
        (LABELS[0], labels_nT[:, TASKS.index(LABELS[0])], scores_nT[:, tasks.index(LABELS[0])]),
        (LABELS[1], np.where(np.isnan(share_n), np.nan, share_n > threshold),
         fused(scores_nT, tasks, checkpoint.model_config["fusion"])),
    ):  # fmt: skip
        known = ~np.isnan(value_n)
        protocol = f"{label} on the last {facts['held_out']:.0%} of the log"
        scored = ScoredLog.of(
            name, data.events.take(rows[known]), value_n[known], score_n[known], protocol, probability=False
        )
        found[label] = evaluate(scored)
    return found


def swipe_macs(net: Any) -> int:
    """Multiply-adds of `swipe` in the largest bucket and of `watch` for one video."""
    from training.kir import cost, graphs

    made = graphs(net, t=(1,))
    return cost(made["swipe", f"N{net.config.buckets[-1]}"]) + cost(made["watch", "T1"])


def _differences(judged: Sequence[Judged]) -> dict[str, dict[str, Interval]]:
    """GAUC of each arm minus the reference's, by label."""
    from training.within_user import compare

    first = judged[0]
    return {
        one.name: {label: compare(one.results[label], first.results[label])["gauc"] for label in LABELS}
        for one in judged[1:]
    } | {first.name: {}}


def ablation_table(
    judged: Sequence[Judged], apart: Mapping[str, Mapping[str, Interval]], told: Mapping[str, Any]
) -> str:
    from training.retrieval_result import difference_text

    scored = judged[0].results[LABELS[0]].scored
    head = [
        f"protocol: {told['data']}, preset {told['preset']}, {told['epochs']} epochs, seed {told['seed']}; GAUC "
        f"weighted by positives; differences to {REFERENCE} paired, 95 %, users drawn whole",
        f"{len(scored)} held-out impressions of {len(np.unique(scored.user_id))} users",
    ]
    rows = [["arm", "about", *(f"{label} GAUC  − {REFERENCE}" for label in LABELS), "swipe + watch, k multiply-adds"]]
    for one in judged:
        cells = [one.name, ARMS[one.name].group]
        for label in LABELS:
            gap = apart[one.name].get(label)
            text = "" if gap is None else f"  {difference_text(gap)}" + " *" * gap.excludes_zero
            cells.append(f"{one.results[label].metrics['gauc'].mean:.4f}{text}")
        rows.append([*cells, f"{one.swipe_macs / 1e3:.0f}"])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*head, *("  " + line for line in lines), "* the interval excludes 0"])

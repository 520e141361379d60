"""How well scores rank: AUC, and GAUC (AUC within each user or session, weighted by positives).

Shape legend: n impressions, T tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from contract.vocabulary import MISSING_KEY, PXTR_HEADS, TASKS
from training.kir_data import Batches, KirData
from training.within_user import METRICS, ScoredLog, ece, per_user

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]


def auc(scores: Floats, labels: Bools) -> float:
    """Probability that a positive scores above a negative, ties half. NaN when one class is absent."""
    return gauc(scores, labels, np.zeros(len(scores), np.uint64))


def gauc(scores: Floats, labels: Bools, groups: NDArray[Any]) -> float:
    """Mean AUC of the groups that hold both classes, weighted by their positives: that of `training.within_user`. NaN
    without any."""
    found = per_user(groups, labels, np.asarray(scores, np.float64))
    return float(found.values(np.ones((1, len(found.user_id))))[0, METRICS.index("gauc")]) if len(scores) else np.nan


def binary_labels(labels_nT: Floats, threshold: float) -> tuple[Bools, Bools]:
    """Classes [n, T] and which are known [n, T], of all TASKS: the watch share is cut at `threshold`, the others at a
    half."""
    cut_T = np.array([threshold if task == "watch_time" else 0.5 for task in TASKS])
    return labels_nT > cut_T, ~np.isnan(labels_nT)


def ranking_metrics(
    scores_nT: Floats, tasks: Sequence[str], data: KirData, rows: NDArray[np.int64], threshold: float
) -> dict[str, float]:
    """`positives_<task>`, `auc_<task>`, `gauc_<task>` (per user) and `session_gauc_<task>` of scores with a column for
    each of `tasks`; tasks with one class alone are left out."""
    found: dict[str, float] = {}
    yes_nT, known_nT = binary_labels(data.labels_nT[rows], threshold)
    user, session = data.events["user_id"][rows], data.events["session_id"][rows]
    for place, task in enumerate(tasks):
        t = TASKS.index(task)
        known = known_nT[:, t]
        if not 0 < yes_nT[known, t].sum() < known.sum():
            continue
        scores, yes = scores_nT[known, place], yes_nT[known, t]
        found[f"positives_{task}"] = int(yes.sum())
        found[f"auc_{task}"] = auc(scores, yes)
        found[f"gauc_{task}"] = gauc(scores, yes, user[known])
        if (session[known] != MISSING_KEY).all():
            found[f"session_gauc_{task}"] = gauc(scores, yes, session[known])
    return {name: value for name, value in found.items() if np.isfinite(value)}


def calibration(scores_nT: Floats, tasks: Sequence[str], data: KirData, rows: NDArray[np.int64]) -> dict[str, float]:
    """`ece_<task>`: how far predicted chances (of watch_time: the share) are from what was observed, in tenths of the
    impressions by prediction."""
    found = {}
    for place, task in enumerate(tasks):
        label_n = data.labels_nT[rows, TASKS.index(task)]
        known = ~np.isnan(label_n)
        if known.any():
            chance_n = 1.0 / (1.0 + np.exp(-scores_nT[known, place].astype(np.float64)))
            found[f"ece_{task}"] = ece(label_n[known], chance_n)
    return found


def server_scores(data: KirData, rows: NDArray[np.int64]) -> tuple[Floats, str]:
    """The baseline: the ranker's long-view probability where it is known, else the server's order. Scores [n], name."""
    pxtr = data.events["pxtr"][rows, PXTR_HEADS.index("long_view")]
    if np.isfinite(pxtr).mean() > 0.5:
        return np.where(np.isfinite(pxtr), pxtr, np.nanmean(pxtr)), "pxtr_long_view"
    return -data.events["server_position"][rows].astype(np.float64), "server_position"


@torch.no_grad()
def score(task: Any, batches: Batches) -> tuple[Floats, NDArray[np.int64]]:
    """Logits [n, T] of all targets of `batches` and their events [n], in eval mode."""
    was_training = task.training
    task.eval()
    scores, events = [], []
    for batch in batches.in_turn():
        real = batch.event >= 0
        scores.append(task.scores(batch).cpu().numpy()[real])
        events.append(batch.event[real])
    task.train(was_training)
    if not events:
        return np.zeros((0, task.net.config.n_tasks), np.float32), np.zeros(0, np.int64)
    return np.concatenate(scores), np.concatenate(events)


def scored_views(name: str, task: Any, data: KirData, of: Bools, protocol: str) -> list[ScoredLog]:
    """effective_view on the events `of`, beside the server's own scores: where both label and scores are there."""
    scores_nT, rows = score(task, Batches(data, task.net.spec, task.tables, of, windows=256))
    t = TASKS.index("effective_view")
    known = ~np.isnan(data.labels_nT[rows, t])
    rows, scores_nT = rows[known], scores_nT[known]
    if not len(rows):
        return []
    order = np.argsort(rows)  # as the log has them
    logit_n = scores_nT[order, task.net.config.tasks.index("effective_view")].astype(np.float64)
    rows, chance = rows[order], 1.0 / (1.0 + np.exp(-logit_n))
    seen, label = data.events.take(rows), data.labels_nT[rows, t]
    server, kind = server_scores(data, rows)
    return [
        ScoredLog.of(name, seen, label, chance, protocol, probability=task.net.config.loss != "weighted"),
        ScoredLog.of(f"server ({kind})", seen, label, server, protocol, probability=kind.startswith("pxtr")),
    ]


def fused(scores_nT: Floats, tasks: Sequence[str], fusion: Mapping[str, float]) -> Floats:
    """value = Σ weight[task] · sigmoid(score[task]), [n]: what the phone ranks by."""
    weights_T = np.array([fusion.get(task, 0.0) for task in tasks])
    return 1.0 / (1.0 + np.exp(-scores_nT)) @ weights_T

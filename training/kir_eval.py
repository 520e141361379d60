"""How well scores rank: AUC, and GAUC (AUC within each user or session, weighted by impressions).

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
from training.within_user import ScoredLog, ece

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]


def auc(scores: Floats, labels: Bools) -> float:
    """Probability that a positive scores above a negative, ties half. NaN when one class is absent."""
    return gauc(scores, labels, np.zeros(len(scores), np.int64))


def gauc(scores: Floats, labels: Bools, groups: NDArray[Any]) -> float:
    """Mean AUC of the groups that hold both classes, weighted by their size (DIN, KDD 2018, Eq. 7). NaN without any."""
    group = np.unique(groups, return_inverse=True)[1]
    order = np.lexsort((scores, group))
    group, scores, labels = group[order], np.asarray(scores)[order], np.asarray(labels, bool)[order]
    n = len(scores)
    if not n:
        return float("nan")
    new_tie = np.concatenate([[True], (scores[1:] != scores[:-1]) | (group[1:] != group[:-1])])
    tie = np.cumsum(new_tie) - 1
    rank = (np.bincount(tie, np.arange(n)) / np.bincount(tie))[tie]  # mean of tied ranks
    size = np.bincount(group)
    first = np.cumsum(size) - size
    positive = np.bincount(group, labels)
    negative = size - positive
    rank_sum = np.bincount(group, np.where(labels, rank - first[group], 0.0))
    both = (positive > 0) & (negative > 0)
    if not both.any():
        return float("nan")
    area = (rank_sum[both] - positive[both] * (positive[both] - 1) / 2) / (positive[both] * negative[both])
    return float(np.average(area, weights=size[both]))


def binary_labels(labels_nT: Floats, threshold: float) -> tuple[Bools, Bools]:
    """Classes [n, T] and which are known [n, T], of all TASKS: the watch share is cut at `threshold`, the others at a
    half."""
    cut_T = np.array([threshold if task == "watch_time" else 0.5 for task in TASKS])
    return labels_nT > cut_T, ~np.isnan(labels_nT)


def ranking_metrics(
    scores_nT: Floats, tasks: Sequence[str], data: KirData, rows: NDArray[np.int64], threshold: float
) -> dict[str, float]:
    """`auc_<task>`, `gauc_<task>` (per user) and `session_gauc_<task>` of scores with a column for each of `tasks`;
    tasks with one class alone are left out."""
    found = {}
    yes_nT, known_nT = binary_labels(data.labels_nT[rows], threshold)
    user, session = data.events["user_id"][rows], data.events["session_id"][rows]
    for place, task in enumerate(tasks):
        t = TASKS.index(task)
        known = known_nT[:, t]
        if not 0 < yes_nT[known, t].sum() < known.sum():
            continue
        scores, yes = scores_nT[known, place], yes_nT[known, t]
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

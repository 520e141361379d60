"""Where the reranker's scores begin, at base rates or with a skip at the server's pXTR, and how they are set right in
the end.

A reranker must not be worse than what it is given. On a log of few impressions a net that starts from nothing was
(docs/experiments.md, 2026-11-29): it has to find in the same labels again what the server's ranker knows. So each score
begins as the logistic regression of its task on the server's logits, and the rest of the net, which adds nothing at
first, learns what is to be changed about that. In the end each score is shrunk, and its share of the server's logits
chosen anew, by the same regression on later events than the net learnt from: a net that knows its events by heart is
too sure of what it found.

Sources: Platt scaling; stacked generalisation (Wolpert 1992) of the net and the server's heads.
Shape legend: n targets, X pXTR heads, T tasks of the model.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contract import features
from contract.vocabulary import X_PXTR
from training.kir import Kir
from training.kir_data import KirData
from training.kir_objective import task_columns

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

RIDGE = 10.0  # of the regression, in targets: heads of one log are near copies of each other
LEAST_LABELS = 1000  # of a task, to set its score right: fewer say less than the ridge
NEWTON_STEPS = 20
SMALLEST_STEP = 1e-9


def start_scores(net: Kir, data: KirData, train: Bools) -> None:
    """Each task at its base rate among the events `train` [n], and at the server's prediction where the net has a skip.

    Takes pXTR as the net's scalers standardise them: set their constants first.
    """
    labels_nT = data.labels_nT[train][:, task_columns(net.config.tasks)].astype(np.float64)
    known_T = np.maximum((~np.isnan(labels_nT)).sum(0), 1)
    rate_T = np.clip(np.nansum(labels_nT, axis=0) / known_T, 1e-4, 1 - 1e-4)
    base_T = np.log(rate_T / (1 - rate_T))
    with torch.no_grad():
        net.task.bias.copy_(torch.from_numpy(base_T.astype(np.float32)).repeat_interleave(net.config.experts))
    if not net.config.skip:
        return
    server_n2X = _standardised(net, data.columns["pxtr"][:-2][train])
    told_n = server_n2X[:, X_PXTR:].any(axis=1)
    weights_T2X = np.zeros((len(base_T), server_n2X.shape[1]))
    for task, base in enumerate(base_T):
        rows = told_n & ~np.isnan(labels_nT[:, task])
        if rows.any():
            weights_T2X[task] = logistic(server_n2X[rows], labels_nT[rows, task], base)
    net.start_at_server(torch.from_numpy(weights_T2X.astype(np.float32)))
    torch.nn.init.zeros_(net.task.weight)  # the experts add nothing yet


def refit_scores(
    net: Kir, data: KirData, scores_nT: NDArray[np.float32], rows: NDArray[np.int64]
) -> dict[str, dict[str, Any]]:
    """Turn each score of a trained net into base + beta·score + w·pXTR (with a skip), as fits the labels of `rows`.

    scores_nT: the net's own logits of those rows, which it was not trained on. All of it is linear in what the net adds
    up last, so it goes into the weights: the net stays as large as it was. A task of fewer than `LEAST_LABELS` labels
    stays as it is; beta is never below 0, which would turn an order around. The ridge holds base as well as w.

    Returns beta, base and w of each task that was set right.
    """
    tasks = net.config.tasks
    labels_nT = data.labels_nT[rows][:, task_columns(tasks)].astype(np.float64)
    logits_nT = scores_nT.astype(np.float64)
    pxtr_nX = data.columns["pxtr"][:-2][rows]  # the last two rows of a column are no events (KirData)
    server_n2X = _standardised(net, pxtr_nX) if net.config.skip else np.zeros((len(rows), 0))
    found = {}
    for task, name in enumerate(tasks):
        known = ~np.isnan(labels_nT[:, task])
        if known.sum() < LEAST_LABELS:
            continue
        logit = logits_nT[known, task]
        middle = logit.mean()
        told = np.concatenate([(logit - middle)[:, None], np.ones((len(logit), 1)), server_n2X[known]], axis=1)
        more, base, *server = logistic(told, labels_nT[known, task], logit)
        if more < -1.0:  # at the bound the score counts for nothing, and the others have to do without it
            more = -1.0
            base, *server = logistic(told[:, 1:], labels_nT[known, task], np.full_like(logit, middle))
        net.rescale(task, 1.0 + more, base - more * middle, torch.tensor(server, dtype=torch.float32))
        found[name] = {"beta": 1.0 + more, "base": base, "w": [float(weight) for weight in server]}
    return found


def _standardised(net: Kir, pxtr_nX: NDArray[np.float32]) -> Floats:
    """Logits as the net reads them, and presence bits: [n, 2X]."""
    raw = np.zeros((len(pxtr_nX), 2 * X_PXTR), np.float32)
    features.pxtr_logits({"pxtr": pxtr_nX}, raw)
    scaler = net.scalers["candidate_dense"]
    mean_X, std_X = (_numpy(getattr(scaler, name)) for name in ("mean", "std"))
    logit_nX, present_nX = np.split(raw.astype(np.float64), 2, axis=1)
    return np.concatenate([(logit_nX - present_nX * mean_X) / std_X, present_nX], axis=1)


def _numpy(x: Tensor) -> Floats:
    found: Floats = x.numpy().astype(np.float64)
    return found


def logistic(x_nF: Floats, label_n: Floats, base: float | Floats, ridge: float = RIDGE) -> Floats:
    """Weights w [F] of the ridge regression label ~ sigmoid(base + x·w), by Newton's method; labels may be shares, and
    base may be of each [n]."""
    w_F = np.zeros(x_nF.shape[1])

    def loss(w_F: Floats) -> float:
        logit_n = base + x_nF @ w_F
        return float((np.logaddexp(0.0, logit_n) - label_n * logit_n).sum() + 0.5 * ridge * w_F @ w_F)

    for _ in range(NEWTON_STEPS):
        chance_n = 0.5 + 0.5 * np.tanh(0.5 * (base + x_nF @ w_F))
        slope_F = x_nF.T @ (chance_n - label_n) + ridge * w_F
        curve_FF = (x_nF * (chance_n * (1 - chance_n))[:, None]).T @ x_nF + ridge * np.eye(len(w_F))
        step_F = np.linalg.solve(curve_FF, slope_F)
        while loss(w_F - step_F) > loss(w_F) and np.abs(step_F).max() > SMALLEST_STEP:
            step_F = step_F / 2  # far from the optimum a whole step may go past it
        w_F = w_F - step_F
    return w_F

"""What the reranker is trained for and what its scores are worth: losses, weights of tasks, fusion, reward of a list.

Shape legend: B windows, M targets of a window, T tasks of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from contract.vocabulary import TASKS

TASK_WEIGHTS = {"effective_view": 1.0, "like": 0.5, "has_next": 0.3, "watch_time": 2.0}
# For the session's watch time: the watched share of a minute, and staying (Eq. 5 of KIR puts it into s_i).
# Simulator's closed loop, tiny, three trainings, 600 to 1000 sessions each: +12 to +17 % (± 5) over the server's order;
# watch_time alone +7 to +8 %; mixtures with more of has_next or effective_view can't be told apart.
FUSION = {"watch_time": 1.0, "has_next": 1.0, "like": 0.0, "effective_view": 0.15}
# The same without staying, which discounts what follows in a list (Eq. 4 and 5): what the phone's beam search adds up.
LIST_REWARD = {"value": {"watch_time": 1.0, "like": 0.0, "effective_view": 0.15}, "survival": "has_next"}
# Of models without a watch_time task: alpha and beta of Eq. 4, not tuned.
PLAIN_FUSION = {"has_next": 1.0, "effective_view": 1.0, "like": 0.3}


def labelled_tasks(tasks: Sequence[str], labels: NDArray[np.floating]) -> tuple[str, ...]:
    """Those of a model's tasks that training told anything about. labels: float [n, len(TASKS)], NaN = null."""
    known_T = (~np.isnan(labels)).any(axis=0)
    return tuple(task for task in tasks if known_T[TASKS.index(task)])


def fusion_of(tasks: Sequence[str]) -> dict[str, float]:
    """Weight of each task in the value that a swipe ranks by. tasks: those that had labels (`labelled_tasks`), or the
    scores of the others, which are noise, would rank."""
    whole = FUSION if "watch_time" in tasks else PLAIN_FUSION
    return {task: whole[task] for task in whole if task in tasks}


def list_reward_of(tasks: Sequence[str]) -> dict[str, Any] | None:
    """`contract.beam.ListReward` as data: the fusion without staying, discounted by it. None where has_next is no task
    with labels: nothing is known of what follows in a list, and the phone chooses by NextOne."""
    if "has_next" not in tasks:
        return None
    return {"value": {k: v for k, v in fusion_of(tasks).items() if k != "has_next"}, "survival": "has_next"}


def task_columns(tasks: Sequence[str]) -> list[int]:
    """Where a model's tasks stand among TASKS, the columns of the labels."""
    return [TASKS.index(task) for task in tasks]


def task_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy [T] over the labels that are known, from [B, M, T] each; soft for watch_time, NaN = null."""
    known = ~torch.isnan(labels)
    losses = F.binary_cross_entropy_with_logits(logits, labels.nan_to_num(), reduction="none") * known
    return losses.sum((0, 1)) / known.sum((0, 1)).clamp(min=1)


def weighted_log_loss(logits: Tensor, label: Tensor, watched: Tensor) -> Tensor:
    """The 2020 talk's loss, -1/n Σ [y w log p + (1 - y) log(1 - p)], of one score: [B, M] each, NaN = null.

    w is the watched share (of a minute) over its mean among the batch's positives, 1 where it is null, so that
    positives weigh 1 on average; p's odds then grow with the time that is watched (Covington et al., RecSys 2016,
    section 4.2).
    """
    known = ~torch.isnan(label)
    positive = known & (label == 1)
    timed = positive & ~torch.isnan(watched)
    mean = watched[timed].mean().clamp(min=1e-6) if timed.any() else watched.new_ones(())
    weight = torch.where(timed, watched.nan_to_num() / mean, torch.ones_like(logits))
    losses = F.binary_cross_entropy_with_logits(logits, label.nan_to_num(), weight=weight, reduction="none") * known
    return losses.sum() / known.sum().clamp(min=1)

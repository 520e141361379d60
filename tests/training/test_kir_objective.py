"""Losses against loops over their formulas, and weights that fit the tasks a model has."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from contract.beam import ListReward
from contract.vocabulary import TASKS
from training.kir_config import PRESETS, KirConfig
from training.kir_objective import (
    FUSION,
    LIST_REWARD,
    PLAIN_FUSION,
    fusion_of,
    labelled_tasks,
    list_reward_of,
    task_columns,
    task_losses,
    weighted_log_loss,
)

NAN = float("nan")


def log_loss(logit: float, y: float, w: float = 1.0) -> float:
    p = 1 / (1 + math.exp(-logit))
    return -(y * w * math.log(p) + (1 - y) * math.log(1 - p))


def test_task_losses_are_means_over_known_labels():
    logits = torch.tensor([[[0.3, -1.0], [2.0, 0.5]], [[-0.7, 0.0], [1.0, 1.0]]])
    labels = torch.tensor([[[1.0, NAN], [0.0, NAN]], [[NAN, NAN], [0.25, NAN]]])
    known = [(0.3, 1.0), (2.0, 0.0), (1.0, 0.25)]
    expected = sum(log_loss(x, y) for x, y in known) / 3
    assert task_losses(logits, labels).tolist() == pytest.approx([expected, 0.0], abs=1e-6)


def test_weighted_log_loss_is_the_talks_formula():
    """Positives weigh their watched share over the batch's mean; without a time, and for negatives, 1."""
    logits = torch.tensor([[0.5, -0.2, 1.5, 0.1, 0.9]])
    label = torch.tensor([[1.0, 0.0, 1.0, 1.0, NAN]])
    watched = torch.tensor([[0.2, 0.9, 0.6, NAN, 0.5]])
    expected = log_loss(0.5, 1, 0.2 / 0.4) + log_loss(-0.2, 0) + log_loss(1.5, 1, 0.6 / 0.4) + log_loss(0.1, 1)
    assert float(weighted_log_loss(logits, label, watched)) == pytest.approx(expected / 4, abs=1e-6)


def test_weighted_log_loss_without_positives_or_labels():
    logits = torch.tensor([[0.5, -0.2]], requires_grad=True)
    nothing = weighted_log_loss(logits, torch.tensor([[0.0, NAN]]), torch.tensor([[0.5, NAN]]))
    assert float(nothing.detach()) == pytest.approx(log_loss(0.5, 0), abs=1e-6)
    none = weighted_log_loss(logits, torch.full((1, 2), NAN), torch.full((1, 2), NAN))
    none.backward()
    assert float(none.detach()) == 0.0
    assert torch.isfinite(logits.grad).all()


def test_odds_grow_with_watched_time():
    """The minimum of the loss for one group: odds = sum of the positives' weights over the number of negatives."""
    label = torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0]])
    watched = torch.tensor([[0.9, 0.3, 0.1, 0.1, 0.1]])
    logit = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([logit], lr=2.0)
    for _ in range(300):
        optimizer.zero_grad()
        weighted_log_loss(logit.expand(1, 5), label, watched).backward()
        optimizer.step()
    assert math.exp(float(logit.detach())) == pytest.approx((0.9 / 0.6 + 0.3 / 0.6) / 3, rel=1e-3)


@pytest.mark.parametrize("preset", PRESETS)
def test_weights_name_the_models_own_tasks(preset):
    tasks = KirConfig.of(preset).tasks
    assert set(fusion_of(tasks)) <= set(tasks)
    assert sum(fusion_of(tasks).values()) > 0
    reward = list_reward_of(tasks)
    assert (reward is None) == ("has_next" not in tasks)
    if reward is not None:
        ListReward.from_json(reward, tasks)
    assert [TASKS[i] for i in task_columns(tasks)] == list(tasks)


def test_tasks_without_a_label_neither_rank_nor_discount():
    labels = np.array([[1.0, np.nan, np.nan, 0.5], [0.0, np.nan, np.nan, np.nan]])
    assert labelled_tasks(TASKS, labels) == ("effective_view", "watch_time")
    assert labelled_tasks(("has_next", "effective_view", "like"), labels) == ("effective_view",)
    known = labelled_tasks(TASKS, labels)
    assert fusion_of(known) == {"watch_time": FUSION["watch_time"], "effective_view": FUSION["effective_view"]}
    assert list_reward_of(known) is None


def test_all_tasks_have_the_tuned_weights():
    assert fusion_of(TASKS) == FUSION
    assert list_reward_of(TASKS) == LIST_REWARD
    assert fusion_of(("effective_view",)) == {"effective_view": PLAIN_FUSION["effective_view"]}

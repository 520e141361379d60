"""Scores begin at the server's: the regression against its own conditions, and an untrained net against it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from contract.specs import kir_spec
from contract.vocabulary import PXTR_HEADS, TASKS
from tests.training.test_kir_data import some_events
from training.kir import Kir, KirConfig
from training.kir_data import Batches, prepare, pxtr_constants
from training.kir_eval import score
from training.kir_start import logistic, start_scores
from training.kir_targets import new_keys, targets_of
from training.kir_train import KirTask, train_kir
from training.tables import SparseTables

SPEC = kir_spec()
LONG_VIEW, TASK = PXTR_HEADS.index("long_view"), TASKS.index("effective_view")


def told_events(n: int = 3000):
    """A log whose long views come as the server said they would; likes as a coin."""
    log = some_events(n, users=40)
    chance = np.where(np.isnan(log["pxtr"][:, LONG_VIEW]), 0.5, log["pxtr"][:, LONG_VIEW])
    rng = np.random.default_rng(1)
    return log.with_columns(long_view=(rng.random(n) < chance).astype(int), like=rng.integers(2, size=n))


def started(data, config: KirConfig) -> KirTask:
    everything = np.ones(len(data), bool)
    torch.manual_seed(0)
    net = Kir(config, SPEC)
    net.set_pxtr_constants(*pxtr_constants(data, everything))
    start_scores(net, data, everything)
    return KirTask(net, SparseTables.from_spec_and_keys(SPEC, new_keys(SPEC, data, everything)))


def scores_of(data, task: KirTask) -> np.ndarray:
    found, rows = score(task, Batches(data, SPEC, task.tables, np.ones(len(data), bool)))
    ordered = np.empty_like(found)
    ordered[rows] = found
    return ordered


def log_loss(logit: np.ndarray, label: np.ndarray) -> float:
    return float(np.mean(np.logaddexp(0.0, logit) - label * logit))


def test_regression_stands_where_its_slope_is_zero():
    rng = np.random.default_rng(0)
    x, label = rng.normal(size=(400, 3)), rng.random(400)  # shares, as of watch time
    w = logistic(x, label, base=-0.3, ridge=2.0)
    chance = 1 / (1 + np.exp(-(x @ w - 0.3)))
    np.testing.assert_allclose(x.T @ (chance - label) + 2.0 * w, 0.0, atol=1e-8)


def test_an_untrained_net_says_what_the_server_says():
    """Ranks like the head that predicts the task, is calibrated by the log, and asks no one else."""
    data = prepare(told_events(), 6)
    found, label = scores_of(data, started(data, KirConfig.of("tiny", watched=6)))[:, TASK], data.labels_nT[:, TASK]
    chance = data.events["pxtr"][:, LONG_VIEW]
    known = np.isfinite(chance)
    server = np.log(chance[known] / (1 - chance[known]))
    assert np.corrcoef(found[known], server)[0, 1] > 0.99
    assert log_loss(found[known], label[known]) < log_loss(server, label[known]) + 0.002
    like = scores_of(data, started(data, KirConfig.of("tiny", watched=6)))[:, TASKS.index("like")]
    assert like[known].std() < 0.15, "of a coin the server knows nothing"
    plain = scores_of(data, started(data, KirConfig.of("tiny", watched=6, skip=False)))[:, TASK]
    assert abs(np.corrcoef(plain[known], server)[0, 1]) < 0.9


def test_without_predictions_a_score_is_the_base_rate():
    data = prepare(told_events(), 6)
    blank = prepare(told_events().with_columns(pxtr=np.full((3000, 7), np.nan, np.float32)), 6)
    task = started(data, KirConfig.of("tiny", watched=6))
    rate = np.nanmean(data.labels_nT[:, TASK])
    np.testing.assert_allclose(scores_of(blank, task)[:, TASK], np.log(rate / (1 - rate)), atol=1e-4)


def test_what_has_no_prediction_is_no_target_where_others_have():
    log = told_events(200)
    pxtr = log["pxtr"].copy()
    pxtr[::3] = np.nan
    data = prepare(log.with_columns(pxtr=pxtr), 6)
    train = np.arange(len(data)) < 150
    targets = targets_of(SPEC, data, train)
    np.testing.assert_array_equal(targets, train & np.isfinite(data.events["pxtr"]).any(axis=1))
    assert 0 < targets.sum() < train.sum()
    np.testing.assert_array_equal(targets_of(SPEC.without(["pxtr"]), data, train), train)


@pytest.mark.parametrize("blank", [False, True])
def test_training_goes_on_from_there(tmp_path, blank):
    """The skip stays only where the spec reads predictions, and users' rows are hidden half of the time."""
    log = told_events(600)
    if blank:
        log = log.with_columns(pxtr=np.full((600, 7), np.nan, np.float32))
    checkpoint = train_kir(log, tmp_path / "kir", "tiny", epochs=1)
    assert checkpoint.model_config["skip"] != blank
    assert checkpoint.config["training"]["user_dropout"] == 0.5

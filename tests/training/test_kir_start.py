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
from training.kir_start import _standardised, logistic, refit_scores, start_scores
from training.kir_targets import new_keys
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


@pytest.mark.parametrize("skip", [True, False])
def test_scores_are_rescaled_to_the_letter(skip):
    """One task's logits become factor·logit + shift + weights·pXTR, whatever stands before; the others stay."""
    data = prepare(told_events(300), 6)
    task = started(data, KirConfig.of("tiny", watched=6, skip=skip))
    torch.manual_seed(1)
    torch.nn.init.normal_(task.net.task.weight)
    task.net.candidate_gain.uniform_(1.0, 4.0)
    before, server_n2X = scores_of(data, task), _standardised(task.net, data.columns["pxtr"][:-2])
    weights = np.linspace(-0.5, 0.5, server_n2X.shape[1]) if skip else np.zeros(0)
    task.net.rescale(TASK, 0.7, -0.3, torch.tensor(weights, dtype=torch.float32))
    found = scores_of(data, task)
    want = 0.7 * before[:, TASK] - 0.3 + (server_n2X @ weights if skip else 0.0)
    np.testing.assert_allclose(found[:, TASK], want, atol=2e-5)
    others = [t for t in range(len(TASKS)) if t != TASK]
    np.testing.assert_array_equal(found[:, others], before[:, others])


def test_a_net_too_sure_of_itself_is_set_right():
    """Half of its labels are kept from the fit: there, too, the loss falls to about that of the true chances."""
    data = prepare(told_events(), 6)
    task = started(data, KirConfig.of("tiny", watched=6))
    task.net.rescale(TASK, 4.0, 1.0, torch.zeros(14))
    rows, others = np.arange(0, 3000, 2), np.arange(1, 3000, 2)
    loud, label = scores_of(data, task), data.labels_nT[:, TASK]
    refit_scores(task.net, data, loud[rows], rows)
    found = scores_of(data, task)[:, TASK]
    chance = np.nan_to_num(data.events["pxtr"][:, LONG_VIEW], nan=0.5)
    best = log_loss(np.log(chance / (1 - chance))[others], label[others])
    assert log_loss(loud[others, TASK], label[others]) > best + 0.3
    assert log_loss(found[others], label[others]) < best + 0.01


def test_a_score_that_ranks_the_wrong_way_round_counts_for_nothing():
    """beta ends at 0, and what is taken of the server is fitted without it: as good as the server alone."""
    data = prepare(told_events(), 6)
    task = started(data, KirConfig.of("tiny", watched=6))
    best, label = scores_of(data, task)[:, TASK], data.labels_nT[:, TASK]
    wrong = scores_of(data, task)
    wrong[:, TASK] -= 3.0 * np.nan_to_num(label) + np.random.default_rng(0).normal(size=len(label)).astype(np.float32)
    found = refit_scores(task.net, data, wrong, np.arange(3000))
    assert found["effective_view"]["beta"] == 0.0
    assert log_loss(scores_of(data, task)[:, TASK], label) < log_loss(best, label) + 0.002


def test_a_task_with_few_labels_keeps_its_scores():
    like = TASKS.index("like")
    data = prepare(told_events(1500).with_columns(like=np.full(1500, -1)), 6)
    task = started(data, KirConfig.of("tiny", watched=6))
    before = scores_of(data, task)
    assert set(refit_scores(task.net, data, before, np.arange(1500))) == set(TASKS) - {"like"}
    np.testing.assert_array_equal(scores_of(data, task)[:, like], before[:, like])
    assert refit_scores(task.net, data, before[:999], np.arange(999)) == {}, "too few to say anything"


def test_no_score_is_turned_around():
    """Labels that say the opposite of the scores: those are dropped and not inverted."""
    data = prepare(told_events(), 6)
    task = started(data, KirConfig.of("tiny", watched=6, skip=False))
    torch.nn.init.normal_(task.net.task.weight)
    wrong = np.where(data.labels_nT[:, [TASK]] > 0.5, -3.0, 3.0).repeat(len(TASKS), axis=1).astype(np.float32)
    assert refit_scores(task.net, data, wrong, np.arange(len(data)))[TASKS[TASK]]["beta"] == 0.0


@pytest.mark.parametrize("blank", [False, True])
def test_training_goes_on_from_there(tmp_path, blank):
    """The skip stays only where the spec reads predictions; users' rows are hidden now and then."""
    log = told_events(600)
    if blank:
        log = log.with_columns(pxtr=np.full((600, 7), np.nan, np.float32))
    checkpoint = train_kir(log, tmp_path / "kir", "tiny", epochs=1)
    assert checkpoint.model_config["skip"] != blank
    assert checkpoint.config["training"]["user_dropout"] == 0.2

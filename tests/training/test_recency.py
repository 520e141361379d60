"""The prior of what was watched of late: what it counts, what targets see of it, that it is trained and served."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from contract.errors import InputError
from contract.specs import kuaiformer_spec
from tests.training.incremental_makers import DAY_MS, NEW_DAY, OLD_DAYS, RECIPE, START_MS, log
from tests.training.retrieval_makers import masked_split
from training.checkpoint import load_checkpoint
from training.distributed import split_batch
from training.incremental import train_incremental
from training.kuaiformer import KuaiFormerConfig
from training.kuaiformer_train import load_kuaiformer, make_task, train_kuaiformer
from training.recency import TABLE, recency_of
from training.retrieval_eval import KuaiFormerScorer, item_vectors
from training.retrieval_split import RetrievalSplit, split_of

HALF_LIFE = 0.5
WITH = RECIPE.changed([f"model.recency_days={HALF_LIFE}", "train.epochs=6"])


@pytest.fixture(scope="module")
def split() -> RetrievalSplit:
    return split_of(log(*OLD_DAYS, NEW_DAY), "toy", holdout_days=1)


@pytest.fixture(scope="module")
def trained(split, tmp_path_factory):
    return train_kuaiformer(split, tmp_path_factory.mktemp("recency") / "m", WITH)


def slow_prior(split: RetrievalSplit, at_ms: int) -> list[float]:
    """By the definition, place by place."""
    total = [0.0] * split.n_items
    for place in split.train_places().tolist():
        time_ms = int(split.index.time_ms[place])
        if time_ms < at_ms and split.index.known_ms[place] <= at_ms:
            total[split.row_P[place]] += 2 ** (-(at_ms - time_ms) / DAY_MS / HALF_LIFE)
    return [math.log1p(x) for x in total]


def test_priors_are_what_was_known_as_each_day_began(split):
    found = recency_of(split, HALF_LIFE)
    assert found.log_NG.shape == (split.n_items, 1 + len(OLD_DAYS))
    assert not found.log_NG[:, 0].any()
    for day in range(1, len(OLD_DAYS) + 1):
        want = slow_prior(split, split.cut_ms - day * DAY_MS)
        np.testing.assert_allclose(found.log_NG[:, day], want, rtol=1e-5, err_msg=f"{day} days before the end")
    assert not found.log_NG[:, -1].any(), "nothing stands before the first day"
    np.testing.assert_allclose(found.now_N, slow_prior(split, split.cut_ms), rtol=1e-5)
    trained = split.train_places()
    assert (found.day_P[trained] == len(OLD_DAYS) - (split.index.time_ms[trained] - START_MS) // DAY_MS).all()
    assert not np.delete(found.day_P, trained).any(), "what is held out has no day"


def test_what_is_held_out_changes_no_prior(split):
    late = np.setdiff1d(np.arange(len(split.row_P)), split.train_places())
    other = replace(split, row_P=np.where(np.isin(np.arange(len(split.row_P)), late), 0, split.row_P))
    assert np.array_equal(recency_of(other, HALF_LIFE).now_N, recency_of(split, HALF_LIFE).now_N)


def test_without_times_there_is_no_prior():
    with pytest.raises(InputError, match="recency_days needs times"):
        recency_of(masked_split(), 1.0)
    with pytest.raises(InputError, match="recency_days must be above 0"):
        KuaiFormerConfig(recency_days=0.0)
    with pytest.raises(InputError, match="recency_weight weighs a prior"):
        KuaiFormerConfig(recency_weight=0.1)


def test_a_stated_weight_is_what_is_served(split, trained, tmp_path):
    """Training is the same to the bit; what it learnt gives way."""
    stated = train_kuaiformer(split, tmp_path / "m", WITH.changed(["model.recency_weight=0.25"]))
    own, other = load_kuaiformer(trained).state_dict(), load_kuaiformer(stated).state_dict()
    apart = [name for name in own if not torch.equal(own[name], other[name])]
    assert apart == ["encoder.recency"]
    assert other["encoder.recency"] == 0.25
    assert stated.version != trained.version


def test_a_spec_without_a_prior_is_what_it_was():
    plain, recent = kuaiformer_spec(), kuaiformer_spec(recent=True)
    assert [f.name for f in recent.fields] == [*(f.name for f in plain.fields), "item_recent"]
    assert KuaiFormerConfig().spec().fingerprint == kuaiformer_spec(32, 8).fingerprint != recent.fingerprint
    assert KuaiFormerConfig().vector_width == KuaiFormerConfig().width


def test_a_target_is_scored_with_the_prior_of_its_own_day(split):
    """The loss beside a softmax over scores plus prior, target by target."""
    task, data = make_task(split, WITH.changed(["loss.candidates=full"]))
    task.eval()
    found = recency_of(split, HALF_LIFE)
    with torch.no_grad():
        task.net.encoder.recency.fill_(0.3)
        batch = next(data.batches(0, 0))
        assert len(batch.day.unique()) > 1
        rows = task.tables.rows(task.net.spec, "history_rows", batch.history)
        users_TKD = task.net.encoder.cuts(rows, batch.mask, batch.n_cuts).flatten(0, 1)[batch.cell][..., :-1]
        items_ND = item_vectors(task.net, task.tables, split.items)[:, :-1]
        score_TN = torch.einsum("tkd,nd->tkn", users_TKD, items_ND).amax(dim=1)
        score_TN = (score_TN + 0.3 * torch.from_numpy(found.log_NG)[:, batch.day].T) * task.scale
        want = torch.nn.functional.cross_entropy(score_TN, batch.item)
        torch.testing.assert_close(task.loss(batch)[0], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("candidates", ["full", "in-batch", "sampled"])
def test_parts_of_a_batch_keep_their_days(split, candidates):
    task, data = make_task(split, WITH.changed([f"loss.candidates={candidates}", "loss.negatives=5"]))
    task.eval()
    batch = next(data.batches(0, 0))
    with torch.no_grad():
        task.net.encoder.recency.fill_(0.3)
        step = task.step.clone()
        whole, total = float(task.loss(batch)[0]), 0.0
        for rank in range(2):
            task.step.copy_(step)
            part, share = split_batch(batch, rank, 2)
            total += share * float(task.loss(part, batch)[0])
    if candidates != "in-batch":  # there the estimator has moved on between the calls
        assert total == pytest.approx(whole, rel=1e-4)
    assert sorted(torch.cat([split_batch(batch, rank, 2)[0].day for rank in range(2)])) == sorted(batch.day)


def test_what_is_served_is_taste_plus_the_prior_as_of_the_end(split, trained):
    net, tables, config = load_kuaiformer(trained), copy.deepcopy(trained.tables), WITH.config()
    weight = net.encoder.recency.item()
    assert weight != 0.0, "it is learnt"
    now_N = recency_of(split, HALF_LIFE).now_N
    with torch.no_grad():
        items_ND = item_vectors(net, tables, split.items)
    assert items_ND.shape == (split.n_items, config.vector_width) == (split.n_items, config.width + 1)
    np.testing.assert_allclose(items_ND[:, -1], now_N, rtol=1e-6)
    queries = split.chosen("val")
    user, end = queries.user[:4], queries.end[:4]
    scores = KuaiFormerScorer(net, tables).scores(split, user, end)
    with torch.no_grad():
        tables.weights[TABLE].zero_()
    taste = KuaiFormerScorer(net, tables).scores(split, user, end)
    np.testing.assert_allclose(scores, taste + weight * now_N, rtol=1e-4, atol=1e-5)


def test_training_leaves_the_rows_of_the_prior_alone(split, trained):
    rows, keys = trained.tables.numpy_rows()[TABLE], trained.tables.keys[TABLE]
    now_N = recency_of(split, HALF_LIFE).now_N
    assert rows[0] == 0.0
    np.testing.assert_array_equal(rows[1:, 0], now_N[split.items.index_of(keys[1:])])


@pytest.mark.parametrize("items_only", [False, True])
def test_new_days_write_the_prior_anew(split, trained, tmp_path, items_only):
    """Of new videos as well; the net that stood still keeps its weight."""
    later = train_incremental(
        load_checkpoint(trained.path), log(NEW_DAY), tmp_path / "m", old=log(*OLD_DAYS), items_only=items_only
    )
    whole = split_of(log(*OLD_DAYS, NEW_DAY), "toy", holdout_days=0)
    now_N = recency_of(whole, HALF_LIFE).now_N
    with torch.no_grad():
        vectors_ND = item_vectors(load_kuaiformer(later), later.tables, whole.items)
    np.testing.assert_allclose(vectors_ND[:, -1], now_N, rtol=1e-5)
    same = load_kuaiformer(later).encoder.recency.item() == load_kuaiformer(trained).encoder.recency.item()
    assert same == items_only

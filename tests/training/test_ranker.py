"""The ranker: labels never leak, nulls are ignored, one user broadcasts over candidates, and it learns."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch

from contract.errors import CheckpointError, InputError, SpecError
from contract.events import Events
from contract.history import PositiveIndex
from contract.specs import kuaiformer_spec
from contract.vocabulary import PXTR_HEADS, X_PXTR
from training.checkpoint import load_checkpoint
from training.days import cut_before_last_days, days_of
from training.ranker import PRESETS, Ranker, RankerConfig, RankerProbabilities, masked_bce, preset_config
from training.ranker_data import RankerData, frozen_bounds
from training.ranker_eval import auc, item_rate, within_user_ranking
from training.ranker_train import (
    annotate,
    evaluate_ranker,
    fold_days,
    labelled_heads,
    load_ranker,
    make_task,
    predict,
    rolling_pxtr,
    train_ranker,
)
from training.simulator import SimConfig, World, simulate_logs

CONFIG = preset_config("tiny", row_width=4, width=16, hidden=8, history=5)
LONG_VIEW = PXTR_HEADS.index("long_view")


@pytest.fixture(scope="module")
def events() -> Events:
    return simulate_logs(World(SimConfig(n_users=60, n_items=200, days=4)))


@pytest.fixture
def net() -> Ranker:
    torch.manual_seed(0)
    return Ranker(CONFIG, CONFIG.spec()).eval()


def inputs(net: Ranker, users: int, candidates: int) -> list[torch.Tensor]:
    width = net.spec.width
    return [
        torch.randn(users, width("user_rows")),
        torch.randn(users, width("user_dense")),
        torch.randn(users, 5, width("history_rows")),
        (torch.rand(users, 5) < 0.6).float(),
        torch.randn(candidates, width("candidate_rows")),
        torch.randn(candidates, width("candidate_dense")),
    ]


def test_one_user_broadcasts_over_candidates(net):
    one = inputs(net, 1, 7)
    repeated = [tensor.expand(7, *tensor.shape[1:]) for tensor in one[:4]] + one[4:]
    assert net(*one).shape == (7, X_PXTR)
    torch.testing.assert_close(net(*one), net(*repeated))
    torch.testing.assert_close(RankerProbabilities(net)(*one), torch.sigmoid(net(*one)))


def test_candidates_do_not_see_each_other(net):
    one = inputs(net, 1, 6)
    order = torch.randperm(6)
    torch.testing.assert_close(net(*one[:4], one[4][order], one[5][order]), net(*one)[order])
    torch.testing.assert_close(net(*one[:4], one[4][:1], one[5][:1]), net(*one)[:1])


def test_padding_of_the_history_does_not_matter(net):
    one = inputs(net, 2, 2)
    other = [*one[:2], torch.where(one[3][..., None] > 0, one[2], 99.0), *one[3:]]
    torch.testing.assert_close(net(*other), net(*one))
    empty = [*one[:3], torch.zeros(2, 5), *one[4:]]
    assert torch.isfinite(net(*empty)).all()


def test_pair_terms_are_inner_products(net):
    """The factorisation-machine terms against a loop over pairs."""
    one = inputs(net, 1, 3)
    seen = {}
    net.from_pairs.register_forward_pre_hook(lambda _, args: seen.update(pairs=args[0]))
    net(*one)
    history = (one[2] * one[3][..., None]).sum(1) / one[3].sum(1, keepdim=True).clamp(min=1)
    for n in range(3):
        vectors = torch.cat([one[0][0], history[0], one[4][n]]).reshape(-1, CONFIG.row_width)
        pairs = [float(vectors[i] @ vectors[j]) for i in range(len(vectors)) for j in range(i + 1, len(vectors))]
        summed = sum(vectors[i] * vectors[j] for i in range(len(vectors)) for j in range(i + 1, len(vectors)))
        np.testing.assert_allclose(seen["pairs"][n].detach().numpy(), [*pairs, *summed.tolist()], rtol=1e-3, atol=1e-4)


def test_null_labels_are_ignored():
    logits = torch.randn(4, X_PXTR, requires_grad=True)
    labels = torch.full((4, X_PXTR), -1, dtype=torch.int8)
    assert float(masked_bce(logits, labels).detach()) == 0.0
    labels[0, 2], labels[1, 2], labels[3, 5] = 1, 0, 1
    loss = masked_bce(logits, labels)
    p = torch.sigmoid(logits.detach())
    slow = -(math.log(p[0, 2]) + math.log(1 - p[1, 2])) / 2 - math.log(p[3, 5])
    assert float(loss.detach()) == pytest.approx(slow, rel=1e-5)
    loss.backward()
    assert sorted(map(tuple, logits.grad.nonzero().tolist())) == [(0, 2), (1, 2), (3, 5)]


def test_it_exports_with_a_dynamic_number_of_candidates(net, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    names = ["user_rows", "user_dense", "history_rows", "history_mask", "candidate_rows", "candidate_dense"]
    n = torch.export.Dim("n", min=1)
    wrapped = RankerProbabilities(net).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            wrapped,
            tuple(inputs(net, 1, 5)),
            dynamo=True,
            opset_version=20,
            input_names=names,
            output_names=["pxtr"],
            dynamic_shapes=({}, {}, {}, {}, {0: n}, {0: n}),
            verbose=False,
        )
        program.save(tmp_path / "ranker.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "ranker.onnx")
    for candidates in (1, 3, 40):
        some = inputs(net, 1, candidates)
        (pxtr,) = session.run(None, dict(zip(names, (t.numpy() for t in some), strict=True)))
        np.testing.assert_allclose(pxtr, wrapped(*some).detach().numpy(), atol=1e-5)


def test_histories_are_frozen_at_the_days_start(events):
    index = PositiveIndex.from_events(events)
    start, end = frozen_bounds(index, events, 0.0)
    days = days_of(events)
    some = np.flatnonzero(end > start)
    assert (index.time_ms[end[some] - 1] // 86_400_000 < days[some]).all()
    cut = cut_before_last_days(events, 2)
    _, cut_end = frozen_bounds(index, events, 0.0, cut)
    assert (index.time_ms[cut_end[some][cut_end[some] > start[some]] - 1] < cut).all()
    assert (cut_end <= end).all()


def test_rows_without_time_see_what_stands_before_them(events):
    some = events.take(np.arange(200)).with_columns(time_ms=np.full(200, -1), known_at_ms=np.full(200, -1))
    index = PositiveIndex.from_events(some)
    start, end = frozen_bounds(index, some, 0.0)
    for i in range(200):
        assert (index.event[start[i] : end[i]] < i).all()
    assert (end > start).any()


def test_batches_cover_every_impression_once(events):
    index = PositiveIndex.from_events(events)
    task = make_task(events, index, CONFIG, 0, 0.0)
    data = RankerData(events, index, CONFIG.spec(), task.tables, history=5, batch=512)
    batches = list(data.batches(0, 0))
    assert len(batches) == data.steps_per_epoch == -(-len(events) // 512)
    assert sum(len(batch.labels) for batch in batches) == len(events)
    assert batches[0].dense["user_dense"].shape == (512, CONFIG.spec().width("user_dense"))
    labels = np.concatenate([batch.labels.numpy() for batch in data.in_order()])
    np.testing.assert_array_equal(labels[:, LONG_VIEW], events["long_view"])


def flip_from(events: Events, day: int) -> Events:
    """Every label and every play of that day and later turned round."""
    later = days_of(events) >= day
    columns = {head: np.where(later, 1 - events[head].clip(0), events[head]) for head in PXTR_HEADS}
    return events.with_columns(**columns, play_time_ms=np.where(later, 123, events["play_time_ms"]))


def test_rolling_predictions_never_see_their_day(events):
    """The leak probe: flipping labels on and after a scored day leaves its predictions, and earlier ones, alone."""
    options = {"folds": 3, "epochs": 1, "batch": 512}
    scored = rolling_pxtr(events, **options)
    days = days_of(events)
    for day in np.unique(days)[1:]:
        probed = rolling_pxtr(flip_from(events, day), **options)
        seen = days <= day
        np.testing.assert_array_equal(scored["pxtr"][seen], probed["pxtr"][seen])
    changed = rolling_pxtr(flip_from(events, np.unique(days)[1]), **options)
    assert not np.array_equal(scored["pxtr"][days > days.min() + 1], changed["pxtr"][days > days.min() + 1])


def test_the_first_day_and_unlabelled_heads_stay_null(events):
    events = events.with_columns(forward=np.full(len(events), -1))
    scored = rolling_pxtr(events, folds=2, epochs=1, batch=512)
    days = days_of(events)
    first = days == days.min()
    assert np.isnan(scored["pxtr"][first]).all()
    assert (scored["ranker_version"][first] == "").all()
    forward = PXTR_HEADS.index("forward")
    assert np.isnan(scored["pxtr"][:, forward]).all()
    others = np.delete(scored["pxtr"][~first], forward, axis=1)
    assert ((others > 0) & (others < 1)).all()
    assert len(set(scored["ranker_version"][~first])) == 2


def test_a_head_is_null_until_its_first_label(events):
    days = days_of(events)
    last = np.unique(days)[-2]
    events = events.with_columns(comment=np.where(days >= last, events["comment"], -1))
    scored = rolling_pxtr(events, folds=3, epochs=1, batch=512)["pxtr"][:, PXTR_HEADS.index("comment")]
    assert np.isnan(scored[days <= last]).all()
    assert not np.isnan(scored[days > last]).any()


def test_folds_keep_days_whole(events):
    groups = fold_days(events, 3)
    assert [len(group) for group in groups] == [1, 1, 1, 1]
    assert np.concatenate(groups).tolist() == np.unique(days_of(events)).tolist()
    assert len(fold_days(events, 1)) == 2
    assert len(fold_days(events, 50)) == 4
    one_day = events.take(np.flatnonzero(days_of(events) == groups[0][0]))
    with pytest.raises(InputError, match="two days"):
        fold_days(one_day, 2)


@pytest.fixture(scope="module")
def trained(events, tmp_path_factory):
    out = tmp_path_factory.mktemp("ranker") / "model"
    return train_ranker(events, None, out, epochs=3, batch=256, holdout_days=1)


def test_it_learns(trained):
    metrics = trained.metrics
    assert metrics["auc_long_view"] > 0.6
    assert 0.7 < metrics["calibration_long_view"] < 1.4
    assert metrics["primary"] > 0.4
    assert "frozen" in metrics["protocol"] or "up to the cut" in metrics["protocol"]


def test_a_checkpoint_scores_as_it_did(trained, events):
    back = load_checkpoint(trained.path, kind="ranker")
    assert evaluate_ranker(back, events, back.config["training"]["trained_until_ms"]) == {
        name: value for name, value in trained.metrics.items() if name != "final_loss"
    }
    assert RankerConfig.from_dict(back.model_config).trained_heads == labelled_heads(events)


def test_annotate_fills_the_events(trained, events):
    cut = trained.config["training"]["trained_until_ms"]
    filled = annotate(events, trained)
    assert filled["pxtr"].shape == (len(events), X_PXTR)
    assert set(filled["ranker_version"]) == {trained.version}
    np.testing.assert_array_equal(filled["like"], events["like"])
    later = events["time_ms"] >= cut
    assert auc(events["long_view"][later], filled["pxtr"][later, LONG_VIEW]) > 0.6


def test_frozen_predictions_ignore_labels_after_the_cut(trained, events):
    cut = trained.config["training"]["trained_until_ms"]
    rows = np.flatnonzero(events["time_ms"] >= cut)
    flipped = flip_from(events, cut // 86_400_000)
    net = load_ranker(trained)
    one, other = (predict(net, trained.tables, log, rows, cut_ms=cut) for log in (events, flipped))
    np.testing.assert_array_equal(one, other)


def test_a_run_that_stops_can_go_on(events, tmp_path):
    some = events.take(np.arange(2000))
    options = {"epochs": 2, "batch": 256}
    whole = train_ranker(some, None, tmp_path / "whole", **options)
    half = train_ranker(some, None, tmp_path / "half", steps=5, **options)
    rest = train_ranker(some, None, tmp_path / "rest", resume=half.path, **options)
    assert half.version != whole.version
    assert rest.version == whole.version
    assert whole.metrics.keys() == {"final_loss"}


def test_wrong_uses_are_refused(events, trained, tmp_path):
    with pytest.raises(CheckpointError, match="exists"):
        train_ranker(events, None, trained.path)
    mute = events.with_columns(**{head: np.full(len(events), -1) for head in PXTR_HEADS})
    with pytest.raises(InputError, match="no label"):
        train_ranker(mute, None, tmp_path / "x")
    with pytest.raises(InputError, match="unknown preset"):
        preset_config("huge")
    with pytest.raises(InputError, match="not a ranker"):
        RankerConfig.from_dict({})
    with pytest.raises(SpecError, match="one width"):
        Ranker(CONFIG, kuaiformer_spec())
    assert {RankerConfig.from_dict(preset_config(p).to_dict()).preset for p in PRESETS} == set(PRESETS)


def test_auc_is_the_share_of_ordered_pairs():
    random = np.random.default_rng(0)
    labels, scores = random.integers(0, 2, 60), random.integers(0, 9, 60) / 9
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[labels == 1] for b in scores[labels == 0]]
    assert auc(labels, scores) == pytest.approx(np.mean(pairs))
    assert math.isnan(auc(np.ones(3, int), np.arange(3)))


def test_within_user_ranking_by_hand():
    users = np.array([1, 1, 1, 2, 2, 3], np.uint64)
    labels = np.array([1, 0, 0, 0, 1, 0])
    scores = np.array([0.5, 0.9, 0.1, 0.2, 0.8, 0.3])
    found = within_user_ranking(users, labels, scores)
    assert found["gauc"] == pytest.approx((0.5 * 1 + 1.0 * 1) / 2)
    assert found["ndcg@5"] == pytest.approx((1 / math.log2(3) + 1.0 + 0.0) / 3)
    assert found["primary"] == pytest.approx((found["gauc"] + found["ndcg@5"]) / 2)


def test_item_rate_is_smoothed():
    columns = {"user_id": [1] * 4, "video_id": [5, 5, 6, 6], "long_view": [1, 1, 0, -1]}
    earlier = Events({name: np.array(values) for name, values in columns.items()})
    base = 2 / 3
    rate = item_rate(earlier, np.array([5, 6, 7], np.uint64))
    np.testing.assert_allclose(rate, [(2 + 20 * base) / 22, (20 * base) / 21, base])

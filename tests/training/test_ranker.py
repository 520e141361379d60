"""The ranker: labels never leak, nulls are ignored, one user broadcasts over candidates, and it learns."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch

from contract.errors import CheckpointError, EventError, InputError, SpecError
from contract.events import Events
from contract.features import dense_block
from contract.history import HistoryIndex
from contract.matches import K_MATCHES, match_flags
from contract.specs import kuaiformer_spec
from contract.vocabulary import PXTR_HEADS, X_PXTR
from training.checkpoint import load_checkpoint
from training.days import cut_before_last_days, days_of, held_out, split_at
from training.evaluation import metrics_text
from training.ranker import PRESETS, SHRINK, Ranker, RankerConfig, RankerProbabilities, preset_config
from training.ranker_data import PAIRS_OF_A_POSITIVE, RankerData, frozen_bounds, known_until_ms, pairs_of
from training.ranker_eval import auc, item_rate, ranker_metrics, within_user_ranking
from training.ranker_loss import masked_bce, pair_loss
from training.ranker_train import (
    RankerPlan,
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
from training.within_user import ece, no_claim

CONFIG = preset_config("tiny", row_width=4, width=16, hidden=8, history=5)
LONG_VIEW = PXTR_HEADS.index("long_view")


@pytest.fixture(scope="module")
def events() -> Events:
    return simulate_logs(World(SimConfig(n_users=60, n_items=200, days=4)))


@pytest.fixture
def net() -> Ranker:
    torch.manual_seed(0)
    return Ranker(CONFIG, CONFIG.spec()).eval()


def inputs(net: Ranker, candidates: int, h: int = 5) -> dict[str, torch.Tensor]:
    """What the exported graph takes: one request."""
    width = net.spec.width
    mask = torch.zeros(1, h)
    mask[:, 2:] = 1.0
    return {
        "user_rows": torch.randn(1, width("user_rows")),
        "user_dense": torch.randn(1, width("user_dense")),
        "history_rows": torch.randn(1, h, width("history_rows")),
        "history_dense": torch.randn(1, h, width("history_dense")),
        "history_mask": mask,
        "candidate_rows": torch.randn(candidates, width("candidate_rows")),
        "candidate_dense": torch.randn(candidates, width("candidate_dense")),
        "match": torch.randint(2, (candidates, h, K_MATCHES)).float(),
    }


def of_candidates(one: dict[str, torch.Tensor], which) -> dict[str, torch.Tensor]:
    return {k: v[which] if k.startswith("candidate") or k == "match" else v for k, v in one.items()}


def test_many_targets_of_one_history_are_scored_as_one_by_one(net):
    """Training's form, where each target sees its own stretch of the entries, against serving's."""
    one = inputs(net, 6, h=8)
    visible = torch.tensor([[float(low <= k < high) for k in range(8)] for low, high in
                            ((0, 5), (3, 8), (0, 0), (2, 3), (0, 8), (7, 8))])  # fmt: skip
    blocks = {name: one[name][None] for name in ("user_rows", "user_dense", "candidate_rows", "candidate_dense")}
    blocks |= {name: one[name] for name in ("history_rows", "history_dense")}
    together = net(blocks, visible[None], one["match"][None])
    assert together.shape == (1, 6, X_PXTR + 1)
    for m in range(6):
        served = RankerProbabilities(net)(**{**of_candidates(one, slice(m, m + 1)), "history_mask": visible[m : m + 1]})
        torch.testing.assert_close(served[0], torch.sigmoid(together[0, m, :X_PXTR]))


def test_candidates_do_not_see_each_other(net):
    serve, one, order = RankerProbabilities(net), inputs(net, 6), torch.randperm(6)
    torch.testing.assert_close(serve(**of_candidates(one, order)), serve(**one)[order])
    torch.testing.assert_close(serve(**of_candidates(one, slice(0, 1))), serve(**one)[:1])


def test_padding_of_the_history_does_not_matter(net):
    serve, one = RankerProbabilities(net), inputs(net, 3)
    hidden = one["history_mask"][..., None] == 0
    other = {name: torch.where(hidden, 99.0, one[name]) for name in ("history_rows", "history_dense")}
    match = torch.where(hidden, 1.0, one["match"])
    torch.testing.assert_close(serve(**{**one, **other, "match": match}), serve(**one))
    longer = {name: torch.cat([torch.ones(1, 4, one[name].shape[2]), one[name]], 1) for name in other}
    longer["history_mask"] = torch.cat([torch.zeros(1, 4), one["history_mask"]], 1)
    longer["match"] = torch.cat([torch.ones(3, 4, K_MATCHES), one["match"]], 1)
    torch.testing.assert_close(serve(**{**one, **longer}), serve(**one))


def test_an_empty_history_reads_nothing(net):
    serve, one = RankerProbabilities(net), inputs(net, 3)
    empty = {**one, "history_mask": torch.zeros(1, 5)}
    other = {**empty, "history_rows": torch.randn_like(one["history_rows"]), "match": 1 - one["match"]}
    assert torch.isfinite(serve(**empty)).all()
    torch.testing.assert_close(serve(**other), serve(**empty))


def test_the_terms_against_loops(net):
    """Interaction, attention and evidence, written out for one request."""
    one, seen = inputs(net, 2), {}
    net.from_candidate.register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    RankerProbabilities(net)(**one)
    config, spec = net.config, net.spec

    def fields(rows: torch.Tensor, dense: torch.Tensor, block: str, layer) -> list[torch.Tensor]:
        found = list(rows.split(config.row_width))
        for number, column in enumerate(spec.columns(block)):
            place = slice(number * config.row_width, (number + 1) * config.row_width)
            found.append(layer.weight[place, column.slice] @ dense[column.slice])
        return found

    user = fields(one["user_rows"][0], one["user_dense"][0], "user_dense", net.user)
    real = [k for k in range(5) if one["history_mask"][0, k]]
    entries = [
        torch.cat(fields(one["history_rows"][0, k], one["history_dense"][0, k], "history_dense", net.entry))
        for k in real
    ]
    for m in range(2):
        mine = fields(one["candidate_rows"][m], one["candidate_dense"][m], "candidate_dense", net.candidate)
        every = [*user, *mine]
        pairs = sum(every[i] * every[j] for i in range(len(every)) for j in range(i + 1, len(every)))
        read = []
        for head in range(config.heads):
            place = slice(head * config.head_width, (head + 1) * config.head_width)
            q = net.query(torch.cat(mine))[place]
            logits = torch.stack([
                q @ net.key(entry)[place] / config.head_width**0.5
                + sum(one["match"][m, k, kind] * net.same[kind, head] for kind in range(K_MATCHES))
                - net.fade[head] * math.log(len(real) - number)
                for number, (k, entry) in enumerate(zip(real, entries, strict=True))
            ])  # fmt: skip
            weights = torch.softmax(logits, 0)
            read.append(sum(w * net.value(entry)[place] for w, entry in zip(weights, entries, strict=True)))
        kinds = [[float(one["match"][m, k, kind]) for k in real] for kind in range(K_MATCHES)]
        kinds += [[1.0] * len(real), [math.exp(-0.25 * (len(real) - number)) for number in range(len(real))]]
        spoken = [net.evidence(entry) for entry in entries]
        pooled = [sum(w * e for w, e in zip(kind, spoken, strict=True)) / (sum(kind) + SHRINK) for kind in kinds]
        counts = torch.tensor([math.log1p(sum(kind)) for kind in kinds])
        want = torch.cat([*mine, pairs, *read, *pooled, counts])
        torch.testing.assert_close(seen["x"][0, m], want, rtol=1e-4, atol=1e-4)


def test_null_labels_are_ignored():
    logits = torch.randn(4, X_PXTR, requires_grad=True)
    labels = torch.full((4, X_PXTR), -1, dtype=torch.int8)
    assert float(masked_bce(logits, labels).sum().detach()) == 0.0
    labels[0, 2], labels[1, 2], labels[3, 5] = 1, 0, 1
    loss = masked_bce(logits, labels).sum()
    p = torch.sigmoid(logits.detach())
    slow = -(math.log(p[0, 2]) + math.log(1 - p[1, 2])) / 2 - math.log(p[3, 5])
    assert float(loss.detach()) == pytest.approx(slow, rel=1e-5)
    loss.backward()
    assert sorted(map(tuple, logits.grad.nonzero().tolist())) == [(0, 2), (1, 2), (3, 5)]


def test_it_exports_with_a_dynamic_number_of_candidates(net, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    n, one = torch.export.Dim("n", min=1), inputs(net, 5)
    wrapped = RankerProbabilities(net).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            wrapped,
            tuple(one.values()),
            dynamo=True,
            opset_version=20,
            input_names=list(one),
            output_names=["pxtr"],
            dynamic_shapes=tuple({0: n} if k.startswith("candidate") or k == "match" else {} for k in one),
            verbose=False,
        )
        program.save(tmp_path / "ranker.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "ranker.onnx")
    for candidates in (1, 3, 40):
        some = inputs(net, candidates)
        (pxtr,) = session.run(None, {name: tensor.numpy() for name, tensor in some.items()})
        np.testing.assert_allclose(pxtr, wrapped(**some).detach().numpy(), atol=1e-5)


def test_a_choice_sees_what_was_known_when_its_page_was_made(events):
    index = HistoryIndex.from_events(events, every=True)
    until = known_until_ms(events, 0.0)
    for page in np.unique(events["page_id"])[:50]:
        assert set(until[events["page_id"] == page]) == {events["time_ms"][events["page_id"] == page].min()}
    start, end = frozen_bounds(index, events, 0.0)
    some = np.flatnonzero(end > start)
    assert (index.time_ms[end[some] - 1] < until[some]).all()
    assert (index.known_ms[end[some] - 1] <= until[some]).all()
    cut = cut_before_last_days(events, 2)
    _, cut_end = frozen_bounds(index, events, 0.0, cut)
    assert (index.time_ms[cut_end[some][cut_end[some] > start[some]] - 1] < cut).all()
    assert (cut_end <= end).all()


def test_without_pages_a_choice_sees_the_days_before(events):
    log = events.with_columns(page_id=np.full(len(events), "", object))
    index = HistoryIndex.from_events(log, every=True)
    start, end = frozen_bounds(index, log, 0.0)
    some = np.flatnonzero(end > start)
    assert (index.time_ms[end[some] - 1] // 86_400_000 < days_of(log)[some]).all()


def test_a_choice_never_sees_itself_around_midnight():
    """A log that files 23:30 under the next day: the day's start is no time at which 23:30 could be known."""
    day, half_hour = 86_400_000, 1_800_000
    time_ms = [day - half_hour, day - 1, day + 5]
    log = Events(
        {"user_id": [1] * 3, "video_id": [1, 2, 3], "time_ms": time_ms, "known_at_ms": time_ms, "long_view": [1] * 3,
         "hour": [0] * 3}
    )  # fmt: skip
    assert days_of(log).tolist() == [1, 1, 1]
    index = HistoryIndex.from_events(log, every=True)
    start, end = frozen_bounds(index, log, 0.0)
    for row in range(3):
        assert row not in index.event[start[row] : end[row]]
    assert split_at(log, day)[0]["video_id"].tolist() == []
    assert split_at(log, day - 1)[1]["video_id"].tolist() == [2, 3]


def test_rows_without_time_see_what_stands_before_them(events):
    some = events.take(np.arange(200)).with_columns(time_ms=np.full(200, -1), known_at_ms=np.full(200, -1))
    index = HistoryIndex.from_events(some, every=True)
    start, end = frozen_bounds(index, some, 0.0)
    for i in range(200):
        assert (index.event[start[i] : end[i]] < i).all()
    assert (end > start).any()


def ranker_data(events: Events, **options) -> RankerData:
    index = HistoryIndex.from_events(events, every=True)
    task = make_task(events, index, CONFIG, 0, 0.0)
    return RankerData(events, index, CONFIG.spec(), task.tables, history=5, **options)


def test_batches_cover_every_impression_once(events):
    data = ranker_data(events, batch=512)
    for batches in (list(data.batches(0, 0)), list(data.in_order())):
        assert len(batches) == data.steps_per_epoch == -(-len(events) // 512)
        shown = np.concatenate([batch.event[batch.event >= 0] for batch in batches])
        assert np.sort(shown).tolist() == list(range(len(events)))
    again = list(data.batches(0, 0))
    assert all(np.array_equal(a.event, b.event) for a, b in zip(again, data.batches(0, 0), strict=True))
    assert not np.array_equal(again[0].event, next(data.batches(1, 0)).event)


def test_a_batch_holds_what_the_log_says(events):
    data = ranker_data(events, batch=200)
    index, spec = data.index, data.spec
    for batch in list(data.in_order())[::7]:
        for b, m in zip(*np.nonzero(batch.event >= 0), strict=True):
            event = batch.event[b, m]
            assert batch.labels[b, m, LONG_VIEW] == events["long_view"][event]
            assert float(batch.watched[b, m]) == pytest.approx(min(events["play_time_ms"][event] / 60_000, 1.0))
            entries = np.arange(data.start[event], data.end[event])
            real = np.flatnonzero(batch.visible[b, m].numpy())
            assert len(real) == len(entries) <= 5
            if not len(entries):
                continue
            assert real.tolist() == list(range(real[0], real[0] + len(real)))
            columns = {name: column[entries] for name, column in index.columns.items()}
            dense = dense_block(
                spec, "history_dense", columns, np.empty((len(real), spec.width("history_dense")), "f4")
            )
            np.testing.assert_array_equal(batch.dense["history_dense"][b, real], dense)
            mine = {
                name: events[name][[event]]
                for name in ("video_id", "author_id", "tags", "duration_ms", "music_id", "kind")
            }
            np.testing.assert_array_equal(batch.match[b, m, real], match_flags(mine, columns)[0])
        padding = torch.from_numpy(batch.event < 0)
        assert (batch.labels[padding] == -1).all()
        assert torch.isnan(batch.watched[padding]).all()


def test_pairs_are_a_users_positives_with_their_negatives():
    labels = np.array([[1, 0, 0, -1], [0, 1, -1, -1], [1, 1, 0, 0], [1, 1, -1, -1]], np.int8)
    users = np.array([7, 7, 8, 9], np.uint64)
    pairs, weight = pairs_of(labels, users, np.random.default_rng(0))
    found = {tuple(pair) for pair in pairs.tolist()}
    assert found == {(p, n) for p in (0, 5) for n in (1, 2, 4)} | {(p, n) for p in (8, 9) for n in (10, 11)}
    for positive in (0, 5, 8, 9):
        assert weight[pairs[:, 0] == positive].sum() == pytest.approx(1.0)
    assert len(pairs_of(labels, users, None)[0]) == 0
    many = np.array([[1, *[0] * 100]], np.int8)
    pairs, weight = pairs_of(many, users[:1], np.random.default_rng(0))
    assert len(pairs) == PAIRS_OF_A_POSITIVE
    assert weight.sum() == pytest.approx(1.0)
    assert (many.reshape(-1)[pairs[:, 1]] == 0).all()


def test_pair_loss_by_hand():
    scores = torch.tensor([1.0, 0.0, 3.0], requires_grad=True)
    loss = pair_loss(scores, torch.tensor([[0, 1], [0, 2], [2, 1]]), torch.tensor([0.5, 0.5, 1.0]))
    want = (0.5 * math.log(1 + math.exp(-1)) + 0.5 * math.log(1 + math.exp(2)) + math.log(1 + math.exp(-3))) / 2
    assert float(loss.detach()) == pytest.approx(want, rel=1e-5)
    assert float(pair_loss(scores, torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0)).detach()) == 0.0


def flip_from(events: Events, time_ms: int) -> Events:
    """Every label and every play from a time on turned round."""
    later = events["time_ms"] >= time_ms
    columns = {head: np.where(later, 1 - events[head].clip(0), events[head]) for head in PXTR_HEADS}
    return events.with_columns(**columns, play_time_ms=np.where(later, 123, events["play_time_ms"]))


def test_rolling_predictions_never_see_their_page(events):
    """The leak probe: labels from a page on are turned round; that page's predictions, and earlier ones, stand."""
    options = {"folds": 3, "plan": RankerPlan(epochs=1, batch=512)}
    scored, until = rolling_pxtr(events, **options)["pxtr"], known_until_ms(events, 0.0)
    days = days_of(events)
    for day in np.unique(days)[1:]:
        time_ms = int(np.median(until[days == day]))
        probed = rolling_pxtr(flip_from(events, time_ms), **options)["pxtr"]
        before = until <= time_ms
        assert (before & (days == day)).any()
        np.testing.assert_array_equal(scored[before], probed[before])
        assert not np.array_equal(scored[~before], probed[~before])


def test_the_first_day_and_unlabelled_heads_stay_null(events):
    events = events.with_columns(forward=np.full(len(events), -1))
    scored = rolling_pxtr(events, folds=2, plan=RankerPlan(epochs=1, batch=512))
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
    scored = rolling_pxtr(events, folds=3, plan=RankerPlan(epochs=1, batch=512))["pxtr"][:, PXTR_HEADS.index("comment")]
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


def test_a_log_of_one_day_says_so(events):
    one_day = events.take(np.flatnonzero(days_of(events) == days_of(events).max()))
    with pytest.raises(EventError, match="the log is of one day") as told:
        cut_before_last_days(one_day, 1)
    assert "…" not in str(told.value), "no range that ends before it begins"
    with pytest.raises(InputError, match="so many days") as told:
        cut_before_last_days(events, 4)
    assert "1 … 3" in str(told.value)


@pytest.fixture(scope="module")
def trained(events, tmp_path_factory):
    out = tmp_path_factory.mktemp("ranker") / "model"
    return train_ranker(events, None, out, plan=RankerPlan(epochs=3, batch=256), holdout_days=1)


def test_it_learns(trained):
    metrics = trained.metrics
    assert metrics["auc_long_view"] > 0.6
    assert 0.7 < metrics["calibration_long_view"] < 1.4
    assert metrics["primary"] > 0.4
    assert "frozen" in metrics["protocol"] or "up to the cut" in metrics["protocol"]


def test_every_head_is_counted_and_few_positives_claim_nothing(trained, events):
    """By hand, from the log and the predictions: positives, GAUC and calibration error of each head."""
    cut = trained.config["training"]["trained_until_ms"]
    earlier, later = split_at(events, cut)
    pxtr = predict(load_ranker(trained), trained.tables, events, np.flatnonzero(held_out(events, cut)), cut_ms=cut)
    found = ranker_metrics(later, pxtr, earlier)
    few = no_claim(found)
    for x, head in enumerate(PXTR_HEADS):
        seen = later[head] >= 0
        labels, chances = later[head][seen], pxtr[seen, x].astype(np.float64)
        assert found[f"positives_{head}"] == (labels == 1).sum()
        assert (head in few) == ((labels == 1).sum() < 500)
        if f"auc_{head}" in found:
            assert found[f"ece_{head}"] == pytest.approx(ece(labels, chances))
            one = within_user_ranking(later["user_id"][seen], labels, chances)
            assert found.get(f"gauc_{head}", np.nan) == pytest.approx(one["gauc"], nan_ok=True)
    assert found["gauc_long_view"] == found["gauc"]
    assert "follow" in few, "so short a log has few of them"
    assert f"follow ({few['follow']})" in trained.card_path.read_text()
    lines = metrics_text("ranker", found).splitlines()
    assert all(line.endswith("no claim (n < 500)") == any(h in line for h in few) for line in lines[1:])


def test_a_checkpoint_scores_as_it_did(trained, events):
    back = load_checkpoint(trained.path, kind="ranker")
    found, scored = evaluate_ranker(back, events, back.config["training"]["trained_until_ms"])
    assert found == {name: value for name, value in trained.metrics.items() if name != "final_loss"}
    assert [one.name for one in scored] == [trained.version, "item rate"]
    assert within_user_ranking(scored[0].user_id, scored[0].label, scored[0].score)["gauc"] == found["gauc"]
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
    flipped = flip_from(events, cut)
    net = load_ranker(trained)
    one, other = (predict(net, trained.tables, log, rows, cut_ms=cut) for log in (events, flipped))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("steps", [5, 12, 14])
def test_a_run_that_stops_can_go_on(events, tmp_path, steps):
    """In the middle of the first stage, at its end, in the second."""
    some = events.take(np.arange(2000))
    half_timed = np.where(np.arange(2000) < 1000, -1, some["time_ms"])
    some = some.with_columns(time_ms=half_timed, known_at_ms=half_timed)
    plan = RankerPlan(epochs=2, history_epochs=2, batch=192)
    whole = train_ranker(some, None, tmp_path / "whole", plan=plan)
    assert [stage["steps"] for stage in whole.config["training"]["stages"]] == [12, 12]
    half = train_ranker(some, None, tmp_path / "half", plan=plan, steps=steps)
    rest = train_ranker(some, None, tmp_path / "rest", plan=plan, resume=half.path)
    assert half.version != whole.version
    assert rest.version == whole.version
    assert whole.metrics.keys() == {"final_loss"}
    if steps > 12:
        timed = some.take(np.flatnonzero(some["time_ms"] >= 0))
        with pytest.raises(CheckpointError, match="another run"):
            train_ranker(timed, None, tmp_path / "other", plan=plan, resume=half.path)


def test_a_time_budget_is_shared_out():
    plan = RankerPlan(epochs=2, history_epochs=1, max_seconds=10)
    log = Events({"user_id": np.ones(9), "video_id": np.ones(9), "time_ms": np.array([-1] * 6 + [5] * 3)})
    stages = plan.stages(log)
    assert [rows.tolist() for rows, _ in stages] == [list(range(6)), [6, 7, 8]]
    assert [schedule.max_seconds for _, schedule in stages] == [5.0, 5.0]
    assert [schedule.table_rate for _, schedule in stages] == [plan.table_rate, plan.table_rate_after_history]
    ((_, alone),) = plan.stages(log.take(np.arange(6, 9)))
    assert (alone.max_seconds, alone.table_rate) == (10.0, plan.table_rate)


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

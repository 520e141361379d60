"""KuaiFormer: padding never moves an answer, windows as in the paper, batches without a future, ONNX, learning."""

from __future__ import annotations

import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch

from contract.errors import CheckpointError, InputError, SpecError
from contract.features import block_keys, pool_rows
from contract.history import PositiveIndex
from contract.vocabulary import MISSING_KEY
from training.checkpoint import load_checkpoint
from training.days import before, cut_before_last_days
from training.kuaiformer import (
    LENGTH,
    LENGTHS,
    PRESETS,
    KuaiFormer,
    KuaiFormerConfig,
    preset_config,
    score,
    window_plan,
)
from training.kuaiformer_data import HistorySlots, KuaiFormerData
from training.kuaiformer_train import load_kuaiformer, make_tables, train_kuaiformer
from training.retrieval_eval import (
    Queries,
    evaluate_popularity,
    evaluate_retrieval,
    item_vectors,
    ranking_metrics,
    user_interests,
)
from training.simulator import SimConfig, World, simulate_logs

CONFIG = preset_config("tiny", width=16, hidden=24, video_width=8, attribute_width=4)
R = CONFIG.spec().width("history_rows")


@pytest.fixture(scope="module")
def world():
    return World(SimConfig(n_users=60, n_items=300, days=4))


@pytest.fixture(scope="module")
def events(world):
    return simulate_logs(world)


@pytest.fixture
def net() -> KuaiFormer:
    torch.manual_seed(0)
    return KuaiFormer(CONFIG, CONFIG.spec()).eval()


def right_aligned(lengths: list[int], width: int = LENGTH) -> torch.Tensor:
    return (torch.arange(width) >= width - torch.tensor(lengths)[:, None]).float()


def test_the_plan_is_the_papers():
    assert window_plan(256) == ((64, 64, 16, 16, 16, 16, 16), 48)
    assert len(window_plan(256)[0]) + 48 == 55
    assert window_plan(48) == ((), 48)
    assert window_plan(64) == ((16,), 48)
    assert window_plan(192) == ((64, 16, 16, 16, 16, 16), 48)
    assert {sum(w) + raw for w, raw in map(window_plan, LENGTHS)} == set(LENGTHS)
    for wrong in (0, 50, 129, 257):
        with pytest.raises(InputError, match="border"):
            window_plan(wrong)


def test_what_stands_in_the_padding_does_not_matter(net):
    lengths = [0, 1, 5, 48, 49, 64, 100, 128, 200, 255, 256]
    mask = right_aligned(lengths)
    rows = torch.randn(len(lengths), LENGTH, R)
    other = torch.where(mask[..., None] > 0, rows, 50 * torch.randn_like(rows))
    assert torch.equal(net(rows, mask), net(other, mask))


@pytest.mark.parametrize("length", [0, 1, 7, 48, 60, 80, 112, 150])
def test_cutting_the_padding_away_gives_the_same_answer(net, length):
    rows, mask = torch.randn(2, LENGTH, R), right_aligned([length, max(length - 1, 0)])
    whole = net(rows, mask)
    for cut in (n for n in (8, 16, 48, 64, 80, 112, 128, 192) if n >= length):
        torch.testing.assert_close(net(rows[:, -cut:], mask[:, -cut:]), whole, rtol=1e-4, atol=1e-5)


def test_company_in_the_batch_does_not_matter(net):
    rows, mask = torch.randn(4, LENGTH, R), right_aligned([3, 256, 90, 0])
    together = net(rows, mask)
    for i in range(4):
        torch.testing.assert_close(net(rows[i : i + 1], mask[i : i + 1]), together[i : i + 1], rtol=1e-4, atol=1e-5)


def test_order_and_every_part_of_the_history_count(net):
    rows, mask = torch.randn(1, LENGTH, R), right_aligned([256])
    answer = net(rows, mask)
    for place in (0, 63, 64, 127, 128, 143, 207, 208, 255):
        changed = rows.clone()
        changed[0, place] += 2.0
        assert not torch.allclose(net(changed, mask), answer, atol=1e-6), place
    swapped = rows.clone()
    swapped[0, [250, 251]] = rows[0, [251, 250]]
    assert not torch.allclose(net(swapped, mask), answer, atol=1e-6)


def test_answers_are_unit_vectors_and_finite_for_no_history(net):
    interests = net(torch.randn(3, LENGTH, R), right_aligned([0, 1, 256]))
    assert interests.shape == (3, CONFIG.interests, CONFIG.width)
    torch.testing.assert_close(interests.norm(dim=-1), torch.ones(3, CONFIG.interests))
    items = net.item_vector(torch.randn(5, CONFIG.spec().width("item_rows")))
    torch.testing.assert_close(items.norm(dim=-1), torch.ones(5))


def test_normalising_is_a_switch():
    config = preset_config("tiny", normalise=False)
    net = KuaiFormer(config, config.spec()).eval()
    items = net.item_vector(torch.randn(5, config.spec().width("item_rows")))
    assert (items.norm(dim=-1) - 1).abs().max() > 1e-3


def test_later_queries_see_earlier_ones_only(net):
    rows, mask = torch.randn(2, LENGTH, R), right_aligned([20, 100])
    answer = net(rows, mask)
    with torch.no_grad():
        net.encoder.queries[1] += 1.0
    changed = net(rows, mask)
    assert torch.equal(changed[:, 0], answer[:, 0])
    assert not torch.allclose(changed[:, 1], answer[:, 1])


def test_score_is_the_best_interest():
    interests, items = torch.randn(2, 3, 4), torch.randn(5, 4)
    scores = score(interests, items)
    for b in range(2):
        for n in range(5):
            assert float(scores[b, n]) == pytest.approx(max(float(u @ items[n]) for u in interests[b]), rel=1e-5)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_build_and_come_back(preset):
    config = preset_config(preset)
    assert KuaiFormerConfig.from_dict(config.to_dict()) == config
    net = KuaiFormer(config, config.spec()).eval()
    assert net(torch.zeros(1, 16, config.spec().width("history_rows")), torch.ones(1, 16)).shape[1] == config.interests


def test_bad_configurations_are_refused():
    with pytest.raises(InputError, match="unknown preset"):
        preset_config("huge")
    with pytest.raises(InputError, match="not a KuaiFormer"):
        KuaiFormerConfig.from_dict({"size": 3})
    with pytest.raises(SpecError, match="video's own row"):
        KuaiFormer(CONFIG, CONFIG.spec().without(["item_video_id"]))


def test_the_encoder_exports_with_a_dynamic_batch(net, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    batch = torch.export.Dim("batch", min=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            net.encoder,
            (torch.randn(3, LENGTH, R), right_aligned([0, 9, 256])),
            dynamo=True,
            opset_version=20,
            input_names=["history_rows", "history_mask"],
            output_names=["interests"],
            dynamic_shapes=({0: batch}, {0: batch}),
            verbose=False,
        )
        program.save(tmp_path / "encoder.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "encoder.onnx")
    for lengths in ([4], [0, 256], [1, 50, 130, 200, 256]):
        rows, mask = torch.randn(len(lengths), LENGTH, R), right_aligned(lengths)
        (interests,) = session.run(None, {"history_rows": rows.numpy(), "history_mask": mask.numpy()})
        np.testing.assert_allclose(interests, net(rows, mask).detach().numpy(), atol=1e-5)


def data_of(events, world, **options) -> KuaiFormerData:
    index = PositiveIndex.from_events(events)
    tables = make_tables(events, world.items, CONFIG, dropout=0.0, seed=0)
    return KuaiFormerData(index, CONFIG.spec(), tables, **{"batch": 32, **options})


@pytest.mark.parametrize("targets", [1, 4])
def test_an_epoch_covers_the_positives_about_once(events, world, targets):
    data = data_of(events, world, targets=targets)
    assert data.steps_per_epoch == len(data) // (32 // targets)
    batches = list(data.batches(0, 7))
    assert len(batches) == data.steps_per_epoch
    for batch in batches:
        assert batch.mask.shape[0] == 32 // targets
        assert batch.row.max() < batch.mask.shape[0]
        assert len(batch.target) == len(batch.row) == len(batch.owner) <= 32
    n_targets = sum(len(batch.target) for batch in batches)
    assert 0.8 * len(data.target_P) <= n_targets <= 1.1 * len(data.target_P)


def test_epochs_differ_and_repeat(events, world):
    data = data_of(events, world, targets=4)
    first, again, second, other = (next(iter(data.batches(e, s))).target for e, s in ((0, 7), (0, 7), (1, 7), (0, 8)))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)


def test_a_target_is_never_in_its_history(events, world):
    """Neither it nor what came after it, nor what was not known yet."""
    data = data_of(events, world, targets=3)
    index = data.history.index
    cuts = np.arange(len(index))
    start, end = data.start_P[cuts], data.end_P[cuts]
    assert (end <= cuts).all()
    assert (start == index.offsets[:-1][data.user_P]).all()
    some = np.flatnonzero(end > start)
    assert (index.time_ms[end[some] - 1] < index.time_ms[some]).all()
    assert (index.known_ms[end[some] - 1] <= index.time_ms[some]).all()
    batch = data.make(np.array([start[-1]]))
    assert batch.mask.sum() == 0  # a user's first positive has no history


def test_targets_stay_with_their_user(events, world):
    data = data_of(events, world, targets=8)
    for batch in data.batches(0, 0):
        for row in range(batch.mask.shape[0]):
            assert len(set(batch.owner[batch.row == row].tolist())) == 1


def test_per_user_caps_histories(events, world):
    data = data_of(events, world, per_user=2)
    assert len(data) <= 2 * len(data.history.index.user_id)
    owners = torch.cat([batch.owner for batch in data.batches(0, 0)])
    assert int(torch.bincount(owners).max()) <= 2
    with pytest.raises(InputError, match="two histories"):
        data_of(events, world, batch=4, targets=4)


def test_windows_hold_the_rows_that_serving_builds(events, world):
    """HistorySlots against the contract's own path: UserHistory -> block_keys -> pool_rows."""
    tables = make_tables(events, world.items, CONFIG, dropout=0.0, seed=0).eval()
    index, spec = PositiveIndex.from_events(events), CONFIG.spec()
    users = index.user_id[:5]
    start, end = index.bounds(users, np.full(5, -1))
    slots, mask = HistorySlots(index, spec, tables).window(start, end, LENGTH)
    ours = tables.rows(spec, "history_rows", slots) * mask[..., None]
    for i, user in enumerate(users):
        served = index.user_history(int(user), LENGTH)
        keys = block_keys(spec, "history_rows", served.columns())
        place = {c.field.name: tables.slots(c.field.table, keys[c.field.name]) for c in spec.columns("history_rows")}
        theirs = pool_rows(spec, "history_rows", tables.numpy_rows(), place, np.empty((LENGTH, R), np.float32))
        np.testing.assert_array_equal(mask[i].numpy(), served.mask())
        np.testing.assert_allclose(ours[i].detach().numpy(), theirs * served.mask()[:, None], atol=1e-6)


def test_ranks_share_ties_and_metrics_follow():
    queries = Queries(np.array([5, 5, 9], np.uint64), np.array([2, 0, 1]), 0, 0)
    scores = {5: [0.1, 0.9, 0.5, 0.0], 9: [1.0, 1.0, 1.0, 1.0]}
    table = np.array([*range(20)], np.float32)

    def scores_of(users):
        return np.array([[*scores[int(u)], *(table - 50)] for u in users], np.float32)

    metrics = ranking_metrics(queries, 24, scores_of)
    ranks = np.array([2, 3, 2.5])
    assert metrics["recall@10"] == 1.0
    assert "recall@50" not in metrics
    assert metrics["ndcg@10"] == pytest.approx(float(np.mean(1 / np.log2(ranks + 1))))


def test_future_labels_change_no_query(events, world):
    """The leak probe: what is flipped after the cut changes targets, never what a user's vector is."""
    cut = cut_before_last_days(events, 1)
    later = events["time_ms"] >= cut
    flipped = events.with_columns(long_view=np.where(later, 1 - events["long_view"], events["long_view"]))
    tables = make_tables(before(events, cut), world.items, CONFIG, dropout=0.0, seed=0).eval()
    net = KuaiFormer(CONFIG, CONFIG.spec()).eval()
    users = np.unique(events["user_id"])
    one, other = (
        user_interests(net, tables, HistorySlots(PositiveIndex.from_events(log), CONFIG.spec(), tables), users, cut)
        for log in (events, flipped)
    )
    assert torch.equal(one, other)


@pytest.fixture(scope="module")
def trained(events, world, tmp_path_factory):
    out = tmp_path_factory.mktemp("kuaiformer") / "model"
    return train_kuaiformer(events, world.items, out, epochs=6, batch=128, seed=1)


def test_it_beats_popularity(trained, events, world):
    metrics = trained.metrics
    assert metrics["recall@10"] > 1.3 * metrics["popularity_recall@10"]
    assert "full ranking of 300 videos" in metrics["protocol"]
    cut = trained.config["training"]["trained_until_ms"]
    assert evaluate_popularity(events, world.items, cut)["recall@10"] == metrics["popularity_recall@10"]


def test_a_checkpoint_scores_as_it_did(trained, events, world):
    back = load_checkpoint(trained.path, kind="kuaiformer")
    cut = trained.config["training"]["trained_until_ms"]
    again = evaluate_retrieval(load_kuaiformer(back), back.tables, events, world.items, cut)
    for name, value in again.items():
        assert value == pytest.approx(trained.metrics[name], abs=1e-9)


def test_new_items_have_vectors_of_their_content(trained, world):
    net, tables = load_kuaiformer(trained), trained.tables.eval()
    with torch.no_grad():
        known = item_vectors(net, tables, world.items)
        ids = world.items.video_id + np.uint64(10**9)
        columns = {name: getattr(world.items, name) for name in ("author_id", "tags", "duration_ms", "upload_ms")}
        new = item_vectors(net, tables, type(world.items)(video_id=ids, **columns))
    assert torch.isfinite(new).all()
    same = (known * new).sum(-1).mean()
    other = (known * new.roll(1, 0)).sum(-1).mean()
    assert float(same) > float(other) + 0.05


def test_a_run_that_stops_can_go_on(events, world, tmp_path):
    options = {"epochs": 1, "batch": 128, "holdout_days": 0}
    whole = train_kuaiformer(events, world.items, tmp_path / "whole", **options)
    half = train_kuaiformer(events, world.items, tmp_path / "half", steps=4, **options)
    rest = train_kuaiformer(events, world.items, tmp_path / "rest", resume=half.path, **options)
    assert half.version != whole.version
    assert rest.version == whole.version


def test_wrong_uses_are_refused(events, world, tmp_path, trained):
    with pytest.raises(CheckpointError, match="exists"):
        train_kuaiformer(events, world.items, trained.path)
    nothing = events.with_columns(long_view=np.zeros(len(events)), like=np.zeros(len(events)))
    with pytest.raises(InputError, match="too few positives"):
        train_kuaiformer(nothing, world.items, tmp_path / "x")
    with pytest.raises(InputError, match="no positive to be found"):
        Queries.after(events, world.items, int(events["time_ms"].max()) + 1)


def test_days_are_cut_where_users_live(events):
    cuts = [cut_before_last_days(events, days) for days in (3, 2, 1)]
    assert all(b - a == 86_400_000 for a, b in pairwise(cuts))
    assert cuts[0] % 86_400_000 == 0
    assert (cut_before_last_days(events, 1, 8.0) + 8 * 3_600_000) % 86_400_000 == 0
    with pytest.raises(InputError, match="hold out"):
        cut_before_last_days(events, 4)
    assert len(before(events, cuts[0])) == (events["time_ms"] < cuts[0]).sum()
    assert MISSING_KEY not in events["video_id"]

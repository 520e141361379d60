"""Training end to end on a small log: a loadable checkpoint, dropped fields, fine-tuning, and feedback that pays."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
import torch

from contract.beam import ListReward
from contract.errors import CheckpointError, InputError
from contract.events import Events
from contract.vocabulary import MISSING_KEY, PXTR_HEADS, SIGNALS, TASKS, X_PXTR
from training import kir_train
from training.checkpoint import load_checkpoint
from training.kir import KirConfig, graphs, load_kir
from training.kir_data import Batches, prepare
from training.kir_eval import auc, calibration, fused, gauc, ranking_metrics, server_scores
from training.kir_objective import FUSION, LIST_REWARD, TASK_WEIGHTS
from training.kir_train import KirTask, train_kir

QUICK = {"epochs": 1, "seed": 0}


def mood_log(users: int = 40, length: int = 60, seed: int = 0) -> Events:
    """Sessions in a good or a bad mood, which only their own feedback tells; the server's prediction is a coin."""
    rng = np.random.default_rng(seed)
    n = users * length
    user, step = np.repeat(np.arange(users), length), np.tile(np.arange(length), users)
    session = user * 100 + step // 20
    mood = rng.integers(2, size=session.max() + 1)[session]
    tag = rng.integers(2, size=n)
    liked = (mood == 1) ^ (rng.random(n) < 0.05)
    signals = {
        name: np.where(liked, 1, 0) if name in ("long_view", "click", "finish") else np.zeros(n) for name in SIGNALS
    }
    pxtr = rng.uniform(0.2, 0.8, (n, X_PXTR)).astype(np.float32)
    return Events(
        {
            "user_id": user.astype(np.uint64),
            "video_id": (1000 + tag * 50 + rng.integers(50, size=n)).astype(np.uint64),
            "author_id": rng.integers(20, size=n).astype(np.uint64),
            "tags": np.stack([tag.astype(np.uint64), np.full(n, MISSING_KEY), np.full(n, MISSING_KEY)], axis=1),
            "time_ms": 1_767_571_200_000 + step * 40_000 + step // 20 * 7_200_000 + user,
            "session_id": session.astype(np.uint64),
            "seq": step % 20,
            "position": step % 20,
            "play_time_ms": np.where(liked, 28_000, 2_000),
            "duration_ms": np.full(n, 30_000),
            "server_position": rng.integers(20, size=n),
            "has_next": np.ones(n),
            "pxtr": pxtr,
            **signals,
        }
    )


@pytest.fixture(scope="module")
def log() -> Events:
    return mood_log()


@pytest.fixture(scope="module")
def trained(log, tmp_path_factory):
    lines = []
    checkpoint = train_kir(log, tmp_path_factory.mktemp("kir") / "one", "tiny", epochs=8, log=lines.append)
    return checkpoint, lines


def test_feedback_of_the_session_is_learnt(trained):
    checkpoint, _ = trained
    metrics = checkpoint.metrics
    assert metrics["auc_effective_view"] > 0.85, "what the session wants is in its own feedback"
    assert metrics["server_auc_effective_view"] < 0.6, "and nowhere else"
    assert metrics["fused_auc_watch_time"] > 0.8
    assert metrics["mask_gap"] < 1e-4, "what is masked by -30 on the phone stays masked"


def test_checkpoint_holds_what_others_need(trained):
    checkpoint, lines = trained
    again = load_checkpoint(checkpoint.path, kind="kir")
    assert again.version.startswith("kir-")
    assert again.model_config["fusion"] == FUSION
    assert asdict(ListReward.from_json(again.model_config["list_reward"], TASKS)) == LIST_REWARD
    assert set(again.model_config["fusion"]) == set(TASKS) == set(TASK_WEIGHTS)
    training = again.config["training"]
    assert {"network", "decoder", "buffered", "hour", "upload_age"} <= set(training["dropped_fields"])
    assert training["coverage"]["pxtr"] == 1.0
    assert training["server_baseline"] == "pxtr_long_view"
    assert again.spec.width("candidate_swipe") == 0
    assert any("trained" in line for line in lines)
    assert "dropped" in again.card_path.read_text()


@torch.no_grad()
def test_checkpoint_gives_graphs(trained):
    checkpoint, _ = trained
    kir = load_kir(checkpoint)
    made = graphs(kir)
    assert "candidate_swipe" not in made["swipe", "N20"].inputs, "a block without fields is no input"
    assert all(torch.isfinite(graph.module(**graph.inputs)[0]).all() for graph in made.values())
    scaler = kir.scalers["watched_dense"]
    mean = scaler.mean
    assert mean.abs().max() < 0.5
    assert 0.3 < float(scaler.std.mean()) < 1.5


def test_default_rows_are_trained(trained):
    checkpoint, _ = trained
    for table, weight in checkpoint.tables.weights.items():
        assert float(weight[0].detach().abs().max()) > 0, f"key dropout must reach the default row of '{table}'"


def test_same_seed_gives_the_same_version(log, tmp_path):
    one = train_kir(log, tmp_path / "a", "tiny", **QUICK)
    two = train_kir(log, tmp_path / "b", "tiny", **QUICK)
    other = train_kir(log, tmp_path / "c", "tiny", epochs=1, seed=1)
    assert one.version == two.version != other.version
    with pytest.raises(CheckpointError, match="exists"):
        train_kir(log, tmp_path / "a", "tiny", **QUICK)


def test_fine_tuning_makes_the_next_version(trained, tmp_path):
    checkpoint, _ = trained
    later = mood_log(users=12, seed=5)
    later = later.with_columns(video_id=later["video_id"] + np.uint64(5000))
    before = {table: len(keys) for table, keys in checkpoint.tables.keys.items()}
    tuned = train_kir(later, tmp_path / "tuned", init_from=checkpoint.path, epochs=2)
    assert tuned.version != checkpoint.version
    assert tuned.spec.fingerprint == checkpoint.spec.fingerprint
    assert len(tuned.tables.keys["video"]) > before["video"]
    assert tuned.config["training"]["init_from"] == checkpoint.version
    assert tuned.model_config == checkpoint.model_config
    assert tuned.metrics["auc_effective_view"] > 0.8, "what was learnt is not lost"


def test_pxtr_only_needs_no_rows(log, tmp_path):
    checkpoint = train_kir(log, tmp_path / "pxtr", "tiny", pxtr_only=True, **QUICK)
    assert not checkpoint.spec.tables
    assert not checkpoint.tables.weights
    assert not any(name.endswith("_rows") for name in graphs(load_kir(checkpoint))["page", "N20"].inputs)


def test_log_without_predictions_drops_them(log, tmp_path):
    blank = log.with_columns(pxtr=np.full((len(log), X_PXTR), np.nan, np.float32))
    checkpoint = train_kir(blank, tmp_path / "none", "tiny", **QUICK)
    assert {"pxtr", "watched_pxtr"} <= set(checkpoint.config["training"]["dropped_fields"])
    assert checkpoint.config["training"]["server_baseline"] == "server_position"


def test_unknown_labels_train_nothing(log, tmp_path):
    """A log that never observed likes: the task has no gradient and no metric, the others do."""
    blank = log.with_columns(like=np.full(len(log), -1))
    checkpoint = train_kir(blank, tmp_path / "no-like", "tiny", **QUICK)
    assert "auc_like" not in checkpoint.metrics
    assert "auc_effective_view" in checkpoint.metrics


def test_a_task_that_the_log_never_observed_does_not_rank(log, tmp_path):
    """KuaiRand tells nothing of staying: its score is noise, and so would be what it adds or discounts on the phone."""
    blank = log.with_columns(has_next=np.full(len(log), -1))
    checkpoint = train_kir(blank, tmp_path / "no-next", "tiny", **QUICK)
    rest = {task: weight for task, weight in FUSION.items() if task != "has_next"}
    assert checkpoint.model_config["fusion"] == rest == checkpoint.config["training"]["fusion"]
    assert checkpoint.model_config["list_reward"] is None
    assert "has_next" not in checkpoint.card_path.read_text().split("fusion")[1].splitlines()[0]
    tuned = train_kir(blank, tmp_path / "tuned", init_from=checkpoint, **QUICK)
    assert tuned.model_config["fusion"] == rest
    told = train_kir(log, tmp_path / "told", init_from=checkpoint, **QUICK)
    assert told.model_config["fusion"] == FUSION
    assert told.model_config["list_reward"] == LIST_REWARD
    silent = log.with_columns(play_time_ms=np.full(len(log), -1), **{n: np.full(len(log), -1) for n in SIGNALS})
    with pytest.raises(InputError, match="no label of any task"):
        train_kir(silent.with_columns(has_next=np.full(len(log), -1)), tmp_path / "silent", "tiny", **QUICK)


def test_the_epoch_that_does_best_on_later_events_is_kept(log, tmp_path):
    """Long views by coin: the longer such a log is trained on, the worse for what comes after."""
    coin = np.random.default_rng(3).integers(2, size=len(log))
    noise = log.with_columns(**{name: coin for name in SIGNALS}, play_time_ms=np.where(coin, 28_000, 2_000))
    checkpoint = train_kir(noise, tmp_path / "noise", "tiny", epochs=5, seed=0)
    facts = checkpoint.config["training"]
    by_epoch = [one[kir_train.BEST] for one in facts["by_epoch"]]
    assert facts["result"]["best"] == max(by_epoch) > by_epoch[-1]
    data = prepare(noise, 20)
    judging = kir_train.split_by_time(data, kir_train.HELD_OUT)
    judging &= ~kir_train.split_by_time(data, kir_train.HELD_OUT + kir_train.JUDGING)
    kept = KirTask(load_kir(checkpoint), checkpoint.tables)
    found = kir_train.judging_loss(kept, Batches(data, checkpoint.spec, checkpoint.tables, judging))[kir_train.BEST]
    assert found == pytest.approx(max(*by_epoch, facts["begin"]), abs=1e-3)
    assert facts["trained_until_ms"] == data.events["time_ms"][judging].max() + 1, "what is judged on is no proof"


def test_where_no_epoch_does_better_the_beginning_is_kept(log, tmp_path, monkeypatch):
    """Scores at the server's: the experts add nothing yet."""
    losses = iter([0.0, -1.0, -2.0])
    monkeypatch.setattr(kir_train, "judging_loss", lambda *_: {kir_train.BEST: next(losses)})
    said = []
    checkpoint = train_kir(log, tmp_path / "kir", "tiny", epochs=2, seed=0, log=said.append)
    assert any("no epoch does better" in line for line in said)
    assert not load_kir(checkpoint).task.weight.any()
    assert checkpoint.config["training"]["begin"] == 0.0


def test_a_budget_is_kept(log, tmp_path):
    checkpoint = train_kir(log, tmp_path / "budget", "tiny", epochs=10_000, max_seconds=1.0)
    assert checkpoint.config["training"]["result"]["seconds"] < 5


def test_nothing_to_train_on(log, tmp_path):
    with pytest.raises(InputError, match="no events to train on"):
        train_kir(log, tmp_path / "x", held_out=1.0)


def slow_gauc(scores, labels, groups):
    total = weight = 0.0
    for group in np.unique(groups):
        s, y = scores[groups == group], labels[groups == group]
        pairs = [(a > b) + 0.5 * (a == b) for a in s[y] for b in s[~y]]
        if pairs:
            total, weight = total + np.mean(pairs) * y.sum(), weight + y.sum()
    return total / weight


def test_gauc_equals_counting_pairs():
    rng = np.random.default_rng(0)
    scores, labels, groups = rng.integers(0, 6, 300) / 5, rng.random(300) < 0.3, rng.integers(0, 25, 300)
    assert gauc(scores, labels, groups) == pytest.approx(slow_gauc(scores, labels, groups))
    assert auc(scores, labels) == pytest.approx(slow_gauc(scores, labels, np.zeros(300)))
    assert np.isnan(auc(scores, np.ones(300, bool)))
    assert np.isnan(gauc(scores[:0], labels[:0], groups[:0]))


def test_metrics_and_baseline_follow_the_data(log):
    data = prepare(log, 20)
    rows = np.arange(len(data))
    perfect = np.nan_to_num(data.labels_nT)
    found = ranking_metrics(perfect, TASKS, data, rows, 0.3)
    assert found["auc_effective_view"] == found["gauc_effective_view"] == found["session_gauc_watch_time"] == 1.0
    assert "auc_has_next" not in found, "one class alone"
    scores, name = server_scores(data, rows)
    assert name == "pxtr_long_view"
    np.testing.assert_array_equal(scores, data.events["pxtr"][:, PXTR_HEADS.index("long_view")])


def test_calibration_is_the_gap_between_chances_and_what_came(log):
    """Shares of watch_time are held against the mean share, not against a class."""
    data = prepare(log, 20)
    rows = np.arange(len(data))
    right = np.clip(np.nan_to_num(data.labels_nT), 1e-6, 1 - 1e-6)
    assert all(gap < 1e-5 for gap in calibration(np.log(right / (1 - right)), TASKS, data, rows).values())
    flat = calibration(np.zeros((len(rows), len(TASKS))), TASKS, data, rows)
    assert flat
    for name, gap in flat.items():
        label = data.labels_nT[:, TASKS.index(name.removeprefix("ece_"))]
        assert gap >= abs(0.5 - np.nanmean(label)) - 1e-6, name
    assert calibration(np.zeros((0, 1)), ("like",), data, rows[:0]) == {}


def test_fusion_is_a_weighted_sum_of_probabilities():
    scores = np.array([[0.0, 0.0, 0.0, 0.0], [9.0, 0.0, 0.0, 2.0]])
    weights = {"watch_time": 2.0, "effective_view": 1.0}
    expected = 1 / (1 + np.exp(-scores[:, 3])) * 2 + 1 / (1 + np.exp(-scores[:, 0]))
    np.testing.assert_allclose(fused(scores, TASKS, weights), expected)


@pytest.mark.parametrize("preset", ["kir2020", "kir2022"])
def test_presets_train_their_own_tasks(log, tmp_path, preset):
    checkpoint = train_kir(log, tmp_path / preset, preset, epochs=1, max_seconds=20)
    tasks = tuple(checkpoint.model_config["tasks"])
    assert tasks == {"kir2020": ("effective_view",), "kir2022": ("has_next", "effective_view", "like")}[preset]
    assert set(checkpoint.model_config["fusion"]) == set(tasks)
    assert (checkpoint.model_config["list_reward"] is None) == (preset == "kir2020")
    assert checkpoint.metrics["auc_effective_view"] > 0.5
    assert "auc_watch_time" not in checkpoint.metrics
    # Odds of the weighted loss grow with the time watched: no chances to calibrate.
    assert ("ece_effective_view" in checkpoint.metrics) == (preset != "kir2020")
    net = load_kir(checkpoint)
    assert net.config == KirConfig.of(preset)

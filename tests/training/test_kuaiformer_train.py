"""Training KuaiFormer: it learns, its checkpoint answers as measured, it goes on bit for bit, it knows no future."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from contract.errors import CheckpointError, InputError
from contract.vocabulary import MISSING_KEY, TAGS_MAX
from tests.training.retrieval_makers import masked_split, sequences
from training.checkpoint import load_checkpoint
from training.kuaiformer_train import known_keys, load_kuaiformer, make_task, train_kuaiformer, untold_fields
from training.readers import LogData
from training.recipe import Recipe
from training.retrieval_eval import KuaiFormerScorer, Popularity, evaluate, item_vectors
from training.retrieval_split import split_of
from training.simulator import SimConfig, World, simulate_logs
from training.trainer import Trainer

RECIPE = Recipe().changed(["data.batch=128", "model.dropout=0.1", "train.seed=1"])
QUICK = RECIPE.changed(["train.epochs=2", "model.layers=1", "data.batch=200"])
FROM_CONTENT = ("item_author_id", "item_tags", "item_duration")


@pytest.fixture(scope="module")
def log() -> LogData:
    world = World(SimConfig(n_users=60, n_items=300, days=4))
    return LogData(simulate_logs(world), world.items, world.users)


@pytest.fixture(scope="module")
def split(log):
    return split_of(log, "sim")


@pytest.fixture(scope="module")
def trained(split, tmp_path_factory):
    out = tmp_path_factory.mktemp("kuaiformer") / "model"
    return train_kuaiformer(split, out, RECIPE.changed(["train.epochs=6"]))


def test_it_beats_popularity(trained, split):
    metrics = trained.metrics
    assert metrics["recall@10"] > 1.5 * metrics["popularity_recall@10"]
    assert metrics["ndcg@10"] > 1.5 * metrics["popularity_ndcg@10"]
    assert metrics["popularity_recall@10"] == evaluate(split, "val", Popularity(), quick=True).values["recall@10"]
    assert metrics["protocol"] == split.chosen("val").protocol


def test_a_checkpoint_scores_as_it_was_measured(trained, split):
    back = load_checkpoint(trained.path, kind="kuaiformer")
    scorer = KuaiFormerScorer(load_kuaiformer(back), back.tables.eval())
    for name, value in evaluate(split, "val", scorer, quick=True).values.items():
        assert value == pytest.approx(trained.metrics[name], abs=1e-9)


def test_a_checkpoint_says_how_it_was_made(trained, split):
    told = load_checkpoint(trained.path).config["training"]
    places = split.train_places()
    assert (told["positives"], told["items"], told["trained_until_ms"]) == (len(places), 300, split.cut_ms)
    assert Recipe.from_dict(told["recipe"]) == RECIPE.changed(["train.epochs=6"])
    steps = len(places) // 128 * 6
    assert told["result"]["steps"] == steps
    assert told["result"]["losses"][-1] < told["result"]["losses"][0]
    assert trained.metrics["final_loss"] == told["result"]["losses"][-1]
    lines = [json.loads(line) for line in (trained.path / "train_log.jsonl").read_text().splitlines()]
    assert lines[0]["step"] == 1
    assert lines[0]["loss"] > lines[-1]["loss"]
    assert [path.name for path in trained.path.parent.iterdir()] == ["model"], "no state is left"


def test_new_items_have_vectors_of_their_content(trained, split):
    net, tables = load_kuaiformer(trained), trained.tables.eval()
    items = split.items
    with torch.no_grad():
        known = item_vectors(net, tables, items)
        new = item_vectors(net, tables, replace(items, video_id=items.video_id + np.uint64(10**9)))
    assert torch.isfinite(new).all()
    same = (known * new).sum(-1).mean()
    other = (known * new.roll(1, 0)).sum(-1).mean()
    assert float(same) > float(other) + 0.05


def test_the_same_seed_gives_the_same_weights(split, tmp_path):
    one = train_kuaiformer(split, tmp_path / "one", QUICK)
    torch.manual_seed(99)
    again = train_kuaiformer(split, tmp_path / "again", Recipe.from_dict(one.config["training"]["recipe"]))
    other = train_kuaiformer(split, tmp_path / "other", QUICK.changed(["train.seed=2"]))
    assert one.version == again.version != other.version


@pytest.mark.parametrize(
    "changes",
    [
        [],
        ["train.ema_decay=0.9", "data.select_by=mrr", "loss.candidates=in-batch", "train.table_optimizer=adam"],
        ["loss.candidates=sampled", "loss.negatives=40", "data.cap=1"],
    ],
    ids=["plain", "averaged", "sampled"],
)
def test_stopped_by_steps_it_goes_on_bit_for_bit(split, tmp_path, changes):
    recipe = QUICK.changed(changes)
    whole = train_kuaiformer(split, tmp_path / "whole", recipe)
    total = whole.config["training"]["result"]["steps"]
    out = tmp_path / "parts"
    for steps in (
        total // 3,
        total // 3 + 1,
        2 * total // 3,
    ):  # the first in a user's first epoch, one step, the second
        part = train_kuaiformer(split, out, recipe, steps=steps, resume=out.exists(), overwrite=True)
        assert part.config["training"]["result"]["steps"] == steps
        assert part.version != whole.version
    rest = train_kuaiformer(split, out, recipe, resume=True, overwrite=True)
    assert rest.version == whole.version
    assert rest.metrics == whole.metrics
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts", "whole"]


def test_a_state_of_another_run_is_refused(split, tmp_path):
    out = tmp_path / "m"
    with pytest.raises(CheckpointError, match="no saved training state"):
        train_kuaiformer(split, out, QUICK, resume=True)
    train_kuaiformer(split, out, QUICK, steps=2)
    for changes, part in (
        (["loss.smoothing=standard"], "loss"),
        (["train.learning_rate=0.001"], "train"),
        (["model.temperature=0.1"], "model"),
        (["data.key_dropout=0.2"], "data"),
    ):
        with pytest.raises(CheckpointError, match=rf"another run \({part}\)"):
            train_kuaiformer(split, out, QUICK.changed(changes), resume=True, overwrite=True)
    with pytest.raises(CheckpointError, match=r"another run \(data\)"):
        train_kuaiformer(replace(split, name="else"), out, QUICK, resume=True, overwrite=True)
    free = QUICK.changed(["train.device=auto"]) if not torch.cuda.is_available() else QUICK
    assert train_kuaiformer(split, out, free, resume=True, overwrite=True) is not None


def test_a_fresh_start_forgets_the_state_before(split, tmp_path, monkeypatch):
    """Or the next --resume after a kill would go on with the run before."""
    out = tmp_path / "m"
    train_kuaiformer(split, out, QUICK, steps=2)
    with monkeypatch.context() as killed:
        killed.setattr(Trainer, "run", lambda self, until_step=None: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train_kuaiformer(split, out, QUICK, overwrite=True)
    with pytest.raises(CheckpointError, match="no saved training state"):
        train_kuaiformer(split, out, QUICK, resume=True, overwrite=True)


def test_the_best_epoch_by_the_metric_is_kept(split, tmp_path):
    recipe = QUICK.changed(["data.select_by=ndcg@10", "train.epochs=5", "train.learning_rate=0.03", "train.patience=2"])
    saved = train_kuaiformer(split, tmp_path / "m", recipe)
    lines = [json.loads(line) for line in (saved.path / "train_log.jsonl").read_text().splitlines()]
    found = [line["validation"]["ndcg@10"] for line in lines if "validation" in line]
    assert len(found) > 1
    assert saved.config["training"]["result"]["best"] == pytest.approx(max(found), abs=1e-9)
    assert saved.metrics["ndcg@10"] == pytest.approx(max(found), abs=1e-9)


def test_nothing_of_the_future_reaches_the_weights(log, tmp_path):
    """The leak probe: all labels after the cut are another, and not a bit of tables, net or any user's vector is."""
    cut = split_of(log, "sim").cut_ms
    later = log.events["time_ms"] >= cut
    flipped = {name: np.where(later, 1 - log.events[name], log.events[name]) for name in ("long_view", "like")}
    flipped["play_time_ms"] = np.where(later, 7, log.events["play_time_ms"])
    other = LogData(log.events.with_columns(**flipped), log.items, log.users)
    assert len(split_of(other, "sim").index) != len(split_of(log, "sim").index)
    recipe = QUICK.changed(["loss.except_owned=true", "loss.candidates=in-batch"])
    found = []
    for name, data in (("as it was", log), ("flipped", other)):
        split = split_of(data, "sim", cut_ms=cut)
        saved = train_kuaiformer(split, tmp_path / name, recipe)
        net, tables = load_kuaiformer(saved), saved.tables.eval()
        start, end = split.index.bounds(log.users.user_id, np.full(len(log.users.user_id), cut))
        number = np.searchsorted(split.index.user_id, log.users.user_id)
        known = end > start
        scorer = KuaiFormerScorer(net, tables)
        scores = scorer.scores(split, number[known], end[known])
        with torch.no_grad():
            found.append((saved.version, known, scores, scorer.interests(split, number[known], end[known])))
    assert found[0][0] == found[1][0]
    assert np.array_equal(found[0][1], found[1][1])
    assert np.array_equal(found[0][2], found[1][2])
    assert torch.equal(found[0][3], found[1][3])
    assert known.sum() > 30


def test_tables_hold_what_training_saw(split):
    """A video without a training positive has no row of its own, but what it is made of does."""
    keys = known_keys(split, RECIPE.config())
    trained = np.unique(split.index.columns["video_id"][split.train_places()])
    assert len(trained) < 300
    task, _ = make_task(split, RECIPE)
    assert len(keys["video"]) == len(trained) == task.tables.n_rows["video"] - 1
    assert task.tables.n_rows["author"] - 1 >= len(
        np.unique(split.items.author_id[split.items.author_id != MISSING_KEY])
    )
    assert set(task.tables.n_rows) == set(RECIPE.config().spec().tables)


def test_a_log_tells_every_field(split):
    assert untold_fields(split) == ()


def test_fields_that_sequences_do_not_tell_are_left_out(tmp_path):
    """MovieLens has genres; authors, durations, gaps and plays would be default rows for ever."""
    genres = replace(sequences(), item_tags=np.arange(30 * TAGS_MAX, dtype=np.uint64).reshape(30, -1) // 9)
    split = split_of(genres, "ml-1m", history=12)
    untold = {"history_author_id", "history_duration", "history_gap", "history_play", "item_author_id", "item_duration"}
    assert set(untold_fields(split)) == untold
    saved = train_kuaiformer(split, tmp_path / "m", QUICK.changed(["data.batch=64"]))
    assert {field.name for field in saved.spec.fields} == {
        *("history_video_id", "history_tags", "item_video_id", "item_tags"),
    }
    assert set(saved.tables.widths) == {"video", "tag"}
    assert set(saved.config["model"]["without"]) == untold
    assert saved.metrics["protocol"] == split.chosen("val").protocol
    assert load_kuaiformer(saved).item.has_content


def test_items_of_nothing_but_their_number_train_as_well(tmp_path):
    split = masked_split(history=12)
    saved = train_kuaiformer(split, tmp_path / "m", QUICK.changed(["data.batch=64"]))
    assert set(saved.tables.widths) == {"video"}
    assert not load_kuaiformer(saved).item.has_content
    assert set(FROM_CONTENT) < set(saved.config["model"]["without"])


def test_without_val_every_epoch_of_the_recipe_is_trained(log, tmp_path):
    """A recipe that selects and stops early, for the model that is trained on all days."""
    whole = split_of(log, "sim", holdout_days=0)
    recipe = QUICK.changed(["data.select_by=mrr", "train.patience=1", "train.epochs=3"])
    saved = train_kuaiformer(whole, tmp_path / "m", recipe)
    assert saved.config["training"]["result"]["epochs"] == 3
    assert saved.config["training"]["result"]["best"] is None


def test_wrong_uses_are_refused(log, split, trained, tmp_path):
    with pytest.raises(CheckpointError, match="exists"):
        train_kuaiformer(split, trained.path, QUICK)
    nothing = replace(split, train_end=split.index.offsets[:-1])
    with pytest.raises(InputError, match="no positive to train on"):
        train_kuaiformer(nothing, tmp_path / "m", QUICK)
    with pytest.raises(InputError, match="no such metric") as refused:
        train_kuaiformer(split, tmp_path / "m", QUICK.changed(["data.select_by=recall@7"]))
    assert "recall@10" in str(refused.value)
    with pytest.raises(InputError, match="early stopping"):
        train_kuaiformer(split, tmp_path / "m", QUICK.changed(["train.patience=1"]))
    assert list(tmp_path.iterdir()) == []


def test_without_queries_there_are_no_metrics(log, tmp_path):
    saved = train_kuaiformer(split_of(log, "sim", holdout_days=0), tmp_path / "m", QUICK.changed(["train.epochs=1"]))
    assert set(saved.metrics) == {"final_loss"}
    assert saved.config["training"]["trained_until_ms"] == int(log.events["time_ms"][_positive(log)].max()) + 1


def _positive(log: LogData):
    return (log.events["long_view"] == 1) | (log.events["like"] == 1)

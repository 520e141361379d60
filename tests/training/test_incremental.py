"""Going on from a checkpoint: what moves and what stands still, versions, what it learns and keeps, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import kir
from contract.catalogue import write_catalogue
from contract.errors import CheckpointError, InputError
from contract.parquet import write_events
from tests.training.incremental_makers import (
    DAY_MS,
    NEW_DAY,
    NEW_ITEMS,
    OLD_DAYS,
    OLD_ITEMS,
    RECIPE,
    START_MS,
    TEST_DAY,
    TOPICS,
    is_new_video,
    log,
    video,
)
from training import incremental
from training.checkpoint import Checkpoint, load_checkpoint
from training.incremental import gentle, train_incremental
from training.kuaiformer_train import load_kuaiformer, train_kuaiformer
from training.readers import LogData
from training.recipe import Recipe
from training.retrieval_eval import KuaiFormerScorer, evaluate
from training.retrieval_split import split_of
from training.row_memory import read_row_memory

OLD, NEW = log(*OLD_DAYS), log(NEW_DAY)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Trained on the old days alone. Nobody changes it."""
    out = tmp_path_factory.mktemp("base") / "base"
    return train_kuaiformer(split_of(OLD, "toy", holdout_days=0), out, RECIPE)


@pytest.fixture(scope="module")
def whole(base: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return train_incremental(base, NEW, tmp_path_factory.mktemp("whole") / "next", old=OLD)


@pytest.fixture(scope="module")
def items(base: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return train_incremental(base, NEW, tmp_path_factory.mktemp("items") / "next", old=OLD, items_only=True)


def rows(checkpoint: Checkpoint, table: str, keys) -> np.ndarray:
    return checkpoint.tables.numpy_rows()[table][checkpoint.tables.slots(table, np.asarray(keys, np.uint64))]


def same_net(one: Checkpoint, other: Checkpoint) -> bool:
    return all(torch.equal(one.dense[name], other.dense[name]) for name in one.dense)


def recall(checkpoint: Checkpoint, data: LogData, cut_ms: int, *, new: bool | None = None, k: int = 10) -> float:
    """Share of targets among the first k; new: those that are new videos, or those that are not."""
    split = split_of(data, "toy", cut_ms=cut_ms)
    queries = split.chosen("val")
    if new is not None:
        queries = queries.take(is_new_video(split.items.video_id[queries.item]) == new)
    scorer = KuaiFormerScorer(load_kuaiformer(checkpoint), checkpoint.tables)
    found = evaluate(split, queries, scorer, quick=True)
    return float((found.ranks.rank <= k).mean())


class TestWhatMoves:
    def test_new_ids_have_rows_of_their_own(self, base: Checkpoint, whole: Checkpoint) -> None:
        new = [video(OLD_ITEMS + i) for i in range(NEW_ITEMS)]
        assert set(base.tables.slots("video", np.array(new, np.uint64))) == {0}
        assert (whole.tables.slots("video", np.array(new, np.uint64)) > 0).all()
        assert len(np.unique(rows(whole, "video", new), axis=0)) == NEW_ITEMS
        assert whole.tables.n_rows["video"] == base.tables.n_rows["video"] + NEW_ITEMS
        assert whole.config["training"]["incremental"]["new_rows"]["video"] == NEW_ITEMS

    def test_the_checkpoint_it_starts_from_stays(self, base: Checkpoint, whole: Checkpoint) -> None:
        again = load_checkpoint(base.path)
        for table, matrix in again.tables.numpy_rows().items():
            assert np.array_equal(matrix, base.tables.numpy_rows()[table]), table
            assert np.array_equal(again.tables.keys[table], base.tables.keys[table])

    def test_all_of_it_moves(self, base: Checkpoint, whole: Checkpoint) -> None:
        assert not same_net(base, whole)
        old = base.tables.keys["video"]
        assert not np.allclose(rows(base, "video", old), rows(whole, "video", old))

    def test_items_alone_move(self, base: Checkpoint, items: Checkpoint) -> None:
        assert same_net(base, items)
        of_items = {column.field.table for column in base.spec.columns("item_rows")}
        still = set(base.spec.tables) - of_items
        assert still == {"gap", "play_ratio"}
        for table in still:
            assert np.array_equal(
                rows(base, table, base.tables.keys[table]), rows(items, table, base.tables.keys[table])
            )
        old = base.tables.keys["video"]
        assert not np.allclose(rows(base, "video", old), rows(items, "video", old))
        assert items.tables.n_rows["video"] == base.tables.n_rows["video"] + NEW_ITEMS

    def test_a_row_seen_often_moves_less_than_a_new_one(self, base: Checkpoint, whole: Checkpoint) -> None:
        old = base.tables.keys["video"][1:]
        new = np.array([video(OLD_ITEMS + i) for i in range(NEW_ITEMS)], np.uint64)
        moved = np.abs(rows(whole, "video", old) - rows(base, "video", old)).mean()
        from_default = np.abs(rows(whole, "video", new) - rows(base, "video", new)).mean()
        assert moved < 0.5 * from_default

    def test_the_memory_of_rows_goes_on(self, base: Checkpoint, whole: Checkpoint) -> None:
        before, after = read_row_memory(base)["video"], read_row_memory(whole)["video"]
        old = base.tables.slots("video", base.tables.keys["video"][1:])
        grown = whole.tables.slots("video", base.tables.keys["video"][1:])
        assert (after[grown] > before[old]).all()
        assert (after[1:] > 0).all()

    def test_replay_adds_steps_on_old_positives(self, base: Checkpoint, tmp_path: Path) -> None:
        steps = {}
        for replay in (0.0, 1.0):
            settings = ["train.epochs=1"]
            saved = train_incremental(base, NEW, tmp_path / str(replay), old=OLD, replay=replay, settings=settings)
            steps[replay] = saved.config["training"]["result"]["steps"]
        told = saved.config["training"]["incremental"]
        assert steps[0.0] == told["new_positives"] // told["recipe"]["data"]["batch"]
        assert steps[1.0] == 2 * steps[0.0]


class TestVersions:
    def test_a_new_net_is_a_new_version(self, base: Checkpoint, whole: Checkpoint) -> None:
        assert whole.version != base.version
        assert whole.config["training"]["rows_revision"] == 1
        assert whole.config["training"]["incremental"]["from"] == base.version

    def test_new_rows_are_the_next_revision_of_one_version(
        self, base: Checkpoint, items: Checkpoint, tmp_path: Path
    ) -> None:
        assert items.version == base.version
        first = items.config["training"]["rows_revision"]
        assert first == items.config["training"]["trained_until_ms"] // 60_000
        again = train_incremental(items, log(TEST_DAY), tmp_path / "m", old=NEW, items_only=True)
        assert again.version == base.version
        assert again.config["training"]["rows_revision"] > first
        assert again.config["training"]["incremental"]["from_revision"] == first

    def test_of_two_updates_from_one_base_the_later_one_is_the_later_revision(
        self, base: Checkpoint, items: Checkpoint, tmp_path: Path
    ) -> None:
        early_log = NEW._replace(events=NEW.events.take(np.flatnonzero(NEW.events["time_ms"] % DAY_MS < DAY_MS // 8)))
        early = train_incremental(
            base, early_log, tmp_path / "m", old=OLD, items_only=True, settings=["train.epochs=1"]
        )
        assert early.config["training"]["incremental"]["from_revision"] == 1
        assert 1 < early.config["training"]["rows_revision"] < items.config["training"]["rows_revision"]

    def test_a_revision_grows_where_the_data_end_in_the_same_minute(self) -> None:
        days = SimpleNamespace(split=SimpleNamespace(cut_ms=120_000))
        assert [incremental._later_revision(revision, days) for revision in (0, 1, 2, 7)] == [2, 2, 3, 8]

    def test_a_net_that_stood_still_may_move_the_day_after(self, items: Checkpoint, tmp_path: Path) -> None:
        after = train_incremental(items, log(TEST_DAY), tmp_path / "m", old=NEW, settings=["train.epochs=1"])
        assert after.version != items.version
        told = after.config["training"]
        from_revision = items.config["training"]["rows_revision"]
        assert (told["rows_revision"], told["incremental"]["from_revision"]) == (1, from_revision)

    def test_the_next_one_goes_on_where_this_one_ended(self, whole: Checkpoint) -> None:
        index = split_of(NEW, "toy", holdout_days=0).index
        assert whole.config["training"]["trained_until_ms"] == index.time_ms.max() + 1
        # Rates must not shrink from day to day: what is kept is the recipe of the first training.
        assert whole.config["training"]["recipe"] == json.loads(json.dumps(RECIPE.to_dict()))

    def test_the_same_again_gives_the_same(self, base: Checkpoint, whole: Checkpoint, tmp_path: Path) -> None:
        again = train_incremental(base, NEW, tmp_path / "m", old=OLD)
        assert again.version == whole.version
        assert again.tables_path.read_bytes() == whole.tables_path.read_bytes()


class TestWhatItLearns:
    """A topic has ten of the 40 videos, two of them new; chance finds a video among the first ten in a quarter."""

    def test_new_videos_are_found_the_day_after(self, base: Checkpoint, whole: Checkpoint, items: Checkpoint) -> None:
        data, cut_ms = log(*OLD_DAYS, NEW_DAY, TEST_DAY), START_MS + TEST_DAY * DAY_MS
        before = recall(base, data, cut_ms, new=True)
        assert recall(whole, data, cut_ms, new=True) > max(0.6, before + 0.3)
        assert recall(items, data, cut_ms, new=True) > max(0.6, before + 0.3)

    def test_old_days_are_kept(self, base: Checkpoint, whole: Checkpoint, items: Checkpoint) -> None:
        """Another draw of the last old day, which no one was trained on, ranked among the old videos."""
        last = OLD_DAYS[-1]
        held = log(last, seed=1)
        data = held._replace(events=type(held.events).concat([log(*OLD_DAYS[:-1]).events, held.events]))
        was = recall(base, data, START_MS + last * DAY_MS)
        assert was > 0.8, "the toy is learnt at all"
        for after in (whole, items):
            assert recall(after, data, START_MS + last * DAY_MS) > was - 0.1


class TestHoldout:
    def test_both_checkpoints_are_measured_on_the_days_held_out(self, base: Checkpoint, tmp_path: Path) -> None:
        data, lines = log(NEW_DAY, TEST_DAY), []
        saved = train_incremental(base, data, tmp_path / "m", old=OLD, holdout_days=1, say=lines.append)
        split = split_of(log(*OLD_DAYS, NEW_DAY, TEST_DAY), "toy", holdout_days=1)
        for checkpoint, prefix in ((saved, ""), (base, "before_")):
            scorer = KuaiFormerScorer(load_kuaiformer(checkpoint), checkpoint.tables)
            # Rows of another order, so ties may fall otherwise.
            want = evaluate(split, "val", scorer, quick=True).values["ndcg@10"]
            assert saved.metrics[f"{prefix}ndcg@10"] == pytest.approx(want, abs=1e-3)
        assert saved.metrics["popularity_recall@10"] > 0
        assert "full ranking of 40 videos" in saved.metrics["protocol"]
        assert saved.config["training"]["trained_until_ms"] == START_MS + TEST_DAY * DAY_MS
        assert lines[0].startswith(f"{split_of(NEW, 'toy', holdout_days=0).train_places().size} positives of 48 users")
        assert f"{NEW_ITEMS} video" in lines[1]

    def test_without_days_held_out_there_are_no_figures(self, whole: Checkpoint) -> None:
        assert set(whole.metrics) == {"final_loss"}


class TestRecipe:
    def test_small_rates_and_small_batches(self) -> None:
        recipe = Recipe.from_dict({"data": {"batch": 4096, "select_by": "ndcg@10", "cap": 2}, "train": {"patience": 3}})
        few, many = gentle(recipe, 5_000), gentle(recipe, 10_000_000)
        assert few.train.learning_rate == pytest.approx(incremental.RATE * recipe.train.learning_rate)
        assert few.train.table_rate == pytest.approx(incremental.RATE * recipe.train.table_rate)
        assert 5_000 // few.data.batch >= incremental.STEPS_PER_PASS
        assert gentle(recipe, 10).data.batch == incremental.LEAST_BATCH
        assert many.data.batch == 4096
        assert (few.train.patience, few.data.select_by, few.data.cap) == (None, "", None)
        assert few.loss == recipe.loss

    def test_settings_win(self, base: Checkpoint, tmp_path: Path) -> None:
        settings = ["train.epochs=1", "train.learning_rate=0.0003", "train.seed=4"]
        used = train_incremental(base, NEW, tmp_path / "m", old=OLD, settings=settings).config["training"]
        assert used["result"]["epochs"] == 1
        assert used["incremental"]["recipe"]["train"]["learning_rate"] == 0.0003
        assert used["incremental"]["recipe"]["train"]["seed"] == 4

    def test_adam_tables_go_on_without_a_memory(self, tmp_path: Path) -> None:
        recipe = RECIPE.changed(["train.table_optimizer=adam", "train.table_rate=0.01", "train.epochs=1"])
        base = train_kuaiformer(split_of(OLD, "toy", holdout_days=0), tmp_path / "adam", recipe)
        assert not base.has_state
        saved = train_incremental(base, NEW, tmp_path / "m", old=OLD)
        assert saved.tables.n_rows["video"] == base.tables.n_rows["video"] + NEW_ITEMS


class TestRefused:
    def test_an_existing_directory(self, base: Checkpoint, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="--overwrite"):
            train_incremental(base, NEW, tmp_path, old=OLD)

    def test_events_of_before(self, base: Checkpoint, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="before the checkpoint's training ended"):
            train_incremental(base, OLD, tmp_path / "m")
        assert list(tmp_path.iterdir()) == []

    def test_a_negative_replay(self, base: Checkpoint, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="replay"):
            train_incremental(base, NEW, tmp_path / "m", old=OLD, replay=-0.5)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"trained_until_ms": -1}, "without times"),
            ({"recipe": None}, "does not say how it was trained"),
        ],
    )
    def test_a_checkpoint_that_tells_too_little(
        self, base: Checkpoint, tmp_path: Path, change: dict, message: str
    ) -> None:
        training = {k: v for k, v in {**base.config["training"], **change}.items() if v is not None}
        (tmp_path / "config.json").write_text(json.dumps({**base.config, "training": training}))
        changed = replace(base, path=tmp_path, config={**base.config, "training": training})
        with pytest.raises(CheckpointError, match=message):
            train_incremental(changed, NEW, tmp_path / "m", old=OLD)

    def test_other_features(self, base: Checkpoint, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="features"):
            train_incremental(replace(base, spec=base.spec.without(["history_gap"])), NEW, tmp_path / "m", old=OLD)

    def test_a_checkpoint_without_row_memory(self, base: Checkpoint, tmp_path: Path) -> None:
        import shutil

        copied = Path(shutil.copytree(base.path, tmp_path / "old"))
        shutil.rmtree(copied / "state")
        with pytest.raises(CheckpointError, match="no training state"):
            train_incremental(load_checkpoint(copied), NEW, tmp_path / "m", old=OLD)


class TestCommand:
    @pytest.fixture
    def files(self, tmp_path: Path) -> SimpleNamespace:
        for name, data in (("old", OLD), ("new", NEW)):
            write_events(tmp_path / name / "events.parquet", data.events)
            write_catalogue(tmp_path / name / "catalogue.parquet", data.items)
        return SimpleNamespace(
            old=f"events:{tmp_path / 'old'}", new=tmp_path / "new" / "events.parquet", out=tmp_path / "m"
        )

    def run(self, *words: object) -> int:
        return kir.main([str(word) for word in ("train", *words)])

    def test_resume_and_events(self, base: Checkpoint, whole: Checkpoint, files: SimpleNamespace, capsys) -> None:
        command = ("kuaiformer", "--resume", base.path, "--events", files.new, "--data", files.old, "--out", files.out)
        assert self.run(*command) == 0
        assert load_checkpoint(files.out).version == whole.version
        told = capsys.readouterr()
        assert whole.version in told.out
        assert "positives of 48 users since 2026-01-07" in told.err
        assert f"new rows: {NEW_ITEMS} video" in told.err
        assert self.run(*command) == 2

    def test_items_only_without_the_old_log(self, base: Checkpoint, files: SimpleNamespace, capsys) -> None:
        words = ("--items-only", "--replay", 0, "--epochs", 1, "--out", files.out)
        assert self.run("kuaiformer", "--resume", base.path, "--events", files.new, *words) == 0
        assert load_checkpoint(files.out).version == base.version
        assert "pass --data" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("kuaiformer",), "nothing to train on"),
            (("kuaiformer", "--events", "new"), "--resume CHECKPOINT --events FILE"),
            (("kuaiformer", "--events", "new", "--resume"), "--resume CHECKPOINT --events FILE"),
            (("kuaiformer", "--data", "sim:users=9", "--items-only"), "--resume CHECKPOINT --events FILE"),
            (("kuaiformer", "--data", "sim:users=9", "--replay", "0"), "--resume CHECKPOINT --events FILE"),
            (("ranker", "--events", "new", "--resume", "x"), "--resume CHECKPOINT --events FILE"),
            (("kuaiformer", "--events", "new", "--resume", "nowhere"), "no such checkpoint directory"),
            (("kuaiformer", "--events", "new", "--resume", "x", "--recipe", "ml-1m"), "--recipe"),
            (("kuaiformer", "--events", "new", "--resume", "x", "--preset", "tiny"), "--preset"),
            (("kuaiformer", "--data", "sim:users=9", "--resume", "x"), "--events FILE"),
        ],
    )
    def test_mistakes(self, words: tuple[str, ...], message: str, tmp_path: Path, monkeypatch, capsys) -> None:
        monkeypatch.chdir(tmp_path)
        assert self.run(*words, "--out", "m") == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "m").exists()

    def test_torchrun(self, monkeypatch, capsys) -> None:
        monkeypatch.setenv("RANK", "0")
        assert self.run("kuaiformer", "--events", "new", "--resume", "x", "--out", "m") == 2
        assert "one process" in capsys.readouterr().err


def test_a_topic_is_all_there_is_to_learn() -> None:
    """The makers' own promise: content says nothing about topics, and every user keeps to one."""
    data = log(*OLD_DAYS, NEW_DAY)
    assert len(np.unique(data.items.author_id)) == len(np.unique(data.items.tags[:, 0])) == 1
    topic = (data.events["video_id"].astype(np.int64) - 1000) // 7 % TOPICS
    user = data.events["user_id"]
    assert all(len(np.unique(topic[user == one])) == 1 for one in np.unique(user))

"""`kir bench incremental`: how a log is cut, who may train on what, and what the result says."""

from __future__ import annotations

import json

import numpy as np
import pytest

import kir
from benchmarks import incremental
from benchmarks.incremental import ABLATIONS, ARMS, OLD, ZERO, Plan, bench_incremental, forgetful
from benchmarks.new_days import HELD_SHARE, cut_new_day
from contract.errors import InputError
from tests.training.incremental_makers import NEW_DAY, RECIPE, TEST_DAY, is_new_video, log
from training.checkpoint import load_checkpoint
from training.readers import open_data
from training.row_memory import read_row_memory

SIM = "sim:users=30,items=120,days=5"
TOY = log(0, 1, 2, NEW_DAY, TEST_DAY)
OTHER = RECIPE.changed(["train.epochs=3"])


@pytest.fixture(scope="module")
def sim():
    return open_data(SIM)


def rows(data) -> set[tuple[int, int, int]]:
    columns = (data.events[name].tolist() for name in ("user_id", "video_id", "time_ms"))
    return set(zip(*columns, strict=True))


def liked(data, column: str) -> set[int]:
    events = data.events
    return set(events[column][(events["long_view"] == 1) | (events["like"] == 1)].tolist())


class TestDays:
    def test_every_event_stands_in_one_part_or_is_hidden(self, sim) -> None:
        cut = cut_new_day(sim, hide=0.2)
        parts = [rows(part) for part in (cut.old, cut.aside, cut.new, cut.test)]
        assert sum(map(len, parts)) == len(set.union(*parts))
        hidden = rows(sim) - set.union(*parts)
        assert hidden
        assert all(time_ms < cut.new_ms for _, _, time_ms in hidden)
        assert all(cut.new_ms <= time_ms < cut.test_ms for _, _, time_ms in parts[2])
        assert all(time_ms >= cut.test_ms for _, _, time_ms in parts[3])

    def test_a_share_of_users_and_videos_is_hidden_from_the_old_days(self, sim) -> None:
        cut = cut_new_day(sim, hide=0.2)
        old = cut.joined(cut.old, cut.aside).events
        assert len(np.unique(old["user_id"])) <= 0.8 * 30
        assert len(np.unique(old["video_id"])) <= 0.8 * 120
        assert rows(cut_new_day(sim, hide=0.0).joined(cut.new)) == rows(cut.new)

    def test_what_is_kept_aside_is_one_day_of_some_users(self, sim) -> None:
        cut = cut_new_day(sim, hide=0.0)
        users = np.unique(cut.aside.events["user_id"])
        assert 0 < len(users) <= HELD_SHARE * 30
        assert (cut.aside.events["time_ms"] >= cut.aside_ms).all()
        assert not (np.isin(cut.old.events["user_id"], users) & (cut.old.events["time_ms"] >= cut.aside_ms)).any()

    def test_groups(self, sim) -> None:
        cut = cut_new_day(sim, hide=0.2)
        groups = cut.groups()
        split, asked = groups["next day"]
        events = cut.test.events
        assert len(asked) == ((events["long_view"] == 1) | (events["like"] == 1)).sum()
        for name, column in (("new items", "video_id"), ("new users", "user_id")):
            want = liked(cut.new, column) - liked(cut.old, column)
            split, queries = groups[name]
            ids = split.items.video_id[queries.item] if column == "video_id" else split.index.user_id[queries.user]
            assert set(ids.tolist()) <= want
            assert set(ids.tolist()) == want & liked(cut.test, column)
        _, rest = groups["the rest"]
        assert len(rest) < len(asked)
        split, old = groups["old days"]
        positives = (cut.aside.events["long_view"] == 1) | (cut.aside.events["like"] == 1)
        assert len(old) == positives.sum()
        assert split.cut_ms == cut.aside_ms

    def test_old_queries_see_nothing_of_their_day(self, sim) -> None:
        split, queries = cut_new_day(sim, hide=0.0).groups()["old days"]
        last = queries.end - 1
        seen = queries.end > split.start(queries.user)
        assert (split.index.time_ms[last[seen]] < split.cut_ms).all()

    @pytest.mark.parametrize(("hide", "message"), [(1.0, "--hide"), (-0.1, "--hide")])
    def test_a_share(self, sim, hide: float, message: str) -> None:
        with pytest.raises(InputError, match=message):
            cut_new_day(sim, hide=hide)

    def test_too_few_days(self) -> None:
        with pytest.raises(InputError, match="four days"):
            cut_new_day(log(0, NEW_DAY, TEST_DAY), hide=0.0)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("bench") / "out"
    plan = Plan("toy", RECIPE, 0.0, 0.0)
    result, table = bench_incremental(plan, out, "kir bench incremental", ablate=True, opened=TOY, log=lambda _: None)
    return plan, out, result, table


class TestBench:
    def test_arms_groups_and_differences(self, done) -> None:
        _, _, result, table = done
        assert list(result["arms"]) == [*ARMS, *ABLATIONS]
        assert list(result["queries"]) == ["next day", "new items", "new users", "the rest", "old days"]
        assert set(result["differences"][OLD]) == set(result["arms"]) - {OLD}
        for arm, facts in result["arms"].items():
            assert arm in table
            assert facts["cpu_s"] > 0
            for group in result["queries"]:
                for name in ("recall@10", "ndcg@10"):
                    one = facts["metrics"][group][name]
                    assert one["low"] <= one["mean"] <= one["high"]
                    if arm != OLD:
                        apart = one["mean"] - result["arms"][OLD]["metrics"][group][name]["mean"]
                        assert result["differences"][OLD][arm][group][name]["mean"] == pytest.approx(apart)
        assert json.loads(json.dumps(result, allow_nan=False))["seeds"] == [0]

    def test_the_toy_comes_out_as_it_must(self, done) -> None:
        """Ten videos are of a topic, two of them new: ten places hold them for whoever saw the new day."""
        found = {arm: facts["metrics"]["new items"]["recall@10"]["mean"] for arm, facts in done[2]["arms"].items()}
        assert found[OLD] < 0.3
        for arm in ("items only", "whole", ZERO):
            assert found[arm] > 0.6, arm
        assert done[2]["arms"]["whole"]["steps"] < done[2]["arms"][ZERO]["steps"]

    def test_versions_are_as_the_arms_say(self, done) -> None:
        old, items, whole = (load_checkpoint(done[1] / f"{name}-0") for name in ("old-model", "items-only", "whole"))
        assert items.version == old.version != whole.version

    def test_what_is_there_is_not_trained_again(self, done, monkeypatch) -> None:
        plan, out, result, _ = done
        monkeypatch.setattr(incremental, "_train", None)
        again, _ = bench_incremental(plan, out, "kir bench incremental", ablate=True, opened=TOY)
        assert again["arms"] == result["arms"]

    def test_another_plan_is_refused(self, done) -> None:
        with pytest.raises(InputError, match="other data or another recipe"):
            bench_incremental(Plan("toy", OTHER, 0.0, 0.0), done[1], "kir bench incremental", opened=TOY)

    def test_a_forgetful_checkpoint_is_the_same_but_for_its_memory(self, done, tmp_path) -> None:
        base = load_checkpoint(done[1] / "old-model-0")
        empty = forgetful(base, tmp_path / "empty")
        assert empty.version == base.version
        assert empty.tables_path.read_bytes() == base.tables_path.read_bytes()
        assert all((sums == 0).all() for sums in read_row_memory(empty).values())
        assert any((sums > 0).any() for sums in read_row_memory(base).values())


class TestCommand:
    def test_a_table_and_a_file(self, tmp_path, capsys) -> None:
        words = ("--data", "sim:users=20,items=60,days=4", "--epochs", "1", "--out", tmp_path / "out")
        assert kir.main(["bench", "incremental", *map(str, words), "--json", str(tmp_path / "found.json")]) == 0
        printed = capsys.readouterr().out
        assert "less old model, recall@10" in printed
        result = json.loads((tmp_path / "found.json").read_text())
        assert result["command"].startswith("kir bench incremental --data sim:users=20,items=60,days=4 --epochs 1")
        assert result["recipe"]["train"]["epochs"] == 1

    @pytest.mark.parametrize(
        ("words", "message"),
        [(("--seeds", "0,x"), "--seeds"), (("--data", "ml-1m:nowhere"), "nowhere"), (("--hide", "2"), "--hide")],
    )
    def test_mistakes(self, words, message, tmp_path, capsys) -> None:
        data = () if "--data" in words else ("--data", "sim:users=20,items=60,days=4")
        assert kir.main(["bench", "incremental", *data, *words, "--out", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err


def test_the_toys_new_videos_are_new() -> None:
    assert is_new_video(TOY.events["video_id"][TOY.events["time_ms"] >= cut_new_day(TOY, hide=0.0).new_ms]).any()
    assert not is_new_video(cut_new_day(TOY, hide=0.0).old.events["video_id"]).any()

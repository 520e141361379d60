"""Real-time feedback: nothing is read before it was known, what was known is, and the gain is told with its slices."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import kir
from contract.errors import InputError
from contract.events import Events
from contract.history import HistoryIndex
from contract.vocabulary import SIGNALS
from tests.training.test_readers_kuairand import log_row, make_folder
from training.days import DAY_MS, held_out
from training.ranker import preset_config
from training.ranker_data import frozen_bounds, live_bounds
from training.ranker_eval import PAST_ONLY
from training.ranker_train import RankerTask, make_task, predict
from training.real_time import AT_LEAST, against_outcomes, entries_within, live_index, slices, slices_table, told_live
from training.within_user import ScoredLog, evaluate, read_scores

CUT = 10 * DAY_MS
CONFIG = preset_config("tiny", row_width=4, width=16, hidden=8, history=6)


def crowded(seed: int = 0, users: int = 4, n: int = 120) -> Events:
    """Two days, the second one scored: plays that overlap, rows of one time, exact copies, unknown play times."""
    rng = np.random.default_rng(seed)
    user = np.sort(rng.integers(0, users, n)).astype(np.uint64)
    time_ms = CUT - 200_000 + 5_000 * rng.integers(0, 80, n)  # 5 s apart: many rows share theirs
    columns = {
        "user_id": user,
        "video_id": rng.integers(0, 30, n).astype(np.uint64),
        "author_id": rng.integers(0, 9, n).astype(np.uint64),
        "time_ms": time_ms,
        "play_time_ms": rng.choice([-1, 0, 2_000, 5_000, 9_000, 30_000], n),
        "duration_ms": rng.choice([7_000, 20_000, 90_000], n),
        **{name: rng.integers(0, 2, n) for name in ("long_view", "like", "click")},
    }
    events = Events(columns)
    events = events.take(np.concatenate([np.arange(n), rng.integers(0, n, 12)]))  # copies
    return events.take(np.lexsort((events["time_ms"], events["user_id"])))


@pytest.fixture(scope="module")
def events() -> Events:
    return crowded()


@pytest.fixture(scope="module")
def task(events) -> RankerTask:
    """Untrained, its weights large enough that every input counts."""
    made = make_task(events, HistoryIndex.from_events(events, every=True), CONFIG, 0, 0.0)
    with torch.no_grad():
        for weight in made.net.parameters():
            weight.mul_(3.0)
    return made


def scores(task: RankerTask, events: Events, **options) -> np.ndarray:
    rows = np.flatnonzero(held_out(events, CUT))
    return predict(task.net, task.tables, events, rows, cut_ms=CUT, **{"live": True, **options})


def allowed(events: Events, i: int, j: int) -> bool:
    """The rule in its own words, for impressions of the scored days."""
    time_ms, play_ms = events["time_ms"], events["play_time_ms"]
    mine = events["user_id"][i] == events["user_id"][j]
    return bool(mine and play_ms[j] >= 0 and time_ms[j] < time_ms[i] and time_ms[j] + play_ms[j] <= time_ms[i])


def readable(events: Events) -> list[set[int]]:
    """Rows that each impression may read, of all days."""
    index = live_index(events, held_out(events, CUT))
    start, end = live_bounds(index, events)
    return [set(index.event[low:high].tolist()) for low, high in zip(start, end, strict=True)]


@pytest.mark.parametrize("seed", range(6))
def test_only_what_the_rule_allows_is_read(seed):
    events = crowded(seed)
    late = held_out(events, CUT)
    read = readable(events)
    waiting = 0
    for i in np.flatnonzero(late):
        may = {j for j in np.flatnonzero(late) if allowed(events, i, j)}
        assert {j for j in read[i] if late[j]} <= may
        # what it does without waits behind a video, of any day, that still plays
        for j in may - read[i]:
            mine = (events["user_id"] == events["user_id"][i]) & (events["time_ms"] <= events["time_ms"][j])
            assert (events["time_ms"] + events["play_time_ms"])[mine].max() > events["time_ms"][i]
            waiting += 1
    assert waiting
    assert entries_within(events, late).tolist() == [len({j for j in read[i] if late[j]}) for i in np.flatnonzero(late)]


def test_rows_of_one_time_and_copies_never_see_each_other(events):
    for i, rows in enumerate(readable(events)):
        assert all(events["time_ms"][j] < events["time_ms"][i] for j in rows)


def test_it_reads_what_past_only_reads_and_more(events):
    late = held_out(events, CUT)
    index = HistoryIndex.from_events(events, every=True, among=~late)
    start, end = frozen_bounds(index, events, 0.0, CUT)
    read = readable(events)
    for i in np.flatnonzero(late):
        frozen = set(index.event[start[i] : end[i]].tolist())
        assert not late[sorted(frozen)].any()
        assert frozen <= read[i]


def flip(events: Events, rows: np.ndarray, *, longer: bool = True) -> Events:
    """Other labels and signals on these rows, and play times that are later ends of play."""
    columns = {name: events[name].copy() for name in SIGNALS}
    for name in SIGNALS:
        columns[name][rows] = np.where(columns[name][rows] == 1, 0, 1)
    if longer:
        play_ms = events["play_time_ms"].copy()
        play_ms[rows] = np.where(play_ms[rows] >= 0, play_ms[rows] + 60_000, -1)
        columns["play_time_ms"] = play_ms
    return events.with_columns(**columns)


def test_the_probe(events, task):
    """What must not be known moves no score; what is known does."""
    late = held_out(events, CUT)
    place = np.cumsum(late) - 1
    found, moved, probed = scores(task, events), 0, 0
    for i in np.flatnonzero(late)[::5]:
        may = np.array([allowed(events, i, j) if late[j] else events["time_ms"][j] < CUT for j in range(len(events))])
        hidden = np.flatnonzero(late & ~may)
        blind = scores(task, flip(events, hidden))
        np.testing.assert_allclose(blind[place[i]], found[place[i]], atol=1e-6, err_msg=str(i))
        known = sorted(j for j in readable(events)[i] if late[j])[-3:]
        if known:
            probed += 1
            seen = scores(task, flip(events, np.array(known), longer=False))
            moved += not np.allclose(seen[place[i]], found[place[i]], atol=1e-6)
    assert probed >= 5
    assert moved == probed


def test_past_only_reads_nothing_of_the_scored_days(events, task):
    """Not even of those that were shown before midnight and that the log counts to the next day."""
    time_ms, user = np.array([CUT - 60_000, CUT - 30_000, CUT + 5, CUT - 90_000]), np.zeros(4, np.uint64)
    log = Events(
        {"user_id": user, "video_id": np.arange(4).astype(np.uint64), "time_ms": time_ms, "play_time_ms": [1] * 4,
         "long_view": [1, 0, 1, 1], "like": [0] * 4, "click": [1] * 4, "hour": [0, 0, 0, 23]}
    )  # fmt: skip
    late = held_out(log, CUT)
    assert late.tolist() == [True, True, True, False]
    frozen = scores(task, log, live=False)
    np.testing.assert_array_equal(frozen, scores(task, flip(log, np.flatnonzero(late)), live=False))
    assert not np.array_equal(frozen, scores(task, flip(log, np.array([3])), live=False))
    assert not np.array_equal(scores(task, log), scores(task, flip(log, np.array([0]), longer=False)))
    assert readable(log)[2] == {0, 1, 3}


def test_a_later_report_counts_from_when_it_came(events):
    log = Events(
        {"user_id": np.zeros(3, np.uint64), "video_id": np.arange(3).astype(np.uint64), "long_view": [1, 1, 1],
         "time_ms": [CUT, CUT + 10, CUT + 1_000], "play_time_ms": [5, 5, 5], "known_at_ms": [CUT + 5_000, CUT + 1, -1]}
    )  # fmt: skip
    assert readable(log) == [set(), set(), set()]  # row 1 ended by then; it waits behind row 0's report
    assert readable(log.take(np.array([1, 2]))) == [set(), {0}]
    early = log.with_columns(known_at_ms=np.array([CUT, CUT + 1, -1]))  # before its play ended: the end counts
    assert readable(early) == [set(), {0}, {0, 1}]
    assert readable(early.with_columns(time_ms=np.array([CUT, CUT + 4, CUT + 8])))[1:] == [set(), {0}]


def test_the_control_bets_against_what_was_known(events):
    late = held_out(events, CUT)
    chance = np.random.default_rng(3).uniform(0.1, 0.9, late.sum()).astype(np.float32)
    found = against_outcomes(events, late, chance)
    told = dict(zip(np.flatnonzero(late), chance, strict=True))
    for place, rows in enumerate(rows for i, rows in enumerate(readable(events)) if late[i]):
        surprises = [float(events["long_view"][j]) - told[j] for j in rows if late[j]]
        logit = np.log(chance[place] / (1 - chance[place])) - sum(surprises) / (len(surprises) + 2)
        assert found[place] == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-5)
    np.testing.assert_allclose(against_outcomes(events, late, chance, weight=0.0), chance, atol=1e-6)


def test_within_users_the_control_wins_where_nothing_is_to_be_learnt():
    """Labels by coin, so no score is worth more than .5; yet GAUC is well above it, and log loss is not deceived."""
    rng = np.random.default_rng(0)
    n = 3000
    log = Events(
        {"user_id": np.repeat(np.arange(n // 3), 3).astype(np.uint64), "video_id": np.arange(n).astype(np.uint64),
         "time_ms": CUT + 100_000 * np.arange(n), "play_time_ms": np.ones(n), "long_view": rng.integers(0, 2, n)}
    )  # fmt: skip
    late = held_out(log, CUT)
    fair = np.full(n, 0.5, np.float32)
    one, two = (
        evaluate(ScoredLog.of("x", log, log["long_view"], chance, "", probability=True), draws=50)
        for chance in (against_outcomes(log, late, fair), fair)
    )
    assert two.values["gauc"] == 0.5
    assert one.values["gauc"] > 0.6
    assert abs(one.values["auc"] - 0.5) < 0.03
    assert slices(one, two)[0].log_loss.mean > 0


def scored(name: str, user: np.ndarray, score: np.ndarray) -> ScoredLog:
    n = len(user)
    label = np.random.default_rng(1).integers(0, 2, n).astype(np.int8)
    return ScoredLog(name, user, np.arange(n).astype(np.uint64), np.arange(n), label, score, name, True)


def test_slices_are_of_users_with_so_many_impressions():
    user = np.repeat(np.arange(6), [1, 2, 3, 4, 6, 7]).astype(np.uint64)
    rng = np.random.default_rng(0)
    live, frozen = (evaluate(scored(name, user, rng.random(len(user))), draws=50) for name in ("live", "frozen"))
    found = slices(live, frozen)
    assert [(one.at_least, one.users, one.impressions) for one in found] == [(1, 6, 23), (3, 4, 20), (6, 2, 13)]
    kept = np.isin(user, (4, 5))
    alone = [evaluate(_some(one.scored, kept)) for one in (live, frozen)]
    for metric, one in found[-1].difference.items():
        assert one.mean == pytest.approx(alone[0].metrics[metric].mean - alone[1].metrics[metric].mean)
    for place, kept_users in ((0, range(6)), (-1, (4, 5))):
        rows = np.isin(user, kept_users)
        lost = [
            -np.log(np.where(one.scored.label == 1, one.scored.score, 1 - one.scored.score)) for one in (live, frozen)
        ]
        assert found[place].log_loss.mean == pytest.approx((lost[0] - lost[1])[rows].mean())
    halved = slices(live, frozen, seeds=[(live.scored, frozen.scored), (frozen.scored, frozen.scored)])
    assert halved[0].log_loss.mean == pytest.approx(found[0].log_loss.mean / 2)
    margins = [evaluate(replace(one.scored, probability=False), draws=5) for one in (live, frozen)]
    assert slices(*margins)[0].to_dict()["log_loss"] is None
    table = slices_table(found)
    assert [line.split("  ")[1].strip() for line in table.splitlines()[2:-1]] == [
        "all users",
        "users with ≥ 3",
        "users with ≥ 6",
    ]
    assert found[0].to_dict()["difference"]["primary"]["mean"] == found[0].difference["primary"].mean
    with pytest.raises(InputError, match="different impressions"):
        slices(live, alone[1])


def _some(one: ScoredLog, kept: np.ndarray) -> ScoredLog:
    columns = ("user_id", "video_id", "time_ms", "label", "score")
    return replace(one, **{name: getattr(one, name)[kept] for name in columns})


def run(*words: object) -> int:
    return kir.main([str(word) for word in words])


@pytest.fixture(scope="module")
def ranker(tmp_path_factory):
    """Trained on a log in the official layout, whose next days lie in another folder without train_history."""
    folder, rng = tmp_path_factory.mktemp("kuairand"), np.random.default_rng(0)
    start = 1_650_902_400_000  # 2022-04-26 00:00 in UTC+8

    def day(number: int) -> list[str]:
        rows = []
        for _ in range(160):
            at = int(rng.integers(0, 20 * 3_600)) // 20 * 20
            yes = int(rng.integers(0, 2))
            rows.append(
                log_row(
                    user=int(rng.integers(1, 9)), video=7, time_ms=start + number * DAY_MS + at * 1_000,
                    hourmin=at // 3600 * 100, long_view=yes, play=int(rng.integers(0, 60_000)), duration=20_000,
                )
            )  # fmt: skip
        return rows

    both = {"log_standard_4_25_to_4_30_pure.csv": [*day(0), *day(1)]}
    later = {"log_standard_5_01_to_5_08_pure.csv": [*day(2), *day(3)]}
    for name, logs in (("before", both), ("later", later), ("all", both | later)):
        (folder / name).mkdir()
        make_folder(folder / name, logs)
    words = ("--holdout-days", 0, "--epochs", 1, "--out", folder / "r")
    assert run("train", "ranker", "--data", f"kuairand:{folder}/before", *words) == 0
    return folder


@pytest.mark.parametrize(("data", "cut"), [("all", ("--holdout-days", 2)), ("later", ()), ("later", ("--from-ms", 5))])
def test_any_log_in_the_official_layout(ranker, data, cut, tmp_path, capsys):
    dump, figures = tmp_path / "s.parquet", tmp_path / "f.json"
    words = ("evaluate", ranker / "r", "--data", f"kuairand:{ranker}/{data}", *cut, "--json", figures)
    assert run(*words, "--real-time", "--dump", dump) == 0
    text, found = capsys.readouterr().out, json.loads(figures.read_text())
    assert "REAL-TIME feedback" in text
    assert "users with ≥ 12" in text
    assert [one["at_least"] for one in found["real_time"]] == list(AT_LEAST)
    live, frozen, control, floor = found["within_user"]
    assert control["name"] == "control: bets against outcomes"
    assert "log loss judges this setting" in text
    assert live["name"].endswith("real-time")
    assert PAST_ONLY in frozen["protocol"] == floor["protocol"]
    assert found["real_time"][0]["difference"]["primary"]["mean"] == pytest.approx(
        live["metrics"]["primary"]["mean"] - frozen["metrics"]["primary"]["mean"]
    )
    assert "REAL-TIME" in read_scores(dump).protocol
    assert evaluate(read_scores(dump)).values["primary"] == pytest.approx(live["metrics"]["primary"]["mean"])
    assert run("evaluate", "--from-dump", dump) == 0
    assert f"{live['metrics']['gauc']['mean']:.4f}" in capsys.readouterr().out
    assert run(*words, "--dump", dump) == 0
    capsys.readouterr()
    assert evaluate(read_scores(dump)).values["primary"] == pytest.approx(frozen["metrics"]["primary"]["mean"])
    assert "real_time" not in json.loads(figures.read_text())


def test_the_ranker_alone_has_the_setting(ranker, tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"kind": "kir"}))
    assert run("evaluate", tmp_path, "--data", f"kuairand:{ranker}/all", "--real-time") == 2
    assert "--real-time is a setting of the ranker" in capsys.readouterr().err


def test_the_setting_in_words(events):
    late = held_out(events, CUT)
    assert f"of {late.sum()} impressions read one or more" in told_live(events, late)

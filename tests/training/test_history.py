"""Histories: the log's builder and the server's ring give the same columns; nothing from the future enters."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.errors import EventError, InputError
from contract.events import Events
from contract.features import block_keys
from contract.history import (
    FROM_EVENTS,
    HISTORY_COLUMNS,
    HistoryIndex,
    UserHistory,
    available_at,
    gap_between,
    is_positive,
)
from contract.specs import kuaiformer_spec, ranker_spec
from contract.vocabulary import MISSING_KEY, TAGS_MAX


def log(n: int = 300, users: int = 5, seed: int = 0, **columns) -> Events:
    random = np.random.default_rng(seed)
    tags = random.integers(0, 9, (n, TAGS_MAX)).astype(np.uint64)
    tags[random.random((n, TAGS_MAX)) < 0.4] = MISSING_KEY
    made = {
        "user_id": random.integers(10, 10 + users, n).astype(np.uint64),
        "video_id": random.integers(0, 50, n).astype(np.uint64),
        "author_id": random.integers(0, 7, n).astype(np.uint64),
        "tags": tags,
        "time_ms": random.integers(0, 400, n) * 1000,
        "duration_ms": random.integers(1000, 90_000, n),
        "play_time_ms": random.integers(-1, 9_000, n),
        "long_view": random.integers(-1, 2, n),
        "like": random.integers(-1, 2, n),
    }
    return Events({**made, **columns})


def in_time_order(events: Events) -> Events:
    return events.take(np.argsort(events["time_ms"], kind="stable"))


def row(events: Events, i: int) -> dict:
    names = ("long_view", "like", "time_ms", *FROM_EVENTS)
    return {name: (events.signals if name == "signals" else events[name])[i] for name in names}


def test_positive_needs_an_observed_signal():
    assert is_positive(np.array([1, 0, -1, 0]), np.array([0, 1, -1, -1])).tolist() == [True, True, False, False]


def test_an_index_among_some_impressions_keeps_their_numbers():
    events, some = log(), np.random.default_rng(1).random(300) < 0.5
    found = HistoryIndex.from_events(events, every=True, among=some)
    alone = HistoryIndex.from_events(events.take(np.flatnonzero(some)), every=True)
    assert found.event.tolist() == np.flatnonzero(some)[alone.event].tolist()
    for name, column in found.columns.items():
        np.testing.assert_array_equal(column, alone.columns[name])
    positives = HistoryIndex.from_events(events, among=some).event
    assert set(positives.tolist()) == set(HistoryIndex.from_events(events).event.tolist()) & set(found.event.tolist())


def test_gap_is_null_where_a_time_is():
    assert gap_between([5, -1, 5, 3], [2, 2, -1, 5]).tolist() == [3, -1, -1, -1]


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 80))
def test_server_and_training_build_the_same_columns(seed, capacity, n):
    events = in_time_order(log(n, users=3, seed=seed))
    histories: dict[int, UserHistory] = {}
    for i in range(len(events)):
        histories.setdefault(int(events["user_id"][i]), UserHistory(capacity)).offer(row(events, i))
    users = np.array(sorted(histories), np.uint64)
    built = HistoryIndex.from_events(events).latest(users, capacity)
    for i, user in enumerate(users):
        served = histories[int(user)]
        for name, column in served.columns().items():
            np.testing.assert_array_equal(column, built[name][i], err_msg=name)
            assert column.dtype == built[name].dtype == HISTORY_COLUMNS[name][0]
        np.testing.assert_array_equal(served.mask(), built["video_id"][i] != MISSING_KEY)


def test_server_goes_on_where_the_log_ended():
    events = in_time_order(log(200, users=1))
    user = int(events["user_id"][0])
    first = HistoryIndex.from_events(events.take(np.arange(120))).user_history(user, 16)
    for i in range(120, 200):
        first.offer(row(events, i))
    whole = HistoryIndex.from_events(events).latest(np.array([user], np.uint64), 16)
    for name, column in first.columns().items():
        np.testing.assert_array_equal(column, whole[name][0], err_msg=name)


def test_both_sides_give_the_same_keys():
    events = in_time_order(log(150, users=1))
    user = int(events["user_id"][0])
    index = HistoryIndex.from_events(events)
    served = index.user_history(user, 20).columns()
    built = {name: column[0] for name, column in index.latest(np.array([user], np.uint64), 20).items()}
    for spec in (kuaiformer_spec(), ranker_spec()):
        ours, theirs = block_keys(spec, "history_rows", served), block_keys(spec, "history_rows", built)
        assert ours.keys() == theirs.keys()
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name])


def slow_bounds(events: Events, user: int, time_ms: int) -> int:
    """How many positives of a user may be used at a time: the rule, said plainly."""
    ready = available_at(events)
    rows = [
        i
        for i in np.argsort(events["time_ms"], kind="stable")
        if events["user_id"][i] == user and is_positive(events["long_view"][i], events["like"][i])
    ]
    count = 0
    for i in rows:
        if not (events["time_ms"][i] < time_ms and ready[i] <= time_ms):
            break
        count += 1
    return count


@settings(max_examples=30)
@given(st.integers(0, 2**32))
def test_bounds_follow_the_availability_rule(seed):
    events = log(60, users=3, seed=seed)
    index = HistoryIndex.from_events(events)
    users, times = events["user_id"], events["time_ms"]
    start, end = index.bounds(users, times)
    for i in range(len(events)):
        assert end[i] - start[i] == slow_bounds(events, int(users[i]), int(times[i]))


def test_rows_of_one_time_never_see_each_other():
    events = log(40, users=1, time_ms=np.repeat([1000, 9000], 20), play_time_ms=np.zeros(40), long_view=np.ones(40))
    start, end = HistoryIndex.from_events(events).bounds(events["user_id"], events["time_ms"])
    assert (end - start).tolist() == [0] * 20 + [20] * 20


def test_future_labels_change_no_history():
    events = log(200, users=4)
    now = 200_000
    later = events["time_ms"] >= now
    flipped = events.with_columns(
        long_view=np.where(later, 1 - events["long_view"].clip(0), events["long_view"]),
        like=np.where(later, 1 - events["like"].clip(0), events["like"]),
        play_time_ms=np.where(later, 77, events["play_time_ms"]),
    )
    users = np.unique(events["user_id"])
    when = np.full(len(users), now)
    one = HistoryIndex.from_events(events).latest(users, 30, when)
    other = HistoryIndex.from_events(flipped).latest(users, 30, when)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])
    assert (one["video_id"] != MISSING_KEY).any()


def test_known_at_delays_a_positive():
    columns = {"time_ms": [1000, 2000], "known_at_ms": [50_000, 2500], "long_view": [1, 1], "user_id": [10, 10]}
    events = log(2, users=1, **{name: np.array(values) for name, values in columns.items()})
    index = HistoryIndex.from_events(events)
    for now, expected in ((3000, 0), (49_999, 0), (50_000, 2)):
        start, end = index.bounds(np.array([10], np.uint64), np.array([now]))
        assert (end - start).tolist() == [expected]


def test_null_times_count_as_earlier_and_have_no_gap():
    events = log(4, users=1, time_ms=np.array([-1, -1, 5000, 9000]), long_view=np.ones(4), play_time_ms=np.full(4, -1))
    index = HistoryIndex.from_events(events)
    assert index.columns["gap_ms"].tolist() == [-1, -1, -1, 4000]
    start, end = index.bounds(np.array([10], np.uint64), np.array([9000]))
    assert (end - start).tolist() == [3]


def test_rows_without_time_see_what_stands_before_them():
    events = log(6, users=1, time_ms=np.array([-1, -1, -1, -1, 50, 60]), long_view=np.array([1, 0, 1, 1, 1, 1]))
    events = events.with_columns(like=np.zeros(6))
    index = HistoryIndex.from_events(events)
    start, end = index.bounds_in_log_order(events["user_id"], np.arange(6))
    assert (end - start).tolist() == [0, 1, 1, 2, 3, 3]


def test_windows_are_right_aligned_and_padded():
    index = HistoryIndex.from_events(log(3, users=1, long_view=np.ones(3), time_ms=np.arange(3)))
    places = index.windows(np.array([0, 0, 1]), np.array([3, 1, 1]), 4)
    assert places.tolist() == [[-1, 0, 1, 2], [-1, -1, -1, 0], [-1] * 4]
    columns = index.gather(places)
    assert columns["tags"].shape == (3, 4, TAGS_MAX)
    assert (columns["video_id"][2] == MISSING_KEY).all()
    assert (columns["duration_ms"][1, :3] == -1).all()


def test_unknown_users_and_empty_logs_have_empty_histories():
    index = HistoryIndex.from_events(log())
    assert (index.latest(np.array([999], np.uint64), 5)["video_id"] == MISSING_KEY).all()
    nobody = HistoryIndex.from_events(log(5, long_view=np.zeros(5), like=np.zeros(5)))
    assert len(nobody) == 0
    assert (nobody.latest(np.array([10, 11], np.uint64), 3)["video_id"] == MISSING_KEY).all()
    assert len(nobody.user_history(10, 3)) == 0


def test_a_shorter_view_is_the_tail():
    history = UserHistory(8)
    for i in range(20):
        history.append({"video_id": i}, time_ms=i * 10)
    assert history.columns()["video_id"].tolist() == list(range(12, 20))
    assert history.columns(3)["video_id"].tolist() == [17, 18, 19]
    assert history.columns(3)["gap_ms"].tolist() == [10, 10, 10]
    assert history.mask(3).tolist() == [1, 1, 1]


def test_columns_are_copies():
    history = UserHistory(2)
    history.append({"video_id": 1}, 0)
    history.columns()["video_id"][:] = 9
    assert history.columns()["video_id"][-1] == 1


def test_refusals():
    with pytest.raises(InputError, match="capacity"):
        UserHistory(0)
    with pytest.raises(EventError, match="not a column"):
        UserHistory(2).append({"volume": 1}, 0)
    with pytest.raises(InputError, match="longer than"):
        UserHistory(2).columns(3)
    assert not UserHistory(2).offer({"video_id": 3, "long_view": 0})


def test_every_impression_or_positives_alone():
    log = Events({"user_id": [1, 1, 2], "video_id": [5, 6, 7], "like": [0, 1, -1], "time_ms": [9, 8, 7]})
    assert HistoryIndex.from_events(log).event.tolist() == [1]
    every = HistoryIndex.from_events(log, every=True)
    assert every.event.tolist() == [1, 0, 2]
    np.testing.assert_array_equal(every.columns["signals"], log.signals[[1, 0, 2]])


def test_an_amendment_replaces_the_latest_entrys_feedback():
    history = UserHistory(3)
    for step, video in enumerate((5, 6, 5, 7)):
        history.append({"video_id": video, "play_time_ms": step}, step)
    assert history.amend(5, {"play_time_ms": 99})
    assert history.columns()["play_time_ms"].tolist() == [1, 99, 3]
    assert not history.amend(8, {"play_time_ms": 1})
    history.append({"video_id": 8}, 9)
    assert not history.amend(6, {"play_time_ms": 1})  # held no more
    with pytest.raises(EventError, match="not feedback"):
        history.amend(5, {"duration_ms": 1})

"""The watched list against a slow, obvious reference: plain Python lists driven by the same calls."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.errors import InputError
from contract.vocabulary import MISSING_KEY, SIGNALS, TAGS_MAX
from contract.watched import AMENDABLE, WATCHED_COLUMNS, Change, WatchedList

CAPACITY = 8


class Reference:
    """What a watched list is, without arrays: dictionaries, oldest first."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []

    def append(self, item: dict[str, Any]) -> None:
        before = self.items[-1].get("shown_at_ms", -1) if self.items else -1
        now = item.get("shown_at_ms", -1)
        gap = now - before if self.items and min(now, before) >= 0 and now >= before else -1
        self.items.append({**item, "gap_ms": gap})

    def evict(self) -> int:
        dropped = CAPACITY // 2 if len(self.items) >= CAPACITY else 0
        del self.items[:dropped]
        return dropped

    def amend(self, video_id: int, feedback: dict[str, Any]) -> bool:
        for item in reversed(self.items[-AMENDABLE:]):
            if item["video_id"] == video_id:
                item.update(feedback)
                return True
        return False


def assert_same(watched: WatchedList, reference: Reference) -> None:
    columns = watched.columns()
    assert watched.n_watched == len(reference.items) == watched.length - 1
    assert columns["start"].tolist() == [True] + [False] * len(reference.items)
    for name, (dtype, shape, null) in WATCHED_COLUMNS.items():
        if name == "start":
            continue
        assert columns[name].dtype == dtype
        np.testing.assert_array_equal(columns[name][0], np.full(shape, null, dtype), err_msg="the start token is null")
        for slot, item in enumerate(reference.items, start=1):
            expected = np.broadcast_to(np.asarray(item.get(name, null)), shape)
            np.testing.assert_array_equal(columns[name][slot], expected.astype(dtype), err_msg=name)


videos = st.integers(1, 6)
appends = st.fixed_dictionaries(
    {"video_id": videos},
    optional={
        "shown_at_ms": st.integers(-1, 100),
        "play_time_ms": st.integers(-1, 9_000),
        "duration_ms": st.integers(1, 9_000),
        "signals": st.lists(st.integers(-1, 1), min_size=len(SIGNALS), max_size=len(SIGNALS)),
        "tags": st.lists(st.integers(0, 9), min_size=TAGS_MAX, max_size=TAGS_MAX),
    },
)
amendments = st.tuples(videos, st.fixed_dictionaries({"play_time_ms": st.integers(0, 9_000)}))


@given(st.lists(appends | amendments, max_size=4 * CAPACITY))
def test_any_stream_of_calls_gives_what_the_reference_gives(calls) -> None:
    watched, reference = WatchedList(CAPACITY), Reference()
    for call in calls:
        if isinstance(call, tuple):
            assert (watched.amend(*call) is not None) == reference.amend(*call)
        else:
            change = watched.append(call)
            reference.append(call)
            assert change == Change(watched.length - 1, watched.length)
            assert watched.evict_if_full().dropped == reference.evict()
        assert_same(watched, reference)


@given(st.lists(appends | amendments, max_size=4 * CAPACITY))
def test_a_cache_refreshed_by_the_reported_slots_is_never_stale(calls) -> None:
    """Keys and values depend on all slots up to their own: a mirror that recomputes what Change names must agree."""
    watched = WatchedList(CAPACITY)
    cache: list[tuple[Any, ...]] = []

    def state(slot: int) -> tuple[Any, ...]:
        columns = watched.columns()
        return tuple(
            (int(columns["video_id"][s]), int(columns["play_time_ms"][s]), int(columns["gap_ms"][s]))
            for s in range(slot + 1)
        )

    def refresh(change: Change) -> None:
        if change.stale:
            cache[change.first_slot :] = [state(slot) for slot in range(change.first_slot, change.length)]

    cache.append(state(0))
    for call in calls:
        if isinstance(call, tuple):
            change = watched.amend(*call)
            if change is not None:
                refresh(change)
        else:
            refresh(watched.append(call))
            refresh(watched.evict_if_full())
        assert len(cache) >= watched.length
        assert cache[: watched.length] == [state(slot) for slot in range(watched.length)]


def test_an_empty_list_holds_the_start_token_alone() -> None:
    watched = WatchedList(4)
    assert (watched.length, watched.n_watched) == (1, 0)
    columns = watched.columns()
    assert columns["start"].tolist() == [True]
    assert columns["video_id"].tolist() == [int(MISSING_KEY)]
    assert watched.evict_if_full() == Change(1, 1)
    assert watched.amend(3, {"play_time_ms": 1}) is None


def test_eviction_drops_the_older_half_only_when_full_and_all_is_stale_after() -> None:
    watched = WatchedList(6)
    for i in range(5):
        watched.append({"video_id": i, "shown_at_ms": 10 * i})
        assert watched.evict_if_full().stale == 0
    watched.append({"video_id": 5, "shown_at_ms": 50})
    change = watched.evict_if_full()
    assert (change.first_slot, change.length, change.dropped, change.stale) == (1, 4, 3, 3)
    columns = watched.columns()
    assert columns["video_id"].tolist() == [int(MISSING_KEY), 3, 4, 5]
    assert columns["gap_ms"].tolist() == [-1, 10, 10, 10], "a frozen token keeps its gap"


def test_unused_slots_are_null_after_eviction() -> None:
    watched = WatchedList(4)
    for i in range(4):
        watched.append({"video_id": i, "play_time_ms": 100, "signals": np.ones(len(SIGNALS))})
    watched.evict_if_full()
    beyond = watched.columns(watched.length, 5)
    assert (beyond["video_id"] == MISSING_KEY).all()
    assert (beyond["play_time_ms"] == -1).all()
    assert (beyond["signals"] == -1).all()
    assert not beyond["start"].any()


def test_a_full_list_takes_nothing_before_the_eviction() -> None:
    watched = WatchedList(2)
    watched.append({"video_id": 1})
    watched.append({"video_id": 2})
    with pytest.raises(InputError, match="full"):
        watched.append({"video_id": 3})
    watched.evict_if_full()
    watched.append({"video_id": 3})
    assert watched.columns()["video_id"].tolist()[1:] == [2, 3]


def test_only_the_last_eight_can_be_amended() -> None:
    watched = WatchedList(32)
    for i in range(12):
        watched.append({"video_id": i})
    assert watched.amend(3, {"play_time_ms": 5}) is None
    change = watched.amend(4, {"play_time_ms": 5})
    assert change == Change(5, 13)
    assert watched.columns()["play_time_ms"].tolist().count(5) == 1


def test_amendments_touch_feedback_of_the_latest_showing() -> None:
    watched = WatchedList(4)
    for play in (100, 200):
        watched.append({"video_id": 9, "play_time_ms": play})
    assert watched.amend(9, {"play_time_ms": 300}) == Change(2, 3)
    assert watched.columns()["play_time_ms"].tolist() == [-1, 100, 300]
    with pytest.raises(InputError, match="duration_ms"):
        watched.amend(9, {"duration_ms": 1})


@pytest.mark.parametrize("times", [(50, 40), (-1, 40), (40, -1)])
def test_gaps_that_make_no_sense_are_null(times) -> None:
    watched = WatchedList(4)
    for shown_at_ms in times:
        watched.append({"video_id": 1, "shown_at_ms": shown_at_ms})
    assert watched.columns()["gap_ms"].tolist() == [-1, -1, -1]


def test_columns_are_views_of_a_range() -> None:
    watched = WatchedList(4)
    watched.append({"video_id": 1})
    watched.append({"video_id": 2})
    assert watched.columns(2)["video_id"].tolist() == [2]
    assert watched.columns(1, 2)["video_id"].tolist() == [1]
    assert np.shares_memory(watched.columns()["video_id"], watched.columns(1)["video_id"])


@pytest.mark.parametrize("item", [{"mood": 1}, {"start": True}, {"gap_ms": 5}])
def test_unknown_or_derived_columns_are_refused(item) -> None:
    with pytest.raises(InputError):
        WatchedList(4).append(item)


@pytest.mark.parametrize("capacity", [0, 1, 3, -2])
def test_capacity_must_halve(capacity) -> None:
    with pytest.raises(InputError, match="even"):
        WatchedList(capacity)


def columns_after(prepared: dict | None, item: dict, feedback: dict, full: bool = False) -> dict:
    watched = WatchedList(2)
    watched.append({"video_id": 7, "shown_at_ms": 1_000, "tags": [1, 2, 3]})
    if full:
        watched.append({"video_id": 8, "shown_at_ms": 2_000})
    if prepared is not None:
        watched.prepare(prepared)
    assert watched.n_watched == 1 + full
    if full:
        watched.evict_if_full()
    watched.append(item, feedback)
    return {name: column.tolist() for name, column in watched.columns().items()} | {"at": watched.at.tolist()}


@pytest.mark.parametrize("full", [False, True])
def test_what_was_prepared_shows_in_nothing(full: bool) -> None:
    item = {"video_id": 9, "shown_at_ms": 5_000, "number": 4, "pxtr": [0.5] * 7}
    other = {"video_id": 10, "author_id": 3, "volume": 0.5}
    feedback = {"play_time_ms": 800, "signals": [1] + [-1] * 8}
    want = str(columns_after(None, item, feedback, full))
    assert str(columns_after(item, item, feedback, full)) == want
    assert str(columns_after(other, item, feedback, full)) == want
    assert str(columns_after(None, {**item, **feedback}, {}, full)) == want


def test_a_prepared_item_with_an_unknown_column_is_refused() -> None:
    with pytest.raises(InputError, match="not a column"):
        WatchedList(2).prepare({"share": 1})
    with pytest.raises(InputError, match="not a column"):
        WatchedList(2).append({}, {"gap_ms": 1})

"""Statistics and sequence of a user: against loops, and the same from a log and from what a server holds."""

from __future__ import annotations

import numpy as np
import pytest

from contract.events import Events
from contract.features import DENSE_WIDTHS, profile
from contract.history import FROM_EVENTS, RANKER_HISTORY, HistoryIndex, UserHistory
from contract.user_profile import AUTHORS_MAX, PROFILE, profiles_at, unknown_profile, user_profile
from contract.vocabulary import MISSING_KEY, WATCH_TIME_CAP_MS


def log(n: int = 400, users: int = 4, seed: int = 0) -> Events:
    rng = np.random.default_rng(seed)
    return Events(
        {
            "user_id": rng.integers(10, 10 + users, n).astype(np.uint64),
            "video_id": rng.integers(0, 60, n).astype(np.uint64),
            "author_id": np.where(rng.random(n) < 0.1, MISSING_KEY, rng.integers(0, 9, n).astype(np.uint64)),
            "time_ms": np.sort(rng.integers(0, 10_000_000, n)),
            "play_time_ms": rng.choice([-1, 0, 4_000, 30_000, 90_000], n),
            "long_view": rng.integers(-1, 2, n),
            "like": rng.integers(-1, 2, n),
        }
    )


def slow(events: Events, rows: list[int]) -> tuple[list[float], list[int]]:
    """Of one user's last impressions, oldest first."""
    rows = rows[-RANKER_HISTORY:]

    def mean(values: list[float]) -> float:
        return sum(values) / len(values) if values else float("nan")

    rates = [mean([float(events[n][i]) for i in rows if events[n][i] >= 0]) for n in ("long_view", "like")]
    plays = [int(events["play_time_ms"][i]) for i in rows]
    share = mean([min(play, WATCH_TIME_CAP_MS) / WATCH_TIME_CAP_MS for play in plays if play >= 0])
    liked = [i for i in rows if 1 in (events["long_view"][i], events["like"][i])]
    authors = [int(events["author_id"][i]) for i in reversed(liked) if events["author_id"][i] != MISSING_KEY]
    return [*rates, share, len(rows) / RANKER_HISTORY], authors[:AUTHORS_MAX]


def padded(authors: list[int]) -> list[int]:
    return [*authors, *[int(MISSING_KEY)] * (AUTHORS_MAX - len(authors))]


@pytest.mark.parametrize("seed", range(3))
def test_profiles_are_those_of_what_was_known(seed):
    events = log(seed=seed)
    index = HistoryIndex.from_events(events, every=True)
    asked = np.arange(0, len(events), 7)
    user, time_ms = events["user_id"][asked], events["time_ms"][asked]
    found = profiles_at(index, user, time_ms, asked)
    done_ms = events["time_ms"] + np.maximum(events["play_time_ms"], 0)
    for row, i in enumerate(asked):
        mine = [j for j in range(len(events)) if events["user_id"][j] == user[row]]
        known: list[int] = []
        for j in mine:  # the longest prefix that had been told
            if not (events["time_ms"][j] < time_ms[row] and done_ms[j] <= time_ms[row]):
                break
            known.append(j)
        numbers, authors = slow(events, known)
        np.testing.assert_allclose(found["user_profile"][row], numbers, rtol=1e-6, err_msg=str(i))
        assert found["recent_authors"][row].tolist() == padded(authors)
    assert np.isnan(found["user_profile"]).any()
    assert (found["recent_authors"][:, -1] != MISSING_KEY).any()


def test_a_server_that_holds_the_history_says_the_same():
    events = log(seed=5)
    held = UserHistory(RANKER_HISTORY)
    mine = np.flatnonzero(events["user_id"] == 11)
    for i in mine:
        item = {name: (events.signals if name == "signals" else events[name])[i] for name in FROM_EVENTS}
        held.append(item, int(events["time_ms"][i]))
    served = user_profile({name: column[None] for name, column in held.columns().items()})
    index = HistoryIndex.from_events(events, every=True)
    later = np.array([int(events["time_ms"].max()) + 10**6])
    logged = profiles_at(index, np.array([11], np.uint64), later, np.array([len(events)]))
    for name, column in served.items():
        np.testing.assert_allclose(column, logged[name], rtol=1e-6)


def test_without_times_what_stands_before_counts():
    events = log().with_columns(time_ms=np.full(400, -1))
    index = HistoryIndex.from_events(events, every=True)
    asked = np.array([0, 150, 399])
    found = profiles_at(index, events["user_id"][asked], events["time_ms"][asked], asked)
    for row, i in enumerate(asked):
        numbers, authors = slow(events, [j for j in range(i) if events["user_id"][j] == events["user_id"][i]])
        np.testing.assert_allclose(found["user_profile"][row], numbers, rtol=1e-6)
        assert found["recent_authors"][row].tolist() == padded(authors)


def test_strangers_and_empty_logs_know_nothing():
    for events in (log(), log().take(slice(0, 0))):
        index = HistoryIndex.from_events(events, every=True)
        found = profiles_at(index, np.array([999], np.uint64), np.array([10**9]), np.array([0]))
        assert np.isnan(found["user_profile"][0, :3]).all()
        assert found["user_profile"][0, 3] == 0
        assert (found["recent_authors"] == MISSING_KEY).all()
    nobody = profiles_at(index, np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, np.int64))
    assert nobody["user_profile"].shape == (0, len(PROFILE))


def test_the_feature_keeps_unknown_apart_from_zero():
    out = np.zeros((2, DENSE_WIDTHS["profile"]), np.float32)
    profile({"user_profile": np.stack([unknown_profile(), np.array([0, 0.25, np.nan, 0.5], np.float32)])}, out)
    assert out.tolist() == [[0] * 7, [0, 1, 0.25, 1, 0, 0, 0.5]]

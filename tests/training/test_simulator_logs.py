"""The logging policy: deterministic, with KuaiRand's marginals, choice sets and propensities that add up; and whether
the hidden mood is worth inferring."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
import pytest

from contract.catalogue import read_catalogue, read_users
from contract.errors import InputError
from contract.events import Events
from contract.parquet import read_events, write_events
from contract.vocabulary import MISSING_KEY, SIGNALS
from training import sim_behaviour, simulator
from training.sim_behaviour import RARE_SIGNALS
from training.sim_session import SessionBatch
from training.simulator import SimConfig, World, simulate_logs

SMALL = SimConfig(n_users=40, n_items=400, n_topics=8, days=2)


@pytest.fixture(scope="module")
def world() -> World:
    return World(SimConfig())


@pytest.fixture(scope="module")
def events(world: World) -> Events:
    return simulate_logs(world)


def test_marginals_are_kuairands(events: Events) -> None:
    assert events["long_view"].mean() == pytest.approx(0.31, abs=0.02)
    assert events["like"].mean() == pytest.approx(0.017, abs=0.004)
    for name, (target, _) in RARE_SIGNALS.items():
        assert 0.5 * target < events[name].mean() < 1.6 * target, name
    assert 0.4 < events["click"].mean() < 0.55  # KuaiRand-Pure: .44
    ratio = events["play_time_ms"] / events["duration_ms"]
    assert 0.03 < (ratio > 1.05).mean() < 0.1, "replays"
    assert (ratio < 0.1).mean() > 0.2, "quick skips"


def test_a_week_of_120k_impressions_is_quick(world: World) -> None:
    began = time.process_time()
    assert len(simulate_logs(world, seed=5)) > 80_000
    assert time.process_time() - began < 20


def test_same_arguments_same_bytes(tmp_path) -> None:
    paths = [write_events(tmp_path / f"{i}.parquet", simulate_logs(World(SMALL))) for i in range(2)]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    other = simulate_logs(World(SMALL), seed=1)
    assert len(other) != len(read_events(paths[0])) or (other["time_ms"] != read_events(paths[0])["time_ms"]).any()


def test_users_act_in_time_order_and_sessions_do_not_overlap(events: Events) -> None:
    user, time_ms, known_ms = events["user_id"], events["time_ms"], events["known_at_ms"]
    same_user = user[1:] == user[:-1]
    assert (user[1:] >= user[:-1]).all()
    assert (time_ms[1:] > time_ms[:-1])[same_user].all()
    assert (known_ms >= time_ms + events["play_time_ms"]).all()
    assert (time_ms[1:] >= time_ms[:-1] + events["play_time_ms"][:-1])[same_user].all(), "one video at a time"
    same_session = events["session_id"][1:] == events["session_id"][:-1]
    np.testing.assert_array_equal(events["has_next"][:-1] == 1, same_session)
    np.testing.assert_array_equal(events["seq"][1:][same_session], events["seq"][:-1][same_session] + 1)
    assert (events["seq"][1:][~same_session] == 0).all()
    assert len(np.unique(events["session_id"])) == (events["seq"] == 0).sum(), "session ids are unique"


def test_the_choice_set_is_the_rest_of_the_page(events: Events) -> None:
    part = events.take(slice(0, 4000))
    left: dict[str, set[int]] = {}
    videos: dict[tuple[int, int], int] = {}
    for page, index, rest, p, session, video in zip(
        *(part[n] for n in ("page_id", "candidate_index", "remaining", "propensity", "session_id", "video_id")),
        strict=True,
    ):
        choice = set(rest.tolist()) | {int(index)}
        assert len(choice) == len(rest) + 1, "the shown one is not among the remaining"
        assert choice == left.get(page, set(range(24)))
        left[page] = set(rest.tolist())
        assert 0 < p <= 1
        assert (session, video) not in videos, "nothing twice in a session"
        videos[session, video] = 1
    assert min(len(rest) for rest in left.values()) == 12, "half a page, then a new one"


def test_propensities_are_those_of_the_draws(events: Events) -> None:
    """E[1 / propensity] over draws from a set = its size."""
    size = np.array([len(rest) + 1 for rest in events["remaining"]])
    inverse = 1.0 / events["propensity"].astype(float)
    assert (inverse / size).mean() == pytest.approx(1.0, abs=0.05)


def test_the_random_policy_is_uniform() -> None:
    events = simulate_logs(World(SMALL), policy="random", page_size=10, refresh_after=10)
    size = np.array([len(rest) + 1 for rest in events["remaining"]])
    np.testing.assert_allclose(events["propensity"], 1.0 / size, rtol=1e-6)
    assert (events["is_rand"] == 1).all()
    assert set(events["chooser"]) == {"random"}
    assert size.min() == 1
    shares = np.bincount(events["candidate_index"][size == 10], minlength=10) / (size == 10).sum()
    np.testing.assert_allclose(shares, 0.1, atol=0.05)


def test_catalogue_and_user_columns_are_joined(world: World, events: Events) -> None:
    rows = world.items.index_of(events["video_id"])
    assert (rows >= 0).all()
    np.testing.assert_array_equal(events["duration_ms"], world.items.duration_ms[rows])
    np.testing.assert_array_equal(events["tags"], world.items.tags[rows])
    days = (events["time_ms"] - world.items.upload_ms[rows]) // 86_400_000
    np.testing.assert_array_equal(events["upload_age_days"], days)
    users = world.users.index_of(events["user_id"])
    np.testing.assert_array_equal(events["user_activity"], world.users.activity[users])
    assert set(np.unique(events["hour"])) <= set(range(24))
    active = events["user_activity"] == 7
    per_user = [
        len(np.unique(events["session_id"][m])) / len(np.unique(events["user_id"][m])) for m in (active, ~active)
    ]
    assert per_user[0] > 1.3 * per_user[1], "active users come more often"


def test_what_no_phone_or_ranker_said_is_null(events: Events) -> None:
    assert np.isnan(events["pxtr"]).all()
    assert (events["profile_stay_ms"] == -1).all()
    assert (events["tab"] == -1).all()
    assert set(events["ranker_version"]) == {""}
    assert not (events["session_id"] == MISSING_KEY).any()


def test_days_can_be_a_range(world: World) -> None:
    later = simulate_logs(World(SMALL), days=range(3, 4), sessions_per_user_day=1.0)
    day = (later["time_ms"] - SMALL.start_ms) // 86_400_000
    assert set(day.tolist()) <= {3, 4}
    assert (day == 3).mean() > 0.9


@pytest.mark.parametrize(
    "wrong",
    [
        {"policy": "clever"},
        {"page_size": 0},
        {"page_size": 300},
        {"refresh_after": 25},
        {"days": 0},
        {"sessions_per_user_day": 0},
    ],
)
def test_wrong_arguments_are_refused(wrong) -> None:
    with pytest.raises(InputError):
        simulate_logs(World(SMALL), **wrong)


def test_the_command_writes_three_files(tmp_path, capsys) -> None:
    simulator.main(["--users", "10", "--items", "100", "--days", "1", "--out", str(tmp_path)])
    events = read_events(tmp_path / "events.parquet")
    assert f"{len(events)} impressions" in capsys.readouterr().out
    assert (read_catalogue(tmp_path / "catalogue.parquet").index_of(events["video_id"]) >= 0).all()
    assert (read_users(tmp_path / "users.parquet").index_of(events["user_id"]) >= 0).all()


@dataclass(frozen=True)
class Pages:
    """How many pages a session gets at most, their size, and how many videos of each are shown."""

    count: int
    size: int
    shown: int


REFRESHED = Pages(9, 24, 12)  # the client's way: half of a page, then the next one
SINGLE = Pages(1, 30, 30)  # nothing is left out, order alone counts: less to gain


def watch_ms(world: World, arm: str, pages: Pages, n: int = 1500) -> np.ndarray:
    """Watch time of n sessions, float [n]; a server that knows long-term taste perfectly draws and orders the pages."""
    rng, k = np.random.default_rng(4), world.config.n_topics
    user = np.arange(n) % world.config.n_users
    start_ms = np.full(n, world.config.start_ms + 20 * 3_600_000)
    batch = SessionBatch(world, user, np.arange(n, dtype=np.uint64), start_ms)
    affinity_nI = world.long_term_affinities(user, start_ms)
    drawn_nI = np.argsort(-(affinity_nI / 0.7 + rng.gumbel(size=affinity_nI.shape)), axis=1)
    total, surprise_nK, seen_nK = np.zeros(n), np.zeros((n, k)), np.ones((n, k))
    for page in range(pages.count):
        page_nP = drawn_nI[:, page * pages.size : (page + 1) * pages.size]
        duration_ms, mu = world.items.duration_ms[page_nP], world.calibration.mu
        affinity_nP = np.take_along_axis(affinity_nI, page_nP, axis=1)
        base_nP = np.log(sim_behaviour.expected_play_ms(mu, affinity_nP, duration_ms))
        topics_nPK, left_nP = world.item_topics_IK[page_nP], np.ones(page_nP.shape, bool)
        for _ in range(pages.shown):
            rows = np.flatnonzero(~batch.done_S)
            if not len(rows):
                return total
            score = base_nP[rows]
            if arm == "heuristic":  # running mean of ln(play / expected play) by topic
                score = score + (topics_nPK[rows] @ (surprise_nK[rows] / seen_nK[rows])[:, :, None])[:, :, 0]
            if arm == "oracle":
                appeal = batch.appeal(np.repeat(rows, pages.size), page_nP[rows].ravel()).reshape(score.shape)
                score = sim_behaviour.expected_play_ms(mu, appeal, duration_ms[rows])
            pick = np.where(left_nP[rows], score, -np.inf).argmax(axis=1)
            left_nP[rows, pick] = False
            play_ms = batch.step(rows, page_nP[rows, pick]).play_time_ms
            total[rows] += play_ms
            surprise = np.clip(np.log(play_ms + 300.0) - base_nP[rows, pick], -3, 2)
            shown_nK = topics_nPK[rows, pick]
            surprise_nK[rows] = 0.9 * surprise_nK[rows] + shown_nK * surprise[:, None]
            seen_nK[rows] = 0.9 * (seen_nK[rows] - 1) + shown_nK + 1
    return total


@pytest.mark.parametrize(("pages", "simple", "best"), [(REFRESHED, 1.08, 1.3), (SINGLE, 1.03, 1.15)])
def test_with_drift_a_heuristic_on_the_last_plays_beats_the_server_clearly(world, pages, simple, best) -> None:
    server, heuristic, oracle = (watch_ms(world, arm, pages) for arm in ("server", "heuristic", "oracle"))
    assert heuristic.mean() / server.mean() > simple
    assert oracle.mean() / server.mean() > best
    difference = heuristic - server
    assert difference.mean() > 3 * difference.std() / np.sqrt(len(difference))


@pytest.mark.parametrize("pages", [REFRESHED, SINGLE])
def test_without_drift_nothing_is_gained(pages) -> None:
    control = World(SimConfig(drift=0.0))
    server, heuristic, oracle = (watch_ms(control, arm, pages) for arm in ("server", "heuristic", "oracle"))
    np.testing.assert_allclose(oracle, server)  # the server's order is the best one
    assert heuristic.mean() / server.mean() < 1.03


def test_all_signals_are_observed(events: Events) -> None:
    assert events.signals.shape == (len(events), len(SIGNALS))
    assert set(np.unique(events.signals)) == {0, 1}


def test_drift_changes_the_world_but_not_its_public_facts() -> None:
    on, off = World(SMALL), World(replace(SMALL, drift=0.0))
    np.testing.assert_array_equal(on.items.video_id, off.items.video_id)
    np.testing.assert_array_equal(on.long_term_affinity(3), off.long_term_affinity(3))

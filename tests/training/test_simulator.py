"""The world, its sessions and its dials."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from contract.errors import InputError
from contract.vocabulary import MISSING_KEY, SIGNALS
from training import sim_behaviour
from training.sim_random import hashed, normal_of, uniform, uniforms
from training.sim_session import SessionBatch
from training.simulator import SimConfig, World

SMALL = SimConfig(n_users=60, n_items=400, n_topics=8, days=2)


@pytest.fixture(scope="module")
def world() -> World:
    return World(SMALL)


@pytest.fixture(scope="module")
def control() -> World:
    return World(replace(SMALL, drift=0.0))


def start_ms(hour: int = 20) -> int:
    return SMALL.start_ms + hour * 3_600_000


def play_through(world: World, user: int, seed: int, items: list[int]) -> list[tuple[int, tuple[int, ...], bool]]:
    session = world.session(user, seed, start_ms())
    shown = []
    for item in items:
        if session.done:
            break
        response = session.step(item)
        shown.append((response.play_time_ms, tuple(response.signals.tolist()), response.has_next))
    return shown


def test_the_same_seed_makes_the_same_world_and_another_seed_another() -> None:
    one, two, other = World(SMALL), World(SMALL), World(replace(SMALL, seed=1))
    for name in ("video_id", "author_id", "tags", "duration_ms", "upload_ms"):
        np.testing.assert_array_equal(getattr(one.items, name), getattr(two.items, name))
    assert one.calibration == two.calibration
    assert (one.items.duration_ms != other.items.duration_ms).mean() > 0.9


def test_items_are_like_short_videos(world: World) -> None:
    items = world.items
    assert 14_000 < np.median(items.duration_ms) < 28_000
    assert np.percentile(items.duration_ms, 99) > 5 * np.median(items.duration_ms), "a heavy tail"
    counts = (items.tags != MISSING_KEY).sum(axis=1)
    assert counts.min() == 1
    assert counts.max() == 3
    assert 0.2 < (counts > 1).mean() < 0.5
    assert (items.upload_ms < SMALL.start_ms).all()
    np.testing.assert_array_equal(items.tags[:, 0].astype(int), world.item_topics_IK.argmax(axis=1))
    np.testing.assert_allclose(world.item_topics_IK.sum(axis=1), 1.0)


def test_two_topics_are_enough() -> None:
    World(SimConfig(n_users=2, n_items=12, n_topics=2, days=1))


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_users": 0},
        {"n_items": 3},
        {"n_topics": 1},
        {"drift": -1.0},
        {"drift": float("nan")},
        {"seed": -1},
        {"days": 0},
    ],
)
def test_config_names_what_is_wrong(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        SimConfig(**wrong)  # type: ignore[arg-type]


def test_response_is_what_step_gives_and_changes_nothing(world: World) -> None:
    session = world.session(3, 11, start_ms())
    for item in (5, 9, 5):
        before, now_ms = session.response(item), session.now_ms
        session.response(17)
        assert session.now_ms == now_ms
        after = session.step(item)
        assert (before.play_time_ms, before.has_next) == (after.play_time_ms, after.has_next)
        np.testing.assert_array_equal(before.signals, after.signals)
        assert session.now_ms >= now_ms + after.play_time_ms + 300
        if session.done:
            break


def test_a_session_replays_exactly_and_seeds_differ(world: World) -> None:
    items = list(range(40))
    assert play_through(world, 1, 7, items) == play_through(World(SMALL), 1, 7, items)
    assert play_through(world, 1, 7, items) != play_through(world, 1, 8, items)


def test_common_random_numbers_make_a_detour_leave_later_noise_alone(control: World) -> None:
    """At drift 0 nothing but boredom remembers: the same item at the same step brings the same play."""
    one = play_through(control, 2, 5, [10, 11, 12, 13])
    two = play_through(control, 2, 5, [20, 11, 22, 13])
    for step in range(1, min(len(one), len(two)), 2):
        assert one[step][:2] == two[step][:2]


def test_the_session_ends_and_says_so(world: World) -> None:
    session = world.session(0, 1, start_ms())
    while not session.done:
        last = session.step(session.n_shown)
    assert not last.has_next
    with pytest.raises(InputError, match="over"):
        session.step(0)


def test_max_steps_cuts_a_session() -> None:
    short = World(replace(SMALL, max_steps=3))
    for seed in range(20):
        assert len(play_through(short, 0, seed, [1, 2, 3, 4, 5])) <= 3


def test_unknown_items_and_users_are_refused(world: World) -> None:
    session = world.session(0, 1, start_ms())
    for item in (-1, 400):
        with pytest.raises(InputError, match="no such item"):
            session.step(item)
    with pytest.raises(InputError, match="no such user"):
        world.session(60, 1, start_ms())


def test_a_batch_of_sessions_equals_them_one_by_one(world: World) -> None:
    users, seeds = np.array([4, 4, 9]), np.array([1, 2, 3], np.uint64)
    batch = SessionBatch(world, users, seeds, np.full(3, start_ms()))
    singles = [world.session(int(u), int(s), start_ms()) for u, s in zip(users, seeds, strict=True)]
    for items in ([3, 4, 5], [6, 7, 8], [1, 1, 1]):
        rows = np.flatnonzero(~batch.done_S)
        got = batch.step(rows, np.array(items)[rows])
        for place, row in enumerate(rows):
            expected = singles[row].step(items[row])
            assert got.play_time_ms[place] == expected.play_time_ms
            assert got.has_next[place] == expected.has_next
            assert batch.now_ms_S[row] == singles[row].now_ms


def test_oracle_value_is_the_mean_of_many_outcomes(world: World) -> None:
    """The closed form against brute force, over the noise of play with the state held."""
    n = 40_000
    appeal, duration_ms = np.full(n, 0.8), np.full(n, 9_000)
    rows = np.arange(n)
    play_ms, signals = sim_behaviour.draw_outcomes(
        world.calibration, appeal, duration_ms, np.zeros(n, np.uint64), rows, np.zeros(n, int)
    )
    expected = sim_behaviour.expected_play_ms(world.calibration.mu, appeal[:1], duration_ms[:1])[0]
    assert play_ms.mean() == pytest.approx(expected, rel=0.02)
    p_long = sim_behaviour.long_view_probability(world.calibration.mu, appeal[:1], duration_ms[:1])[0]
    assert signals[:, SIGNALS.index("long_view")].mean() == pytest.approx(p_long, abs=0.01)


def test_the_control_world_has_nothing_hidden(control: World) -> None:
    session = control.session(5, 3, start_ms())
    items = np.arange(50)
    truth = control.expected_watch_ms(5, items, session.now_ms)
    for item in (0, 1, 2):
        np.testing.assert_allclose(session.oracle_value(items), truth)
        if session.step(item).has_next is False:
            break


def test_mood_is_strong_moves_slowly_and_does_not_follow_the_choices(world: World) -> None:
    n = 500
    batch = SessionBatch(world, np.zeros(n, int), np.arange(n, dtype=np.uint64), np.full(n, start_ms()))
    rows = np.arange(n)
    first = batch.hidden_SK(rows)
    assert 1.0 < first.std() < 2.0
    batch.step(rows, np.zeros(n, int))
    fatigue_K = 0.35 * world.item_topics_IK[0]
    second = batch.hidden_SK(rows) + fatigue_K
    assert np.corrcoef(first.ravel(), second.ravel())[0, 1] > 0.93
    assert not np.allclose(first, second)


def test_fatigue_lowers_the_appeal_of_what_was_just_shown(world: World, control: World) -> None:
    for one, sign in ((world, -1), (control, 0)):
        n = 300
        batch = SessionBatch(one, np.zeros(n, int), np.arange(n, dtype=np.uint64), np.full(n, start_ms()))
        rows, items = np.arange(n), np.full(n, 7)
        before = batch.appeal(rows, items).mean()
        for _ in range(4):
            batch.step(rows, items)
        assert batch.appeal(rows, items).mean() - before == pytest.approx(sign * 1.0, abs=0.9 if sign else 1e-9)


def test_likes_tell_of_the_mood(world: World) -> None:
    n = 40_000
    rows = np.arange(n)
    rates = []
    for appeal in (-1.0, 1.5):
        _, signals = sim_behaviour.draw_outcomes(
            world.calibration, np.full(n, appeal), np.full(n, 20_000), np.zeros(n, np.uint64), rows, np.zeros(n, int)
        )
        rates.append(signals.mean(axis=0))
    low, high = (dict(zip(SIGNALS, rate, strict=True)) for rate in rates)
    for name in ("click", "long_view", "like", "profile_enter", "finish"):
        assert high[name] > 2 * low[name]
    assert high["hate"] < low["hate"]


def test_long_view_is_kuairands(world: World) -> None:
    n = 2_000
    rows = np.arange(n)
    duration_ms = np.where(rows % 2, 10_000, 60_000)
    play_ms, signals = sim_behaviour.draw_outcomes(
        world.calibration, np.full(n, 2.5), duration_ms, np.zeros(n, np.uint64), rows, rows
    )
    column = dict(zip(SIGNALS, signals.T, strict=True))
    np.testing.assert_array_equal(column["long_view"], play_ms >= np.minimum(duration_ms, 18_000))
    np.testing.assert_array_equal(column["finish"], play_ms >= duration_ms)
    assert (play_ms > 1.2 * duration_ms).any(), "replays go past the duration"


def test_long_term_taste_turns_slowly(world: World) -> None:
    day = 86_400_000
    now, tomorrow, later = (world.long_term_affinity(1, SMALL.start_ms + d * day) for d in (0, 1, 60))
    assert np.corrcoef(now, tomorrow)[0, 1] > 0.99
    assert np.corrcoef(now, later)[0, 1] < 0.9
    assert not np.array_equal(now, tomorrow)


def test_hashed_numbers_are_uniform_and_independent() -> None:
    u = uniforms(4, 3, np.arange(20_000))
    assert u.shape == (20_000, 4)
    assert (u > 0).all()
    assert (u < 1).all()
    np.testing.assert_allclose(u.mean(axis=0), 0.5, atol=0.01)
    np.testing.assert_allclose(np.corrcoef(u.T), np.eye(4), atol=0.03)
    z = normal_of(u[:, 0], u[:, 1])
    assert z.std() == pytest.approx(1.0, abs=0.02)
    np.testing.assert_allclose(
        sim_behaviour.normal_cdf(np.array([-1.0, 0.0, 1.96])), [0.158655, 0.5, 0.975002], atol=1e-6
    )


def test_hashes_depend_on_every_counter_and_its_place() -> None:
    values = {int(hashed(*c)[0]) for c in [(0,), (1,), (0, 0), (0, 1), (1, 0), (-1,), (2**63,)]}
    assert len(values) == 7
    assert uniform(np.arange(6).reshape(2, 3), 1).shape == (2, 3)

"""The closed loop: same pages for all arms, paired outcomes, and a summary that adds up. The world is a toy here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.closed_loop import ARMS, DIFFERENCE, PLAIN_ARMS, Lived, SessionPlan, live_session, run_closed_loop
from contract.page import Candidates, Page
from contract.vocabulary import MISSING_KEY, SIGNALS, TAGS_MAX, X_PXTR


class ToySession:
    """Item i plays i seconds; the user leaves after `patience` videos or after an item 0."""

    def __init__(self, patience: int = 100):
        self.now_ms, self.done, self.shown, self._patience = 0, False, [], patience

    def oracle_value(self, items: np.ndarray) -> np.ndarray:
        return np.asarray(items, float)

    def step(self, item: int) -> Any:
        assert not self.done
        self.shown.append(item)
        self.now_ms += 1000 * item + 100
        self.done = len(self.shown) >= self._patience or item == 0
        signals = np.zeros(len(SIGNALS), np.int8)
        signals[SIGNALS.index("like")] = item > 5
        signals[SIGNALS.index("finish")] = item % 2
        return SimpleNamespace(play_time_ms=1000 * item, signals=signals, has_next=not self.done)


class ToyWorld:
    config = SimpleNamespace(drift=1.0)

    def __init__(self, patience: int = 100):
        self.sessions: list[ToySession] = []
        self._patience = patience

    def session(self, user: int, seed: int, start_ms: int) -> ToySession:
        self.sessions.append(ToySession(self._patience))
        return self.sessions[-1]


def page(n: int) -> Page:
    ids = np.arange(n, dtype=np.uint64)
    return Page(
        "p",
        Candidates(
            video_id=ids,
            author_id=ids,
            tags=np.full((n, TAGS_MAX), MISSING_KEY),
            duration_ms=np.full(n, 1000, np.int32),
            upload_age_days=np.full(n, -1, np.int32),
            pxtr=np.full((n, X_PXTR), np.nan, np.float32),
        ),
    )


def plan(*pages: list[int], user: int = 0, seed: int = 0) -> SessionPlan:
    return SessionPlan(seed, user, 7, 0, [page(len(items)) for items in pages], [np.array(items) for items in pages])


class Recorder:
    """A chooser that takes the last candidate and keeps what it was told."""

    def __init__(self) -> None:
        self.pages, self.seen = 0, []

    def page(self, page: Page, now_ms: int) -> None:
        self.pages += 1

    def choose(self, remaining: list[int], now_ms: int) -> int:
        return remaining[-1]

    def observe(self, index: int, response: Any, shown_at_ms: int, now_ms: int) -> None:
        self.seen.append((index, response.play_time_ms, shown_at_ms, now_ms))


class TestLiveSession:
    def test_the_next_page_comes_after_half_and_the_last_is_shown_whole(self) -> None:
        session, chooser = ToySession(), Recorder()
        lived = live_session(session, plan([1, 2, 3, 4], [5, 6, 7]), chooser)
        assert session.shown == [4, 3, 7, 6, 5]
        assert chooser.pages == 2
        assert lived == Lived(watch_ms=25_000, likes=2, videos=5, long_views=0, skips=0)

    def test_a_skip_is_short_and_not_to_the_end(self) -> None:
        """Items 1 and 2 are played for 1 and 2 s; an odd item is finished."""
        lived = live_session(ToySession(), plan([1, 2, 3, 4]), Recorder())
        assert lived.skips == 1

    def test_a_user_who_leaves_ends_it(self) -> None:
        session = ToySession(patience=3)
        live_session(session, plan([1, 2, 3, 4], [5, 6]), Recorder())
        assert session.shown == [4, 3, 6]

    def test_observe_tells_when_it_was_shown_and_when_it_ended(self) -> None:
        chooser = Recorder()
        live_session(ToySession(), plan([2, 1]), chooser)
        assert chooser.seen == [(1, 1000, 0, 1100), (0, 2000, 1100, 3200)]


class TestArms:
    def run(self, plans: list[SessionPlan], patience: int = 100, arms: Sequence[str] = ARMS) -> tuple[Any, ToyWorld]:
        world = ToyWorld(patience)
        return run_closed_loop(world, plans, lambda plan, arm: Recorder(), arms=arms), world

    def test_every_arm_lives_every_plan(self) -> None:
        result, world = self.run([plan([1, 2], user=u, seed=u) for u in range(3)])
        assert len(world.sessions) == 3 * len(ARMS)
        assert (result.n_sessions, result.n_seeds) == (3, 3)

    def test_the_oracle_takes_the_best_first_and_the_server_its_own_order(self) -> None:
        _, world = self.run([plan([1, 3, 2])])
        by_arm = dict(zip(ARMS, world.sessions, strict=True))
        assert by_arm["oracle"].shown == [3, 2, 1]
        assert by_arm["server"].shown == [1, 3, 2]

    def test_gains_are_paired_means(self) -> None:
        result, _ = self.run([plan([1, 9, 5, 3], [1, 2], user=u) for u in range(4)], patience=2)
        gain = result.gains["oracle vs server"]
        assert gain["watch_s"]["mean"] == pytest.approx((9 + 5) - (1 + 9))
        assert gain["watch_s"]["low"] == gain["watch_s"]["high"]  # no spread: every session is the same
        assert gain["relative"] == pytest.approx(0.4)

    def test_what_a_user_liked_skipped_and_saw_is_paired_too(self) -> None:
        result, _ = self.run([plan([1, 9, 2, 8], user=u) for u in range(4)], patience=2)
        gain = result.gains["oracle vs server"]
        assert (gain["likes"]["mean"], gain["skips"]["mean"], gain["videos"]["mean"]) == (1.0, 0.0, 0.0)
        assert result.arms["server"]["skips"] == 0.0
        assert result.gains["oracle vs server"]["skips"]["mean"] == 0.0

    def test_a_model_that_can_not_search_lists_lives_without_the_beam(self) -> None:
        result, world = self.run([plan([1, 2])], arms=PLAIN_ARMS)
        assert len(world.sessions) == len(PLAIN_ARMS)
        assert set(result.arms) == set(PLAIN_ARMS) == set(ARMS) - {"beam"}
        assert "preloaded vs per_swipe" in result.gains
        assert not any("beam" in name for name in result.gains)

    def test_the_table_names_every_arm_and_comparison(self) -> None:
        result, _ = self.run([plan([1, 2])])
        text = str(result)
        assert all(arm in text for arm in ARMS)
        assert all(name in text for name in result.gains)

    def test_the_difference_to_the_control_is_paired(self) -> None:
        plans = [plan([1, 9, 5, 3], user=u) for u in range(4)]
        result, _ = self.run(plans, patience=2)
        worse = replace(result, watch_s={**result.watch_s, "per_swipe": [s - 3 for s in result.watch_s["per_swipe"]]})
        gain = result.against_control(worse, plans).gains[DIFFERENCE]
        assert gain["watch_s"] == {"mean": 3.0, "low": 3.0, "high": 3.0}
        assert DIFFERENCE in str(result.against_control(worse, plans))

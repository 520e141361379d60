"""page + watch + swipe with cached keys and values give what the whole net gives, whatever happens to the list."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edge import EdgeSession, FakeClock, Feedback, InstalledModel, Outcome
from tests.edge import tiny_model
from tests.edge.duo import Duo
from tests.edge.tiny_model import L


@pytest.fixture
def duo(session: EdgeSession, tiny_cdn: Path, clock: FakeClock) -> Duo:
    return Duo(session, tiny_cdn, clock)


def runs_of(duo: Duo) -> int:
    assert duo.session._reranker is not None
    return duo.session._reranker.cache.runs


@pytest.mark.parametrize("n_watched", [0, 1, L - 1, L, L + 1, 3 * L])
def test_equal_after(duo: Duo, n_watched: int) -> None:
    duo.watch(n_watched)
    duo.page()
    duo.swipe()


def test_equal_at_every_swipe_through_three_evictions(duo: Duo) -> None:
    duo.watch(3 * L + 2)


@pytest.mark.parametrize("maintain", [False, True])
def test_eviction_comes_after_the_choice_and_may_wait(duo: Duo, maintain: bool) -> None:
    duo.watch(L)
    watched = duo.session._history.watched
    assert watched.n_watched == L
    if not len(duo.session.pool):
        duo.page()
    duo.swipe()
    assert watched.n_watched == L  # the choice was returned first
    if maintain:
        duo.session.maintain()
        assert watched.n_watched == L // 2
    duo.swipe()
    assert watched.n_watched == L // 2


def test_maintaining_before_a_choice_evicts_nothing(duo: Duo) -> None:
    duo.watch(L)
    duo.session.maintain()
    assert duo.session._history.watched.n_watched == L
    if not len(duo.session.pool):
        duo.page()
    duo.swipe()


def test_feedback_without_a_swipe_in_between_makes_room(duo: Duo) -> None:
    """Several videos shown ahead, feedback for all of them later: the list never overflows."""
    duo.page()
    choices = [duo.session.next() for _ in range(8)]
    outcomes = [duo.session.feedback(Feedback(c.video_id, 1000)) for c in choices]
    assert outcomes == [Outcome.APPENDED] * 8
    assert duo.session._history.watched.n_watched == 8 - L // 2


def test_an_amendment_of_a_full_list_evicts_nothing(duo: Duo) -> None:
    steps = duo.watch(L)
    assert duo.amend(steps[-1].video_id, 39_000, {"like": True}, steps[-1]) is Outcome.AMENDED
    assert duo.session.feedback(Feedback(424242)) is Outcome.UNKNOWN
    assert duo.session._history.watched.n_watched == L
    if not len(duo.session.pool):
        duo.page()
    duo.swipe()


def test_an_append_runs_one_token_and_a_rebuild_few(duo: Duo) -> None:
    duo.page()
    assert runs_of(duo) == 1  # the start token
    duo.watch(3)
    assert runs_of(duo) == 4
    duo.watch(3)
    before = runs_of(duo)
    if not len(duo.session.pool):
        duo.page()
    duo.swipe()
    assert runs_of(duo) == before  # nothing is worked out on the swipe path
    duo.session.maintain()
    assert runs_of(duo) == before + 1  # L/2 tokens in one run of the larger graph


class TestAmendments:
    @pytest.mark.parametrize("back", [1, 2, 3, 4])
    def test_one_of_the_last_is_worked_out_again(self, duo: Duo, back: int) -> None:
        steps = duo.watch(4)
        amended = steps[-back]
        assert duo.amend(amended.video_id, 39_000, {"like": True}, amended) is Outcome.AMENDED
        duo.page()
        duo.swipe()

    def test_an_amendment_changes_the_scores(self, duo: Duo) -> None:
        steps = duo.watch(3)
        before = duo.session.next().scores_NT
        duo.session.feedback(Feedback(steps[-1].video_id, 39_000, {"follow": True}))
        after = duo.session.next().scores_NT
        assert before is not None
        assert after is not None
        assert not np.allclose(before[1:3], after[:2], atol=1e-6)

    def test_amended_after_an_eviction(self, duo: Duo) -> None:
        steps = duo.watch(L)
        if not len(duo.session.pool):
            duo.page()
        duo.swipe()
        duo.session.maintain()
        kept, gone = steps[-1], steps[0]
        assert duo.amend(kept.video_id, 5, {"hate": True}, kept) is Outcome.AMENDED
        assert duo.session.feedback(Feedback(gone.video_id, 5)) is Outcome.LOGGED
        duo.swipe()

    def test_signals_are_merged_not_forgotten(self, duo: Duo) -> None:
        duo.page()
        choice = duo.swipe()
        duo.session.feedback(Feedback(choice.video_id, 1000, {"click": True}))
        duo.session.feedback(Feedback(choice.video_id, None, {"like": False}))
        columns = duo.session._history.watched.columns(1)
        assert columns["play_time_ms"].tolist() == [1000]
        assert columns["signals"][0][:3].tolist() == [1, -1, 0]

    def test_an_older_revision_changes_nothing_here(self, duo: Duo) -> None:
        duo.page()
        choice = duo.swipe()
        assert duo.session.feedback(Feedback(choice.video_id, 1000, revision=3)) is Outcome.APPENDED
        assert duo.session.feedback(Feedback(choice.video_id, 9000, revision=1)) is Outcome.STALE
        assert duo.session.feedback(Feedback(choice.video_id, 2000, revision=4)) is Outcome.AMENDED
        assert duo.session._history.watched.columns(1)["play_time_ms"].tolist() == [2000]

    def test_a_video_never_shown_is_dropped(self, duo: Duo) -> None:
        duo.page()
        assert duo.session.feedback(Feedback(424242, 1000)) is Outcome.UNKNOWN
        assert duo.session._history.watched.n_watched == 0


class TestOrder:
    def test_feedback_out_of_order_is_appended_as_it_comes(self, duo: Duo) -> None:
        duo.page()
        first, second = duo.session.next(), duo.session.next()
        duo.session.feedback(Feedback(second.video_id, 2000, shown_at_ms=20_000))
        duo.session.feedback(Feedback(first.video_id, 1000, shown_at_ms=10_000))
        columns = duo.session._history.watched.columns(1)
        assert columns["video_id"].tolist() == [second.video_id, first.video_id]
        assert columns["gap_ms"].tolist() == [-1, -1]  # a negative gap is null

    def test_gaps_come_from_a_clock_that_does_not_jump(self, duo: Duo, clock: FakeClock) -> None:
        duo.page()
        for _ in range(2):
            choice = duo.session.next()
            duo.session.feedback(Feedback(choice.video_id, 1000))
            clock.advance(4_000)
            clock.set_wall(12345)  # the user mends the date
        assert duo.session._history.watched.columns(1)["gap_ms"].tolist() == [-1, 4_000]


class TestPxtrOnly:
    def test_equal_without_any_served_row(
        self, published: Callable[[str], InstalledModel], tiny_cdn: Path, clock: FakeClock
    ) -> None:
        session = EdgeSession(5, published("kir-pxtr"), clock=clock)
        session.start()
        Duo(session, tiny_cdn, clock, "kir-pxtr", tiny_model.SPEC.without_served()).watch(2 * L)


def test_equal_with_pages_of_every_size_and_encoding(duo: Duo) -> None:
    for n, encoding in ((1, "int8"), (3, "float16"), (4, "float32"), (5, "int8"), (8, "float32")):
        duo.page(n, encoding=encoding)
        duo.watch(n)

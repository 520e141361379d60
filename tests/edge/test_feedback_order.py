"""Feedback late, out of order, amended, over restarts: the watched list is what a slow, obvious reference makes."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from contract.vocabulary import SIGNALS
from contract.watched import AMENDABLE
from edge import EdgeSession, FakeClock, Feedback, Outcome, SessionConfig, StateFile
from tests.edge.tiny_page import page_bytes

CAPACITY = 10
NAMES = ("play_time_ms", "profile_stay_ms", "comment_stay_ms")

observations = st.fixed_dictionaries(
    {},
    optional={
        "play_time_ms": st.integers(0, 50_000),
        "profile_stay_ms": st.integers(0, 900),
        "like": st.booleans(),
        "follow": st.booleans(),
    },
)


def feedback_of(video_id: int, told: dict[str, Any], revision: int | None) -> Feedback:
    signals = {name: value for name, value in told.items() if name in SIGNALS}
    rest = {name: value for name, value in told.items() if name not in SIGNALS}
    return Feedback(video_id, signals=signals, revision=revision, **rest)


def token(told: dict[str, Any]) -> dict[str, Any]:
    signals = [int(told[name]) if name in told else -1 for name in SIGNALS]
    return {"signals": signals, **{name: told.get(name, -1) for name in NAMES}}


def tokens(session: EdgeSession) -> dict[int, dict[str, Any]]:
    columns = session._history.watched.columns(1)
    names = ("signals", *NAMES)
    return {
        int(video_id): {name: columns[name][slot].tolist() for name in names}
        for slot, video_id in enumerate(columns["video_id"])
    }


def shown(n: int) -> tuple[EdgeSession, list[int]]:
    """A session that has shown n videos."""
    session = EdgeSession(5, clock=FakeClock())
    session.on_page(page_bytes(range(100, 100 + n), status="no_live_version"))
    return session, [session.next().video_id for _ in range(n)]


@settings(max_examples=30, deadline=None)
@given(
    told=st.lists(st.lists(observations, min_size=1, max_size=4), min_size=1, max_size=AMENDABLE),
    data=st.data(),
)
def test_any_order_of_the_same_feedback_ends_in_the_same_tokens(
    told: Sequence[Sequence[dict[str, Any]]], data: st.DataObject
) -> None:
    """Revisions told by the app; the order of the videos in the list is that of their first feedback."""
    session, ids = shown(len(told))
    events = [(video, revision) for video, revisions in enumerate(told) for revision in range(len(revisions))]
    for video, revision in data.draw(st.permutations(events)):
        session.feedback(feedback_of(ids[video], told[video][revision], revision))
    merged = {ids[i]: {k: v for revision in revisions for k, v in revision.items()} for i, revisions in enumerate(told)}
    assert tokens(session) == {video_id: token(one) for video_id, one in merged.items()}


def test_an_older_revision_fills_in_what_newer_ones_did_not_tell() -> None:
    session, (video_id,) = shown(1)
    assert session.feedback(Feedback(video_id, 5_000, revision=2)) is Outcome.APPENDED
    assert session.feedback(Feedback(video_id, 1_000, {"like": True}, revision=1)) is Outcome.AMENDED
    assert tokens(session)[video_id] == token({"play_time_ms": 5_000, "like": True})
    assert session.feedback(Feedback(video_id, 2_000, {"like": False}, revision=1)) is Outcome.STALE
    assert session.feedback(Feedback(video_id, None, {"like": False}, revision=0)) is Outcome.STALE
    assert tokens(session)[video_id] == token({"play_time_ms": 5_000, "like": True})


class Reference:
    """Plain dictionaries: what was told of each video, and by which revision; the list with its eviction."""

    def __init__(self) -> None:
        self.told: dict[int, dict[str, tuple[int, Any]]] = {}
        self.newest: dict[int, int] = {}
        self.list: list[int] = []
        self.frozen: dict[int, dict[str, Any]] = {}

    def evict(self) -> None:
        if len(self.list) >= CAPACITY:
            del self.list[: CAPACITY // 2]

    def feedback(self, video_id: int, told: dict[str, Any], revision: int | None) -> Outcome:
        newest = self.newest.get(video_id, -1)
        number = newest + 1 if revision is None else revision
        known = self.told.setdefault(video_id, {})
        news = {name: (number, value) for name, value in told.items() if number > known.get(name, (-1, 0))[0]}
        known.update(news)
        if newest >= number and not news:
            return Outcome.STALE
        self.newest[video_id] = max(newest, number)
        outcome = Outcome.AMENDED
        if newest < 0:
            self.evict()
            self.list.append(video_id)
            outcome = Outcome.APPENDED
        elif video_id not in self.list[-AMENDABLE:]:
            return Outcome.LOGGED
        self.frozen[video_id] = token({name: value for name, (_, value) in known.items()})
        return outcome


class Feed(RuleBasedStateMachine):
    """A user who swipes, an app whose feedback comes when it likes, and a phone that restarts."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.clock, self.reference = FakeClock(), Reference()
        self.ids: list[int] = []
        self.due = False
        self.start()

    def start(self) -> None:
        state = StateFile(Path(self.folder.name) / "state")
        self.session = EdgeSession(5, clock=self.clock, state=state, config=SessionConfig(watched_capacity=CAPACITY))
        assert (state.set_aside, state.problem) == (0, "")

    def settle(self) -> None:
        """A choice from a full list evicts, once there is time."""
        if self.due:
            self.reference.evict()
        self.due = False

    @rule()
    def swipe(self) -> None:
        if not len(self.session.pool):
            self.settle()
            first = 100 + len(self.ids)
            self.session.on_page(page_bytes(range(first, first + 6), status="no_live_version"))
        self.settle()
        self.ids.append(self.session.next().video_id)
        self.due = True
        self.clock.advance(1_000)

    @rule()
    def maintain(self) -> None:
        self.session.maintain()
        self.settle()

    @precondition(lambda self: self.ids)
    @rule(data=st.data(), told=observations, revision=st.none() | st.integers(0, 4))
    def feedback(self, data: st.DataObject, told: dict[str, Any], revision: int | None) -> None:
        back = data.draw(st.integers(1, min(len(self.ids), 14)))
        self.settle()
        got = self.session.feedback(feedback_of(self.ids[-back], told, revision))
        assert got is self.reference.feedback(self.ids[-back], told, revision)

    @rule()
    def restart(self) -> None:
        self.session.maintain()
        self.settle()
        self.session.close()
        self.start()

    @invariant()
    def the_list_is_the_references(self) -> None:
        if self.due:
            return  # an eviction is due, which either side does at its next step
        assert list(tokens(self.session).items()) == [(v, self.reference.frozen[v]) for v in self.reference.list]

    def teardown(self) -> None:
        self.session.close()
        self.folder.cleanup()


def test_a_phone_and_the_reference_agree() -> None:
    run_state_machine_as_test(Feed, settings=settings(max_examples=8, stateful_step_count=30, deadline=None))


@pytest.mark.slow
def test_a_phone_and_the_reference_agree_at_length() -> None:
    run_state_machine_as_test(Feed, settings=settings(max_examples=200, stateful_step_count=80, deadline=None))

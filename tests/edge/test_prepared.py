"""What `maintain` prepares for the next feedback changes no score, whatever comes instead of that feedback."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from edge import Choice, DeviceState, EdgeSession, FakeClock, Feedback, InstalledModel
from tests.edge.tiny_page import page_bytes

Open = Callable[[str], InstalledModel]
Comes = Callable[[EdgeSession, list[Choice]], None]


def its_feedback(session: EdgeSession, shown: list[Choice]) -> None:
    session.feedback(Feedback(shown[-1].video_id, 7_000, {"like": len(shown) % 2 == 0, "long_view": True}))


def nothing(session: EdgeSession, shown: list[Choice]) -> None:
    """The viewer left no trace of this video."""


def late_feedback_of_the_one_before(session: EdgeSession, shown: list[Choice]) -> None:
    if len(shown) > 1:
        session.feedback(Feedback(shown[-2].video_id, 3_000))


def the_one_before_first(session: EdgeSession, shown: list[Choice]) -> None:
    late_feedback_of_the_one_before(session, shown)
    its_feedback(session, shown)


def amendment(session: EdgeSession, shown: list[Choice]) -> None:
    its_feedback(session, shown)
    session.feedback(Feedback(shown[-1].video_id, 9_000, {"follow": True}))


def page(session: EdgeSession, shown: list[Choice]) -> None:
    first = 100 * (10 + len(shown))
    watched = session.page_request().watched_ids
    session.on_page(page_bytes(range(first, first + 4), "kir-a", watched, page_id=f"p{first}"))
    its_feedback(session, shown)


KINDS: list[Comes] = [its_feedback, nothing, late_feedback_of_the_one_before, the_one_before_first, amendment, page]


def played(model: InstalledModel, comes: list[Comes], *, maintains: bool) -> list[Choice]:
    clock = FakeClock()
    session = EdgeSession(5, model, clock=clock, session_id=7)
    session.start()
    session.on_page(page_bytes(range(101, 109)))
    shown: list[Choice] = []
    for number, step in enumerate(comes):
        if len(session.pool) < 2:
            session.on_page(page_bytes(range(1000 + 10 * number, 1008 + 10 * number), page_id=f"more-{number}"))
        shown.append(session.next(DeviceState(network=6)))
        if maintains:
            session.maintain()
        clock.advance(8_000)
        step(session, shown)
    shown.append(session.next(DeviceState(network=6)))
    assert session.last_error is None
    return shown


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("before", [0, 3, 5, 9])  # an empty list, a filling one, a full one, one that was evicted
def test_a_prepared_phone_scores_as_one_that_never_prepares(published: Open, kind: Comes, before: int) -> None:
    comes = [*[its_feedback] * before, kind, its_feedback, its_feedback]
    prepared = played(published("kir-a"), comes, maintains=True)
    plain = played(published("kir-a"), comes, maintains=False)
    for one, other in zip(prepared, plain, strict=True):
        assert one.reason == ""
        assert one.considered == other.considered
        np.testing.assert_array_equal(one.scores_NT, other.scores_NT)


def test_the_usual_feedback_finds_everything_but_its_own_features_in_the_graph(published: Open) -> None:
    session = EdgeSession(5, published("kir-a"), clock=FakeClock())
    session.start()
    session.on_page(page_bytes(range(101, 109)))
    its_feedback(session, [session.next()])
    choice = session.next()
    session.maintain()
    reranker = session._reranker
    assert reranker is not None
    runner = reranker.engine._runner("watch", 1)
    given: list[str] = []
    runner.give = lambda values: given.extend(values)  # type: ignore[method-assign]
    its_feedback(session, [choice])
    assert given == []
    assert not reranker.stale


def test_a_device_state_that_is_no_value_stops_no_maintenance(session: EdgeSession) -> None:
    session.on_page(page_bytes(range(101, 109)))
    device = DeviceState()
    object.__setattr__(device, "volume", "loud")
    choice = session.next(device)
    session.maintain()
    with pytest.raises(ValueError, match="loud"):
        session.feedback(Feedback(choice.video_id, 1_000))

"""Positions past the trained ones: swipe 10,000 of a session is scored as swipe 64, the first of the last bucket, and a
watched video 10,000 impressions ago as one 1,000 ago. No index leaves what a model was trained on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.buckets import INDEX_BOUNDS
from contract.features import BEHIND_CAP
from edge import Chooser, DeviceState, EdgeSession, FakeClock, Feedback, InstalledModel
from tests.edge.tiny_page import page_bytes

Open = Callable[[str], InstalledModel]
LAST = int(INDEX_BOUNDS[-1])


def scores(model: InstalledModel, first: int, now: int | None = None) -> NDArray[Any]:
    """Of eight candidates with three videos watched: shown from place `first` on, and the choice at place `now`."""
    session = EdgeSession(5, model, clock=FakeClock(), session_id=77)
    assert session.start() == ""
    session.position = first
    session.on_page(page_bytes(range(301, 304), page_id="a"))
    for _ in range(3):
        session.feedback(Feedback(session.next(DeviceState(network=1)).video_id, 3_000, {"like": True}))
    session.position = session.position if now is None else now
    session.on_page(page_bytes(range(101, 109), page_id="b"))
    choice = session.next(DeviceState(network=1))
    assert (choice.chooser, choice.reason) == (Chooser.MODEL, "")
    assert choice.scores_NT is not None
    return choice.scores_NT


def test_the_place_in_the_session(published: Open) -> None:
    model = published("kir-a")
    last = scores(model, LAST)
    np.testing.assert_array_equal(scores(model, 10_000), last)
    assert np.abs(scores(model, 0) - last).max() > 1e-4  # earlier places do count


def test_how_far_back_the_watched_videos_are(published: Open) -> None:
    """Videos without feedback between them and now: `behind` ends at 1,000."""
    model = published("kir-a")
    last = scores(model, LAST, LAST + 3 + BEHIND_CAP)
    np.testing.assert_array_equal(scores(model, LAST, 10_000), last)
    assert np.abs(scores(model, LAST) - last).max() > 1e-4

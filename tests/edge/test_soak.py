"""A long session holds what a short one does: memory stands still once every bounded list is full."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path

import pytest

from edge import EdgeSession, Engine, FakeClock, Feedback, PoolConfig, SessionConfig, StateFile
from tests.edge.tiny_page import page_bytes

KEPT, SWIPES, PAGE = 60, 200, 8
GROWTH_BYTES = 250 * SWIPES  # an impression that stayed takes ten times as much


def swipe_on(session: EdgeSession, clock: FakeClock, swipes: int) -> int:
    """Bytes that so many more swipes left behind."""
    gc.collect()
    before, _ = tracemalloc.get_traced_memory()
    for _ in range(swipes):
        if not len(session.pool):
            first = 1_000 + session.position
            watched = session.page_request().watched_ids
            session.on_page(page_bytes(range(first, first + PAGE), watched=watched, page_id=f"p{first}"))
        choice = session.next()
        assert choice.reason == "", session.last_error
        session.maintain()
        clock.advance(3_000)
        session.feedback(Feedback(choice.video_id, 2_000, {"like": True}))
    session.maintain()
    gc.collect()
    return tracemalloc.get_traced_memory()[0] - before


def test_memory_stands_still_once_the_lists_are_full(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("_history", "_keeper"):  # or filling them would take most of the time
        monkeypatch.setattr(f"edge.{module}.SHOWN_MAX", KEPT)
    clock = FakeClock()
    config = SessionConfig(pool=PoolConfig(max_pages=1, prefetch_below=1, seen=KEPT))
    session = EdgeSession(5, engine, clock=clock, config=config, state=StateFile(tmp_path / "state"))
    session.start()
    swipe_on(session, clock, 2 * PAGE)  # what is made once
    tracemalloc.start()
    try:
        filling = swipe_on(session, clock, KEPT)
        full = swipe_on(session, clock, SWIPES)
    finally:
        tracemalloc.stop()
    assert session.metrics.snapshot()["kir.edge.swipes"] == 2 * PAGE + KEPT + SWIPES
    assert filling * SWIPES / KEPT > 4 * GROWTH_BYTES  # what a leak of all impressions would have been
    assert full < GROWTH_BYTES
    session.close()

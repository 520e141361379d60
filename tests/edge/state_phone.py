"""A phone whose sessions go on from one state file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge import DeviceState, EdgeSession, Engine, FakeClock, Feedback, StateFile
from edge._upload import FeedbackUploader
from tests.edge.tiny_page import page_bytes


class Phone:
    """Sessions of one user, one after the other, on one file and one clock."""

    def __init__(self, path: Path, engine: Engine | None = None, user_id: int = 5):
        self.path, self.engine, self.user_id, self.clock = path, engine, user_id, FakeClock()
        self.n_pages = 0

    def start(self, uploader: FeedbackUploader | None = None, **kwargs: Any) -> EdgeSession:
        self.state = StateFile(self.path, **kwargs.pop("limits", {}))
        session = EdgeSession(
            self.user_id, self.engine, uploader=uploader, clock=self.clock, state=self.state, **kwargs
        )
        session.start()
        return session

    def page(self, session: EdgeSession, n: int = 8, **kwargs: Any) -> None:
        self.n_pages += 1
        ids, first = session.page_request().watched_ids, 100 * self.n_pages
        status = "ok" if self.engine else "no_live_version"
        session.on_page(page_bytes(range(first, first + n), "kir-a", ids, page_id=f"p{first}", status=status, **kwargs))

    def watch(self, session: EdgeSession, n: int) -> list[int]:
        """n videos shown and watched; their ids."""
        ids = []
        for _ in range(n):
            if not len(session.pool):
                self.page(session)
            choice = session.next(DeviceState(network=3, volume=0.5))
            session.maintain()
            self.clock.advance(3_000)
            signals = {"like": choice.video_id % 2 == 0}
            session.feedback(Feedback(choice.video_id, choice.video_id * 7 % 9_000, signals, profile_stay_ms=40))
            ids.append(choice.video_id)
        return ids


def columns(session: EdgeSession) -> dict[str, Any]:
    return {name: column.tolist() for name, column in session._history.watched.columns(1).items()}

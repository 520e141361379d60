"""One simulated session against a live server, every byte between phone and server counted.

The phone is the edge runtime as shipped, one step after another: feedback has reached the server before a page is asked
for, and a page is there before the next swipe. Bytes are those of the messages; HTTP/2, TLS and TCP come on top.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from benchmarks.edge_arm import signals_of
from contract.errors import KirError, ServerError
from contract.rows import FLOAT16, INT8
from contract.v1 import feedback_pb2, page_pb2
from contract.vocabulary import NETWORKS
from edge import (
    DeviceState,
    EdgeSession,
    Engine,
    FakeClock,
    Feedback,
    FeedbackClient,
    FeedbackUploader,
    PageClient,
    PageRequest,
    PoolConfig,
    SessionConfig,
)

WIFI = NETWORKS.index("wifi")
DAY_MS = 86_400_000
BELOW = PoolConfig().prefetch_below
RULES: dict[str, str] = {
    "whole": "the next page is asked for when all of one was shown",
    "half": "when half of a page was shown, and what was left of it goes",
    "pool": f"when fewer than {BELOW} candidates are left of two pages, and nothing goes: the shipped client",
}


@dataclass(frozen=True)
class LoadArm:
    """rerank: by the model at every swipe, else the server's order and no row is asked for. rule: of RULES."""

    rerank: bool
    rule: str
    encoding: str = INT8

    @property
    def name(self) -> str:
        return f"{'rerank' if self.rerank else 'server order'}, {self.rule}" + ", float16" * (self.encoding == FLOAT16)

    @property
    def pool(self) -> PoolConfig:
        return PoolConfig() if self.rule == "pool" else PoolConfig(max_pages=1)


@dataclass(frozen=True)
class Visit:
    """A session to be lived through by every arm: outcomes depend on session, video and step, not on the arm."""

    user_index: int
    seed: int
    start_ms: int


def visits_of(world: Any, n: int, seed: int = 0) -> list[Visit]:
    """n sessions of different users on the day after the log, or one each where there are fewer users."""
    rng = np.random.default_rng([seed, 0x10AD])
    users = rng.choice(world.config.n_users, size=min(n, world.config.n_users), replace=False)
    first_ms = world.config.start_ms + world.config.days * DAY_MS
    return [
        Visit(user, int(rng.integers(2**62)), first_ms + int(rng.integers(8, 20)) * 3_600_000)
        for user in users.tolist()
    ]


@dataclass
class Traffic:
    """What a session took. Bytes of messages; row_bytes are part of page_bytes; dry: it ended for want of videos."""

    swipes: int = 0
    pages: int = 0
    request_bytes: int = 0
    page_bytes: int = 0
    row_bytes: int = 0
    feedback_bytes: int = 0
    answer_bytes: int = 0
    watch_ms: int = 0
    dry: int = 0

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


@dataclass
class Meter:
    """A page source and a feedback sink that count into `traffic`."""

    pages: PageClient
    sink: FeedbackClient
    traffic: Traffic = field(default_factory=Traffic)

    def get_page(self, request: PageRequest) -> page_pb2.Page:
        page = self.pages.get_page(request)
        told = self.traffic
        told.pages += 1
        told.request_bytes += request.to_message().ByteSize()
        told.page_bytes += page.ByteSize()
        told.row_bytes += sum(part.ByteSize() for part in (*page.row_tables, *page.row_indexes))
        return page

    def report(self, events: list[feedback_pb2.FeedbackEvent]) -> feedback_pb2.ReportFeedbackResponse:
        answer = self.sink.report(events)
        self.traffic.feedback_bytes += feedback_pb2.ReportFeedbackRequest(events=events).ByteSize()
        self.traffic.answer_bytes += answer.ByteSize()
        return answer


def live(world: Any, visit: Visit, arm: LoadArm, page_size: int, engine: Engine, meter: Meter) -> Traffic:
    """Swipe until the user leaves. Raises KirError when an arm with a model chooses without it."""
    meter.traffic = traffic = Traffic()
    user, clock = world.session(visit.user_index, visit.seed, visit.start_ms), FakeClock(wall_ms=visit.start_ms)
    item_of: Mapping[int, int] = {int(video_id): i for i, video_id in enumerate(world.items.video_id)}
    uploader = FeedbackUploader(meter)
    config = SessionConfig(pool=arm.pool, page_size=page_size, row_encoding=arm.encoding)
    session = EdgeSession(
        int(world.users.user_id[visit.user_index]), engine if arm.rerank else None, uploader=uploader, clock=clock,
        config=config, session_id=visit.seed,
    )  # fmt: skip
    session.start()
    on_page = shown = 0
    try:
        while not user.done:
            if _wants_page(arm.rule, session, on_page, shown, clock.monotonic_ms()):
                on_page, shown = _page(session, uploader, meter), 0
                if not on_page:
                    traffic.dry = 1
                    break
            shown += 1
            _swipe(session, user, clock, arm, item_of, traffic)
    finally:
        session.close()
    return traffic


def _page(session: EdgeSession, uploader: FeedbackUploader, meter: Meter) -> int:
    """Fetch a page; how many of its candidates are new: 0 when the server has none left."""
    if not uploader.flush():
        raise ServerError("feedback did not reach the server", got=str(uploader.last_error))
    request = session.page_request()
    try:
        return session.on_page(meter.get_page(request), request).added
    except ServerError as error:
        if "no_candidates" in str(error.got):
            return 0
        raise


def _wants_page(rule: str, session: EdgeSession, on_page: int, shown: int, now_ms: int) -> bool:
    if not len(session.pool):
        return True
    if rule == "pool":
        return session.pool.wants_page(now_ms)
    return rule == "half" and shown >= (on_page + 1) // 2


def _swipe(
    session: EdgeSession, user: Any, clock: FakeClock, arm: LoadArm, item_of: Mapping[int, int], traffic: Traffic
) -> None:
    shown_at_ms = user.now_ms
    choice = session.next(DeviceState(network=WIFI))
    session.maintain()
    if arm.rerank and choice.reason:
        raise KirError("the model did not choose", where=choice.page_id, got=choice.reason)
    response = user.step(item_of[choice.video_id])
    clock.advance(max(0, user.now_ms - clock.wall_ms()))
    told = signals_of(response.signals)
    session.feedback(
        Feedback(choice.video_id, response.play_time_ms, told, has_next=response.has_next, shown_at_ms=shown_at_ms)
    )
    traffic.swipes += 1
    traffic.watch_ms += response.play_time_ms

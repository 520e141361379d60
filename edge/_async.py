"""AsyncEdgeSession: a session for asyncio. What waits for the network never holds up a swipe.

    async with AsyncEdgeSession(EdgeSession(1, store, PageClient("host:port"))) as session:
        await session.fetch_page()
        choice = await session.next(DeviceState())      # show it …
        await session.maintain()
        await session.feedback(Feedback(choice.video_id, play_time_ms=8_000))

One worker thread drives the session, so the rule of one thread holds whatever the tasks do; calls run in the order in
which they were made. Pages and models are waited for by other threads, and only taken in by the worker.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import ParamSpec, TypeVar

from contract.beam import BeamPlan
from contract.errors import InputError
from contract.page import Page
from contract.v1 import page_pb2
from edge._config import SessionConfig
from edge._explain import Explanation
from edge._installed import InstalledModel
from edge._metrics import Metrics
from edge._pool import CandidatePool
from edge._ranking import Ranking
from edge._session import EdgeSession
from edge._types import Choice, DeviceState, Feedback, Outcome, PageReport, Search
from edge._wire import PageRequest

P = ParamSpec("P")
T = TypeVar("T")
POLL_S = 0.005


class AsyncEdgeSession:
    """The calls of an EdgeSession as coroutines, with its errors. The session is this object's from here on.

    Safe to use by any number of tasks of one event loop. A task that is cancelled stops waiting, not the worker: a
    cancelled `next` has shown a video all the same. After `close` every call raises InputError.
    """

    def __init__(self, session: EdgeSession):
        self._session = session
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kir-session")
        self._closed = False

    async def _run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        self._check_open()
        return await asyncio.wrap_future(self._worker.submit(call, *args, **kwargs))

    def _check_open(self) -> None:
        if self._closed:
            raise InputError("the session is closed", fix="make a new one")

    @property
    def metrics(self) -> Metrics:
        """What the session counts, and how long its stages take; `snapshot` at any time."""
        return self._session.metrics

    @property
    def pool(self) -> CandidatePool:
        """Pages on the phone. The worker's: its length may be asked for at any time, the rest while no call runs."""
        return self._session.pool

    @property
    def config(self) -> SessionConfig:
        return self._session.config

    @property
    def user_id(self) -> int:
        return self._session.user_id

    @property
    def session_id(self) -> int:
        return self._session.session_id

    @property
    def last_error(self) -> Exception | None:
        """What was swallowed last."""
        return self._session.last_error

    @property
    def default_rows(self) -> int:
        """Entries of all pages for which the server had no row of its own."""
        return self._session.default_rows

    @property
    def n_watched(self) -> int:
        """Videos in the watched list."""
        return self._session.n_watched

    @property
    def dense_version(self) -> str:
        """The model at work; "" when there is none."""
        return self._session.dense_version

    @property
    def position(self) -> int:
        """Videos shown."""
        return self._session.position

    async def start(self) -> str:
        """As `EdgeSession.start`; `async with` calls it."""
        return await self._run(self._session.start)

    async def next(self, device: DeviceState | None = None) -> Choice:
        """The next video. Raises PoolExhausted when nothing is left."""
        return await self._run(self._session.next, device)

    async def look_ahead(
        self, plan: BeamPlan, device: DeviceState | None = None, first: Collection[int] | None = None
    ) -> Search:
        """As `EdgeSession.look_ahead`."""
        return await self._run(self._session.look_ahead, plan, device, first)

    async def ranking(self, device: DeviceState | None = None) -> Ranking:
        """As `EdgeSession.ranking`: costs a swipe, shows nothing. Raises PoolExhausted."""
        return await self._run(self._session.ranking, device)

    async def explain(self, video_id: int) -> Explanation:
        """As `EdgeSession.explain`. Swipes wait for its dozens of runs. Raises InputError when no model scores it."""
        return await self._run(self._session.explain, video_id)

    async def maintain(self) -> None:
        """What need not be waited for; after a choice was shown."""
        await self._run(self._session.maintain)

    async def feedback(self, feedback: Feedback) -> Outcome:
        """Take in a feedback."""
        return await self._run(self._session.feedback, feedback)

    async def page_request(self) -> PageRequest:
        """What to ask the server for now, for an app that fetches pages itself."""
        return await self._run(self._session.page_request)

    async def fetch_page(self) -> PageReport:
        """Ask and wait, while swipes go on. Raises ServerUnavailable, ServerError or PageError."""
        request = await self.page_request()
        message = await asyncio.to_thread(self._session._intake.get, request)
        return await self.on_page(message, request)

    async def on_page(self, data: bytes | page_pb2.Page | Page, request: PageRequest | None = None) -> PageReport:
        """Take in a page that the app fetched. Raises PageError."""
        return await self._run(self._session.on_page, data, request)

    async def wait_page(self, timeout_s: float) -> bool:
        """As `EdgeSession.wait_page`, while swipes go on; False when none came in time."""
        end_s = time.monotonic() + timeout_s
        while not await self._run(self._session.wait_page, 0.0):
            if time.monotonic() >= end_s:
                return False
            await asyncio.sleep(POLL_S)
        return True

    async def update(self) -> str | None:
        """Download what the CDN calls current and offer it, while swipes go on. Raises as the store does."""
        self._check_open()
        engine = await asyncio.to_thread(self._session._models.newer)
        return None if engine is None else await self._run(self._session._models.update, engine)

    async def offer(self, installed: InstalledModel) -> None:
        """As `EdgeSession.offer`; swipes wait while it loads. Raises as `Engine` when the model can't run here."""
        await self._run(self._session.offer, installed)

    async def close(self) -> None:
        """As `EdgeSession.close`, after the calls under way; a second call does nothing."""
        if self._closed:
            return
        closing = self._run(self._session.close)
        try:
            await closing
        finally:
            self._closed = True
            self._worker.shutdown(wait=False)

    async def __aenter__(self) -> AsyncEdgeSession:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

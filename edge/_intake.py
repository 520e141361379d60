"""The page side of a session: what to ask the server for, when, and what becomes of the page that comes.

Off the swipe path. Not thread-safe; pages are fetched ahead by a thread of their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from contract.errors import PageError, ServerError
from contract.page import Page, decode_page, parse_page
from contract.v1 import page_pb2
from edge._client import PageSource, Prefetcher
from edge._clock import Clock
from edge._models import Models
from edge._pool import CandidatePool, Values
from edge._telemetry import Telemetry
from edge._types import PageReport
from edge._wire import PageRequest


class _Timed:
    """A page source that measures each fetch, in whatever thread it is."""

    def __init__(self, pages: PageSource, telemetry: Telemetry):
        self._pages, self._telemetry = pages, telemetry

    def get_page(self, request: PageRequest) -> page_pb2.Page:
        with self._telemetry.span("fetch"):
            return self._pages.get_page(request)


class PageIntake:
    """request, values: the page request, and what the model thinks of a page, as of now.

    Public to read: pool, default_rows (entries of all pages without a row of their own).
    """

    def __init__(
        self,
        pages: PageSource | None,
        pool: CandidatePool,
        models: Models,
        telemetry: Telemetry,
        clock: Clock,
        request: Callable[[], PageRequest],
        values: Values,
        *,
        retry_ms: int,
    ):
        self.pool = pool
        self.default_rows = 0
        telemetry.metrics.observe("kir.edge.default_rows", lambda: self.default_rows)
        self._pages = None if pages is None else _Timed(pages, telemetry)
        self._models, self._telemetry, self._clock = models, telemetry, clock
        self._prefetcher = None if self._pages is None else Prefetcher(self._pages)
        self._request, self._values, self._retry_ms = request, values, retry_ms
        self._last_request: PageRequest | None = None
        self._ask_after_ms = 0

    def request(self) -> PageRequest:
        """What to ask the server for now; a page that comes without its request answers this one."""
        self._last_request = self._request()
        return self._last_request

    @property
    def fetching(self) -> bool:
        """A page is on its way, or has come and was not taken yet."""
        return self._prefetcher is not None and self._prefetcher.busy

    def fetch(self) -> PageReport:
        """Ask and wait. Raises ServerUnavailable, ServerError or PageError; the pool is as it was then."""
        request = self.request()
        return self.take(self.get(request), request)

    def get(self, request: PageRequest) -> page_pb2.Page:
        """Wait for a page. Changes nothing of the session but metrics, so that another thread may wait for it.

        Raises ServerUnavailable or ServerError.
        """
        if self._pages is None:
            raise ServerError("this session has no page source", fix="give it a PageClient, or call on_page")
        try:
            return self._pages.get_page(request)
        except ServerError:
            self._telemetry.metrics.add("kir.edge.fetch.failures")
            raise

    def take(self, data: bytes | page_pb2.Page | Page, request: PageRequest | None = None) -> PageReport:
        """Take in a page, as `EdgeSession.on_page` says. Raises PageError; the pool goes on then."""
        with self._telemetry.span("page"):
            return self._take(data, request)

    def _take(self, data: bytes | page_pb2.Page | Page, request: PageRequest | None) -> PageReport:
        metrics = self._telemetry.metrics
        try:
            with self._telemetry.span("decode"):
                message = parse_page(data) if isinstance(data, bytes) else data
                page = decode_page(message) if isinstance(message, page_pb2.Page) else message
        except PageError:
            metrics.add("kir.edge.pages.refused")
            raise
        self._models.settle()
        request = request or self._last_request
        fit = self._models.fit(page, request.watched_ids if request else [], self.pool)
        added = self.pool.add(page, self._clock.monotonic_ms(), fit.scored, fit.reason, self._values)
        default_rows = fit.scored.features.default_rows if fit.scored else 0
        self.default_rows += default_rows
        metrics.add("kir.edge.pages")
        if fit.reason:
            metrics.add("kir.edge.pages.unscored", 1, fit.reason.partition(":")[0])
        return PageReport(page.page_id, added, fit.reason, default_rows, fit.activated)

    def take_arrived(self) -> None:
        """Take in the page that was fetched ahead, if there is one. Never raises."""
        arrived = self._prefetcher.poll() if self._prefetcher else None
        if arrived is None:
            return
        added = 0
        try:
            added = self.take(arrived.page(), arrived.request).added
        except Exception as error:  # nothing that a server sends may stop the swipes
            self._telemetry.swallowed(error)
            if not isinstance(error, PageError):
                self._telemetry.metrics.add("kir.edge.fetch.failures")
        if not added:  # a server that has nothing new is not asked again at once either
            self._ask_after_ms = self._clock.monotonic_ms() + self._retry_ms

    def ask(self) -> None:
        """Start a fetch, unless one is under way or the last one failed a moment ago."""
        if self._prefetcher is None or self._prefetcher.busy or self._clock.monotonic_ms() < self._ask_after_ms:
            return
        self._prefetcher.ask(self.request())

    def wait(self, timeout_s: float) -> bool:
        """Wait for a page and take it in. False when none came in time, and at once for a session without a source."""
        if self._prefetcher is None:
            return False
        end_s = time.monotonic() + timeout_s
        if not self._prefetcher.busy:
            pause_s = max(0.0, (self._ask_after_ms - self._clock.monotonic_ms()) / 1e3)
            time.sleep(min(pause_s, timeout_s))  # or who waits in a loop would spin until the pause is over
            if self.pool.wants_page(self._clock.monotonic_ms()):
                self.ask()
        if not self._prefetcher.wait(max(0.0, end_s - time.monotonic())):
            return False
        self.take_arrived()
        return True

    def close(self) -> None:
        if self._prefetcher is not None:
            self._prefetcher.close()

"""The page client: unary gRPC with a deadline and retries, a thread that fetches ahead, and a first-class fake.

`PageClient` and `FakePageClient` are safe to use from any thread; a `Prefetcher` belongs to its session's thread.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from google.protobuf.message import DecodeError

from contract.checks import INT32_MAX, check_number, check_whole
from contract.errors import PageError, ServerError, ServerUnavailable
from contract.page import PAGE_BYTES_MAX, Candidates, Page, encode_page
from contract.v1 import page_pb2
from contract.vocabulary import MISSING_KEY, NULL_INT, TAGS_MAX, X_PXTR
from edge._wire import PageRequest

if TYPE_CHECKING:
    import grpc

# gRPC is imported where a channel is opened: a session on pages that the app brings itself saves its 15 MB.
RETRY_CODES = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"})
_CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", PAGE_BYTES_MAX + 64 * 1024),
    ("grpc.enable_retries", 0),  # retries are ours: bounded by one deadline, and told
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]


@dataclass(frozen=True)
class Retry:
    """attempts in all; the pause doubles from backoff_s, with jitter, up to 8 times backoff_s."""

    attempts: int = 3
    backoff_s: float = 0.2

    def __post_init__(self) -> None:
        check_whole("retry: attempts", self.attempts, 1, INT32_MAX)
        check_number("retry: backoff_s", self.backoff_s, 0.0, 3600.0)

    def pause_s(self, attempt: int) -> float:
        """Seconds before attempt + 1; attempt counts from 1."""
        return float(self.backoff_s * min(2 ** (attempt - 1), 8) * random.uniform(0.5, 1.0))


def open_channel(target: str, *, tls: bool = False, ca_certificates: bytes | None = None) -> grpc.Channel:
    """A channel to HOST:PORT. tls: encrypted; ca_certificates: PEM of the roots to trust instead of the system's."""
    import grpc

    if tls or ca_certificates is not None:
        credentials = grpc.ssl_channel_credentials(root_certificates=ca_certificates)
        return grpc.secure_channel(target, credentials, options=_CHANNEL_OPTIONS)
    return grpc.insecure_channel(target, options=_CHANNEL_OPTIONS)


@runtime_checkable
class PageSource(Protocol):
    """What a session asks of a page client."""

    def get_page(self, request: PageRequest) -> page_pb2.Page:
        """The page, as sent and unchecked. Raises ServerUnavailable or ServerError."""


class PageClient:
    """Pages from a server at HOST:PORT. deadline_s bounds one attempt.

    Retried: no connection, no answer in time, overload (after the server's retry_after_ms). Anything else is final.
    """

    def __init__(
        self,
        target: str,
        *,
        tls: bool = False,
        ca_certificates: bytes | None = None,
        deadline_s: float = 2.0,
        retry: Retry = Retry(),
        sleep: Callable[[float], None] = time.sleep,
    ):
        self.target, self._deadline_s, self._retry, self._sleep = target, deadline_s, retry, sleep
        self._channel = open_channel(target, tls=tls, ca_certificates=ca_certificates)
        from contract.v1 import page_pb2_grpc

        self._stub = page_pb2_grpc.PageServiceStub(self._channel)

    def get_page(self, request: PageRequest) -> page_pb2.Page:
        """Raises ServerUnavailable after the last attempt, ServerError for a refusal that no retry mends."""
        import grpc

        message = request.to_message()
        for attempt in range(1, self._retry.attempts + 1):
            last = attempt == self._retry.attempts
            pause_s = self._retry.pause_s(attempt)
            try:
                response = self._stub.GetPage(message, timeout=self._deadline_s)
            except grpc.RpcError as error:
                if error.code().name not in RETRY_CODES:
                    raise ServerError(
                        "page request failed", where=self.target, got=f"{error.code().name}: {error.details()}"
                    ) from None
                if last:
                    raise self._unavailable(f"{error.code().name}: {error.details()}") from None
            else:
                if response.WhichOneof("outcome") == "page":
                    page: page_pb2.Page = response.page
                    return page
                pause_s = max(pause_s, self._retry_after_s(response, last))
            self._sleep(pause_s)
        raise AssertionError("unreachable")

    def _retry_after_s(self, response: page_pb2.GetPageResponse, last: bool) -> float:
        """Seconds to wait after a refusal. Raises when waiting does not help, or this was the last attempt."""
        refusal = response.refusal
        number = int(refusal.reason)
        known = number in page_pb2.RefusalReason.values()  # a newer server may know more of them
        name = page_pb2.RefusalReason.Name(refusal.reason) if known else str(number)
        reason = name.removeprefix("REFUSAL_REASON_").lower()
        if response.WhichOneof("outcome") is None or refusal.reason != page_pb2.REFUSAL_REASON_OVERLOADED:
            raise ServerError("the server refused the page", where=self.target, got=f"{reason}: {refusal.message}")
        if last:
            raise self._unavailable(f"{reason}: {refusal.message}")
        return min(refusal.retry_after_ms / 1000, 30.0)

    def _unavailable(self, got: str) -> ServerUnavailable:
        return ServerUnavailable(
            "no page from the server", where=self.target, got=got, fix=f"tried {self._retry.attempts} times"
        )

    def close(self) -> None:
        self._channel.close()


class FakePageClient:
    """Answers from a list: pages in any form, errors to raise, or functions of the request. Ships for users' tests.

    `requests` keeps what was asked. After the last answer: ServerUnavailable; for bytes that are no page: PageError.
    """

    Answer = Page | page_pb2.Page | bytes | Exception | Callable[[PageRequest], "Page | page_pb2.Page | bytes"]

    def __init__(self, answers: Iterable[Answer] = ()):
        self._answers = list(answers)
        self._lock = threading.Lock()
        self.requests: list[PageRequest] = []

    @staticmethod
    def page_of(video_ids: Sequence[int], page_id: str = "page-1", **changes: Any) -> Page:
        """A page of these videos, in this order, of which nothing else is known: what a session plays without a model.

        changes: of `contract.page.Page`, as soft_ttl_ms=1_000.
        """
        ids = np.array(video_ids, np.uint64)
        nothing = np.full(len(ids), NULL_INT, np.int32)
        tags = np.full((len(ids), TAGS_MAX), MISSING_KEY)
        pxtr = np.full((len(ids), X_PXTR), np.nan, np.float32)
        return Page(page_id, Candidates(ids, np.full(len(ids), MISSING_KEY), tags, nothing, nothing, pxtr), **changes)

    def add(self, answer: Answer) -> None:
        with self._lock:
            self._answers.append(answer)

    def get_page(self, request: PageRequest) -> page_pb2.Page:
        with self._lock:
            self.requests.append(request)
            if not self._answers:
                raise ServerUnavailable("the fake server has no more pages", where="FakePageClient")
            answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if callable(answer):
            answer = answer(request)
        if isinstance(answer, Page):
            return encode_page(answer)
        if not isinstance(answer, bytes):
            return answer
        try:
            return page_pb2.Page.FromString(answer)
        except DecodeError as error:
            raise PageError("the fake server's bytes are no page", got=str(error)) from None


@dataclass(frozen=True)
class Arrived:
    """The end of a fetch: `page()` gives the page or raises what the client raised."""

    request: PageRequest
    future: Future[page_pb2.Page]

    def page(self) -> page_pb2.Page:
        return self.future.result()


class Prefetcher:
    """One page at a time, fetched by a thread of its own."""

    def __init__(self, pages: PageSource):
        self._pages = pages
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kir-page")
        self._flight: Arrived | None = None
        self._closed = False

    @property
    def busy(self) -> bool:
        """A page is on its way, or has come and was not taken yet."""
        return self._flight is not None

    def ask(self, request: PageRequest) -> None:
        """Start a fetch; nothing happens while one is under way, or after `close`."""
        if self._flight is None and not self._closed:
            self._flight = Arrived(request, self._pool.submit(self._pages.get_page, request))

    def poll(self) -> Arrived | None:
        """The finished fetch, once; None while there is none."""
        if self._flight is None or not self._flight.future.done():
            return None
        arrived, self._flight = self._flight, None
        return arrived

    def wait(self, timeout_s: float) -> bool:
        """Wait until a fetch is finished; False when none is under way or time is up."""
        if self._flight is None:
            return False
        done, _ = wait_for([self._flight.future], timeout=timeout_s)
        return bool(done)

    def close(self, timeout_s: float = 5.0) -> None:
        """Ask no more, and wait for the request under way, but not longer than this: a server that is down, or says
        when to come back, may hold it for a minute. Its answer is thrown away, and its thread ends by itself.
        """
        self._closed = True
        self.wait(timeout_s)
        self._flight = None
        self._pool.shutdown(wait=False, cancel_futures=True)

"""Feedback upload: a bounded queue, batches, retries. Off the swipe path, in a thread of its own.

Sending twice is harmless: (session_id, seq, revision) is the idempotency key, so a batch whose answer was lost is
sent again.
`FeedbackUploader` is thread-safe.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from contract.errors import InputError, ServerError, ServerUnavailable
from contract.v1 import feedback_pb2
from edge._client import RETRY_CODES, Retry, open_channel

Event = feedback_pb2.FeedbackEvent


class FeedbackSink(Protocol):
    """Where batches go."""

    def report(self, events: list[Event]) -> feedback_pb2.ReportFeedbackResponse:
        """Raises ServerUnavailable (send again) or ServerError (this batch is refused)."""


class FeedbackClient:
    """Feedback to a server at HOST:PORT over gRPC; one attempt per call."""

    def __init__(
        self, target: str, *, tls: bool = False, ca_certificates: bytes | None = None, deadline_s: float = 5.0
    ):
        self.target, self._deadline_s = target, deadline_s
        self._channel = open_channel(target, tls=tls, ca_certificates=ca_certificates)
        from contract.v1 import feedback_pb2_grpc

        self._stub = feedback_pb2_grpc.FeedbackServiceStub(self._channel)

    def report(self, events: list[Event]) -> feedback_pb2.ReportFeedbackResponse:
        import grpc

        request = feedback_pb2.ReportFeedbackRequest(events=events)
        try:
            response: feedback_pb2.ReportFeedbackResponse = self._stub.ReportFeedback(request, timeout=self._deadline_s)
            return response
        except grpc.RpcError as error:
            kind = ServerUnavailable if error.code().name in RETRY_CODES else ServerError
            got = f"{error.code().name}: {error.details()}"
            raise kind("feedback was not taken", where=self.target, got=got) from None

    def close(self) -> None:
        self._channel.close()


@runtime_checkable
class Offers(Protocol):
    """What a session asks of an uploader."""

    def offer(self, event: Event) -> object: ...


class FeedbackUploader:
    """Sends feedback in the order in which it was offered.

    capacity  events held; when full the oldest goes and `dropped` counts it
    batch     events per request; retry: pauses between attempts (its number of attempts does not end the queue)
    Counters: accepted, duplicates, rejected (by the server), dropped (here), settled (events that left the queue, sent
    or dropped; they leave in the order of their tickets). last_error: what went wrong last. on_report: called after
    each request, by the uploader's thread: "upload", its begin and end in nanoseconds, "events", how many.
    """

    def __init__(self, sink: FeedbackSink, *, capacity: int = 1000, batch: int = 64, retry: Retry = Retry()):  # noqa: B008
        if capacity < 1 or batch < 1:
            raise InputError("uploader: capacity and batch start at 1", got=(capacity, batch))
        self._sink, self._capacity, self._batch, self._retry = sink, capacity, batch, retry
        self._queue: deque[Event] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None
        self.accepted = self.duplicates = self.rejected = self.dropped = self.settled = 0
        self.last_error: ServerError | None = None
        self.on_report: Callable[[str, int, int, str, int], None] | None = None

    def __len__(self) -> int:
        return len(self._queue)

    def offer(self, event: Event) -> int:
        """Queue an event; returns at once: its ticket, done with once `settled` is as high. 0 after `close`, which
        counts as dropped.
        """
        with self._changed:
            if self._closing:
                self.dropped += 1
                return 0
            self._queue.append(event)
            ticket = self.settled + len(self._queue)
            if len(self._queue) > self._capacity:
                self._queue.popleft()
                self.dropped += 1
                self.settled += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="kir-feedback", daemon=True)
                self._thread.start()
            self._changed.notify_all()
            return ticket

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until the queue is empty; False when time is up, or after `close` (the events stay queued)."""
        with self._changed:
            self._changed.wait_for(lambda: not self._queue or self._closing, timeout_s)
            return not self._queue

    def close(self, timeout_s: float = 5.0) -> bool:
        """Flush, then stop the thread. Returns whether everything was sent."""
        sent = self.flush(timeout_s)
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout_s)
        return sent

    def _run(self) -> None:
        failures = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._queue) or self._closing)
                if self._closing:
                    return
                events = [self._queue[i] for i in range(min(self._batch, len(self._queue)))]
            try:
                answer = self._report(events)
            except ServerUnavailable as error:
                failures += 1
                self.last_error = error
                self._pause(self._retry.pause_s(failures))
                continue
            except ServerError as error:  # asking again would not help: the batch goes, the next one gets its chance
                self.last_error = error
                answer = feedback_pb2.ReportFeedbackResponse(rejected=len(events))
            except Exception as error:  # a closed channel, say: the queue must outlive it
                failures += 1
                self.last_error = ServerUnavailable("feedback could not be sent", got=repr(error))
                self._pause(self._retry.pause_s(failures))
                continue
            failures = 0
            self._done(events, answer)

    def _report(self, events: list[Event]) -> feedback_pb2.ReportFeedbackResponse:
        start_ns = time.perf_counter_ns()
        try:
            return self._sink.report(events)
        finally:
            if self.on_report is not None:
                self.on_report("upload", start_ns, time.perf_counter_ns(), "events", len(events))

    def _done(self, events: list[Event], answer: feedback_pb2.ReportFeedbackResponse) -> None:
        with self._changed:
            self.accepted += answer.accepted
            self.duplicates += answer.duplicates
            self.rejected += answer.rejected
            for event in events:
                if self._queue and self._queue[0] is event:  # a full queue may have dropped it meanwhile
                    self._queue.popleft()
                    self.settled += 1
            self._changed.notify_all()

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        with self._changed:
            self._changed.wait_for(lambda: self._closing, max(0.0, end - time.monotonic()))

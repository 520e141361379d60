"""Feedback upload against a real server in this process: batches, retries, restarts, a bounded queue."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import grpc
import pytest

from contract.errors import InputError, ServerError, ServerUnavailable
from contract.v1 import feedback_pb2
from edge import EdgeSession, FakeClock, Feedback, FeedbackClient, FeedbackUploader, InstalledModel, Retry
from tests.edge.conftest import LocalServer
from tests.edge.tiny_page import page_bytes

FAST = Retry(backoff_s=0.01)
Event = feedback_pb2.FeedbackEvent


def event(seq: int, revision: int = 0) -> Event:
    return Event(user_id=5, session_id=9, seq=seq, revision=revision)


class Sink:
    """Keeps batches; `gate` holds it back, `errors` come first."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.errors: list[Exception] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def report(self, events: list[Event]) -> feedback_pb2.ReportFeedbackResponse:
        self.entered.set()
        self.gate.wait(30)
        if self.errors:
            raise self.errors.pop(0)
        self.batches.append([e.seq for e in events])
        return feedback_pb2.ReportFeedbackResponse(accepted=len(events))


@pytest.fixture
def uploader(server: LocalServer) -> Iterator[FeedbackUploader]:
    client = FeedbackClient(server.target, deadline_s=5)
    made = FeedbackUploader(client, retry=FAST)
    yield made
    made.close(5)
    client.close()


class TestRealServer:
    def test_events_arrive(self, server: LocalServer, uploader: FeedbackUploader) -> None:
        for seq in range(150):
            uploader.offer(event(seq))
        assert uploader.flush(30)
        assert sorted(seq for _, seq, _ in server.events) == list(range(150))
        assert (uploader.accepted, len(uploader), max(server.batches) <= 64) == (150, 0, True)

    def test_failures_are_sent_again(self, server: LocalServer, uploader: FeedbackUploader) -> None:
        server.feedback_answers = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED]
        uploader.offer(event(0))
        assert uploader.flush(30)
        assert uploader.accepted == 1
        assert isinstance(uploader.last_error, ServerUnavailable)

    def test_a_restarted_server_gets_the_rest(self, server: LocalServer, uploader: FeedbackUploader) -> None:
        uploader.offer(event(0))
        assert uploader.flush(30)
        server.stop()
        for seq in range(1, 6):
            uploader.offer(event(seq))
        assert not uploader.flush(0.3)
        assert len(uploader) == 5
        server.start()
        assert uploader.flush(30)
        assert sorted(seq for _, seq, _ in server.events) == list(range(6))

    def test_sending_twice_is_counted_and_harmless(self, server: LocalServer, uploader: FeedbackUploader) -> None:
        for _ in range(2):
            uploader.offer(event(7))
            assert uploader.flush(30)
        assert (uploader.accepted, uploader.duplicates, len(server.events)) == (1, 1, 1)

    def test_a_refused_batch_does_not_block_the_next(self, server: LocalServer, uploader: FeedbackUploader) -> None:
        server.feedback_answers = [grpc.StatusCode.INVALID_ARGUMENT]
        uploader.offer(event(0))
        assert uploader.flush(30)
        uploader.offer(event(1))
        assert uploader.flush(30)
        assert (uploader.rejected, uploader.accepted) == (1, 1)
        assert isinstance(uploader.last_error, ServerError)

    def test_a_whole_session_reports(
        self,
        server: LocalServer,
        uploader: FeedbackUploader,
        published: Callable[[str], InstalledModel],
        clock: FakeClock,
    ) -> None:
        session = EdgeSession(5, published("kir-a"), uploader=uploader, clock=clock, session_id=77)
        session.start()
        session.on_page(page_bytes(range(101, 105)))
        choices = []
        for _ in range(3):
            choices.append(session.next())
            clock.advance(2_000)
            session.feedback(Feedback(choices[-1].video_id, 1_800, {"like": False, "click": True}, has_next=True))
        session.feedback(Feedback(choices[0].video_id, signals={"like": True}))
        session.close()
        assert set(server.events) == {(77, 0, 0), (77, 1, 0), (77, 2, 0), (77, 0, 1)}
        first, amended = server.events[77, 0, 0], server.events[77, 0, 1]
        assert (first.like, amended.like) == (False, True)
        # The last revision stands for all: what an amendment does not tell is still there.
        assert (amended.play_time_ms, amended.click, amended.has_next) == (1_800, True, True)
        assert first.video_id == amended.video_id == choices[0].video_id
        assert first.known_at_ms == first.time_ms + 2_000
        assert list(first.remaining) == list(choices[0].remaining)


class TestQueue:
    def test_an_error_that_no_one_thought_of_ends_nothing(self) -> None:
        sink = Sink()
        sink.errors = [ValueError("Cannot invoke RPC on closed channel!")]
        uploader = FeedbackUploader(sink, retry=FAST)
        uploader.offer(event(1))
        assert uploader.flush(30)
        assert sink.batches == [[1]]
        assert "closed channel" in str(uploader.last_error)
        assert uploader.close(5)

    def test_order_and_batches(self) -> None:
        sink = Sink()
        sink.gate.clear()
        uploader = FeedbackUploader(sink, batch=3, retry=FAST)
        uploader.offer(event(0))
        assert sink.entered.wait(30)
        for seq in range(1, 8):
            uploader.offer(event(seq))
        sink.gate.set()
        assert uploader.close(30)
        assert sink.batches == [[0], [1, 2, 3], [4, 5, 6], [7]]

    def test_a_full_queue_drops_the_oldest(self) -> None:
        sink = Sink()
        sink.gate.clear()
        uploader = FeedbackUploader(sink, capacity=3, retry=FAST)
        uploader.offer(event(0))
        assert sink.entered.wait(30)
        for seq in range(1, 6):
            uploader.offer(event(seq))
        assert (len(uploader), uploader.dropped) == (3, 3)
        sink.gate.set()
        assert uploader.close(30)
        assert sink.batches == [[0], [3, 4, 5]]

    def test_closing_without_a_server_ends(self) -> None:
        sink = Sink()
        sink.errors = [ServerUnavailable("gone")] * 10_000
        uploader = FeedbackUploader(sink, retry=FAST)
        uploader.offer(event(0))
        assert not uploader.close(0.2)
        assert len(uploader) == 1
        uploader.offer(event(1))
        assert (len(uploader), uploader.dropped) == (1, 1)

    def test_closing_an_idle_uploader(self) -> None:
        assert FeedbackUploader(Sink()).close(1)

    @pytest.mark.parametrize("values", [{"capacity": 0}, {"batch": 0}])
    def test_limits_are_checked(self, values: dict[str, int]) -> None:
        with pytest.raises(InputError):
            FeedbackUploader(Sink(), **values)  # type: ignore[arg-type]

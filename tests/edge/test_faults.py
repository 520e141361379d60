"""A page server that fails in every way that we know, over real sockets. The phone's promise in each: swipes go on, one
clear error stands in `last_error`, the pool is as it was, and the next good page is taken.
"""

from __future__ import annotations

import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from contract.errors import KirError, PageError, PoolExhausted, ServerError, ServerUnavailable
from contract.page import CANDIDATES_MAX, PAGE_BYTES_MAX, encode_page, parse_page
from contract.v1 import feedback_pb2, page_pb2
from edge import (
    Chooser,
    EdgeSession,
    Engine,
    FakeClock,
    Feedback,
    FeedbackClient,
    FeedbackUploader,
    PageClient,
    PoolConfig,
    Retry,
    SessionConfig,
)
from tests.edge.faulty_server import FaultyServer, socket_that
from tests.edge.tiny_page import make_page, page_bytes, page_of_many

ONE_TRY = Retry(attempts=1, backoff_s=0.01)
WAIT_S = 30.0
FIRST = range(101, 107)


def answered(page: page_pb2.Page) -> bytes:
    return page_pb2.GetPageResponse(page=page).SerializeToString()


def good(first: int, n: int = 6) -> bytes:
    return answered(encode_page(make_page(range(first, first + n), page_id=f"page-{first}")))


def spoilt(change: Callable[[page_pb2.Page], object], **page: Any) -> bytes:
    """A page of videos 201 … that one change makes wrong."""
    message = encode_page(make_page(range(201, 205), page_id="spoilt", **page))
    change(message)
    return answered(message)


def with_pxtr(value: float) -> bytes:
    def change(message: page_pb2.Page) -> None:
        pxtr = np.frombuffer(message.candidates.pxtr, "<f4").copy()
        pxtr[0] = value
        message.candidates.pxtr = pxtr.tobytes()

    return spoilt(change)


def with_scale(value: float) -> bytes:
    def change(message: page_pb2.Page) -> None:
        scales = np.frombuffer(message.row_tables[0].scales, "<f2").copy()
        scales[0] = value
        message.row_tables[0].scales = scales.tobytes()

    return spoilt(change)


def with_values(value: float) -> bytes:
    def change(message: page_pb2.Page) -> None:
        table = message.row_tables[0]
        table.values = np.full(len(table.values) // 4, value, "<f4").tobytes()

    return spoilt(change, encoding="float32")


def index_of(message: page_pb2.Page) -> page_pb2.RowIndex:
    """The first of the candidates' indexes."""
    return next(index for index in message.row_indexes if index.owner == page_pb2.ROW_OWNER_CANDIDATE)


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    made = FaultyServer(answers=[good(101)])
    made.start()
    yield made
    made.stop()


class Phone:
    """A session with real clients; its clock moves when told to."""

    def __init__(self, engine: Engine, target: str, deadline_s: float = 20.0):
        self.clock = FakeClock()
        self.pages = PageClient(target, deadline_s=deadline_s, retry=ONE_TRY)
        self.sink = FeedbackClient(target, deadline_s=deadline_s)
        self.uploader = FeedbackUploader(self.sink, retry=ONE_TRY)
        settings = SessionConfig(pool=PoolConfig(prefetch_below=100), retry_ms=1_000)
        self.session = EdgeSession(
            5, engine, self.pages, self.uploader, clock=self.clock, config=settings, session_id=77
        )
        assert self.session.start() == ""

    def swipe(self) -> Any:
        """Next, feedback, and what need not be waited for; two seconds later."""
        choice = self.session.next()
        self.session.feedback(Feedback(choice.video_id, 1_900, {"like": True}))
        self.clock.advance(2_000)
        return choice

    def ask(self) -> None:
        """Let the session ask for a page, and take in what comes of it."""
        self.session.maintain()
        assert self.session.wait_page(WAIT_S)

    def held(self) -> list[int]:
        return [page.video_ids[i] for page in self.session.pool.pages for i in page.remaining]

    def close(self) -> None:
        self.session.close()
        self.pages.close()
        self.sink.close()


Start = Callable[..., Phone]


@pytest.fixture
def start(engine: Engine) -> Iterator[Start]:
    """Phones on a server; closed at the end of the test."""
    started: list[Phone] = []

    def make(target: str, **deadline: float) -> Phone:
        started.append(Phone(engine, target, **deadline))
        return started[-1]

    yield make
    for phone in started:
        phone.uploader.close(0.1)
        phone.close()


def goes_on(phone: Phone, error: type[KirError], words: str) -> None:
    """Ask while the server is at fault, then swipe all that is left of the first page."""
    before = phone.held()
    phone.ask()
    found = phone.session.last_error
    assert type(found) is error
    assert words in str(found)
    assert len(str(found)) < 900
    assert "\n" not in str(found)
    assert phone.held() == before
    choices = [phone.swipe() for _ in before]
    assert sorted(choice.video_id for choice in choices) == sorted(before)
    assert {choice.chooser for choice in choices} == {Chooser.MODEL}
    with pytest.raises(PoolExhausted):
        phone.session.next()


def takes_the_next(phone: Phone, server: FaultyServer) -> None:
    """The server is well again: its page is taken, and the model chooses from it."""
    if not phone.session.wait_page(WAIT_S):
        phone.ask()
    phone.clock.advance(1_000)
    server.answers, server.page = [], good(301)
    if not phone.held():
        phone.ask()
    choice = phone.swipe()
    assert (choice.page_id, choice.chooser) == ("page-301", Chooser.MODEL)


HUGE = 50 * 2**20
HOSTILE_PAGES: dict[str, tuple[Callable[[], bytes], str]] = {
    "NaN as a pXTR": (lambda: with_pxtr(float("nan")), "probabilities"),
    "an infinite pXTR": (lambda: with_pxtr(float("inf")), "probabilities"),
    "an infinite scale": (lambda: with_scale(float("inf")), "scales"),
    "a scale that is no number": (lambda: with_scale(float("nan")), "scales"),
    "rows that are no numbers": (lambda: with_values(float("nan")), "non-finite"),
    "rows beyond all reason": (lambda: with_values(3e38), "too large"),
    "a negative age": (lambda: spoilt(lambda m: m.candidates.upload_age_days.__setitem__(0, -5)), "upload_age_days"),
    "a duration that is negative as int32": (
        lambda: spoilt(lambda m: m.candidates.duration_ms.__setitem__(0, 2**32 - 5_000)),
        "duration_ms",
    ),
    "tag counts that do not sum up": (
        lambda: spoilt(lambda m: m.candidates.tag_counts.__setitem__(0, 3)),
        "counts of 'tags'",
    ),
    "a row past its table": (lambda: spoilt(lambda m: index_of(m).rows.__setitem__(0, 9_999)), "row out of range"),
    "an index of another length": (lambda: spoilt(lambda m: index_of(m).rows.append(0)), "number of entries"),
    "an index into no table": (lambda: spoilt(lambda m: setattr(index_of(m), "table", "none")), "absent table"),
    "an id twice": (
        lambda: spoilt(lambda m: m.candidates.video_ids.__setitem__(1, m.candidates.video_ids[0])),
        "duplicate",
    ),
    "zero candidates": (lambda: spoilt(lambda m: m.candidates.Clear()), "number of candidates"),
    "a page that is empty": (lambda: answered(page_pb2.Page()), "rows_status"),
    "a revision past int64": (lambda: spoilt(lambda m: setattr(m, "rows_revision", 2**63)), "rows_revision"),
    "a version of a megabyte": (lambda: spoilt(lambda m: setattr(m, "dense_version", "v" * 2**20)), "dense_version"),
    "a page id of a megabyte": (lambda: spoilt(lambda m: setattr(m, "page_id", "p" * 2**20)), "page_id"),
}


@pytest.mark.parametrize("what", HOSTILE_PAGES)
def test_a_hostile_page_costs_no_swipe(server: FaultyServer, start: Start, what: str) -> None:
    make, words = HOSTILE_PAGES[what]
    phone = start(server.target)
    phone.session.fetch_page()
    server.page = make()
    goes_on(phone, PageError, words)
    takes_the_next(phone, server)


REFUSAL = page_pb2.GetPageResponse(refusal=page_pb2.PageRefusal(message="newer than you"))
REFUSAL.refusal.reason = 99  # type: ignore[assignment]
FAULTS: dict[str, tuple[Any, type[KirError], str]] = {
    "garbage": (b"\xff\xfe\x00garbage" * 40, ServerError, "INTERNAL"),
    "nothing at all": (b"", ServerError, "refused"),
    "a page cut in the middle": (good(201)[:-7], ServerError, "INTERNAL"),
    "a refusal that only a newer phone knows": (REFUSAL.SerializeToString(), ServerError, "99: newer than you"),
    "a page of 50 MB": (b"\x00" * HUGE, ServerUnavailable, "larger than max"),
    "an error of its own": (grpc.StatusCode.INTERNAL, ServerError, "INTERNAL"),
}


@pytest.mark.parametrize("what", FAULTS)
def test_a_faulty_answer_costs_no_swipe(server: FaultyServer, start: Start, what: str) -> None:
    phone = start(server.target)
    phone.session.fetch_page()
    server.page, error, words = FAULTS[what]
    goes_on(phone, error, words)
    takes_the_next(phone, server)


def test_a_server_that_is_too_slow_costs_no_swipe(server: FaultyServer, start: Start) -> None:
    phone, release = start(server.target, deadline_s=0.3), threading.Event()
    phone.session.on_page(page_bytes(FIRST))
    server.page, server.answers = lambda request: good(201) if release.wait(WAIT_S) else b"", []
    goes_on(phone, ServerUnavailable, "DEADLINE_EXCEEDED")
    release.set()


@pytest.mark.parametrize(
    "says", [None, b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00" * 4096], ids=["silence", "http", "0"]
)
def test_a_port_where_no_page_server_listens(start: Start, says: bytes | None) -> None:
    with socket_that(says) as target:
        phone = start(target, deadline_s=0.3)
        phone.session.on_page(page_bytes(FIRST))
        goes_on(phone, ServerUnavailable, target)


def test_a_server_that_was_never_there(server: FaultyServer, start: Start) -> None:
    """Nothing to show then, and that is told as such; when it comes up on that port the phone finds it."""
    server.stop()
    phone = start(server.target)
    with pytest.raises(PoolExhausted):
        phone.session.next()
    assert phone.session.wait_page(WAIT_S)
    assert isinstance(phone.session.last_error, ServerUnavailable)
    server.start()
    deadline = time.monotonic() + WAIT_S
    while not phone.held() and time.monotonic() < deadline:  # gRPC tries to connect at times of its own
        phone.clock.advance(1_000)
        phone.ask()
    assert phone.swipe().page_id == "page-101"


def test_a_server_that_dies_with_a_request_in_its_hands_and_comes_back(server: FaultyServer, start: Start) -> None:
    phone = start(server.target)
    phone.session.fetch_page()
    asked, release = threading.Event(), threading.Event()

    def hold(request: page_pb2.GetPageRequest) -> bytes:
        asked.set()
        release.wait(WAIT_S)
        return good(201)

    server.page = hold
    phone.session.maintain()
    assert asked.wait(WAIT_S)
    server.stop()
    release.set()
    assert phone.session.wait_page(WAIT_S)
    assert isinstance(phone.session.last_error, ServerUnavailable)
    assert [phone.swipe().chooser for _ in FIRST] == [Chooser.MODEL] * 6
    server.page = good(301)
    server.start()
    deadline = time.monotonic() + WAIT_S
    while not phone.held() and time.monotonic() < deadline:
        phone.clock.advance(1_000)
        phone.ask()
    assert phone.swipe().page_id == "page-301"
    assert phone.uploader.flush(WAIT_S)  # feedback of the time without a server arrived as well
    told = {
        event.video_id for raw in server.batches for event in feedback_pb2.ReportFeedbackRequest.FromString(raw).events
    }
    assert told == {*FIRST, *(v for v in told if v > 300)}


def test_an_answer_that_comes_after_the_session_was_closed(server: FaultyServer, start: Start) -> None:
    phone = start(server.target)
    phone.session.fetch_page()
    release = threading.Event()
    server.page = lambda request: good(201) if release.wait(WAIT_S) else b""
    phone.session.maintain()
    held = phone.held()
    prefetcher = phone.session._intake._prefetcher
    assert prefetcher is not None
    prefetcher.close(0.05)
    phone.session.close()
    release.set()
    assert phone.held() == held
    assert phone.swipe().video_id in held  # an app that swipes on is served from the pool
    phone.session.maintain()
    assert not phone.session.wait_page(0.05)
    assert len(server.requests) == 2


def test_a_closed_session_with_nothing_left_says_so(server: FaultyServer, start: Start) -> None:
    phone = start(server.target)
    phone.session.close()
    with pytest.raises(PoolExhausted):
        phone.session.next()


@pytest.mark.parametrize(
    "answer", [b"\xff" * 50, b"\x00" * HUGE, grpc.StatusCode.UNAVAILABLE], ids=["garbage", "huge", "down"]
)
def test_feedback_goes_on_whatever_its_server_answers(server: FaultyServer, start: Start, answer: Any) -> None:
    phone = start(server.target)
    phone.session.fetch_page()
    server.feedback = answer
    choices = [phone.swipe() for _ in range(3)]
    assert {choice.chooser for choice in choices} == {Chooser.MODEL}
    deadline = time.monotonic() + WAIT_S
    while phone.uploader.last_error is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert isinstance(phone.uploader.last_error, ServerError)
    server.feedback = feedback_pb2.ReportFeedbackResponse(accepted=1).SerializeToString()
    phone.swipe()
    assert phone.uploader.flush(WAIT_S)  # the thread lives and sends


class TestPagesThatAreWhole:
    """Odd, and nothing wrong with them as pages."""

    def test_ten_thousand_candidates(self, server: FaultyServer, start: Start) -> None:
        """The model takes its largest bucket in the server's order; memory stays within a multiple of the bytes."""
        raw = page_of_many(CANDIDATES_MAX).SerializeToString()
        tracemalloc.start()
        parse_page(raw)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(raw) < PAGE_BYTES_MAX
        assert peak < 32 * 2**20 + 16 * len(raw)
        server.answers = [answered(page_pb2.Page.FromString(raw))]
        phone = start(server.target)
        assert phone.session.fetch_page().added == 8
        assert phone.swipe().chooser is Chooser.MODEL

    def test_ten_thousand_candidates_without_rows(self, server: FaultyServer, start: Start) -> None:
        server.answers = [
            answered(encode_page(make_page(range(1_000, 1_000 + CANDIDATES_MAX), status="no_live_version")))
        ]
        phone = start(server.target)
        assert phone.session.fetch_page().reason == "rows_status:no_live_version"
        assert phone.held() == list(range(1_000, 1_000 + phone.session.config.pool.max_candidates))
        assert phone.swipe().candidate_index == 0

    def test_one_more_is_refused(self, server: FaultyServer, start: Start) -> None:
        many = encode_page(make_page(range(1_000, 1_001 + CANDIDATES_MAX), status="no_live_version"))
        server.answers = [answered(many)]
        phone = start(server.target)
        with pytest.raises(PageError, match="number of candidates"):
            phone.session.fetch_page()

    @pytest.mark.parametrize(
        ("page", "reason"),
        [
            ({"version": "kir-b"}, "version_mismatch"),
            ({"spec_fingerprint": "0123456789abcdef"}, "spec_mismatch"),
        ],
        ids=["model", "spec"],
    )
    def test_a_page_of_another_model_or_spec_keeps_the_servers_order(
        self, server: FaultyServer, start: Start, page: dict[str, Any], reason: str
    ) -> None:
        server.answers = [answered(encode_page(make_page(range(201, 205), page_id="other", **page)))]
        phone = start(server.target)
        assert phone.session.fetch_page().reason == reason
        choices = [phone.swipe() for _ in range(4)]
        assert [choice.video_id for choice in choices] == [201, 202, 203, 204]
        assert {(choice.chooser, choice.reason) for choice in choices} == {(Chooser.SERVER_ORDER, reason)}

    def test_a_page_made_for_another_users_list_brings_no_watched_rows(
        self, server: FaultyServer, start: Start
    ) -> None:
        """A page does not say whose it is. What shows is that its watched rows are not those that were asked for."""
        server.answers = [
            answered(encode_page(make_page(FIRST, "kir-pxtr", status="no_live_version"))),
            answered(encode_page(make_page(range(201, 205), "kir-a", [901, 902, 903], user_id=6))),
        ]
        phone = start(server.target)
        phone.session.fetch_page()
        phone.swipe()
        report = phone.session.fetch_page()
        assert (report.reason, report.default_rows > 0) == ("", True)
        assert phone.swipe().chooser is Chooser.MODEL

    def test_a_server_with_nothing_new_is_not_asked_in_a_loop(self, server: FaultyServer, start: Start) -> None:
        server.page = good(101)
        phone = start(server.target)
        phone.session.fetch_page()
        shown = [phone.swipe() for _ in FIRST]
        assert len({choice.video_id for choice in shown}) == 6
        server.requests.clear()
        for _ in range(20):
            with pytest.raises(PoolExhausted):
                phone.session.next()
            phone.session.wait_page(WAIT_S)
        assert len(server.requests) == 1


class TestClock:
    @pytest.mark.parametrize("jump_ms", [-365 * 86_400_000, 86_400_000], ids=["a year back", "a day on"])
    def test_the_date_changes_in_mid_session(self, server: FaultyServer, start: Start, jump_ms: int) -> None:
        """Pages stay as fresh as they are, gaps between videos are what they were, and events tell one time."""
        server.answers, server.page = [good(101), good(201)], good(301)
        server.feedback = feedback_pb2.ReportFeedbackResponse(accepted=1).SerializeToString()
        phone = start(server.target)
        phone.session.fetch_page()
        shown = [phone.swipe() for _ in range(2)]
        phone.clock.set_wall(phone.clock.wall_ms() + jump_ms)
        assert phone.session.pool.pages[0].soft_expired(phone.clock.monotonic_ms()) is False
        phone.ask()
        shown += [phone.swipe() for _ in range(4)]
        assert {choice.chooser for choice in shown} == {Chooser.MODEL}
        assert phone.uploader.flush(WAIT_S)
        events = [
            event for raw in server.batches for event in feedback_pb2.ReportFeedbackRequest.FromString(raw).events
        ]
        times = [event.time_ms for event in sorted(events, key=lambda event: event.seq)]
        assert np.diff(times).tolist() == [2_000] * 5
        assert server.requests[-1].client_time_ms - server.requests[0].client_time_ms == jump_ms + 4_000
        gaps = phone.session._history.watched.columns(2)["gap_ms"]
        assert gaps.tolist() == [2_000] * 5

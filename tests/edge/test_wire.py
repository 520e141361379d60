"""What leaves the phone: the wire messages against the tags of contract.events, and null against zero."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contract.events import COLUMN, EVENT_COLUMNS, REQUEST_COLUMNS
from contract.v1 import feedback_pb2, page_pb2
from contract.vocabulary import DECODERS, NETWORKS, SIGNALS
from edge import (
    Choice,
    Chooser,
    DeviceState,
    EdgeSession,
    FakeClock,
    Feedback,
    FeedbackUploader,
    InstalledModel,
    Outcome,
    PageRequest,
    SessionConfig,
)
from edge._wire import Impression, WatchedEntry, feedback_event
from tests.edge.tiny_page import page_bytes

WIRE_FIELDS = {field.name for field in feedback_pb2.FeedbackEvent.DESCRIPTOR.fields}
OPT_IN = {column.name for column in EVENT_COLUMNS if column.leaves_device == "opt_in"}

CHOICE = Choice(
    video_id=101,
    page_id="p",
    candidate_index=3,
    chooser=Chooser.MODEL,
    reason="",
    position=4,
    considered=[101, 102],
    remaining=[1, 2],
    dense_version="kir-a",
    variant="int8",
    rows_revision=7,
)
EVERYTHING = Feedback(101, 900, dict.fromkeys(SIGNALS, True), True, profile_stay_ms=11, comment_stay_ms=12)
LOUD = DeviceState(network=6, decoder=1, buffered_ms={101: 3000}, volume=0.5, landscape=True)


def message(
    choice: Choice = CHOICE, feedback: Feedback = EVERYTHING, device: DeviceState = LOUD, opted_in: bool = False
) -> feedback_pb2.FeedbackEvent:
    return feedback_event(Impression(5, 9, choice, 1000, device), feedback, 2, 2000, opted_in)


class TestTags:
    def test_every_wire_field_may_leave(self) -> None:
        assert set(COLUMN) >= WIRE_FIELDS
        assert {name for name in WIRE_FIELDS if COLUMN[name].leaves_device == "never"} == set()

    def test_everything_that_may_leave_has_a_field(self) -> None:
        assert {c.name for c in EVENT_COLUMNS if c.leaves_device != "never"} == WIRE_FIELDS

    def test_opt_in_fields_stay_without_leave(self) -> None:
        assert {field.name for field, _ in message().ListFields()} & OPT_IN == set()

    def test_opt_in_fields_leave_with_it(self) -> None:
        sent = {field.name for field, _ in message(opted_in=True).ListFields()}
        assert sent >= OPT_IN == {"profile_stay_ms", "comment_stay_ms", "volume", "landscape"}

    def test_a_full_message_fills_every_field_that_always_leaves(self) -> None:
        always = {c.name for c in EVENT_COLUMNS if c.leaves_device == "always"}
        sent = {field.name for field, _ in message().ListFields()}
        assert always - sent == {"fallback_reason"}  # empty when the model chose

    @pytest.mark.parametrize("opted_in", [False, True])
    def test_a_session_keeps_to_the_users_word(
        self, opted_in: bool, published: Callable[[str], InstalledModel], clock: FakeClock
    ) -> None:
        sent: list[feedback_pb2.FeedbackEvent] = []

        class Sink:
            def report(self, events: list[Any]) -> feedback_pb2.ReportFeedbackResponse:
                sent.extend(events)
                return feedback_pb2.ReportFeedbackResponse(accepted=len(events))

        config = SessionConfig(opted_in=opted_in)
        session = EdgeSession(5, published("kir-a"), uploader=FeedbackUploader(Sink()), clock=clock, config=config)
        session.start()
        session.on_page(page_bytes([101, 102]))
        choice = session.next(DeviceState(volume=0.3, landscape=False))
        session.feedback(Feedback(choice.video_id, 1000, profile_stay_ms=5))
        session.close()
        (event,) = sent
        told = {field.name for field, _ in event.ListFields()} & OPT_IN
        assert told == ({"volume", "landscape", "profile_stay_ms"} if opted_in else set())


class TestNulls:
    def test_what_was_not_observed_is_absent(self) -> None:
        event = message(feedback=Feedback(101), device=DeviceState())
        for name in ("play_time_ms", "has_next", "buffered_ms", *SIGNALS):
            assert not event.HasField(name), name

    def test_zero_and_no_are_told(self) -> None:
        event = message(
            feedback=Feedback(101, 0, dict.fromkeys(SIGNALS, False), False), device=DeviceState(buffered_ms={101: 0})
        )
        for name in ("play_time_ms", "has_next", "buffered_ms", *SIGNALS):
            assert event.HasField(name), name
            assert not getattr(event, name)

    def test_the_key_and_the_times(self) -> None:
        event = message()
        assert (event.session_id, event.seq, event.revision) == (9, 4, 2)
        assert (event.time_ms, event.known_at_ms) == (1000, 2000)
        assert (event.propensity, event.chooser) == (1.0, feedback_pb2.CHOOSER_KIND_MODEL)

    def test_a_fallback_says_why(self, clock: FakeClock) -> None:
        session = EdgeSession(5, clock=clock)
        session.start()
        session.on_page(page_bytes([101, 102]))
        choice = session.next()
        event = message(choice)
        assert (event.chooser, event.fallback_reason) == (feedback_pb2.CHOOSER_KIND_SERVER_ORDER, "no_model")
        assert (event.dense_version, event.variant, event.rows_revision) == ("", "", 0)

    def test_a_stale_revision_reports_only_itself(
        self, published: Callable[[str], InstalledModel], clock: FakeClock
    ) -> None:
        sent: list[feedback_pb2.FeedbackEvent] = []

        class Sink:
            def report(self, events: list[Any]) -> feedback_pb2.ReportFeedbackResponse:
                sent.extend(events)
                return feedback_pb2.ReportFeedbackResponse(accepted=len(events))

        session = EdgeSession(5, published("kir-a"), uploader=FeedbackUploader(Sink()), clock=clock)
        session.start()
        session.on_page(page_bytes([101, 102]))
        video_id = session.next().video_id
        session.feedback(Feedback(video_id, 1000, {"like": True}, revision=2))
        assert session.feedback(Feedback(video_id, 500, {"like": False}, revision=1)) is Outcome.STALE
        session.close()
        newer, older = sent
        assert (newer.revision, newer.like, newer.play_time_ms) == (2, True, 1000)
        assert (older.revision, older.like, older.play_time_ms) == (1, False, 500)


class TestRequestTags:
    MESSAGES = {  # noqa: RUF012
        kind.DESCRIPTOR.name: kind for kind in (page_pb2.GetPageRequest, page_pb2.HeldModel, page_pb2.WatchedVideo)
    }

    def test_every_field_of_a_page_request_has_a_tag(self) -> None:
        assert REQUEST_COLUMNS.keys() == self.MESSAGES.keys()
        for name, kind in self.MESSAGES.items():
            assert REQUEST_COLUMNS[name].keys() == {field.name for field in kind.DESCRIPTOR.fields}, name

    def test_no_message_is_left_out(self) -> None:
        below = {
            field.message_type.name
            for kind in self.MESSAGES.values()
            for field in kind.DESCRIPTOR.fields
            if field.message_type is not None
        }
        assert below | {"GetPageRequest"} == self.MESSAGES.keys()

    def test_nothing_but_what_always_leaves(self) -> None:
        """A request asks for no leave, so that an opt-in column must not be in it under any name."""
        columns = {column for fields in REQUEST_COLUMNS.values() for column in fields.values() if column}
        assert {COLUMN[column].leaves_device for column in columns} == {"always"}

    @pytest.mark.parametrize("opted_in", [False, True])
    def test_a_session_that_knows_more_tells_no_more(
        self, opted_in: bool, published: Callable[[str], InstalledModel], clock: FakeClock
    ) -> None:
        """All that can be observed was; a watched video is told by its five fields, with the values that were."""
        session = EdgeSession(5, published("kir-a"), clock=clock, config=SessionConfig(opted_in=opted_in), session_id=9)
        session.start()
        session.on_page(page_bytes([101, 102]))
        choice = session.next(LOUD)
        session.feedback(Feedback(choice.video_id, 900, dict.fromkeys(SIGNALS, True), True, 11, 12))
        sent = session.page_request().to_message()
        (video,) = sent.watched
        assert {field.name for field, _ in video.ListFields()} == REQUEST_COLUMNS["WatchedVideo"].keys()
        assert (video.video_id, video.play_time_ms, video.like, video.long_view) == (choice.video_id, 900, True, True)
        assert [field.name for field, _ in sent.held_models[0].ListFields()] == ["dense_version", "spec_fingerprint"]

    def test_what_was_not_observed_of_a_watched_video_is_absent(self) -> None:
        (video,) = PageRequest(5, 9, watched=[WatchedEntry(101)]).to_message().watched
        assert [name for name in ("play_time_ms", "like", "long_view") if video.HasField(name)] == []


def test_the_guide_lists_what_leaves(repository: Path) -> None:
    text = (repository / "docs" / "edge.md").read_text()
    rows = dict(re.findall(r"^\| (page request|feedback event|… opted in) \|[^|]*\| (.*) \|$", text, re.MULTILINE))
    told = {name: set(re.findall(r"`([a-z_]+)`", fields)) for name, fields in rows.items()}
    assert told["page request"] == {name for fields in REQUEST_COLUMNS.values() for name in fields}
    assert told["feedback event"] == WIRE_FIELDS - OPT_IN
    assert told["… opted in"] == OPT_IN


class TestRequest:
    def test_networks_have_one_numbering(self) -> None:
        names = [name.removeprefix("NETWORK_").lower() for name in page_pb2.Network.keys()]  # noqa: SIM118
        assert ["unknown", *names[1:]] == list(NETWORKS)
        assert page_pb2.Network.values() == list(range(len(NETWORKS)))

    def test_decoders_have_one_numbering(self) -> None:
        names = [name.removeprefix("DECODER_").lower() for name in feedback_pb2.Decoder.keys()]  # noqa: SIM118
        assert ["unknown", *names[1:]] == list(DECODERS)
        assert feedback_pb2.Decoder.values() == list(range(len(DECODERS)))

    def test_an_empty_request(self) -> None:
        sent = PageRequest(5, 9).to_message()
        assert (sent.user_id, sent.session_id, sent.row_encoding) == (5, 9, page_pb2.ROW_ENCODING_INT8)
        assert not sent.held_models
        assert not sent.watched

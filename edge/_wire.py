"""What leaves the phone, as messages: the page request and the feedback event.

A field leaves only if `contract.events` lets it: "always", or "opt_in" once the user has opted in; a test compares both
messages with those tags. A page request asks no leave, so that it holds "always" alone: the watched list in it goes out
with every request. A signal that was not observed is an absent field.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from contract.rows import FLOAT16, FLOAT32, INT8
from contract.v1 import feedback_pb2, page_pb2
from contract.vocabulary import SIGNALS
from edge._types import Choice, Chooser, DeviceState, Feedback

_ENCODINGS = {
    INT8: page_pb2.ROW_ENCODING_INT8,
    FLOAT16: page_pb2.ROW_ENCODING_FLOAT16,
    FLOAT32: page_pb2.ROW_ENCODING_FLOAT32,
}
_CHOOSERS = {
    Chooser.MODEL: feedback_pb2.CHOOSER_KIND_MODEL,
    Chooser.SERVER_ORDER: feedback_pb2.CHOOSER_KIND_SERVER_ORDER,
}


@dataclass(frozen=True)
class WatchedEntry:
    """A watched video in a page request; -1 = not observed."""

    video_id: int
    play_time_ms: int = -1
    like: int = -1
    long_view: int = -1
    shown_at_ms: int = -1


@dataclass(frozen=True)
class PageRequest:
    """What the session asks the server for. `watched`, oldest first, is the order of the page's WATCHED rows."""

    user_id: int
    session_id: int
    held_models: Sequence[tuple[str, str]] = ()  # (dense_version, spec_fingerprint), the preferred one first
    watched: Sequence[WatchedEntry] = ()
    exclude_video_ids: Sequence[int] = ()
    page_size: int = 0
    row_encoding: str = INT8
    network: int = 0
    client_time_ms: int = 0

    @property
    def watched_ids(self) -> list[int]:
        return [entry.video_id for entry in self.watched]

    def to_message(self) -> page_pb2.GetPageRequest:
        message = page_pb2.GetPageRequest(
            user_id=self.user_id,
            session_id=self.session_id,
            page_size=self.page_size,
            exclude_video_ids=self.exclude_video_ids,
            row_encoding=_ENCODINGS[self.row_encoding],
            network=self.network,  # type: ignore[arg-type]  # same numbers as vocabulary.NETWORKS, held by a test
            client_time_ms=self.client_time_ms,
        )
        for version, fingerprint in self.held_models:
            message.held_models.add(dense_version=version, spec_fingerprint=fingerprint)
        for entry in self.watched:
            video = message.watched.add(video_id=entry.video_id, shown_at_ms=entry.shown_at_ms)
            if entry.play_time_ms >= 0:
                video.play_time_ms = entry.play_time_ms
            if entry.like >= 0:
                video.like = bool(entry.like)
            if entry.long_view >= 0:
                video.long_view = bool(entry.long_view)
        return message


@dataclass(frozen=True)
class Impression:
    """One shown video as events see it: whose, the choice, when, and the device then."""

    user_id: int
    session_id: int
    choice: Choice
    shown_at_ms: int
    device: DeviceState


def feedback_event(
    shown: Impression,
    feedback: Feedback,
    revision: int,
    known_at_ms: int,
    opted_in: bool,
) -> feedback_pb2.FeedbackEvent:
    """The event of one feedback, which holds everything observed of the impression so far."""
    choice, device = shown.choice, shown.device
    event = feedback_pb2.FeedbackEvent(
        user_id=shown.user_id,
        session_id=shown.session_id,
        seq=choice.position,
        revision=revision,
        page_id=choice.page_id,
        candidate_index=choice.candidate_index,
        video_id=choice.video_id,
        time_ms=shown.shown_at_ms,
        known_at_ms=known_at_ms,
        position=choice.position,
        remaining=choice.remaining,
        chooser=_CHOOSERS[choice.chooser],
        dense_version=choice.dense_version,
        variant=choice.variant,
        fallback_reason=choice.reason,
        propensity=1.0,  # NextOne is deterministic
        play_time_ms=feedback.play_time_ms,
        has_next=feedback.has_next,
        network=device.network,  # type: ignore[arg-type]
        decoder=device.decoder,  # type: ignore[arg-type]
        buffered_ms=device.buffered_ms.get(choice.video_id),
        rows_revision=choice.rows_revision,
        **{name: bool(feedback.signals[name]) for name in SIGNALS if name in feedback.signals},
    )
    if opted_in:
        _set(event, "profile_stay_ms", feedback.profile_stay_ms)
        _set(event, "comment_stay_ms", feedback.comment_stay_ms)
        _set(event, "volume", device.volume)
        _set(event, "landscape", device.landscape)
    return event


def _set(event: feedback_pb2.FeedbackEvent, name: str, value: float | None) -> None:
    if value is not None:
        setattr(event, name, value)

"""A page request, checked: bytes in, plain numbers out, or an InputError that says what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from contract.errors import InputError
from contract.page import ENCODINGS, NAME_MAX, WATCHED_MAX
from contract.rows import INT8
from contract.v1 import page_pb2 as pb
from contract.vocabulary import MISSING_KEY, NULL_INT
from server_stub.histories import Interaction

HELD_MAX, EXCLUDE_MAX = 16, 10_000
DAY_MS = 86_400_000
TIME_MAX_MS = 2**53
_ENCODING_NAMES = {value: name for name, value in ENCODINGS.items()}


@dataclass(frozen=True)
class PageRequest:
    """page_size 0 = the server's default; held: (dense_version, fingerprint), the preferred one first; watched oldest
    first."""

    user_id: int
    session_id: int = 0
    page_size: int = 0
    held: tuple[tuple[str, str], ...] = ()
    watched: tuple[Interaction, ...] = ()
    exclude: tuple[int, ...] = ()
    encoding: str = INT8
    client_time_ms: int = 0


def parse_request(data: bytes, page_size_max: int) -> PageRequest:
    """Raises InputError: not a GetPageRequest, or a value out of range. Unknown enum values count as unspecified."""
    message = pb.GetPageRequest()
    try:
        message.ParseFromString(data)
    except DecodeError:
        raise InputError("bytes are not a kir.v1.GetPageRequest", got=f"{len(data)} bytes") from None
    _limit("user_id", message.user_id != int(MISSING_KEY), "the reserved missing key")
    _limit("page_size", message.page_size <= page_size_max, message.page_size, f"0 … {page_size_max}")
    for name, most in (("held_models", HELD_MAX), ("watched", WATCHED_MAX), ("exclude_video_ids", EXCLUDE_MAX)):
        n = len(getattr(message, name))
        _limit(f"number of {name}", n <= most, n, f"up to {most}")
    for held in message.held_models:
        long = max(len(held.dense_version), len(held.spec_fingerprint))
        _limit(
            "held_models: a name", len(held.dense_version) > 0 and long <= NAME_MAX, long, f"1 … {NAME_MAX} characters"
        )
    exclude = tuple(v for v in message.exclude_video_ids if v != int(MISSING_KEY))
    return PageRequest(
        user_id=message.user_id,
        session_id=message.session_id,
        page_size=message.page_size,
        held=tuple((held.dense_version, held.spec_fingerprint) for held in message.held_models),
        watched=tuple(_watched(video) for video in message.watched),
        exclude=exclude,
        encoding=_ENCODING_NAMES.get(message.row_encoding, INT8),
        client_time_ms=message.client_time_ms if 0 < message.client_time_ms < TIME_MAX_MS else 0,
    )


def _limit(what: str, good: bool, got: Any, allowed: Any = None) -> None:
    if not good:
        raise InputError(f"{what} out of range", got=got, allowed=allowed)


def _watched(video: pb.WatchedVideo) -> Interaction:
    _limit("watched video_id", video.video_id != int(MISSING_KEY), "the reserved missing key")
    play = video.play_time_ms if video.HasField("play_time_ms") else NULL_INT
    _limit("watched play_time_ms", play <= DAY_MS, play, f"up to {DAY_MS}")
    signals = {name: int(getattr(video, name)) for name in ("like", "long_view") if video.HasField(name)}
    shown = video.shown_at_ms if 0 < video.shown_at_ms < TIME_MAX_MS else NULL_INT
    return Interaction(video.video_id, shown, play, signals)


def hour_of(time_ms: int, utc_offset_min: int) -> int:
    """Hour of the user's day, 0..23."""
    return (time_ms + utc_offset_min * 60_000) // 3_600_000 % 24

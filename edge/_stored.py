"""What a state file holds, as bytes and JSON: watched tokens, impressions with their feedback, ids.

A token is a record of the columns of `contract.watched`, little-endian; the layout is part of what a file must have
been made for, so a file with other columns is set aside. Decoding raises one of UNREADABLE for what was not
written here, and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.errors import KirError
from contract.keys import key_of_string
from contract.page import ROW_ABS_MAX
from contract.vocabulary import SIGNALS
from contract.watched import WATCHED_COLUMNS
from edge._history import Shown
from edge._types import Choice, Chooser, DeviceState, Feedback
from edge._wire import Impression

Floats = NDArray[np.float32]
UNREADABLE = (KirError, ValueError, LookupError, TypeError, OverflowError, AttributeError, RecursionError)
_TOKEN = np.dtype(
    [(name, np.dtype(kind).newbyteorder("<"), shape) for name, (kind, shape, _) in WATCHED_COLUMNS.items()]
)
_ITEM = ("video_id", "author_id", "tags", "duration_ms", "pxtr", "number", "volume", "landscape")
_STAYS = ("profile_stay_ms", "comment_stay_ms")


def layout() -> str:
    """What the tokens' bytes depend on: column names, types and shapes, and the order of the signals."""
    return f"{key_of_string(repr((_TOKEN.descr, SIGNALS))):016x}"


def signed(key: int) -> int:
    """A 64-bit key as SQLite holds integers; `unsigned` is the way back."""
    return key - 2**64 if key >= 2**63 else key


def unsigned(key: int) -> int:
    return key % 2**64


def records_of(columns: Mapping[str, NDArray[Any]]) -> NDArray[np.uint8]:
    """The tokens of a watched list's columns [n, …], as bytes: uint8 [n, bytes of a token]."""
    records = np.empty(len(columns["video_id"]), _TOKEN)
    for name in WATCHED_COLUMNS:
        records[name] = columns[name]
    return records.view(np.uint8).reshape(len(records), _TOKEN.itemsize)


def columns_of(tokens: Sequence[bytes]) -> dict[str, NDArray[Any]]:
    """The columns again, each [n, …]. Raises ValueError for records of another size or values out of range, TypeError
    for what is no bytes."""
    if any(len(token) != _TOKEN.itemsize for token in tokens):
        raise ValueError("a watched token of another size")
    records = np.frombuffer(b"".join(tokens), _TOKEN)
    if (~((records["pxtr"] >= 0) & (records["pxtr"] <= 1)) & ~np.isnan(records["pxtr"])).any():
        raise ValueError("pXTR are probabilities")
    return {name: records[name].astype(kind) for name, (kind, _, _) in WATCHED_COLUMNS.items()}


def bytes_of(row_R: Floats | None) -> bytes | None:
    return None if row_R is None else row_R.astype("<f4").tobytes()


def row_of(data: bytes | None) -> Floats | None:
    """A sparse row; None when there is none, or it holds what no page may bring: the default row stands in then."""
    row_R = None if data is None else np.frombuffer(data, "<f4").astype(np.float32)
    return row_R if row_R is not None and (np.abs(row_R) <= ROW_ABS_MAX).all() else None  # false for what is no number


def revision_of(value: Any) -> int:
    """A rows_revision as it was stored, from -1. Raises ValueError out of range."""
    return _count(value + 1, 2**63) - 1


def item_bytes(item: Mapping[str, Any]) -> bytes:
    """The columns that a candidate brings into the watched list, as a token without feedback."""
    record = np.zeros(1, _TOKEN)
    for name, (_, _, null) in WATCHED_COLUMNS.items():
        record[name] = item.get(name, null)
    return record.tobytes()


def impression_text(shown: Shown) -> str:
    """What an event tells of an impression, and what its row belongs to."""
    impression, choice, device = shown.impression, shown.impression.choice, shown.impression.device
    return _dump(
        {
            "session_id": impression.session_id,
            "shown_at_ms": impression.shown_at_ms,
            "page_id": choice.page_id,
            "candidate_index": choice.candidate_index,
            "chooser": choice.chooser.value,
            "reason": choice.reason,
            "position": choice.position,
            "remaining": list(choice.remaining),
            "dense_version": choice.dense_version,
            "variant": choice.variant,
            "rows_revision": choice.rows_revision,
            "network": device.network,
            "decoder": device.decoder,
            "buffered_ms": device.buffered_ms.get(choice.video_id),
            "volume": device.volume,
            "landscape": device.landscape,
            "row_version": shown.dense_version,
            "row_revision": shown.rows_revision,
        }
    )


def feedback_text(shown: Shown) -> str:
    """All that was observed of an impression so far; "" before the first feedback."""
    if shown.revision < 0:
        return ""
    names = ("signals", "play_time_ms", "has_next", *_STAYS, "revision", "told_at")
    return _dump({name: getattr(shown, name) for name in names})


def impressions_of(user_id: int, stored: Sequence[tuple[bytes, bytes | None, str, str]]) -> list[Shown]:
    """Impressions again, ready for late feedback: item, row, impression and feedback of each."""
    columns = columns_of([item for item, *_ in stored])  # all at once: a start has no time to spare
    items = zip(*(columns[name] for name in _ITEM), strict=True)
    return [
        _shown_of(user_id, dict(zip(_ITEM, values, strict=True)), row, impression, feedback)
        for values, (_, row, impression, feedback) in zip(items, stored, strict=True)
    ]


def _shown_of(user_id: int, values: dict[str, Any], row: bytes | None, impression: str, feedback: str) -> Shown:
    told = json.loads(impression)
    video_id = int(values["video_id"])
    choice = Choice(
        video_id=video_id,
        page_id=_text(told["page_id"]),
        candidate_index=_count(told["candidate_index"]),
        chooser=Chooser(told["chooser"]),
        reason=_text(told["reason"]),
        position=_count(told["position"]),
        considered=(),
        remaining=tuple(_count(index) for index in told["remaining"]),
        dense_version=_text(told["dense_version"]),
        variant=_text(told["variant"]),
        rows_revision=_count(told["rows_revision"], 2**64),
    )
    buffered_ms = {} if told["buffered_ms"] is None else {video_id: _count(told["buffered_ms"])}
    volume = None if told["volume"] is None else float(told["volume"])
    device = DeviceState(int(told["network"]), int(told["decoder"]), buffered_ms, volume, _flag(told["landscape"]))
    session_id, shown_at_ms = _count(told["session_id"], 2**64), _count(told["shown_at_ms"], 2**63)
    shown = Shown(
        Impression(user_id, session_id, choice, shown_at_ms, device),
        values,
        row_of(row),
        str(told["row_version"]),
        revision_of(told["row_revision"]),
    )
    if feedback:
        seen = json.loads(feedback)
        play_time_ms = None if seen["play_time_ms"] < 0 else _count(seen["play_time_ms"], 2**31)
        stays = {name: None if seen[name] is None else _count(seen[name], 2**31) for name in _STAYS}
        signals = {str(name): bool(value) for name, value in seen["signals"].items()}
        shown.revision = _count(seen["revision"], 2**31)
        shown.merge(Feedback(video_id, play_time_ms, signals, _flag(seen["has_next"]), **stays), shown.revision)
        shown.told_at |= {name: _count(seen["told_at"][name], 2**31) for name in shown.told_at}
    return shown


def _count(value: Any, end: int = 2**32) -> int:
    number = int(value)
    if not 0 <= number < end:
        raise ValueError(f"out of range: {number}")
    return number


def _text(value: Any) -> str:
    text = str(value)
    text.encode()  # half a surrogate pair would fail in a message, at a feedback
    return text


def _flag(value: Any) -> bool | None:
    return None if value is None else bool(value)


def _dump(values: Mapping[str, Any]) -> str:
    return json.dumps(values, separators=(",", ":"), default=_plain)


def _plain(value: Any) -> Any:
    """numpy scalars, which an app may well hand in."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"not a value of a state file: {value!r}")

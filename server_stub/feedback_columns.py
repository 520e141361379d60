"""One wire event -> one row of the event schema, checked and joined with the page it came from."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from contract.catalogue import Catalogue
from contract.events import EVENT_COLUMNS, Events, null_column
from contract.page import CANDIDATES_MAX
from contract.v1 import feedback_pb2 as pb
from contract.vocabulary import DECODERS, MISSING_KEY, NETWORKS, NULL_INT, SIGNALS
from server_stub.histories import JOINED, item_columns
from server_stub.page_log import SentPage
from server_stub.page_request import TIME_MAX_MS

CHOOSERS = {
    pb.CHOOSER_KIND_MODEL: "model",
    pb.CHOOSER_KIND_SERVER_ORDER: "server_order",
    pb.CHOOSER_KIND_RANDOM: "random",
}
_COUNTS = ("seq", "revision", "candidate_index", "position")
_OPTIONAL_COUNTS = ("play_time_ms", "profile_stay_ms", "comment_stay_ms", "buffered_ms")
_TEXTS = ("page_id", "dense_version", "variant", "fallback_reason")
_FLAGS = (*SIGNALS, "has_next", "landscape")
TEXT_MAX = 128

Row = dict[str, Any]


def why_refused(event: pb.FeedbackEvent, sent: SentPage | None) -> str:
    """The first reason why this event can't be kept, "" when it can."""
    for name, missing in (("user_id", {int(MISSING_KEY)}), ("video_id", {int(MISSING_KEY)})):
        if getattr(event, name) in missing:
            return f"{name} is the reserved missing key"
    if event.session_id in (0, int(MISSING_KEY)):
        return "session_id is absent"
    if not 0 < event.time_ms < TIME_MAX_MS:
        return "time_ms out of range"
    counts = [getattr(event, name) for name in (*_COUNTS, *_OPTIONAL_COUNTS)]
    if max(counts) >= 2**31 or event.rows_revision >= 2**63:
        return "a count is out of range"
    if any(len(getattr(event, name)) > TEXT_MAX for name in _TEXTS):
        return f"a text is longer than {TEXT_MAX} characters"
    if event.HasField("propensity") and not 0.0 < event.propensity <= 1.0:
        return "propensity is no probability above 0"
    if event.HasField("volume") and not 0.0 <= event.volume <= 1.0:
        return "volume is not within 0 … 1"
    n = len(sent.page.candidates) if sent else CANDIDATES_MAX
    if len(event.remaining) > n or max(event.remaining, default=0) >= n:
        return "remaining names candidates the page does not have"
    return _why_not_of_page(event, sent) if sent else ""


def _why_not_of_page(event: pb.FeedbackEvent, sent: SentPage) -> str:
    if event.user_id != sent.user_id:
        return "the page was sent to another user"
    if event.candidate_index >= len(sent.page.candidates):
        return "candidate_index is past the page's end"
    if int(sent.page.candidates.video_id[event.candidate_index]) != event.video_id:
        return "video_id is not the page's candidate of that index"
    return ""


def row_of(event: pb.FeedbackEvent, sent: SentPage | None, catalogue: Catalogue) -> Row:
    """Event columns of an event that `why_refused` let pass; left-out columns are null."""
    row: Row = {name: getattr(event, name) for name in ("user_id", "video_id", "session_id", "time_ms")}
    row |= {name: getattr(event, name) for name in (*_COUNTS, *_TEXTS, "rows_revision")}
    row |= {name: getattr(event, name) for name in _OPTIONAL_COUNTS if event.HasField(name)}
    row |= {name: int(getattr(event, name)) for name in _FLAGS if event.HasField(name)}
    row |= {name: getattr(event, name) for name in ("propensity", "volume") if event.HasField(name)}
    row["known_at_ms"] = event.known_at_ms if event.time_ms <= event.known_at_ms < TIME_MAX_MS else NULL_INT
    row["remaining"] = np.array(event.remaining, np.int32)
    row["chooser"] = CHOOSERS.get(event.chooser, "")
    row["is_rand"] = int(row["chooser"] == "random") if row["chooser"] else NULL_INT
    row["network"] = event.network if event.network < len(NETWORKS) else 0
    row["decoder"] = event.decoder if event.decoder < len(DECODERS) else 0
    if not event.page_id:
        row["candidate_index"] = NULL_INT
    row |= _joined_with_catalogue(event, catalogue)
    return row | (_joined_with_page(event, sent) if sent else {})


def _joined_with_page(event: pb.FeedbackEvent, sent: SentPage) -> Row:
    page, i = sent.page, event.candidate_index
    row: Row = {
        name: getattr(page.candidates, name)[i] for name in ("author_id", "tags", "duration_ms", "upload_age_days")
    }
    row |= {name: getattr(page, name) for name in ("ranker_version", "retrieval_version", "hour")}
    row |= {name: getattr(page, name) for name in ("user_activity", "user_register_days")}
    return {**row, "pxtr": page.candidates.pxtr[i], "server_position": i}


def _joined_with_catalogue(event: pb.FeedbackEvent, catalogue: Catalogue) -> Row:
    columns = item_columns(catalogue, np.array([event.video_id], np.uint64), event.time_ms)
    return {name: columns[name][0] for name in (*JOINED, "upload_age_days")}


def signals_of(row: Row) -> dict[str, int]:
    """The observed signals of a row: name -> 0 | 1."""
    return {name: int(row[name]) for name in SIGNALS if row.get(name, NULL_INT) in (0, 1)}


def events_of(rows: list[Row]) -> Events:
    """Rows -> columns. Raises EventError only for rows `row_of` did not make."""
    columns = {}
    for column in EVENT_COLUMNS:
        values = null_column(column, len(rows))
        for i, row in enumerate(rows):
            value = row.get(column.name)
            if value is not None and not (isinstance(value, float) and math.isnan(value)):
                values[i] = value
        columns[column.name] = values
    return Events(columns)

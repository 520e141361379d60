"""The event schema: one row per impression, the same file from the simulator, the readers and the server's intake.

In memory a set of events is `Events`: numpy columns of equal length. Null is -1 for integers, NaN for floats, "" for
text and MISSING_KEY for ids, never zero: a missing signal is not a "no". `contract/parquet.py` reads and writes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.errors import EventError
from contract.vocabulary import MISSING_KEY, SIGNALS, TAGS_MAX, X_PXTR

LEAVES_DEVICE = ("always", "opt_in", "never")
SCHEMA_VERSION = "kir-events/1"


@dataclass(frozen=True)
class EventColumn:
    """One column.

    kind           id | i64 | i32 | i8 | f32 | text | tags (id [n, TAGS_MAX]) | pxtr (f32 [n, X]) | ints (ragged i32)
    nullable       whether the null of its kind is allowed
    leaves_device  always | opt_in | never: whether the phone may report it (never = server's or log's own)
    """

    name: str
    kind: str
    nullable: bool
    leaves_device: str
    doc: str


def _signal(name: str) -> EventColumn:
    return EventColumn(name, "i8", True, "always", f"{name}: 1 yes, 0 no, -1 not observed")


EVENT_COLUMNS = (
    EventColumn("user_id", "id", False, "always", "who"),
    EventColumn("video_id", "id", False, "always", "what was shown"),
    EventColumn("time_ms", "i64", True, "always", "when it was shown, Unix milliseconds"),
    EventColumn("known_at_ms", "i64", True, "always", "when this feedback was known on the device"),
    EventColumn("session_id", "id", True, "always", "rotating session id"),
    EventColumn("seq", "i32", True, "always", "number of the impression in its session, from 0"),
    EventColumn("revision", "i32", True, "always", "amendments of the same impression count up from 0"),
    EventColumn("page_id", "text", True, "always", "the page it came from"),
    EventColumn("candidate_index", "i32", True, "always", "its place in the page"),
    EventColumn("position", "i32", True, "always", "position in the session at which it was shown"),
    EventColumn("remaining", "ints", True, "always", "page indices that could have been shown instead"),
    EventColumn("chooser", "text", True, "always", "model | server_order | random"),
    EventColumn("fallback_reason", "text", True, "always", "why the chooser was not the model"),
    EventColumn("dense_version", "text", True, "always", "the model that chose"),
    EventColumn("variant", "text", True, "always", "its quantised variant, +beam when it looked ahead"),
    EventColumn("rows_revision", "i64", True, "always", "revision of the sparse rows it chose with"),
    EventColumn("propensity", "f32", True, "always", "probability with which the chooser showed it"),
    EventColumn("play_time_ms", "i32", True, "always", "milliseconds played, replays included"),
    *(_signal(name) for name in SIGNALS),
    EventColumn("has_next", "i8", True, "always", "whether another video was watched after it"),
    EventColumn("profile_stay_ms", "i32", True, "opt_in", "time on the author's page"),
    EventColumn("comment_stay_ms", "i32", True, "opt_in", "time in the comments"),
    EventColumn("network", "i32", True, "always", "index into vocabulary.NETWORKS"),
    EventColumn("decoder", "i32", True, "always", "index into vocabulary.DECODERS"),
    EventColumn("buffered_ms", "i32", True, "always", "preloaded length when it was chosen"),
    EventColumn("volume", "f32", True, "opt_in", "0 … 1"),
    EventColumn("landscape", "i8", True, "opt_in", "orientation"),
    EventColumn("author_id", "id", True, "never", "joined from the catalogue"),
    EventColumn("tags", "tags", True, "never", "joined from the catalogue"),
    EventColumn("duration_ms", "i32", True, "never", "joined from the catalogue"),
    EventColumn("upload_age_days", "i32", True, "never", "days since upload when shown"),
    EventColumn("music_id", "id", True, "never", "joined from the catalogue"),
    EventColumn("kind", "id", True, "never", "joined from the catalogue: how the video was made"),
    EventColumn("server_position", "i32", True, "never", "the server's rank of it in the page"),
    EventColumn("pxtr", "pxtr", True, "never", "the server ranker's predictions as sent with the page"),
    EventColumn("ranker_version", "text", True, "never", "who made pxtr"),
    EventColumn("retrieval_version", "text", True, "never", "who retrieved it"),
    EventColumn("user_activity", "i32", True, "never", "activity class of the user"),
    EventColumn("user_register_days", "i32", True, "never", "days since registration"),
    EventColumn("hour", "i32", True, "never", "hour of the user's day"),
    EventColumn("is_rand", "i8", True, "never", "1: randomly exposed"),
    EventColumn("tab", "i32", True, "never", "the app's tab, where the log tells"),
)
COLUMN = {column.name: column for column in EVENT_COLUMNS}
# What a page request tells, message by message: field -> the column whose `leaves_device` it keeps to; "" = a message
# of this table, or how the page is wanted, which tells nothing of the user.
REQUEST_COLUMNS = {
    "GetPageRequest": {
        "user_id": "user_id",
        "session_id": "session_id",
        "page_size": "",
        "held_models": "",
        "watched": "",
        "exclude_video_ids": "video_id",
        "row_encoding": "",
        "network": "network",
        "client_time_ms": "time_ms",
    },
    "HeldModel": {"dense_version": "dense_version", "spec_fingerprint": "dense_version"},
    "WatchedVideo": {
        "video_id": "video_id",
        "play_time_ms": "play_time_ms",
        "like": "like",
        "long_view": "long_view",
        "shown_at_ms": "time_ms",
    },
}

_DTYPES: dict[str, Any] = {
    "id": np.uint64,
    "i64": np.int64,
    "i32": np.int32,
    "i8": np.int8,
    "f32": np.float32,
    "text": object,
    "tags": np.uint64,
    "pxtr": np.float32,
    "ints": object,
}
_WIDTHS = {"tags": TAGS_MAX, "pxtr": X_PXTR}
NULLS: dict[str, Any] = {
    "id": MISSING_KEY,
    "i64": -1,
    "i32": -1,
    "i8": -1,
    "f32": np.nan,
    "text": "",
    "tags": MISSING_KEY,
    "pxtr": np.nan,
    "ints": None,
}


def null_column(column: EventColumn, n: int) -> NDArray[Any]:
    """A column of n nulls."""
    width = _WIDTHS.get(column.kind)
    shape = (n,) if width is None else (n, width)
    return np.full(shape, NULLS[column.kind], dtype=_DTYPES[column.kind])


class Events:
    """Event columns of equal length. Columns left out are null. Treat as immutable.

    `events["like"]` is a numpy column; `events.take(index)` selects rows; `Events.concat` joins.
    Raises EventError for unknown columns, wrong shapes, or nulls where none are allowed.
    """

    def __init__(self, columns: Mapping[str, Any], where: str = "events"):
        unknown = sorted(set(columns) - set(COLUMN))
        if unknown:
            raise EventError("unknown event column", where=where, got=unknown, allowed=sorted(COLUMN))
        missing = [c.name for c in EVENT_COLUMNS if not c.nullable and c.name not in columns]
        if missing:
            raise EventError("required event column is absent", where=where, got=sorted(columns), allowed=missing)
        n = len(columns["user_id"])
        self._columns: dict[str, NDArray[Any]] = {}
        for column in EVENT_COLUMNS:
            if column.name in columns:
                self._columns[column.name] = _checked(column, columns[column.name], n, where)
            else:
                self._columns[column.name] = null_column(column, n)

    def __len__(self) -> int:
        return len(self._columns["user_id"])

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._columns[name]

    @property
    def columns(self) -> Mapping[str, NDArray[Any]]:
        return self._columns

    @property
    def signals(self) -> NDArray[np.int8]:
        """int8 [n, len(SIGNALS)], -1 = not observed."""
        return np.stack([self._columns[name] for name in SIGNALS], axis=1)

    def take(self, index: NDArray[Any] | slice) -> Events:
        return Events({name: column[index] for name, column in self._columns.items()})

    def with_columns(self, **columns: Any) -> Events:
        """A copy with some columns replaced."""
        return Events({**self._columns, **columns})

    @staticmethod
    def concat(parts: Iterable[Events]) -> Events:
        parts = list(parts)
        if not parts:
            raise EventError("nothing to join")
        return Events({c.name: np.concatenate([part[c.name] for part in parts]) for c in EVENT_COLUMNS})


def _checked(column: EventColumn, values: Any, n: int, where: str) -> NDArray[Any]:
    dtype = _DTYPES[column.kind]
    try:
        if dtype is object:
            array = np.empty(len(values), dtype=object)
            array[:] = list(values)
        else:
            array = _narrowed(values, np.dtype(dtype))
    except (TypeError, ValueError, OverflowError) as error:
        raise EventError(
            f"column '{column.name}' does not convert", where=where, got=str(error), allowed=dtype
        ) from None
    width = _WIDTHS.get(column.kind)
    shape = (n,) if width is None else (n, width)
    if array.shape != shape:
        raise EventError(f"column '{column.name}' has the wrong shape", where=where, got=array.shape, allowed=shape)
    if column.kind == "id" and not column.nullable and n and bool((array == MISSING_KEY).any()):
        raise EventError(f"column '{column.name}' may not be null", where=where)
    return array


def _narrowed(values: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    """`values` as dtype. Integers never wrap and are never rounded: ValueError or OverflowError instead."""
    if dtype.kind == "f":
        floats: NDArray[Any] = np.asarray(values).astype(dtype, copy=False)
        return floats
    # A list goes by Python's own integers: numpy alone would make floats of [2**63, 1].
    given: NDArray[Any] = values if isinstance(values, np.ndarray) else np.asarray(values, dtype=object)
    if given.dtype == dtype:
        return given
    with np.errstate(invalid="ignore"):
        array = given.astype(dtype)
    changed = array != given
    if bool(np.any(changed)):
        raise ValueError(f"{given[changed][0]!r} does not fit")
    return array

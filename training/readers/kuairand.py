"""KuaiRand (Gao et al., CIKM 2022, doi 10.1145/3511808.3557624), published at kuairand.com and Zenodo record 10439422.

The official layout of KuaiRand-Pure, -1K and -27K: a folder with `log_*.csv` (several, in parts or not),
`user_features_*.csv` and `video_features_basic_*.csv`. The statistic file is never read: its counters cover the whole
period, test days included. Times are Unix milliseconds; dates and `hourmin` are of UTC+8.

What the log tells becomes an event, exact copies too (3 % of the rows). What it does not tell stays null: pages, choice
sets, devices, and `has_next` (the log holds some of a session's videos only). `finish` is derived, and so is
`known_at_ms`: the earliest time at which the play can have ended.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.catalogue import ACTIVITY_CLASSES, Catalogue, UserTable
from contract.errors import EventError
from contract.events import Events
from contract.keys import key_of_string
from contract.vocabulary import MISSING_KEY, NULL_INT, TAGS_MAX
from training.readers.log_data import LogData
from training.readers.tables import Columns, check_range, joined, read_csv, read_parquet, stream_csv
from training.sim_random import hashed

FLAGS = {
    "click": "is_click",
    "like": "is_like",
    "follow": "is_follow",
    "comment": "is_comment",
    "forward": "is_forward",
    "hate": "is_hate",
    "long_view": "long_view",
    "profile_enter": "is_profile_enter",
    "is_rand": "is_rand",
}
NUMBERS = {
    "user_id": (0, 2**63 - 1),
    "video_id": (0, 2**63 - 1),
    "time_ms": (0, 2**62),
    "hourmin": (0, 2359),
    "play_time_ms": (-1, 2**31 - 1),
    "duration_ms": (-1, 2**31 - 1),
    "profile_stay_time": (-1, 2**31 - 1),
    "comment_stay_time": (-1, 2**31 - 1),
    "tab": (-1, 2**31 - 1),
}
SMALL = ("hourmin", "play_time_ms", "duration_ms", "profile_stay_time", "comment_stay_time", "tab")
LOG_COLUMNS = (*NUMBERS, *FLAGS.values())
SESSION_GAP_MS = 30 * 60_000
UTC_OFFSET_MS = 8 * 3_600_000


def read_kuairand(path: str | Path, features: str | Path | None = None, history: bool = False) -> LogData:
    """Read a folder in the official layout, or one log file of it.

    path      the folder (all its log_*.csv), or one log file
    features  the folder with the user and video features; None = where the log is
    history   put the rows of `train_history_*.parquet` (see `read_kuairand_history`) before the log's

    Events are sorted stably by (user, time): rows of one time keep the order of file names and lines.
    Raises EventError for absent files or columns, cells of a wrong type or range, and truncated files.
    """
    path = Path(path)
    if not path.exists():
        raise EventError("no such file or folder", where=path)
    folder = path if path.is_dir() else path.parent
    logs = sorted(path.glob("log_*.csv")) if path.is_dir() else [path]
    if not logs:
        raise EventError("no log_*.csv in this folder", where=path, got=sorted(p.name for p in path.iterdir())[:9])
    features = folder if features is None else Path(features)
    users = _read_users(_only(features, "user_features*.csv"))
    items = _read_items(_only(features, "video_features_basic*.csv"))
    log = joined([batch for one in logs for batch in _log_batches(one)], LOG_COLUMNS)
    order = np.lexsort((log["time_ms"], log["user_id"]))
    log = {name: values[order] for name, values in log.items()}
    items = _with_durations(items, log)
    events = _events(log, items, users)
    if history:
        before = read_kuairand_history(_only(folder, "train_history_*.parquet"), items, users)
        both = Events.concat([before, events])
        events = both.take(np.argsort(both["user_id"], kind="stable"))
    return LogData(events, items, users)


def read_kuairand_history(path: str | Path, items: Catalogue | None = None, users: UserTable | None = None) -> Events:
    """The subset's signal-poor history: user_id, position, video_id, long_view, is_like; no times.

    Events in the order of (user, position) with time_ms null and every other signal null: missing is not "no".
    """
    path = Path(path)
    table = read_parquet(path, ["user_id", "position", "video_id", "long_view", "is_like"])
    for name in ("user_id", "position", "video_id"):
        check_range(path, table, name, 0, 2**63 - 1)
    for name in ("long_view", "is_like"):
        check_range(path, table, name, 0, 1)
    order = np.lexsort((table["position"], table["user_id"]))
    table = {name: values[order] for name, values in table.items()}
    columns: dict[str, Any] = {
        "user_id": table["user_id"].astype(np.uint64),
        "video_id": table["video_id"].astype(np.uint64),
        "long_view": table["long_view"],
        "like": table["is_like"],
    }
    if items is not None and users is not None:
        columns |= _joined_columns(columns["user_id"], columns["video_id"], None, items, users)
    return Events(columns, where=str(path))


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        got = [p.name for p in found] or "none"
        raise EventError(f"exactly one {pattern} must be here", where=folder, got=got)
    return found[0]


def _log_batches(path: Path) -> list[Columns]:
    """Checked batches, small columns as int32 and int8: the 1K log has 11 million rows."""
    batches = []
    for batch in stream_csv(path, LOG_COLUMNS):
        for name, (low, high) in NUMBERS.items():
            check_range(path, batch, name, low, high)
        for name in FLAGS.values():
            check_range(path, batch, name, -1, 1)
        small = {name: batch[name].astype(np.int32) for name in SMALL}
        batches.append(batch | small | {name: batch[name].astype(np.int8) for name in FLAGS.values()})
    return batches


def _read_users(path: Path) -> UserTable:
    table = read_csv(path, ["user_id", "register_days"], ["user_active_degree"])
    check_range(path, table, "user_id", 0, 2**63 - 1)
    check_range(path, table, "register_days", -(2**31), 2**31 - 1)
    classes = {name: index for index, name in enumerate(ACTIVITY_CLASSES)}
    return UserTable(
        user_id=table["user_id"].astype(np.uint64),
        activity=np.array([classes.get(name, NULL_INT) for name in table["user_active_degree"]], np.int32),
        register_days=np.maximum(table["register_days"], NULL_INT).astype(np.int32),
    )


def _read_items(path: Path) -> Catalogue:
    table = read_csv(
        path, ["video_id", "author_id"], ["upload_dt", "tag", "upload_type"], ["video_duration", "music_id"]
    )
    check_range(path, table, "video_id", 0, 2**63 - 1)
    check_range(path, table, "video_duration", -1, 2**31 - 1)
    author = table["author_id"]
    return Catalogue(
        video_id=table["video_id"].astype(np.uint64),
        author_id=np.where(author < 0, MISSING_KEY, author.astype(np.uint64)),
        tags=_tags(path, table["tag"]),
        duration_ms=_positive(table["video_duration"]),
        upload_ms=_midnights(path, table["upload_dt"]),
        music_id=np.where(table["music_id"] > 0, table["music_id"].astype(np.uint64), MISSING_KEY),
        kind=np.array([key_of_string(word) if word else int(MISSING_KEY) for word in table["upload_type"]], np.uint64),
    )


def _positive(duration_ms: NDArray[Any]) -> NDArray[np.int32]:
    """A duration of 0 means unknown."""
    return np.where(duration_ms > 0, duration_ms, NULL_INT).astype(np.int32)


def _tags(path: Path, texts: NDArray[Any]) -> NDArray[np.uint64]:
    out = np.full((len(texts), TAGS_MAX), MISSING_KEY)
    for row, text in enumerate(texts):
        for place, tag in enumerate(text.split(",")[:TAGS_MAX] if text else ()):
            if not tag.strip().isdecimal():
                raise EventError("column 'tag' must hold numbers between commas", where=path, got=text)
            out[row, place] = int(tag)
    return out


def _midnights(path: Path, dates: NDArray[Any]) -> NDArray[np.int64]:
    """Unix milliseconds of the day's start in UTC+8; an empty date is null."""
    try:
        days = np.array([date or "NaT" for date in dates], dtype="datetime64[D]")
    except ValueError as error:
        raise EventError("column 'upload_dt' must hold dates like 2022-04-10", where=path, got=str(error)) from None
    ms = days.astype("datetime64[ms]").astype(np.int64) - UTC_OFFSET_MS
    return np.where(np.isnat(days), NULL_INT, np.maximum(ms, 0))


def _with_durations(items: Catalogue, log: Columns) -> Catalogue:
    """The catalogue with durations that only the log tells."""
    rows = items.index_of(log["video_id"].astype(np.uint64))
    known = (rows >= 0) & (log["duration_ms"] > 0)
    duration_ms = np.full(len(items), NULL_INT, np.int32)
    duration_ms[rows[known]] = log["duration_ms"][known]
    filled = np.where(items.duration_ms > 0, items.duration_ms, duration_ms)
    return replace(items, duration_ms=filled)


def _joined_columns(
    user_id: NDArray[np.uint64],
    video_id: NDArray[np.uint64],
    time_ms: NDArray[np.int64] | None,
    items: Catalogue,
    users: UserTable,
) -> dict[str, NDArray[Any]]:
    item, user = items.index_of(video_id), users.index_of(user_id)

    def of(values: NDArray[Any], rows: NDArray[np.int64], null: Any) -> NDArray[Any]:
        padded = np.concatenate([values, np.full((1, *values.shape[1:]), null, values.dtype)])
        return padded[rows]  # row -1 is the null

    found = {
        "author_id": of(items.author_id, item, MISSING_KEY),
        "tags": of(items.tags, item, MISSING_KEY),
        "duration_ms": of(items.duration_ms, item, NULL_INT),
        "music_id": of(items.music_id, item, MISSING_KEY),
        "kind": of(items.kind, item, MISSING_KEY),
        "user_activity": of(users.activity, user, NULL_INT),
        "user_register_days": of(users.register_days, user, NULL_INT),
    }
    return found if time_ms is None else found | {"upload_age_days": items.upload_age_days(item, time_ms)}


def _events(log: Columns, items: Catalogue, users: UserTable) -> Events:
    user_id, video_id = log["user_id"].astype(np.uint64), log["video_id"].astype(np.uint64)
    time_ms, play_ms = log["time_ms"], log["play_time_ms"]
    columns = _joined_columns(user_id, video_id, time_ms, items, users)
    duration_ms = np.where(log["duration_ms"] > 0, log["duration_ms"], columns["duration_ms"])
    finish = np.where((duration_ms > 0) & (play_ms >= 0), play_ms >= duration_ms, NULL_INT)
    session_id, seq = _sessions(user_id, time_ms)
    columns |= {
        "user_id": user_id,
        "video_id": video_id,
        "time_ms": time_ms,
        "known_at_ms": np.where(play_ms >= 0, time_ms + play_ms, NULL_INT),
        "session_id": session_id,
        "seq": seq,
        "revision": np.zeros(len(user_id), np.int32),
        "play_time_ms": play_ms,
        "finish": finish,
        "duration_ms": duration_ms,
        "profile_stay_ms": log["profile_stay_time"],
        "comment_stay_ms": log["comment_stay_time"],
        "hour": log["hourmin"] // 100,
        "tab": log["tab"],
        **{name: log[column] for name, column in FLAGS.items()},
    }
    return Events(columns, where="kuairand")


def _sessions(user_id: NDArray[np.uint64], time_ms: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
    """session_id uint64 [n] and seq int32 [n] of rows sorted by (user, time), cut at gaps over 30 minutes."""
    n = len(user_id)
    first = np.ones(n, bool)
    first[1:] = (user_id[1:] != user_id[:-1]) | (np.diff(time_ms) > SESSION_GAP_MS)
    starts = np.flatnonzero(first)
    which = np.cumsum(first) - 1
    ids = np.minimum(hashed(user_id[starts], time_ms[starts]), MISSING_KEY - np.uint64(1)) if n else user_id
    return ids[which], (np.arange(n) - starts[which]).astype(np.int32)

"""A user's history from a file a person can write: Parquet, JSON or CSV, one watched video a row, oldest first.

    video_id                                      needed
    author_id, tags, duration_ms, music_id, kind  left out: the catalogue's
    play_time_ms, gap_ms                          left out: unknown; gap_ms is worked out where there is time_ms
    time_ms                                       rows are put in its order
    user_id                                       of a file with several users, one is chosen
    long_view, like                               where they stand, rows with neither are no positives and are left out

So an event file is a history file. JSON: a list of video ids, or of objects. CSV: a header line; tags as 3|17; an empty
field is unknown.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from contract.catalogue import Catalogue
from contract.errors import InputError
from contract.events import COLUMN
from contract.history import HISTORY_COLUMNS, UserHistory, is_positive
from contract.vocabulary import MISSING_KEY, NULL_INT, TAGS_MAX
from server_stub.histories import JOINED, item_columns

READ = (*(name for name in HISTORY_COLUMNS if name != "signals"), "time_ms", "user_id", "long_view", "like")
IDS = ("video_id", "author_id", "user_id", "tags", "music_id", "kind")
ID_MAX = int(MISSING_KEY) - 1
KINDS = (".parquet", ".json", ".csv")
Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class HistoryFile:
    """rows: oldest first, one dict a positive, only what the file tells. skipped: rows that were no positives."""

    rows: list[Row]
    skipped: int = 0
    user_id: int | None = None

    def history(self, catalogue: Catalogue, capacity: int) -> tuple[UserHistory, int]:
        """(as the server holds it, how many of its videos the catalogue does not know)."""
        ids = np.array([row["video_id"] for row in self.rows], np.uint64)
        known = item_columns(catalogue, ids)
        history = UserHistory(capacity)
        for place, row in enumerate(self.rows):
            item = {name: known[name][place] for name in JOINED}
            item |= {name: row[name] for name in row if name in HISTORY_COLUMNS and name != "gap_ms"}
            history.append(item, row.get("time_ms", NULL_INT), gap_ms=row.get("gap_ms"))
        return history, int((catalogue.index_of(ids) < 0).sum())


def read_history(path: str | Path, user_id: int | None = None) -> HistoryFile:
    """Read a history file. Raises InputError: absent, cut short, of no such kind, unknown columns, values out of range,
    several users and none chosen, or a user who is not there."""
    path = Path(path)
    readers = {".parquet": _from_parquet, ".json": _from_json, ".csv": _from_csv}
    if path.suffix.lower() not in readers:
        raise InputError("unknown kind of history file", where=path, got=path.suffix or "no ending", allowed=KINDS)
    if not path.is_file():
        raise InputError("history file does not exist", where=path)
    rows = [_checked(row, path, number) for number, row in readers[path.suffix.lower()](path, user_id)]
    users = {row.pop("user_id", None) for row in rows} if user_id is None else {user_id}
    if len(users) > 1:
        raise InputError(
            "the file holds several users", where=path, got=f"{len(users)} users", fix="choose one: --user"
        )
    told = any("long_view" in row or "like" in row for row in rows)
    positives = [r for r in rows if not told or bool(is_positive(r.get("long_view", -1), r.get("like", -1)))]
    if all(row.get("time_ms", NULL_INT) >= 0 for row in positives):
        positives.sort(key=lambda row: row["time_ms"])
    return HistoryFile(positives, len(rows) - len(positives), next(iter(users), None))


def _from_parquet(path: Path, user_id: int | None) -> Iterable[tuple[int, Row]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(path).names
        _check_columns(names, path, user_id)
        wanted = [name for name in names if name in READ]
        table = pq.read_table(path, columns=wanted, filters=None if user_id is None else [("user_id", "=", user_id)])
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise InputError("not a readable Parquet file", where=path, got=str(error)) from None
    if user_id is not None and not len(table):
        raise InputError("the file holds nothing of this user", where=path, got=user_id)
    return enumerate(table.to_pylist(), 1)


def _from_json(path: Path, user_id: int | None) -> Iterable[tuple[int, Row]]:
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError("not readable JSON", where=path, got=str(error)) from None
    if not isinstance(data, list):
        raise InputError("a JSON history is a list of video ids or of objects", where=path, got=type(data).__name__)
    rows: list[Row] = [row if isinstance(row, dict) else {"video_id": row} for row in data]
    _check_columns({name for row in rows for name in row} | {"video_id"}, path, user_id)
    return _of_user(rows, path, user_id)


def _from_csv(path: Path, user_id: int | None) -> Iterable[tuple[int, Row]]:
    try:
        with open(path, newline="") as file:
            reader = csv.DictReader(file, strict=True)
            names = list(reader.fieldnames or [])
            _check_columns(names, path, user_id)
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError("not a readable CSV file", where=path, got=str(error)) from None
    for number, row in enumerate(rows, 1):
        if None in row or None in row.values():
            raise InputError("a row has another number of fields", where=f"{path} row {number}", allowed=len(names))
    return _of_user(rows, path, user_id)


def _of_user(rows: list[Row], path: Path, user_id: int | None) -> Iterable[tuple[int, Row]]:
    numbered = list(enumerate(rows, 1))
    if user_id is None:
        return numbered
    own = [(n, r) for n, r in numbered if str(r.get("user_id")) == str(user_id)]
    if not own:
        raise InputError("the file holds nothing of this user", where=path, got=user_id)
    return own


def _check_columns(names: Iterable[str], path: Path, user_id: int | None) -> None:
    """Columns of an event file that say nothing here are passed over; any other is a mistake worth telling."""
    found = set(names)
    unknown = sorted(str(name) for name in found - set(READ) - set(COLUMN))
    if unknown:
        raise InputError("unknown columns", where=path, got=unknown, allowed=READ)
    if "video_id" not in found:
        raise InputError("the column video_id is missing", where=path, got=sorted(found))
    if user_id is not None and "user_id" not in found:
        raise InputError("--user needs a column user_id", where=path, got=sorted(found))


def _checked(row: Mapping[str, Any], path: Path, number: int) -> Row:
    """What the row tells, as whole numbers in range; what it leaves open is not in it."""
    found: Row = {}
    for name in READ:
        value = row.get(name)
        if value is None or value == "" or (name == "tags" and len(_tags(value)) == 0):
            continue
        where = f"{path} row {number}, {name}"
        if name == "tags":
            tags = [_whole(tag, name, where) for tag in _tags(value)][:TAGS_MAX]
            found[name] = np.array([*tags, *[int(MISSING_KEY)] * (TAGS_MAX - len(tags))], np.uint64)
        else:
            found[name] = _whole(value, name, where)
    if "video_id" not in found:
        raise InputError("a row without a video", where=f"{path} row {number}", got=dict(row))
    return found


def _tags(value: Any) -> list[Any]:
    if isinstance(value, str):
        return [part for part in value.split("|") if part]
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _whole(value: Any, name: str, where: str) -> int:
    high = ID_MAX if name in IDS else int(np.iinfo(np.int64 if name in ("gap_ms", "time_ms") else np.int32).max)
    low = 0 if name in IDS else NULL_INT
    try:
        number = int(value)
        exact = not isinstance(value, (bool, float)) or (isinstance(value, float) and value == number)
    except (TypeError, ValueError, OverflowError):
        raise InputError("not a whole number", where=where, got=value) from None
    if not exact or not low <= number <= high:
        raise InputError("not a whole number in range", where=where, got=value, allowed=f"{low} … {high}")
    return number

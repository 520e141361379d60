"""The catalogue and the users, as tables: what the log and the server join to ids. Parquet, pyarrow imported late.

A catalogue holds public facts only. Null is -1 for integers and MISSING_KEY for ids, as in `contract.events`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.errors import EventError, MissingExtra
from contract.files import replacing
from contract.vocabulary import MISSING_KEY, NULL_INT, TAGS_MAX

CATALOGUE_VERSION = "kir-catalogue/1"
USERS_VERSION = "kir-users/1"

# Activity classes in rising order of days active, the newcomers first (KuaiRand's `user_active_degree`). A user's
# `activity` is an index into this; "UNKNOWN" and anything else is null.
ACTIVITY_CLASSES = (
    "day_new",
    "2_14_day_new",
    "30day_retention",
    "single_low_active",
    "low_active",
    "middle_active",
    "high_active",
    "full_active",
)


class _Table:
    """Columns of equal length, checked; the first column is the id, unique and never null. A column that may be left
    out is all null then."""

    def __post_init__(self) -> None:
        name = type(self).__name__
        n = len(self._ids)
        for column in OPTIONAL & {field.name for field in fields(self)}:  # type: ignore[arg-type]
            if getattr(self, column) is None:
                object.__setattr__(self, column, np.full(n, MISSING_KEY))
        columns = {field.name: np.asarray(getattr(self, field.name)) for field in fields(self)}  # type: ignore[arg-type]
        for column, values in columns.items():
            dtype, width = _KINDS[column]
            shape = (n,) if width is None else (n, width)
            if values.shape != shape:
                raise EventError(f"{name}: column '{column}' has the wrong shape", got=values.shape, allowed=shape)
            if values.dtype.kind not in "iu":
                raise EventError(f"{name}: column '{column}' must be integers", got=values.dtype, allowed=dtype)
            object.__setattr__(self, column, values.astype(dtype, copy=False))
        if n and bool((self._ids == MISSING_KEY).any()):
            raise EventError(f"{name}: an id is null")
        if len(np.unique(self._ids)) != n:
            raise EventError(f"{name}: an id stands twice", got=f"{n - len(np.unique(self._ids))} repeats")

    @property
    def _ids(self) -> NDArray[np.uint64]:
        return getattr(self, fields(self)[0].name)  # type: ignore[arg-type,no-any-return]

    def __len__(self) -> int:
        return len(self._ids)

    @cached_property
    def _order(self) -> NDArray[np.intp]:
        return np.argsort(self._ids, kind="stable")

    def index_of(self, ids: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Row of each id, -1 for ids that are not here. ids: uint64, any shape."""
        ids = np.asarray(ids, np.uint64)
        if not len(self):
            return np.full(ids.shape, -1, np.int64)
        place = np.minimum(np.searchsorted(self._ids, ids, sorter=self._order), len(self) - 1)
        rows = self._order[place]
        return np.where(self._ids[rows] == ids, rows, -1).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Catalogue(_Table):
    """I videos. Raises EventError for columns of unequal length, null ids or ids that stand twice.

    video_id     uint64 [I], unique
    author_id    uint64 [I]
    tags         uint64 [I, TAGS_MAX], padded with MISSING_KEY
    duration_ms  int32 [I]
    upload_ms    int64 [I], Unix milliseconds
    music_id     uint64 [I], the sound under it; None = unknown of all
    kind         uint64 [I], how it was made, a key (`contract.keys`) of the log's word for it; None = unknown of all
    """

    video_id: NDArray[np.uint64]
    author_id: NDArray[np.uint64]
    tags: NDArray[np.uint64]
    duration_ms: NDArray[np.int32]
    upload_ms: NDArray[np.int64]
    music_id: NDArray[np.uint64] = None  # type: ignore[assignment]  # filled with nulls at creation
    kind: NDArray[np.uint64] = None  # type: ignore[assignment]

    def upload_age_days(self, rows: NDArray[np.int64], time_ms: NDArray[np.int64]) -> NDArray[np.int32]:
        """Whole days from upload to `time_ms` for catalogue rows; -1 when unknown, 0 for a time before the upload.

        rows: int [n], -1 = not in the catalogue; time_ms: int64 [n], -1 = null.
        """
        if not len(self):
            return np.full(len(rows), NULL_INT, np.int32)
        upload_ms = self.upload_ms[np.maximum(rows, 0)]
        known = (rows >= 0) & (upload_ms >= 0) & (time_ms >= 0)
        return np.where(known, np.maximum(time_ms - upload_ms, 0) // 86_400_000, NULL_INT).astype(np.int32)


@dataclass(frozen=True, eq=False)
class UserTable(_Table):
    """U users: user_id uint64 (unique), activity int32 (index into ACTIVITY_CLASSES), register_days int32, each [U]."""

    user_id: NDArray[np.uint64]
    activity: NDArray[np.int32]
    register_days: NDArray[np.int32]


_KINDS: dict[str, tuple[Any, int | None]] = {
    "video_id": (np.uint64, None),
    "author_id": (np.uint64, None),
    "tags": (np.uint64, TAGS_MAX),
    "duration_ms": (np.int32, None),
    "upload_ms": (np.int64, None),
    "music_id": (np.uint64, None),
    "kind": (np.uint64, None),
    "user_id": (np.uint64, None),
    "activity": (np.int32, None),
    "register_days": (np.int32, None),
}
OPTIONAL = frozenset({"music_id", "kind"})  # older files lack them


def write_catalogue(path: str | Path, items: Catalogue) -> Path:
    """Write aside, fsync, rename. Returns the path."""
    return _write(Path(path), items, CATALOGUE_VERSION)


def read_catalogue(path: str | Path) -> Catalogue:
    """Raises EventError when the file is missing, truncated, of another version, or lacks or mistypes a column."""
    return Catalogue(**_read(Path(path), Catalogue, CATALOGUE_VERSION))


def write_users(path: str | Path, users: UserTable) -> Path:
    """Write aside, fsync, rename. Returns the path."""
    return _write(Path(path), users, USERS_VERSION)


def read_users(path: str | Path) -> UserTable:
    """Raises EventError when the file is missing, truncated, of another version, or lacks or mistypes a column."""
    return UserTable(**_read(Path(path), UserTable, USERS_VERSION))


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra("pyarrow", "train") from None
    return pyarrow, pyarrow.parquet


def _write(path: Path, table: _Table, version: str) -> Path:
    pa, pq = _pyarrow()
    columns = {}
    for field in fields(table):  # type: ignore[arg-type]
        values = getattr(table, field.name)
        dtype, width = _KINDS[field.name]
        flat = pa.array(values.reshape(-1), type=pa.from_numpy_dtype(dtype))
        columns[field.name] = flat if width is None else pa.FixedSizeListArray.from_arrays(flat, width)
    arrow = pa.table(columns).replace_schema_metadata({"schema": version})
    with replacing(path) as file:
        pq.write_table(arrow, file, compression="zstd")
    return path


def _read(path: Path, kind: type, version: str) -> dict[str, NDArray[Any]]:
    pa, pq = _pyarrow()
    try:
        arrow = pq.read_table(path)
    except FileNotFoundError:
        raise EventError("file does not exist", where=path) from None
    except (pa.ArrowException, OSError) as error:
        raise EventError("not a readable Parquet file", where=path, got=str(error)) from None
    got = (arrow.schema.metadata or {}).get(b"schema", b"").decode(errors="replace")
    if got != version:
        raise EventError("a table of another kind or version", where=path, got=got or "none", allowed=version)
    found = {}
    for field in fields(kind):
        dtype, width = _KINDS[field.name]
        if field.name not in arrow.column_names:
            if field.name in OPTIONAL:
                continue
            raise EventError("a column is absent", where=path, got=arrow.column_names, allowed=field.name)
        expected = pa.from_numpy_dtype(dtype) if width is None else pa.list_(pa.from_numpy_dtype(dtype), width)
        column = arrow[field.name].combine_chunks()
        if column.type != expected or column.null_count:
            got = f"{column.type} with {column.null_count} nulls"
            raise EventError(
                f"column '{field.name}' has another type", where=path, got=got, allowed=f"{expected}, none null"
            )
        flat = np.asarray(column if width is None else column.flatten()).astype(dtype, copy=False)
        found[field.name] = flat if width is None else flat.reshape(-1, width)
    return found

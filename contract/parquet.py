"""The one reader and writer of event files (Parquet, zstd). pyarrow is imported late: the edge never needs it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.errors import EventError, MissingExtra
from contract.events import COLUMN, EVENT_COLUMNS, SCHEMA_VERSION, EventColumn, Events, null_column
from contract.files import replacing
from contract.vocabulary import MISSING_KEY, PXTR_HEADS, TAGS_MAX, X_PXTR


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra("pyarrow", "train") from None
    return pyarrow, pyarrow.parquet


def event_schema() -> Any:
    """The Arrow schema of an event file; lists for tags, pxtr and remaining."""
    pa, _ = _pyarrow()
    types = {
        "id": pa.uint64(),
        "i64": pa.int64(),
        "i32": pa.int32(),
        "i8": pa.int8(),
        "f32": pa.float32(),
        "text": pa.string(),
        "tags": pa.list_(pa.uint64()),
        "pxtr": pa.list_(pa.float32()),
        "ints": pa.list_(pa.int32()),
    }
    fields = [pa.field(c.name, types[c.kind], nullable=c.nullable) for c in EVENT_COLUMNS]
    return pa.schema(fields, metadata={"schema": SCHEMA_VERSION, "pxtr_heads": ",".join(PXTR_HEADS)})


def write_events(path: str | Path, events: Events) -> Path:
    """Write aside, fsync, rename: a reader never sees half a file. Returns the path."""
    pa, pq = _pyarrow()
    path = Path(path)
    schema = event_schema()
    arrays = [_to_arrow(pa, c, events[c.name], schema.field(c.name).type) for c in EVENT_COLUMNS]
    table = pa.Table.from_arrays(arrays, schema=schema)
    with replacing(path) as file:
        pq.write_table(table, file, compression="zstd")
    return path


def read_events(path: str | Path | Iterable[str | Path]) -> Events:
    """Read one event file, a directory of them (sorted by name), or a list of files.

    Raises EventError when a file is missing, truncated, of another schema version, or lacks a required column.
    """
    if not isinstance(path, (str, Path)):
        return Events.concat([read_events(one) for one in path])
    path = Path(path)
    if path.is_dir():
        files = sorted(path.glob("*.parquet"))
        if not files:
            raise EventError("no *.parquet file in this directory", where=path)
        return Events.concat([read_events(one) for one in files])
    pa, pq = _pyarrow()
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise EventError("event file does not exist", where=path) from None
    except (pa.ArrowInvalid, pa.ArrowException, OSError) as error:
        raise EventError("not a readable Parquet file", where=path, got=str(error)) from None
    metadata = table.schema.metadata or {}
    version = metadata.get(b"schema", b"").decode()
    if version != SCHEMA_VERSION:
        raise EventError("another event schema", where=path, got=version or "none", allowed=SCHEMA_VERSION)
    heads = metadata.get(b"pxtr_heads", b"").decode()
    if heads != ",".join(PXTR_HEADS):
        raise EventError("pxtr columns of other heads", where=path, got=heads, allowed=",".join(PXTR_HEADS))
    known = [name for name in table.column_names if name in COLUMN]
    schema = event_schema()
    for name in known:
        got, allowed = table.schema.field(name).type, schema.field(name).type
        if got != allowed:
            raise EventError(f"column '{name}' has another type", where=path, got=str(got), allowed=str(allowed))
    return Events({name: _from_arrow(COLUMN[name], table[name]) for name in known}, where=str(path))


def _to_arrow(pa: Any, column: EventColumn, values: NDArray[Any], kind: Any) -> Any:
    if column.kind == "text":
        return pa.array([v or None for v in values], type=kind)
    if column.kind == "ints":
        return pa.array(list(values), type=kind)
    if column.kind == "id":
        return pa.array(values, type=kind, mask=values == MISSING_KEY)
    if column.kind == "f32":
        return pa.array(values, type=kind, mask=np.isnan(values))
    if column.kind in ("tags", "pxtr"):
        keep = (
            values != MISSING_KEY
            if column.kind == "tags"
            else np.repeat(~np.isnan(values).all(axis=1, keepdims=True), X_PXTR, 1)
        )
        counts = keep.sum(axis=1)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        flat = values[keep]
        inner = pa.array(flat, type=kind.value_type, mask=None if column.kind == "tags" else np.isnan(flat))
        return pa.ListArray.from_arrays(pa.array(offsets), inner).cast(kind)
    return pa.array(values, type=kind, mask=values == -1)


def _from_arrow(column: EventColumn, chunked: Any) -> NDArray[Any]:
    array = chunked.combine_chunks()
    n = len(array)
    out = null_column(column, n)
    if column.kind in ("tags", "ints") and array.flatten().null_count:
        raise EventError(f"column '{column.name}' has nulls inside its lists")
    if column.kind in ("text", "ints"):
        for i, value in enumerate(array.to_pylist()):
            if value is not None:
                out[i] = value if column.kind == "text" else np.asarray(value, np.int32)
        return out
    if column.kind in ("tags", "pxtr"):
        width = TAGS_MAX if column.kind == "tags" else X_PXTR
        lengths = np.asarray(array.value_lengths().fill_null(0))
        if column.kind == "pxtr" and not np.isin(lengths, (0, X_PXTR)).all():
            raise EventError("pxtr lists must be empty or full", got=sorted(set(lengths.tolist())), allowed=(0, X_PXTR))
        flat = array.flatten()
        flat = np.asarray(flat.fill_null(np.nan) if column.kind == "pxtr" else flat)
        rows = np.repeat(np.arange(n), lengths)
        places = np.arange(len(flat)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        keep = places < width
        out[rows[keep], places[keep]] = flat[keep]
        return out
    null = MISSING_KEY if column.kind == "id" else (np.nan if column.kind == "f32" else -1)
    if column.kind == "id":
        valid = np.asarray(array.is_valid())
        out[valid] = np.asarray(array.drop_null(), dtype=np.uint64)
        return out
    return np.asarray(array.fill_null(null)).astype(out.dtype)

"""CSV and Parquet into checked numpy columns, in streams, with one clear EventError for a bad file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.errors import EventError, MissingExtra

Columns = dict[str, NDArray[Any]]
BLOCK_BYTES = 4 << 20


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.csv
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra("pyarrow", "train") from None
    return pyarrow


def stream_csv(
    path: Path, integers: Sequence[str], texts: Sequence[str] = (), decimals: Sequence[str] = ()
) -> Iterator[Columns]:
    """Batches of a CSV file: int64 columns (empty cell = -1) and text columns (object; empty cell = "").

    decimals: integers that the file writes as 12.0; they come out rounded, as int64.
    Raises EventError when the file is missing or empty, a column is absent, a cell is not a number, or a row has too
    few or too many cells (a truncated file).
    """
    pa = _pyarrow()
    kinds = {name: pa.string() for name in texts} | {name: pa.int64() for name in integers}
    kinds |= {name: pa.float64() for name in decimals}
    _check_header(path, list(kinds))
    convert = pa.csv.ConvertOptions(column_types=kinds, include_columns=list(kinds), strings_can_be_null=False)
    try:
        with pa.csv.open_csv(
            path, read_options=pa.csv.ReadOptions(block_size=BLOCK_BYTES, use_threads=False), convert_options=convert
        ) as reader:
            for batch in reader:
                yield {name: _column(path, name, batch.column(name), name in texts) for name in kinds}
    except pa.ArrowInvalid as error:
        raise EventError("a row does not read", where=path, got=str(error), fix="is the file whole?") from None


def _check_header(path: Path, names: list[str]) -> None:
    try:
        with open(path, encoding="utf-8-sig") as file:
            header = file.readline(1 << 16).strip().split(",")
    except FileNotFoundError:
        raise EventError("file does not exist", where=path) from None
    except (OSError, UnicodeDecodeError) as error:
        raise EventError("not a readable CSV file", where=path, got=str(error)) from None
    absent = [name for name in names if name not in header]
    if absent:
        raise EventError("columns are absent", where=path, got=header, allowed=f"must have {', '.join(absent)}")


def _column(path: Path, name: str, array: Any, text: bool) -> NDArray[Any]:
    if text:
        return np.asarray(array.to_pylist(), dtype=object)
    values = np.asarray(array.fill_null(-1))
    if values.dtype.kind == "f":
        if not np.isfinite(values).all() or np.abs(values).max(initial=0.0) >= 2.0**53:
            raise EventError(f"column '{name}' holds numbers out of range", where=path)
        values = np.rint(values)
    return values.astype(np.int64)


def read_csv(path: Path, integers: Sequence[str], texts: Sequence[str] = (), decimals: Sequence[str] = ()) -> Columns:
    """A whole CSV file; see `stream_csv`."""
    return joined(list(stream_csv(path, integers, texts, decimals)), [*integers, *decimals], texts)


def joined(batches: list[Columns], integers: Sequence[str], texts: Sequence[str] = ()) -> Columns:
    """Batches joined; no batch at all (a header alone) gives empty columns."""
    if not batches:
        return {n: np.empty(0, np.int64) for n in integers} | {n: np.empty(0, object) for n in texts}
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def read_parquet(path: Path, integers: Sequence[str], texts: Sequence[str] = ()) -> Columns:
    """Columns of a Parquet file: int64 and text. No nulls allowed. Raises EventError as `stream_csv` does."""
    pa = _pyarrow()
    try:
        table = pa.parquet.ParquetFile(path).read()
    except FileNotFoundError:
        raise EventError("file does not exist", where=path) from None
    except (pa.ArrowException, OSError) as error:
        raise EventError("not a readable Parquet file", where=path, got=str(error)) from None
    absent = [name for name in [*integers, *texts] if name not in table.column_names]
    if absent:
        allowed = f"must have {', '.join(absent)}"
        raise EventError("columns are absent", where=path, got=table.column_names, allowed=allowed)
    found: Columns = {}
    for name in [*integers, *texts]:
        try:
            column = table[name].cast(pa.int64() if name in integers else pa.string())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise EventError(f"column '{name}' has another type", where=path, got=str(error)) from None
        if column.null_count:
            raise EventError(f"column '{name}' has nulls", where=path, got=column.null_count)
        found[name] = column.to_numpy() if name in integers else np.asarray(column.to_pylist(), dtype=object)
    return found


def check_range(path: Path, columns: Columns, name: str, low: int, high: int) -> None:
    """Raises EventError naming the first value outside [low, high]."""
    bad = np.flatnonzero((columns[name] < low) | (columns[name] > high))
    if len(bad):
        got = f"{int(columns[name][bad[0]])} ({len(bad)} rows)"
        raise EventError(f"column '{name}' holds values out of range", where=path, got=got, allowed=f"{low} … {high}")

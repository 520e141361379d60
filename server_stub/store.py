"""Embedding tables held in memory and updated while they serve: key -> slot by faiss.MapLong2Long, one numpy gather.

`EmbeddingTable` is one table; `EmbeddingStore` holds those of every live dense version. A gather for a page and an
update exclude each other, so that a page never mixes two revisions.

Shapes: R rows, W width, Q keys asked for. Row 0 is the default row (MISSING_KEY); unknown keys take it.
"""

from __future__ import annotations

import importlib
import json
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.errors import InputError, SpecError
from contract.features import Columns, block_keys, pool_rows
from contract.spec import FeatureSpec
from contract.vocabulary import MISSING_KEY

Keys = NDArray[np.uint64]
Floats = NDArray[np.float32]
DTYPES: dict[str, Any] = {"float32": np.float32, "float16": np.float16}


class EmbeddingTable:
    """One table. Not thread-safe: its owner holds a lock, or never updates it.

    keys: uint64 [R], keys[0] == MISSING_KEY, unique; rows: float [R, W], finite. Raises InputError otherwise.
    """

    def __init__(self, keys: Keys, rows: Floats, *, dtype: str = "float32", where: object = "table"):
        faiss: Any = importlib.import_module("faiss")  # late: `kir serve --help` stays light; its stubs are wrong

        if dtype not in DTYPES:
            raise InputError("unknown row dtype", where=where, got=dtype, allowed=sorted(DTYPES))
        keys = np.ascontiguousarray(keys, np.uint64)
        if rows.ndim != 2 or rows.shape[1] < 1 or keys.shape != (len(rows),):
            raise InputError("keys and rows do not belong together", where=where, got=(keys.shape, rows.shape))
        if not len(keys) or keys[0] != MISSING_KEY:
            raise InputError("row 0 is not the default row", where=where, allowed="key MISSING_KEY")
        if len(np.unique(keys)) != len(keys):
            raise InputError("a key stands twice", where=where)
        self.where = str(where)
        self._dtype = DTYPES[dtype]
        self._slots: Any = faiss.MapLong2Long()
        self._slots.add(keys.view(np.int64), np.arange(len(keys)))
        self._keys = keys.copy()
        self._rows = self._checked(rows)
        self._n = len(keys)

    def __len__(self) -> int:
        return self._n

    @property
    def width(self) -> int:
        return int(self._rows.shape[1])

    def slots(self, keys: Keys) -> NDArray[np.int64]:
        """Slot of each key, any shape: MISSING_KEY -> -1 (no entry), a key without a row -> 0 (default row)."""
        keys = np.asarray(keys, np.uint64)
        found = self._slots.search_multiple(np.ascontiguousarray(keys.reshape(-1)).view(np.int64))
        found = np.maximum(np.asarray(found, np.int64), 0).reshape(keys.shape)
        return np.where(keys == MISSING_KEY, np.int64(-1), found)

    def rows(self, slots: NDArray[np.int64]) -> Floats:
        """float32 [Q, W], a copy; slot -1 reads the default row."""
        return self._rows[np.maximum(slots, 0)].astype(np.float32)

    @property
    def all_rows(self) -> NDArray[Any]:
        """[R, W] view in the table's dtype; read only."""
        return self._rows[: self._n]

    @property
    def keys(self) -> Keys:
        return self._keys[: self._n]

    def _checked(self, rows: Any) -> NDArray[Any]:
        with np.errstate(over="ignore"):
            converted = np.array(rows, dtype=self._dtype)
        if not np.isfinite(converted).all():
            bad = np.flatnonzero(~np.isfinite(converted).all(axis=1))[:5].tolist()
            raise InputError("rows hold non-finite values", where=self.where, got=f"rows {bad}")
        return converted

    def checked_update(self, keys: Keys, values: Floats) -> tuple[Keys, NDArray[Any]]:
        """Validate without changing anything: the last value of a repeated key counts. Raises InputError."""
        keys = np.asarray(keys, np.uint64)
        if keys.ndim != 1 or values.shape != (len(keys), self.width):
            allowed = (len(keys), self.width)
            raise InputError("values do not fit keys and width", where=self.where, got=values.shape, allowed=allowed)
        converted = self._checked(values)
        keys, last = np.unique(keys[::-1], return_index=True)
        return keys, converted[::-1][last]

    def apply(self, keys: Keys, values: NDArray[Any]) -> None:
        """Write what `checked_update` returned; new keys get new slots."""
        slots = np.asarray(self._slots.search_multiple(keys.view(np.int64)), np.int64)
        new = slots < 0
        n_new = int(new.sum())
        if self._n + n_new > len(self._rows):
            self._grow(self._n + n_new)
        slots[new] = np.arange(self._n, self._n + n_new)
        self._rows[slots] = values
        self._keys[slots[new]] = keys[new]
        self._slots.add(np.ascontiguousarray(keys[new]).view(np.int64), slots[new])
        self._n += n_new

    def _grow(self, needed: int) -> None:
        room = max(needed, 2 * len(self._rows), 16)
        rows = np.zeros((room, self.width), self._dtype)
        rows[: self._n] = self._rows[: self._n]
        keys = np.full(room, MISSING_KEY)
        keys[: self._n] = self._keys[: self._n]
        self._rows, self._keys = rows, keys


Tables = dict[str, EmbeddingTable]


def read_tables(path: str | Path, spec: FeatureSpec, *, dtype: str = "float32") -> Tables:
    """Tables of a spec from a checkpoint's safetensors layout.

    Raises InputError or SpecError when one is absent or misfits.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = Path(path)
    try:
        arrays = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError("not a readable safetensors file", where=path, got=str(error)) from None
    found = {}
    for table, width in spec.tables.items():
        keys, rows = arrays.get(f"{table}.keys"), arrays.get(f"{table}.rows")
        if keys is None or rows is None or keys.dtype not in (np.int64, np.uint64):
            raise InputError(f"table '{table}' is absent or mistyped", where=path, got=sorted(arrays))
        if rows.ndim != 2 or rows.shape[1] != width:
            raise SpecError(f"table '{table}' has another width", where=path, got=rows.shape, allowed=width)
        found[table] = EmbeddingTable(keys.view(np.uint64), rows, dtype=dtype, where=f"{path.name}:{table}")
    return found


def block_rows(spec: FeatureSpec, block: str, tables: Tables, columns: Columns, n: int) -> Floats:
    """A served block from raw columns: float32 [n, spec.width(block)]. For tables that are never updated."""
    keys = block_keys(spec, block, columns)
    slots = {c.field.name: tables[c.field.table].slots(keys[c.field.name]) for c in spec.columns(block)}
    rows = {c.field.table: tables[c.field.table].all_rows for c in spec.columns(block)}
    return pool_rows(spec, block, rows, slots, np.zeros((n, spec.width(block)), np.float32))


@dataclass(frozen=True)
class LiveVersion:
    """One dense version that pages can be made for."""

    dense_version: str
    spec: FeatureSpec
    rows_revision: int

    @property
    def spec_fingerprint(self) -> str:
        return self.spec.fingerprint


@dataclass
class _Version:
    spec: FeatureSpec
    tables: Tables
    revision: int


@dataclass(frozen=True)
class Gathered:
    """Rows of one moment.

    rows: table -> float32 [1 + found, W], row 0 the default row; slots: int64, as asked; missing: count.
    """

    rows_revision: int
    rows: Mapping[str, Floats]
    slots: Mapping[str, NDArray[np.int64]]
    missing: int


class EmbeddingStore:
    """Rows of every live dense version.

    Thread-safe: one lock, held for a gather (well under a millisecond) or an update.
    """

    def __init__(self, dtype: str = "float32"):
        self.dtype = dtype
        self._lock = threading.Lock()
        self._versions: dict[str, _Version] = {}

    def add_version(self, dense_version: str, spec: FeatureSpec, tables: Tables, rows_revision: int) -> None:
        """Make a version live, or replace its rows whole. Raises InputError when tables and spec do not fit."""
        widths = {name: table.width for name, table in tables.items()}
        if not dense_version or widths != spec.tables:
            raise InputError("tables do not fit the spec", where=dense_version, got=widths, allowed=spec.tables)
        if rows_revision < 0:
            raise InputError("rows_revision is negative", where=dense_version, got=rows_revision)
        with self._lock:
            self._versions[dense_version] = _Version(spec, dict(tables), rows_revision)

    def remove_version(self, dense_version: str) -> None:
        with self._lock:
            self._versions.pop(dense_version, None)

    def versions(self) -> list[LiveVersion]:
        """Live versions, in the order in which they became live."""
        with self._lock:
            return [LiveVersion(name, version.spec, version.revision) for name, version in self._versions.items()]

    def get(self, dense_version: str, table: str, keys: Keys) -> tuple[int, Floats, int]:
        """(rows_revision, float32 [Q, W], how many keys were unknown). Raises InputError for what is not live."""
        with self._lock:
            version = self._version(dense_version)
            found = self._table(dense_version, version, table)
            slots = found.slots(keys)
            return version.revision, found.rows(slots), int((slots == 0).sum())

    def gather(self, dense_version: str, keys: Mapping[str, Keys]) -> Gathered:
        """De-duplicated rows of several tables at one revision, for one page.

        keys: table -> uint64 [Q]. Rows after row 0 are in ascending key order. A slot is -1 for MISSING_KEY and 0 for
        a key without a row, which counts as missing. Raises InputError when the version or a table is not live.
        """
        rows, slots, missing = {}, {}, 0
        with self._lock:
            version = self._version(dense_version)
            for name, asked in keys.items():
                table = self._table(dense_version, version, name)
                unique, place = np.unique(asked, return_inverse=True)
                stored = table.slots(unique)
                has_row = stored > 0
                missing += int((stored == 0).sum())
                compact = np.where(has_row, np.cumsum(has_row), stored)
                rows[name] = table.rows(np.concatenate([[0], stored[has_row]]))
                slots[name] = compact[place.reshape(np.shape(asked))]
            return Gathered(version.revision, rows, slots, missing)

    def update(self, dense_version: str, table: str, keys: Keys, values: Floats) -> int:
        """Write rows of one version, or of every live version that has the table (dense_version ""). All or nothing.

        Each version written gets the next rows_revision; returns the highest. Raises InputError.
        """
        keys = np.asarray(keys, np.uint64)
        with self._lock:
            if dense_version:
                targets = [(dense_version, self._version(dense_version))]
            else:
                targets = [(name, v) for name, v in self._versions.items() if table in v.tables]
            if not targets:
                raise InputError("no live version has this table", got=table)
            checked = [(v, self._table(name, v, table)) for name, v in targets]
            writes = [(version, found, found.checked_update(keys, values)) for version, found in checked]
            for version, found, (unique, rows) in writes:
                found.apply(unique, rows)
                version.revision += 1
            return max(version.revision for version, _, _ in writes)

    def _version(self, dense_version: str) -> _Version:
        version = self._versions.get(dense_version)
        if version is None:
            raise InputError("dense version is not live", got=dense_version, allowed=sorted(self._versions))
        return version

    @staticmethod
    def _table(dense_version: str, version: _Version, table: str) -> EmbeddingTable:
        if table not in version.tables:
            raise InputError("no such table", where=dense_version, got=table, allowed=sorted(version.tables))
        return version.tables[table]

    def snapshot(self, dense_version: str, directory: str | Path) -> Path:
        """Write DIRECTORY/<dense_version>.safetensors, rows and revision of one moment. Write aside, fsync, rename."""
        from safetensors.numpy import save

        with self._lock:
            version = self._version(dense_version)
            arrays: dict[str, NDArray[Any]] = {}
            for name, table in version.tables.items():
                order = np.concatenate([[0], 1 + np.argsort(table.keys[1:])])
                arrays[f"{name}.keys"] = table.keys[order].view(np.int64)
                arrays[f"{name}.rows"] = table.all_rows[order].astype(np.float32)
            about = {"dense_version": dense_version, "rows_revision": str(version.revision)}
            about["spec"] = json.dumps(version.spec.to_json())
        path = Path(directory) / f"{dense_version}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{os.getpid()}.part")
        with open(aside, "wb") as file:
            file.write(save(arrays, metadata=about))
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        return path

    def restore(self, path: str | Path) -> LiveVersion:
        """Make a snapshot's version live. Raises InputError or SpecError for anything `snapshot` did not write."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                about = file.metadata() or {}
            name, revision = about["dense_version"], int(about["rows_revision"])
            spec = FeatureSpec.from_json(json.loads(about["spec"]), str(path))
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise InputError("not a snapshot of rows", where=path, got=str(error)) from None
        self.add_version(name, spec, read_tables(path, spec, dtype=self.dtype), revision)
        return LiveVersion(name, spec, revision)

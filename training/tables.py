"""Sparse tables: the embedding rows of every served field, kept apart from the dense net from the first line.

A table is a float32 matrix [R, W] and the 64-bit keys of its rows. Row 0 is the default row (key MISSING_KEY): what an
unknown id gets, trained by key dropout; the keys of rows 1 … ascend. A slot is a row number, -1 = "no entry here".

Shapes: R rows of a table, W its width, M entries of a field, n or ... any leading batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from contract.errors import CheckpointError, SpecError
from contract.features import Columns, block_keys
from contract.spec import FeatureSpec
from contract.vocabulary import MISSING_KEY
from training.table_optimizers import make_optimizers

INIT_STD = 0.05
# From this many rows on a table's gradient is sparse. Below, a dense update is faster on two cores (7 against 12 ms at
# 8,000 x 64; at 1,000,000 x 64 153 against 20). Adagrad leaves rows without gradient alone: both give the same rows.
SPARSE_FROM_ROWS = 200_000


class SparseTables(nn.Module):
    """The tables of one spec. Parameters: `weights.<table>` [R, W]; keys are numpy, outside the parameters.

    keys    per table, uint64 in any order; duplicates and MISSING_KEY are dropped, row 0 is always added
    widths  per table, W
    dropout probability with which, in training mode, an entry is read from the default row instead of its own;
            `dropout_of` (table -> probability) says otherwise for single tables
    seed    of the initial rows, N(0, init_std); default rows start at zero
    """

    def __init__(
        self,
        keys: Mapping[str, NDArray[np.uint64]],
        widths: Mapping[str, int],
        *,
        dropout: float = 0.0,
        seed: int = 0,
        init_std: float = INIT_STD,
    ):
        super().__init__()
        if set(keys) != set(widths):
            raise SpecError("tables need one key array and one width each", got=sorted(keys), allowed=sorted(widths))
        if not 0.0 <= dropout < 1.0:
            raise SpecError("key dropout is a probability below 1", got=dropout)
        if not init_std >= 0.0:
            raise SpecError("init_std is a standard deviation, 0 or more", got=init_std)
        self.dropout = dropout
        self.dropout_of: dict[str, float] = {}
        self.keys: dict[str, NDArray[np.uint64]] = {}
        self.weights = nn.ParameterDict()
        generator = torch.Generator().manual_seed(seed)
        for table in sorted(keys):
            self.keys[table] = with_default(keys[table])
            rows_RW = torch.randn(len(self.keys[table]), widths[table], generator=generator) * init_std
            rows_RW[0] = 0.0
            self.weights[table] = nn.Parameter(rows_RW)

    @staticmethod
    def from_spec_and_keys(
        spec: FeatureSpec,
        keys: Mapping[str, NDArray[np.uint64]],
        *,
        dropout: float = 0.0,
        seed: int = 0,
        init_std: float = INIT_STD,
    ) -> SparseTables:
        """Tables for all served fields of `spec`; a table without an entry in `keys` has its default row alone."""
        unknown = sorted(set(keys) - set(spec.tables))
        if unknown:
            raise SpecError(f"spec '{spec.name}' has no such table", got=unknown, allowed=sorted(spec.tables))
        none = np.zeros(0, np.uint64)
        found = {table: keys.get(table, none) for table in spec.tables}
        return SparseTables(found, spec.tables, dropout=dropout, seed=seed, init_std=init_std)

    @property
    def widths(self) -> dict[str, int]:
        return {table: int(weight.shape[1]) for table, weight in self.weights.items()}

    @property
    def n_rows(self) -> dict[str, int]:
        return {table: len(keys) for table, keys in self.keys.items()}

    def slots(self, table: str, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Row numbers of keys, same shape: MISSING_KEY -> -1 (no entry), a key without a row -> 0 (default row)."""
        return slots_of(self.keys[table], keys)

    def field_slots(self, spec: FeatureSpec, block: str, columns: Columns) -> dict[str, NDArray[np.int64]]:
        """Slots of a served block from raw columns: field name -> int64 [n, max_len]."""
        return field_slots(self, spec, block, columns)

    def rows(self, spec: FeatureSpec, block: str, slots: Mapping[str, Tensor]) -> Tensor:
        """The block's rows, differentiable: float32 [..., spec.width(block)].

        slots: field name -> int64 [..., max_len]. Same rule as `contract.features.pool_rows`: entries of -1 do not
        count, several are averaged, a field without any takes the default row.
        """
        parts = [self._pooled(column.field.table, slots[column.field.name]) for column in spec.columns(block)]
        if not parts:
            raise SpecError(f"spec '{spec.name}' has no served field in block '{block}'", allowed=spec.blocks)
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def blocks(self, spec: FeatureSpec, slots: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Rows of several blocks, block -> rows. What sharded tables look up in one go; here the same as one by one."""
        return {block: self.rows(spec, block, fields) for block, fields in slots.items()}

    def _pooled(self, table: str, slots: Tensor) -> Tensor:
        weight = self.weights[table]
        dropout = self.dropout_of.get(table, self.dropout) if self.training else 0.0
        read = rows_read(slots, dropout)
        return pooled(weight, read, slots, sparse=weight.requires_grad and len(weight) >= SPARSE_FROM_ROWS)

    def optimizers(self, learning_rate: float, kind: str = "adagrad") -> list[torch.optim.Optimizer]:
        """One for the small tables (dense gradients) and one for the large (sparse); kinds: table_optimizers.py."""
        small = [w for w in self.weights.values() if len(w) < SPARSE_FROM_ROWS]
        large = [w for w in self.weights.values() if len(w) >= SPARSE_FROM_ROWS]
        return make_optimizers(small, large, learning_rate, kind)

    def grow(self, keys: Mapping[str, NDArray[np.uint64]]) -> dict[str, NDArray[np.int64]]:
        """Add rows for new keys, each a copy of the default row; known keys stay. For incremental training.

        Returns per named table, for each row after growth, the row it had before (-1 = new). Parameters are replaced:
        make optimisers afresh afterwards.
        """
        origins = {}
        for table, more in keys.items():
            if table not in self.keys:
                raise SpecError("no such table", got=table, allowed=sorted(self.keys))
            merged = with_default(np.concatenate([self.keys[table][1:], np.asarray(more, np.uint64)]))
            origin = self.slots(table, merged)
            origin[origin == 0] = -1
            origin[0] = 0
            weight = self.weights[table]
            rows_RW = weight.detach()[torch.from_numpy(np.maximum(origin, 0))].clone()
            self.keys[table] = merged
            self.weights[table] = nn.Parameter(rows_RW, requires_grad=weight.requires_grad)
            origins[table] = origin
        return origins

    def numpy_rows(self) -> dict[str, NDArray[np.float32]]:
        """Table -> float32 [R, W], as `contract.features.pool_rows` takes it."""
        return {table: weight.detach().cpu().numpy() for table, weight in self.weights.items()}

    def export(self) -> dict[str, NDArray[Any]]:
        """What tables.safetensors holds: "<table>.keys" int64 [R] (bits of uint64), "<table>.rows" float32 [R, W]."""
        arrays: dict[str, NDArray[Any]] = {}
        for table, rows_RW in self.numpy_rows().items():
            arrays[f"{table}.keys"] = self.keys[table].view(np.int64)
            arrays[f"{table}.rows"] = np.ascontiguousarray(rows_RW, np.float32)
        return arrays

    @staticmethod
    def from_export(arrays: Mapping[str, NDArray[Any]], where: object = "tables") -> SparseTables:
        """The inverse of `export`. Raises CheckpointError for arrays that contradict each other."""
        names = sorted({name.rsplit(".", 1)[0] for name in arrays})
        keys, rows = {}, {}
        for table in names:
            try:
                keys[table] = np.ascontiguousarray(arrays[f"{table}.keys"]).view(np.uint64)
                rows[table] = np.asarray(arrays[f"{table}.rows"], np.float32)
            except KeyError as error:
                raise CheckpointError(
                    f"table '{table}' is incomplete", where=where, got=sorted(arrays), allowed=error.args[0]
                ) from None
            _check(table, keys[table], rows[table], where)
        tables = SparseTables({t: np.zeros(0, np.uint64) for t in names}, {t: rows[t].shape[1] for t in names})
        for table in names:
            tables.keys[table] = keys[table]
            tables.weights[table] = nn.Parameter(torch.from_numpy(rows[table].copy()))
        return tables


def slots_of(table_keys: NDArray[np.uint64], keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Row numbers of `keys` among a table's keys (default row first, then ascending), as `SparseTables.slots`."""
    known = table_keys[1:]
    keys = np.asarray(keys, np.uint64)
    if len(known) == 0:
        return np.where(keys == MISSING_KEY, np.int64(-1), np.int64(0))
    place = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    slots = np.where(known[place] == keys, place.astype(np.int64) + 1, np.int64(0))
    return np.where(keys == MISSING_KEY, np.int64(-1), slots)


def field_slots(tables: Any, spec: FeatureSpec, block: str, columns: Columns) -> dict[str, NDArray[np.int64]]:
    """Slots of a served block from raw columns, of any tables: field name -> int64 [n, max_len]."""
    keys = block_keys(spec, block, columns)
    return {
        column.field.name: tables.slots(column.field.table, keys[column.field.name]) for column in spec.columns(block)
    }


def rows_read(slots: Tensor, dropout: float) -> Tensor:
    """The row that each entry reads, int64, same shape: "no entry" reads row 0, and so does what key dropout hits."""
    read = slots.clamp(min=0)
    return read * (torch.rand(read.shape, device=read.device) >= dropout) if dropout else read


def pooled(weight_RW: Tensor, read: Tensor, slots: Tensor, *, sparse: bool = False) -> Tensor:
    """Mean of the rows that the entries read: float32 [..., W] from int64 [..., M]. Entries of -1 don't count."""
    if slots.shape[-1] == 1:
        return F.embedding(read.squeeze(-1), weight_RW, sparse=sparse)
    present = (slots >= 0).to(weight_RW.dtype)
    # A field without any entry counts its first place, which reads row 0.
    first = (present.sum(-1, keepdim=True) == 0).to(weight_RW.dtype)
    share = torch.cat([present[..., :1] + first, present[..., 1:]], dim=-1)
    share = (share / share.sum(-1, keepdim=True)).reshape(-1, slots.shape[-1])
    flat = F.embedding_bag(read.reshape(share.shape), weight_RW, mode="sum", per_sample_weights=share, sparse=sparse)
    return flat.reshape(*slots.shape[:-1], weight_RW.shape[1])


def with_default(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The keys of a table's rows: MISSING_KEY for the default row, then the others ascending, each once."""
    unique = np.unique(np.asarray(keys, np.uint64).reshape(-1))
    return np.concatenate([[MISSING_KEY], unique[unique != MISSING_KEY]]).astype(np.uint64)


def _check(table: str, keys: NDArray[np.uint64], rows: NDArray[np.float32], where: object) -> None:
    if keys.ndim != 1 or rows.ndim != 2 or len(keys) != len(rows) or not len(keys):
        raise CheckpointError(f"table '{table}': keys and rows do not fit", where=where, got=(keys.shape, rows.shape))
    if keys[0] != MISSING_KEY or (len(keys) > 1 and (not (keys[1:-1] < keys[2:]).all() or keys[-1] == MISSING_KEY)):
        raise CheckpointError(f"table '{table}': row 0 must be the default row and the other keys ascend", where=where)


def table_keys(spec: FeatureSpec, columns_of: Iterable[tuple[str, Columns]]) -> dict[str, NDArray[np.uint64]]:
    """All keys that raw columns bring, per table: `columns_of` lists (block, columns). MISSING_KEY is left out."""
    found: dict[str, list[NDArray[np.uint64]]] = {table: [] for table in spec.tables}
    for block, columns in columns_of:
        keys = block_keys(spec, block, columns)
        for column in spec.columns(block):
            found[column.field.table].append(np.unique(keys[column.field.name]))
    return {table: with_default(np.concatenate(parts))[1:] for table, parts in found.items() if parts}

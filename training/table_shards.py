"""Tables on disk in pieces, one per process that held them; any number of processes reads them again. No pickle.

    DIR/shards.json                        format, number of shards, tables {name: {"rows": R, "width": W}}
    DIR/shard-00000-of-00002.safetensors   of a run of rows: "<table>.keys" int64 (bits of uint64) [r],
                                           "<table>.rows" float32 [r, W], "<table>.sum" float32 [r] (row-wise Adagrad)
    DIR/state/                             the dense training state, where there was one (training/autosave.py)

The shards' runs follow each other in every table: shard 0 holds the first rows.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from contract.errors import CheckpointError
from training.autosave import Autosave
from training.checkpoint import TrainingState, flush_directory, swap_directory
from training.tables import SparseTables

FORMAT = "kir-table-shards/1"
INDEX = "shards.json"


@dataclass(frozen=True)
class Piece:
    """Some rows of a table: keys uint64 [r], rows float32 [r, W], sums float32 [r] of the optimiser."""

    keys: NDArray[np.uint64]
    rows: NDArray[np.float32]
    sums: NDArray[np.float32]


def save_shard(
    directory: str | Path,
    pieces: Mapping[str, Piece],
    *,
    rank: int,
    world: int,
    wait: Callable[[], object],
    state: TrainingState | None = None,
) -> None:
    """Write this process's rows of every table; `directory` appears whole when all have written, or not at all.

    Called by every rank. wait: a barrier of them all. state: written by rank 0 alone. Replaces an existing `directory`.
    """
    directory = Path(directory)
    aside = directory.with_name(f".{directory.name}.part")
    if rank == 0:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    wait()
    arrays: dict[str, NDArray[Any]] = {}
    for table, piece in pieces.items():
        arrays[f"{table}.keys"] = np.ascontiguousarray(piece.keys).view(np.int64)
        arrays[f"{table}.rows"] = np.ascontiguousarray(piece.rows, np.float32)
        arrays[f"{table}.sum"] = np.ascontiguousarray(piece.sums, np.float32)
    save_file(arrays, aside / _shard_name(rank, world))
    wait()
    if rank == 0:
        if state is not None:
            Autosave(aside / "state").save(state)
        (aside / INDEX).write_text(json.dumps(_index(aside, world), indent=2, sort_keys=True) + "\n")
        flush_directory(aside)
        swap_directory(aside, directory)
    wait()


class TableShards:
    """Saved shards, opened: reads any run of rows without reading the rest. Raises CheckpointError for damaged ones."""

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        path = self.directory / INDEX
        try:
            index = json.loads(path.read_text())
        except FileNotFoundError:
            raise CheckpointError("no saved tables here", where=path) from None
        except ValueError as error:
            raise CheckpointError("not readable JSON", where=path, got=str(error)) from None
        if not isinstance(index, dict) or index.get("format") != FORMAT:
            raise CheckpointError("not saved tables of this format", where=path, allowed=FORMAT)
        self.world: int = index["world"]
        self.tables: dict[str, dict[str, int]] = index["tables"]
        if _index(self.directory, self.world) != index:
            raise CheckpointError("the shards are not those that were saved together", where=self.directory)

    @property
    def state(self) -> TrainingState | None:
        """The dense training state that was saved along."""
        saver = Autosave(self.directory / "state")
        return saver.load() if saver.exists else None

    def read(self, table: str, first: int, last: int) -> Piece:
        """Rows first … last - 1 of a table, whichever shards hold them."""
        keys, rows, sums = [], [], []
        before = 0
        for rank in range(self.world):
            with safe_open(self.directory / _shard_name(rank, self.world), "numpy") as file:
                n = file.get_slice(f"{table}.keys").get_shape()[0]
                low, high = max(0, first - before), min(n, last - before)
                if low < high:
                    keys.append(file.get_slice(f"{table}.keys")[low:high])
                    rows.append(file.get_slice(f"{table}.rows")[low:high])
                    sums.append(file.get_slice(f"{table}.sum")[low:high])
            before += n
        if not keys:
            width = self.tables[table]["width"]
            return Piece(np.zeros(0, np.uint64), np.zeros((0, width), np.float32), np.zeros(0, np.float32))
        return Piece(np.concatenate(keys).view(np.uint64), np.concatenate(rows), np.concatenate(sums))

    def to_tables(self) -> SparseTables:
        """All rows in this process, as one SparseTables: for checkpoints, evaluation and export."""
        arrays: dict[str, NDArray[Any]] = {}
        for table, size in self.tables.items():
            piece = self.read(table, 0, size["rows"])
            arrays[f"{table}.keys"] = piece.keys.view(np.int64)
            arrays[f"{table}.rows"] = piece.rows
        return SparseTables.from_export(arrays, where=self.directory)


def _shard_name(rank: int, world: int) -> str:
    return f"shard-{rank:05d}-of-{world:05d}.safetensors"


def _index(directory: Path, world: int) -> dict[str, Any]:
    """What the shards' headers say together."""
    tables: dict[str, dict[str, int]] = {}
    for rank in range(world):
        path = directory / _shard_name(rank, world)
        try:
            with safe_open(path, "numpy") as file:
                for name in file.keys():  # noqa: SIM118  (a safetensors file is no mapping)
                    table, _, part = name.rpartition(".")
                    if part == "rows":
                        n, width = file.get_slice(name).get_shape()
                        found = tables.setdefault(table, {"rows": 0, "width": width})
                        found["rows"] += n
        except (SafetensorError, OSError) as error:
            raise CheckpointError("a shard is missing or damaged", where=path, got=str(error)) from None
    return {"format": FORMAT, "world": world, "tables": tables}

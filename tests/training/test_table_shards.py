"""Shards of tables on disk: any run of rows can be read, they come whole or not at all, and damage is seen."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from contract.errors import CheckpointError
from training.checkpoint import TrainingState
from training.table_shards import INDEX, Piece, TableShards, save_shard
from training.tables import SparseTables

SIZES = {"tag": (3, 2), "video": (11, 4)}  # rows, width
WORLD = 4  # the tag table leaves the last rank without a row


def whole() -> SparseTables:
    keys = {table: np.arange(1, rows, dtype=np.uint64) * 7 for table, (rows, _) in SIZES.items()}
    return SparseTables(keys, {table: width for table, (_, width) in SIZES.items()}, seed=3)


def span(rows: int, rank: int, world: int) -> slice:
    block = -(-rows // world)
    return slice(min(rank * block, rows), min((rank + 1) * block, rows))


def pieces(tables: SparseTables, rank: int, world: int = WORLD) -> dict[str, Piece]:
    found = {}
    for table, weight in tables.weights.items():
        cut = span(len(weight), rank, world)
        sums = np.arange(len(weight), dtype=np.float32)
        found[table] = Piece(tables.keys[table][cut], weight.detach().numpy()[cut], sums[cut])
    return found


def save_all(directory: Path, tables: SparseTables, state: TrainingState | None = None, world: int = WORLD) -> None:
    """As `world` processes would: threads that wait for each other."""
    barrier = threading.Barrier(world)

    def one(rank: int) -> None:
        save_shard(directory, pieces(tables, rank, world), rank=rank, world=world, wait=barrier.wait, state=state)

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_one_process_reads_what_four_wrote(tmp_path):
    tables = whole()
    save_all(tmp_path / "saved", tables)
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    back = TableShards(tmp_path / "saved").to_tables()
    for table, weight in tables.weights.items():
        assert torch.equal(back.weights[table], weight)
        assert np.array_equal(back.keys[table], tables.keys[table])


@pytest.mark.parametrize(("first", "last"), [(0, 11), (0, 0), (2, 3), (2, 7), (5, 11), (10, 11)])
def test_any_run_of_rows_can_be_read(tmp_path, first, last):
    tables = whole()
    save_all(tmp_path / "saved", tables)
    piece = TableShards(tmp_path / "saved").read("video", first, last)
    assert np.array_equal(piece.keys, tables.keys["video"][first:last])
    assert np.array_equal(piece.rows, tables.weights["video"].detach().numpy()[first:last])
    assert np.array_equal(piece.sums, np.arange(11, dtype=np.float32)[first:last])
    assert piece.rows.shape == (last - first, 4)


def test_a_new_save_replaces_the_old_one_with_its_state(tmp_path):
    tables = whole()
    state = TrainingState({"task.w": torch.ones(2)}, {"step": 7, "best_epoch": -1})
    save_all(tmp_path / "saved", tables, state)
    assert TableShards(tmp_path / "saved").state.meta["step"] == 7
    with torch.no_grad():
        tables.weights["video"][5] = 9.0
    save_all(tmp_path / "saved", tables, world=2)
    shards = TableShards(tmp_path / "saved")
    assert shards.state is None
    assert shards.world == 2
    assert shards.read("video", 5, 6).rows.tolist() == [[9.0] * 4]
    assert len(list((tmp_path / "saved").iterdir())) == 3


def test_a_save_cut_short_leaves_the_one_before(tmp_path):
    save_all(tmp_path / "saved", whole())
    calls = []

    def dies() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("a rank is gone")

    with pytest.raises(RuntimeError, match="a rank is gone"):
        save_shard(tmp_path / "saved", pieces(whole(), 0, 2), rank=0, world=2, wait=dies)
    assert TableShards(tmp_path / "saved").world == WORLD
    save_all(tmp_path / "saved", whole(), world=2)  # the rest of the failed one is cleared away
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_damage_is_seen(tmp_path):
    with pytest.raises(CheckpointError, match="no saved tables"):
        TableShards(tmp_path)
    directory = tmp_path / "saved"
    save_all(directory, whole())
    shard = sorted(directory.glob("shard-*"))[1]
    kept = shard.read_bytes()
    shard.write_bytes(kept[:-3])
    with pytest.raises(CheckpointError, match="missing or damaged"):
        TableShards(directory)
    shard.unlink()
    with pytest.raises(CheckpointError, match="missing or damaged"):
        TableShards(directory)
    shard.write_bytes(sorted(directory.glob("shard-*"))[-1].read_bytes())  # a shard of another size in its place
    with pytest.raises(CheckpointError, match="not those that were saved together"):
        TableShards(directory)
    shard.write_bytes(kept)
    TableShards(directory)
    for text, message in (("{", "not readable JSON"), (json.dumps({"format": "x"}), "of this format")):
        (directory / INDEX).write_text(text)
        with pytest.raises(CheckpointError, match=message):
            TableShards(directory)

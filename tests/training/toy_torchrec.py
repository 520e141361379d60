"""The toy of toy_parallel.py with sharded tables; test_tables_torchrec.py starts it in two processes and in one.

torchrun --standalone --nproc-per-node 2 -m tests.training.toy_torchrec train OUT
torchrun --standalone --nproc-per-node 1 -m tests.training.toy_torchrec reload OUT
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import save_file

from contract.errors import CheckpointError, InputError, SpecError
from tests.training.toy_parallel import KEYS, SPEC, STOP_AT, ParallelToy, trainer_of
from training.distributed import DataParallel
from training.tables import SparseTables
from training.tables_torchrec import ShardedTables

OPTIONS: dict[str, Any] = {"table_optimizer": "rowwise_adagrad", "ema_decay": None}


def sharded_toy(parallel: DataParallel, dropout: float = 0.0) -> ParallelToy:
    """The toy whose rows start as those of the plain one."""
    tables = ShardedTables.from_spec_and_keys(SPEC, KEYS, parallel, dropout=dropout)
    tables.copy_from(SparseTables.from_spec_and_keys(SPEC, KEYS, seed=0))
    return ParallelToy(dropout, tables)


def write(task: ParallelToy, path: Path) -> None:
    """Dense weights and gathered rows, from rank 0."""
    gathered = task.tables.gather()
    if gathered is not None:
        save_file(task.state_dict(), path.with_suffix(".dense"))
        save_numpy(gathered.export(), path.with_suffix(".tables"))


def train(parallel: DataParallel, out: Path) -> None:
    """As one process without dropout; and, with dropout, stopped and gone on as if not stopped."""
    task = sharded_toy(parallel)
    seen = []

    def validate() -> dict[str, float]:
        rows = task.tables.rows(SPEC, "item_rows", {"item": torch.arange(-1, 40)[:, None]})
        seen.append(float(rows.sum()))
        return {"score": seen[-1]}

    result = trainer_of(task, parallel, validate=validate, **OPTIONS).run()
    assert len(seen) == len(result.history) == 3, "every rank validates"
    write(task, out / "trained")
    task.tables.save(out / "trained-shards")
    if parallel.leads:
        (out / "losses.txt").write_text("\n".join(map(repr, result.losses)))

    whole = sharded_toy(parallel, 0.3)
    trainer_of(whole, parallel, **OPTIONS).run()
    write(whole, out / "whole")
    first = sharded_toy(parallel, 0.3)
    trainer = trainer_of(first, parallel, **OPTIONS)
    trainer.run(until_step=STOP_AT)
    first.tables.save(out / "half", trainer.state())
    second = ParallelToy(0.3, ShardedTables.from_spec_and_keys(SPEC, KEYS, parallel, dropout=0.3, seed=5))
    again = trainer_of(second, parallel, **OPTIONS)
    again.load_state(second.tables.load(out / "half"))
    again.run()
    write(second, out / "resumed")
    second.tables.save(out / "shards")


def odd_sizes(parallel: DataParallel) -> None:
    """A table with fewer rows than ranks leaves some without any; other keys are refused; seeds matter."""
    tables = ShardedTables.from_spec_and_keys(SPEC, {"video": np.arange(6, dtype=np.uint64)}, parallel, seed=1)
    assert tables.n_rows == {"tag": 1, "video": 7}
    assert tables.span("tag", 1) == (1, 1)
    gathered = tables.gather()
    if gathered is not None:
        rows = gathered.weights["video"].detach()
        assert not rows[0].any()
        assert 0.02 < float(rows[1:].std()) < 0.1
    other = ShardedTables.from_spec_and_keys(SPEC, {"video": np.arange(6, dtype=np.uint64)}, parallel, seed=2).gather()
    if gathered is not None and other is not None:
        assert not torch.equal(gathered.weights["video"], other.weights["video"])
    with pytest.raises(CheckpointError, match="other keys"):
        tables.copy_from(SparseTables.from_spec_and_keys(SPEC, KEYS))
    with pytest.raises(InputError, match="row-wise Adagrad alone"):
        tables.optimizers(0.1, "adam")
    with pytest.raises(InputError, match="multiple of 4"):
        ShardedTables({"video": np.arange(6, dtype=np.uint64)}, {"video": 6}, parallel)
    with pytest.raises(SpecError, match="no served field"):
        tables.rows(SPEC, "nowhere", {})
    for options in ({"ema_decay": 0.9}, {"device": "auto"}):
        with pytest.raises(InputError, match="sharded tables live on the CPU"):
            trainer_of(ParallelToy(0.0, tables), parallel, **{**OPTIONS, **options})


def reload(parallel: DataParallel, out: Path) -> None:
    """In one process what two have saved: torchrec's own rows, and its optimiser's sums by going on from them."""
    task = ParallelToy(0.0, ShardedTables.from_spec_and_keys(SPEC, KEYS, parallel, seed=8))
    assert task.tables.load(out / "shards") is None
    write(task, out / "reloaded")
    half = ParallelToy(0.3, ShardedTables.from_spec_and_keys(SPEC, KEYS, parallel, seed=8))
    assert half.tables.load(out / "half").meta["step"] == STOP_AT
    half.tables.save(out / "half-again")


if __name__ == "__main__":
    here = DataParallel.from_environment()
    assert here is not None
    if sys.argv[1] == "train":
        train(here, Path(sys.argv[2]))
        odd_sizes(here)
    else:
        reload(here, Path(sys.argv[2]))
    torch.distributed.destroy_process_group()

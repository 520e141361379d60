"""A small retrieval task with everything that makes ranks hard to keep alike, and the process that torchrun starts:

torchrun --standalone --nproc-per-node 2 -m tests.training.toy_parallel OUT

Batches of 1 … 5 rows (fewer than ranks, too), candidates and a frequency estimator of the whole batch, a layer that
only some batches use, a table with sparse gradients and one with dense ones.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from contract.errors import Interrupted
from contract.spec import FeatureSpec, Field
from training import tables as tables_module
from training.autosave import Autosave
from training.candidates import in_batch_candidates
from training.distributed import DataParallel
from training.frequency import FrequencyEstimator
from training.losses import candidate_softmax
from training.tables import SparseTables
from training.trainer import TrainConfig, Trainer

SPEC = FeatureSpec(
    "toy",
    (
        Field("video", "video_id", "history_rows", "video", "page", "served", 8, table="video"),
        Field("tag", "tags", "history_rows", "video", "page", "served", 4, table="tag", max_len=3),
        Field("item", "video_id", "item_rows", "video", "page", "served", 8, table="video"),
    ),
)
N_ITEMS, N_TAGS, K, D, STEPS_PER_EPOCH, EPOCHS = 60, 7, 2, 5, 12, 3
KEYS = {"video": np.arange(N_ITEMS, dtype=np.uint64), "tag": np.arange(N_TAGS, dtype=np.uint64)}
SPARSE_FROM = 50  # the video table is "large", the tags' is not
STOP_AT = 17


@dataclass(frozen=True)
class ToyBatch:
    """As training.segments.SegmentBatch."""

    history: dict[str, Tensor]
    mask: Tensor
    n_cuts: int
    cell: Tensor
    item: Tensor
    owner: Tensor
    weight: Tensor


class ParallelToy(nn.Module):
    """Running means of the history's rows against the item's row; logQ from an estimator of the whole batch."""

    def __init__(self, dropout: float = 0.0, tables: Any = None):
        super().__init__()
        torch.manual_seed(0)
        self.tables = tables or SparseTables.from_spec_and_keys(SPEC, KEYS, dropout=dropout, seed=0)
        self.token = nn.Linear(SPEC.width("history_rows"), 8)
        self.long = nn.Linear(8, 8)  # used by long batches alone: without a gradient in the others
        self.drop = nn.Dropout(dropout)
        self.out = nn.Linear(8, K * D)
        self.item = nn.Linear(8, D)
        self.estimator = FrequencyEstimator(N_ITEMS)

    def users(self, batch: ToyBatch, rows_BLR: Tensor) -> Tensor:
        tokens_BLH = torch.tanh(self.token(rows_BLR))
        if tokens_BLH.shape[1] > 5:
            tokens_BLH = tokens_BLH + self.long(tokens_BLH)
        summed_BLH = (self.drop(tokens_BLH) * batch.mask.unsqueeze(-1)).cumsum(1)
        mean_BLH = summed_BLH / batch.mask.cumsum(1).clamp(min=1).unsqueeze(-1)
        cells = self.out(mean_BLH[:, -batch.n_cuts :]).reshape(-1, K, D)
        return cells[batch.cell]

    def loss(self, batch: ToyBatch, whole: ToyBatch | None = None) -> tuple[Tensor, dict[str, float]]:
        everything = whole or batch
        rows_C, _ = in_batch_candidates(everything.item)
        target_T = torch.searchsorted(rows_C, batch.item)
        self.estimator.update(rows_C)
        found = self.tables.blocks(SPEC, {"history_rows": batch.history, "item_rows": {"item": rows_C[:, None] + 1}})
        users_TKD, items_CD = self.users(batch, found["history_rows"]), self.item(found["item_rows"])
        log_q_C = self.estimator.log_q(rows_C)
        loss = candidate_softmax(
            users_TKD, items_CD, target_T, scale=3.0, log_q_C=log_q_C, correction="logq", weight_T=batch.weight
        )
        return loss, {"targets": len(batch.cell)}


def batches(epoch: int, seed: int) -> Iterator[ToyBatch]:
    random = np.random.default_rng((seed, epoch))
    for _ in range(STEPS_PER_EPOCH):
        B, L = int(random.integers(1, 6)), int(random.integers(3, 8))
        P, T = int(random.integers(1, L + 1)), int(random.integers(2, 20))
        slots = {
            "video": torch.from_numpy(random.integers(0, N_ITEMS + 1, (B, L, 1))),
            "tag": torch.from_numpy(random.integers(-1, N_TAGS + 1, (B, L, 3))),
        }
        mask = torch.from_numpy((np.arange(L) >= random.integers(0, L, (B, 1))).astype(np.float32))
        cell = torch.from_numpy(random.integers(0, B * P, T))
        item = torch.from_numpy(random.integers(0, N_ITEMS, T))
        weight = torch.from_numpy(random.uniform(0.2, 1.8, T).astype(np.float32))
        yield ToyBatch(slots, mask, P, cell, item, cell // P, weight)


def trainer_of(task: ParallelToy, parallel: DataParallel | None = None, **options: Any) -> Trainer:
    tables_module.SPARSE_FROM_ROWS = SPARSE_FROM
    run = {name: options.pop(name) for name in ("batches", "save", "save_every_s", "validate") if name in options}
    config = TrainConfig(**{"epochs": EPOCHS, "learning_rate": 0.01, "ema_decay": 0.9, **options})
    source = run.pop("batches", batches)
    metric = "" if getattr(task.tables, "sharded", False) else "score"
    return Trainer(task, source, STEPS_PER_EPOCH, config, metric=metric, parallel=parallel, **run)


def equal_to_one(parallel: DataParallel, out: Path) -> None:
    """Without dropout (each rank draws its own) the ranks must end as one process does."""
    for kind in ("adagrad", "rowwise_adagrad"):
        task = ParallelToy()
        result = trainer_of(task, parallel, table_optimizer=kind).run()
        found = {name: tensor.clone() for name, tensor in task.state_dict().items()}
        found["losses"] = torch.tensor(result.losses, dtype=torch.float64)
        save_file(found, out / f"{kind}-{parallel.rank}.safetensors")


def resumed(parallel: DataParallel, out: Path) -> None:
    """With dropout: stopped by a signal to rank 1, gone on from rank 0's save; and uninterrupted."""

    def interrupting(epoch: int, seed: int) -> Iterator[ToyBatch]:
        for i, batch in enumerate(batches(epoch, seed)):
            if parallel.rank == 1 and epoch * STEPS_PER_EPOCH + i == STOP_AT:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    def validate() -> dict[str, float]:
        assert parallel.leads
        return {"score": 1.0}

    saver = Autosave(out / "saves")
    options = {"validate": validate, "save": saver.save}
    try:
        trainer_of(ParallelToy(0.3), parallel, batches=interrupting, **options).run()
    except Interrupted as error:
        (out / f"interrupted-{parallel.rank}.txt").write_text(str(error))
    torch.distributed.barrier()
    task, whole = ParallelToy(0.3), ParallelToy(0.3)
    again = trainer_of(task, parallel, **options)
    again.load_state(saver.load())
    again.run()
    trainer_of(whole, parallel, validate=validate).run()
    save_file(task.state_dict(), out / f"resumed-{parallel.rank}.safetensors")
    save_file(whole.state_dict(), out / f"whole-{parallel.rank}.safetensors")


if __name__ == "__main__":
    here = DataParallel.from_environment()
    assert here is not None
    equal_to_one(here, Path(sys.argv[1]))
    resumed(here, Path(sys.argv[1]))
    here.leave()

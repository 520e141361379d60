"""A small task for tests of the trainer, and a process that trains it slowly enough to be killed:

python -m tests.training.toy_training SAVES LOG THREADS
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from contract.spec import FeatureSpec, Field
from training.autosave import Autosave
from training.tables import SparseTables
from training.trainer import TrainConfig, Trainer

SPEC = FeatureSpec("toy", (Field("video", "video_id", "rows", "video", "page", "served", 4, table="video"),))
STEPS_PER_EPOCH, EPOCHS, N_KEYS = 20, 8, 30
STEPS = STEPS_PER_EPOCH * EPOCHS


class Toy(nn.Module):
    """Predicts a number of a video from its row, with both kinds of dropout."""

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        keys = {"video": np.arange(N_KEYS, dtype=np.uint64)}
        self.tables = SparseTables.from_spec_and_keys(SPEC, keys, dropout=0.2, seed=seed)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 1))

    def squared_error(self, slots: Tensor) -> Tensor:
        guess = self.net(self.tables.rows(SPEC, "rows", {"video": slots[:, None]})).squeeze(-1)
        return ((guess - slots / N_KEYS) ** 2).mean()

    def loss(self, slots: Tensor) -> tuple[Tensor, dict[str, float]]:
        return self.squared_error(slots), {"targets": len(slots)}

    def validate(self) -> dict[str, float]:
        return {"score": -float(self.squared_error(torch.arange(1, N_KEYS + 1)))}


def batches(epoch: int, seed: int) -> Iterator[Tensor]:
    random = np.random.default_rng((seed, epoch))
    for _ in range(STEPS_PER_EPOCH):
        yield torch.from_numpy(random.integers(1, N_KEYS + 1, 8))


def slow_batches(epoch: int, seed: int) -> Iterator[Tensor]:
    for batch in batches(epoch, seed):
        time.sleep(0.005)
        yield batch


def trainer_of(task: Toy, saver: Autosave | None = None, every_s: float | None = 0.0, **options: Any) -> Trainer:
    """A run with dropout, a best epoch and averaged weights; options of the configuration and of the trainer mixed."""
    run = {name: options.pop(name) for name in ("batches", "log_path") if name in options}
    config = TrainConfig(**{"epochs": EPOCHS, "learning_rate": 0.01, "ema_decay": 0.9, **options})
    if saver is not None:
        run |= {"save": saver.save, "save_every_s": every_s}
    source = run.pop("batches", batches)
    return Trainer(task, source, STEPS_PER_EPOCH, config, validate=task.validate, metric="score", **run)


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]))
    trainer_of(Toy(), Autosave(sys.argv[1]), batches=slow_batches, log_path=sys.argv[2]).run()

"""What a training is told and what it did: plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from contract.errors import InputError
from training.devices import DEVICES, PRECISIONS
from training.table_optimizers import TABLE_OPTIMIZERS


@dataclass(frozen=True)
class TrainConfig:
    """How long and how fast.

    epochs               passes over the batches; `max_steps` cuts them
    max_seconds          a time budget; the learning rate then falls with the share of it that is used, so that a slower
                         machine trains less and still ends cold (runs with a budget are not reproducible)
    learning_rate        peak, dense AdamW; `table_rate` peak, the tables' optimiser
    table_optimizer      adagrad, rowwise_adagrad or adam (training/table_optimizers.py)
    table_decay          share of every row that a step takes off at peak rates, less as they fall; large tables: of the
                         rows with a gradient. Where items are rare, rows are mostly what few targets taught them
    warmup               share of all steps in which the rates rise from 0; 1 or more = so many steps
    clip                 largest gradient norm of the dense net
    validate_every       epochs from one validation to the next; the last epoch is always validated
    patience             epochs without a better validation before stopping; needs `validate`
    precision            of the products in forward and backward: float32, bfloat16, or auto = bfloat16 where the
                         hardware has it; weights, sums and optimisers stay float32
    device               cpu, cuda, or auto = cuda where there is one
    ema_decay            validate and keep an exponential moving average of the weights, as 0.999; None = the weights
    """

    epochs: int = 1
    max_steps: int | None = None
    max_seconds: float | None = None
    learning_rate: float = 2e-3
    table_rate: float = 0.05
    table_optimizer: str = "adagrad"
    table_decay: float = 0.0
    weight_decay: float = 0.01
    warmup: float = 0.05
    final_rate: float = 0.05
    clip: float = 1.0
    validate_every: int = 1
    patience: int | None = None
    precision: str = "float32"
    device: str = "cpu"
    ema_decay: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "max_steps", "max_seconds", "learning_rate", "table_rate", "clip", "validate_every"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise InputError(f"{name} must be above 0", got=value)
        if self.warmup < 0 or (self.patience is not None and self.patience < 1):
            got = {"warmup": self.warmup, "patience": self.patience}
            raise InputError("out of range", got=got, allowed="warmup from 0, patience from 1")
        if not 0.0 <= self.table_decay < 1.0:
            raise InputError("table_decay is a share of a row", got=self.table_decay, allowed="from 0 to below 1")
        if self.seed < 0:
            raise InputError("seeds start at 0", got=self.seed)
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise InputError("ema_decay must lie between 0 and 1", got=self.ema_decay)
        choices_of = {"precision": PRECISIONS, "device": DEVICES, "table_optimizer": TABLE_OPTIMIZERS}
        for name, choices in choices_of.items():
            if getattr(self, name) not in choices:
                raise InputError(f"unknown {name}", got=getattr(self, name), allowed=choices)


@dataclass(frozen=True)
class TrainResult:
    """What a run did. `losses` is the mean loss of each epoch that was begun."""

    steps: int
    epochs: int
    seconds: float
    losses: tuple[float, ...]
    best: float | None = None
    history: tuple[dict[str, float], ...] = field(default=(), repr=False)

    def to_dict(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "epochs": self.epochs,
            "seconds": round(self.seconds, 2),
            "losses": [round(loss, 5) for loss in self.losses],
            "best": self.best,
        }

"""The training loop: one task, dense AdamW + table Adagrad, warm-up and cosine, early stop, bit-exact resume.

A task is an nn.Module with `loss(batch) -> (loss, {name: float})` and an attribute `tables` (SparseTables); all its
other parameters are the dense net. Batches come from a function of (epoch, seed): the same arguments must give the same
batches, drawn from a numpy generator of their own, never from torch's.

    trainer = Trainer(task, batches, steps_per_epoch, TrainConfig(epochs=2))
    result = trainer.run()
    save_checkpoint(..., state=trainer.state())       # and later: trainer.load_state(checkpoint.state())
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from contract.errors import CheckpointError, InputError
from training.checkpoint import TrainingState
from training.progress import Progress
from training.tables import SparseTables

LOG_NAME = "train_log.jsonl"
Batches = Callable[[int, int], Iterable[Any]]


class Task(Protocol):
    """What the trainer needs; every task is an nn.Module."""

    tables: SparseTables

    def loss(self, batch: Any) -> tuple[Tensor, dict[str, float]]: ...


@dataclass(frozen=True)
class TrainConfig:
    """How long and how fast.

    epochs               passes over the batches; `max_steps` cuts them
    max_seconds          a time budget; the learning rate then falls with the share of it that is used, so that a slower
                         machine trains less and still ends cold (runs with a budget are not reproducible)
    learning_rate        peak, dense AdamW; `table_rate` peak, Adagrad of the tables
    warmup               share of all steps in which the rates rise from 0
    clip                 largest gradient norm of the dense net
    patience             epochs without a better validation before stopping; needs `validate`
    """

    epochs: int = 1
    max_steps: int | None = None
    max_seconds: float | None = None
    learning_rate: float = 2e-3
    table_rate: float = 0.05
    weight_decay: float = 0.01
    warmup: float = 0.05
    final_rate: float = 0.05
    clip: float = 1.0
    patience: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "max_steps", "max_seconds", "learning_rate", "table_rate", "clip"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise InputError(f"{name} must be above 0", got=value)


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


class Trainer:
    """Runs a task. Use `run` once, or `run(until_step=…)` and `state` / `load_state` to stop and go on.

    validate  called after each epoch with the task in eval mode: metrics; `metric` (higher is better) chooses the epoch
              whose weights are kept at the end and feeds early stopping
    log_path  one JSON line per logged step and per validation is appended there
    quiet     no progress on stderr
    """

    def __init__(
        self,
        task: Any,
        batches: Batches,
        steps_per_epoch: int,
        config: TrainConfig,
        *,
        validate: Callable[[], dict[str, float]] | None = None,
        metric: str = "",
        log_path: str | Path | None = None,
        quiet: bool = True,
        label: str = "train",
    ):
        if steps_per_epoch < 1:
            raise InputError("there is nothing to train on", got=f"{steps_per_epoch} steps per epoch")
        if config.patience is not None and validate is None:
            raise InputError("early stopping needs a validation", got=f"patience={config.patience}")
        self.task, self.batches, self.config = task, batches, config
        self.steps_per_epoch = steps_per_epoch
        self.total_steps = min(config.epochs * steps_per_epoch, config.max_steps or math.inf)
        self.validate, self.metric = validate, metric
        self.log_path = Path(log_path) if log_path else None
        self.quiet, self.label = quiet, label
        of_tables = {id(p) for p in task.tables.parameters()}
        self.dense = [p for p in task.parameters() if p.requires_grad and id(p) not in of_tables]
        self.optimizers: list[torch.optim.Optimizer] = []
        if self.dense:
            self.optimizers.append(
                torch.optim.AdamW(
                    self.dense, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.98), fused=True
                )
            )
        self.optimizers += task.tables.optimizers(config.table_rate)
        self._peaks = [group["lr"] for optimizer in self.optimizers for group in optimizer.param_groups]
        self.step = 0
        self.seconds = 0.0
        self.losses: list[float] = []
        self.best: float | None = None
        self._best_epoch = -1
        self._best_weights: dict[str, Tensor] | None = None
        self._sum = 0.0
        self._rng: Tensor | None = None
        self.history: list[dict[str, float]] = []

    def rate_factor(self) -> float:
        """Warm-up, then cosine down to `final_rate`: the factor of the peak rates at the next step."""
        done = self.step / self.total_steps
        if self.config.max_seconds is not None:
            done = max(done, self.seconds / self.config.max_seconds)
        if done < self.config.warmup:
            return (self.step + 1) / max(self.step + 1, self.config.warmup * self.total_steps)
        phase = min((done - self.config.warmup) / max(1 - self.config.warmup, 1e-9), 1.0)
        low = self.config.final_rate
        return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * phase))

    def run(self, until_step: int | None = None) -> TrainResult:
        """Train to the end, or until `until_step` steps have been done in all. Seeds torch's generator."""
        stop = min(self.total_steps, until_step if until_step is not None else math.inf)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            if self._rng is not None:
                torch.set_rng_state(self._rng)
            with Progress(self.label, int(self.total_steps), quiet=self.quiet) as progress:
                self._epochs(stop, progress)
            self._rng = torch.get_rng_state()
        if self.step >= self.total_steps or until_step is None:
            self._keep_best()
        return TrainResult(
            self.step, len(self.losses), self.seconds, tuple(self.losses), self.best, tuple(self.history)
        )

    def _epochs(self, stop: float, progress: Progress) -> None:
        started, before = time.perf_counter(), self.seconds
        while self.step < stop:
            epoch, offset = divmod(self.step, self.steps_per_epoch)
            self.task.train()
            n_before = self.step
            for batch in islice(self.batches(epoch, self.config.seed), offset, self.steps_per_epoch):
                self._one_step(batch, epoch, progress)
                self.seconds = before + time.perf_counter() - started
                if self.step >= stop or self._out_of_time():
                    break
            if self.step == n_before:
                raise InputError("an epoch gave no batch", got=f"epoch {epoch}, {self.steps_per_epoch} steps promised")
            over = self.step % self.steps_per_epoch == 0 or self._out_of_time() or self.step >= self.total_steps
            if (over and self._end_of_epoch(epoch)) or self._out_of_time():
                break

    def _out_of_time(self) -> bool:
        return self.config.max_seconds is not None and self.seconds >= self.config.max_seconds

    def _one_step(self, batch: Any, epoch: int, progress: Progress) -> None:
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        factor = self.rate_factor()
        for group, peak in zip(groups, self._peaks, strict=True):
            group["lr"] = peak * factor
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss, numbers = self.task.loss(batch)
        loss.backward()
        if self.dense:
            torch.nn.utils.clip_grad_norm_(self.dense, self.config.clip)
        for optimizer in self.optimizers:
            optimizer.step()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise InputError(
                "the loss is not finite", where=f"step {self.step}", got=value, fix="lower the learning rate"
            )
        self._sum += value
        self.step += 1
        progress.update(self.step, {"loss": value, **numbers})
        if self.step == 1 or self.step % max(1, self.steps_per_epoch // 20) == 0:
            self._log({"step": self.step, "epoch": epoch, "loss": value, "rate": factor, **numbers})

    def _end_of_epoch(self, epoch: int) -> bool:
        """Validate and log; True when training should stop early."""
        in_epoch = self.step - epoch * self.steps_per_epoch
        self.losses.append(self._sum / max(in_epoch, 1))
        self._sum = 0.0
        if self.validate is None:
            return False
        self.task.eval()
        with torch.no_grad():
            metrics = self.validate()
        self.history.append({"epoch": epoch, **metrics})
        self._log({"step": self.step, "epoch": epoch, "validation": metrics})
        if not self.metric:
            return False
        value = metrics[self.metric]
        if self.best is None or value > self.best:
            self.best, self._best_epoch = value, epoch
            self._best_weights = {name: tensor.detach().clone() for name, tensor in self.task.state_dict().items()}
        return self.config.patience is not None and epoch - self._best_epoch >= self.config.patience

    def _keep_best(self) -> None:
        if self._best_weights is not None:
            self.task.load_state_dict(self._best_weights)

    def _log(self, line: dict[str, Any]) -> None:
        if self.log_path is None:
            return
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("a") as file:
            file.write(json.dumps({**line, "seconds": round(self.seconds, 3)}) + "\n")

    def state(self) -> TrainingState:
        """Everything that the next `run` needs to go on bit for bit; take it before the best weights are put back."""
        tensors = {f"task.{name}": tensor for name, tensor in self.task.state_dict().items()}
        if self._best_weights is not None:
            tensors |= {f"best.{name}": tensor for name, tensor in self._best_weights.items()}
        numbers: dict[str, Any] = {}
        for i, optimizer in enumerate(self.optimizers):
            for j, state in optimizer.state_dict()["state"].items():
                for name, value in state.items():
                    key = f"optimizer.{i}.{j}.{name}"
                    if torch.is_tensor(value):
                        tensors[key] = value
                    else:
                        numbers[key] = value
        if self._rng is not None:
            tensors["rng"] = self._rng
        meta = {
            "step": self.step,
            "steps_per_epoch": self.steps_per_epoch,
            "total_steps": int(self.total_steps),
            "seconds": self.seconds,
            "losses": self.losses,
            "sum": self._sum,
            "best": self.best,
            "best_epoch": self._best_epoch,
            "history": self.history,
            "seed": self.config.seed,
            "numbers": numbers,
        }
        return TrainingState(tensors, meta)

    def load_state(self, state: TrainingState) -> None:
        """Go on from `state`. Raises CheckpointError when it belongs to another model, data or schedule."""
        meta = state.meta
        mine = (self.steps_per_epoch, int(self.total_steps), self.config.seed)
        theirs = (meta["steps_per_epoch"], meta["total_steps"], meta["seed"])
        if mine != theirs:
            raise CheckpointError(
                "training state of another run (steps per epoch, total steps, seed)",
                got=theirs,
                allowed=mine,
                fix="resume with the same data, batch size, epochs, steps and seed",
            )
        try:
            self.task.load_state_dict(_under(state.tensors, "task."))
        except RuntimeError as error:
            raise CheckpointError("training state of another model", got=str(error)) from None
        numbers = meta["numbers"]
        for i, optimizer in enumerate(self.optimizers):
            mine_state = optimizer.state_dict()
            found: dict[int, dict[str, Any]] = {}
            for key, value in {
                **_under(state.tensors, f"optimizer.{i}."),
                **_under(numbers, f"optimizer.{i}."),
            }.items():
                index, name = key.split(".", 1)
                found.setdefault(int(index), {})[name] = value.clone() if torch.is_tensor(value) else value
            optimizer.load_state_dict({"state": found, "param_groups": mine_state["param_groups"]})
        best = _under(state.tensors, "best.")
        self._best_weights = {name: tensor.clone() for name, tensor in best.items()} or None
        self._rng = state.tensors.get("rng")
        self.step, self.seconds, self._sum = meta["step"], meta["seconds"], meta["sum"]
        self.losses, self.history = list(meta["losses"]), list(meta["history"])
        self.best, self._best_epoch = meta["best"], meta["best_epoch"]


def log_beside(out_dir: Path) -> Path:
    """Where to log while `out_dir`, which is written whole at the end, is not there yet; starts empty."""
    path = out_dir.with_name(f".{out_dir.name}.{LOG_NAME}")
    path.unlink(missing_ok=True)
    return path


def keep_log(out_dir: Path) -> None:
    """Move that log to out_dir/train_log.jsonl."""
    path = out_dir.with_name(f".{out_dir.name}.{LOG_NAME}")
    if path.exists():
        os.replace(path, out_dir / LOG_NAME)


def _under(entries: Any, prefix: str) -> dict[str, Any]:
    return {name[len(prefix) :]: value for name, value in entries.items() if name.startswith(prefix)}

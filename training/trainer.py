"""The training loop: one task, dense AdamW + tables, warm-up and cosine, early stop, autosave, bit-exact resume.

A task is an nn.Module with `loss(batch) -> (loss, {name: float})` and an attribute `tables` (SparseTables); all its
other parameters are the dense net. The number "targets", where a task gives it, becomes targets per second in the log.
Batches come from a function of (epoch, seed): the same arguments must give the same batches, drawn from a numpy
generator of their own, never from torch's.

    saver = Autosave.beside(out_dir)
    trainer = Trainer(task, batches, steps_per_epoch, TrainConfig(epochs=2), save=saver.save, save_every_s=600)
    if resume:
        trainer.load_state(saver.load())              # or load_checkpoint(directory).state()
    result = trainer.run()
    save_checkpoint(..., state=trainer.state())
    saver.clear()
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from contract.errors import CheckpointError, InputError, Interrupted
from training.averaging import WeightAverage, exchange
from training.checkpoint import TrainingState
from training.devices import autocast, pick_device, pick_precision, to_device
from training.distributed import DataParallel, split_batch
from training.optimizer_state import pack_optimizers, under, unpack_optimizers
from training.progress import Progress
from training.stop_signal import StopSignal
from training.table_optimizers import decay_rows
from training.tables import SparseTables
from training.train_config import TrainConfig, TrainResult
from training.train_log import LOG_NAME, TrainLog, keep_log, log_beside

__all__ = ["LOG_NAME", "Batches", "Task", "TrainConfig", "TrainResult", "Trainer", "keep_log", "log_beside"]

Batches = Callable[[int, int], Iterable[Any]]


class Task(Protocol):
    """What the trainer needs; every task is an nn.Module."""

    tables: SparseTables

    def loss(self, batch: Any) -> tuple[Tensor, dict[str, float]]:
        """Under torchrun it is called as loss(batch, whole): see training/distributed.py."""
        ...


class Trainer:
    """Runs a task. Use `run` once, or `run(until_step=…)` and `state` / `load_state` to stop and go on.

    validate      called every `validate_every` epochs with the task in eval mode, on the training's device, holding the
                  averaged weights where there are any: metrics; `metric` (higher is better) chooses the epoch whose
                  weights are kept at the end and feeds early stopping
    save          given the state when `run` ends, every `save_every_s` seconds before (None = never, 0 = after every
                  step), and at Ctrl-C or SIGTERM, when `run` raises Interrupted; it may return a path for the message
    log_path      one JSON line per logged step and per validation is appended there (training/train_log.py)
    quiet         no progress on stderr
    parallel      this process's place under torchrun; rank 0 alone validates, saves, logs and shows progress. With
                  sharded tables all ranks are called for `validate` and `save`, which must save the tables as well
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
        save: Callable[[TrainingState], object] | None = None,
        save_every_s: float | None = None,
        log_path: str | Path | None = None,
        quiet: bool = True,
        label: str = "train",
        parallel: DataParallel | None = None,
    ):
        if steps_per_epoch < 1:
            raise InputError("there is nothing to train on", got=f"{steps_per_epoch} steps per epoch")
        if config.patience is not None and validate is None:
            raise InputError("early stopping needs a validation", got=f"patience={config.patience}")
        if save_every_s is not None and (save is None or save_every_s < 0):
            raise InputError("saving while running needs a `save` and seconds of 0 or more", got=save_every_s)
        world = os.environ.get("WORLD_SIZE", "1")
        if parallel is None and world != "1":
            raise InputError(
                "this model trains in one process", got=f"WORLD_SIZE={world}", fix="start without torchrun"
            )
        # Sharded tables (training/tables_torchrec.py): what touches their rows is done by all ranks together.
        self._sharded = bool(getattr(task.tables, "sharded", False))
        if self._sharded and (config.ema_decay is not None or metric or config.device != "cpu" or config.table_decay):
            raise InputError(
                "sharded tables live on the CPU, no average or best epoch is kept of their rows, and none decays",
                got=(config.device, config.ema_decay, metric, config.table_decay),
                allowed=("cpu", None, "", 0.0),
            )
        self.device = pick_device(config.device)
        self.precision = pick_precision(config.precision, self.device)
        self.task, self.batches, self.config = task.to(self.device), batches, config
        self.steps_per_epoch = steps_per_epoch
        self.total_steps = min(config.epochs * steps_per_epoch, config.max_steps or math.inf)
        self.validate, self.metric = validate, metric
        self.save, self.save_every_s = save, save_every_s
        self.parallel = parallel
        self._leads = parallel is None or parallel.leads
        self.log = TrainLog(log_path if self._leads else None)
        self.quiet, self.label = quiet or not self._leads, label
        trained = {name: p for name, p in task.named_parameters() if p.requires_grad}
        of_tables = {id(p) for p in task.tables.parameters()}
        self.dense = [p for p in trained.values() if id(p) not in of_tables]
        self._trained = list(trained.values())
        self._rows = [p for p in trained.values() if id(p) in of_tables]
        self.optimizers: list[torch.optim.Optimizer] = []
        if self.dense:
            self.optimizers.append(
                torch.optim.AdamW(
                    self.dense, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.98), fused=True
                )
            )
        self.optimizers += task.tables.optimizers(config.table_rate, config.table_optimizer)
        self._peaks = [group["lr"] for optimizer in self.optimizers for group in optimizer.param_groups]
        self.average = WeightAverage(trained, config.ema_decay) if config.ema_decay is not None else None
        self.step = 0
        self.seconds = 0.0
        self.losses: list[float] = []
        self.best: float | None = None
        self.stopped = False  # early
        self.history: list[dict[str, float]] = []
        self._best_epoch = -1
        self._best_weights: dict[str, Tensor] | None = None
        # Weights that changed places with the task's: the best or the averaged ones, for validation and at the end.
        self._shown: dict[str, Tensor] | None = None
        self._sum = 0.0
        self._rng: dict[str, Tensor] = {}
        self._running = False
        self._signal = StopSignal(listen=save is not None)
        self._told_to_stop = ""  # by a signal that all ranks know of
        self._began_s = self._saved_s = 0.0

    def rate_factor(self) -> float:
        """Warm-up, then cosine down to `final_rate`: the factor of the peak rates at the next step."""
        done = self.step / self.total_steps
        if self.config.max_seconds is not None:
            done = max(done, self.seconds / self.config.max_seconds)
        warmup = self.config.warmup
        if warmup >= 1:
            warmup = min(warmup / self.total_steps, 1.0)
        if done < warmup:
            return (self.step + 1) / max(self.step + 1, warmup * self.total_steps)
        phase = min((done - warmup) / max(1 - warmup, 1e-9), 1.0)
        low = self.config.final_rate
        return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * phase))

    def run(self, until_step: int | None = None) -> TrainResult:
        """Train to the end, or until `until_step` steps have been done in all. Seeds torch's generators.

        At the end the task holds the best weights (or the averaged ones); `state` still gives those that training
        would go on from. Raises Interrupted after a signal, its state saved.
        """
        stop = min(self.total_steps, until_step if until_step is not None else math.inf)
        self._hide()
        self._told_to_stop = ""
        self.task.to(self.device)
        if self.parallel is not None:
            self.parallel.start_alike(self.task)
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(self.config.seed)
            self._set_rng()
            with self._signal, Progress(self.label, int(self.total_steps), quiet=self.quiet) as progress:
                self._running = True
                try:
                    self._epochs(stop, progress)
                finally:
                    self._running = False
                    self._rng = self._get_rng()
        if until_step is None or self._over(self.total_steps):
            self._show_final()
        return TrainResult(
            self.step, len(self.losses), self.seconds, tuple(self.losses), self.best, tuple(self.history)
        )

    def _over(self, stop: float) -> bool:
        return self.step >= stop or self.stopped or self._out_of_time()

    def _out_of_time(self) -> bool:
        return self.config.max_seconds is not None and self.seconds >= self.config.max_seconds

    def _epochs(self, stop: float, progress: Progress) -> None:
        self._began_s = time.perf_counter() - self.seconds
        self._saved_s = self.seconds
        while not self._over(stop):
            epoch, offset = divmod(self.step, self.steps_per_epoch)
            self.task.train()
            n_before = self.step
            for batch in islice(self.batches(epoch, self.config.seed), offset, self.steps_per_epoch):
                self._one_step(batch, epoch, progress)
                if self._over(stop):
                    break
                if self.step % self.steps_per_epoch:
                    self._save_if_due()
            if self.step == n_before:
                raise InputError("an epoch gave no batch", got=f"epoch {epoch}, {self.steps_per_epoch} steps promised")
            if self.step % self.steps_per_epoch == 0 or self._over(self.total_steps):
                self._end_of_epoch(epoch)
                # Only now: a save between an epoch's last step and its validation would lose the validation.
                self._save_if_due()
        if self.save is not None:
            self._save_now()  # what comes after training may fail as well

    def _one_step(self, batch: Any, epoch: int, progress: Progress) -> None:
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        factor = self.rate_factor()
        for group, peak in zip(groups, self._peaks, strict=True):
            group["lr"] = peak * factor
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        value, numbers = self._gradients(batch)
        if self.dense:
            torch.nn.utils.clip_grad_norm_(self.dense, self.config.clip)
        if self.average is not None:
            self.average.before_step()
        decay_rows(self._rows, self.config.table_decay * factor)
        for optimizer in self.optimizers:
            optimizer.step()
        if self.average is not None:
            self.average.after_step()
        if not math.isfinite(value):
            raise InputError(
                "the loss is not finite", where=f"step {self.step}", got=value, fix="lower the learning rate"
            )
        self._sum += value
        self.step += 1
        self.log.count(numbers.pop("targets", 0.0))
        progress.update(self.step, {"loss": value, **numbers})
        if self.step == 1 or self.step % max(1, self.steps_per_epoch // 20) == 0:
            self.log.step({"step": self.step, "epoch": epoch, "loss": value, "rate": factor, **numbers}, self.seconds)

    def _gradients(self, batch: Any) -> tuple[float, dict[str, float]]:
        """Loss and gradients of a batch, whichever ranks worked on it; brings the clock up to date."""
        if self.parallel is None:
            with autocast(self.device, self.precision):
                loss, numbers = self.task.loss(to_device(batch, self.device))
            loss.float().backward()
            self.seconds = time.perf_counter() - self._began_s
            self._told_to_stop = self._signal.asked
            return float(loss.detach()), dict(numbers)
        self.parallel.seed_step(self.config.seed, self.step)
        whole = to_device(batch, self.device)
        part, share = split_batch(whole, self.parallel.rank, self.parallel.world)
        with autocast(self.device, self.precision):
            loss, numbers = self.task.loss(part, whole)
        (loss.float() * share).backward()
        mine = {**numbers, "targets": len(whole.cell)}
        clock_s = time.perf_counter() - self._began_s if self._leads else 0.0
        told = [float(loss.detach()) * share, clock_s, float(bool(self._signal.asked))]
        value, self.seconds, asked = self.parallel.sum_gradients(self._trained, told)
        if asked:
            self._told_to_stop = self._signal.asked or "a signal to another rank"
        return value, mine

    def _end_of_epoch(self, epoch: int) -> None:
        """Validate and log; sets `stopped` when training should stop early."""
        in_epoch = self.step - epoch * self.steps_per_epoch
        self.losses.append(self._sum / max(in_epoch, 1))
        self._sum = 0.0
        if self.validate is None or ((epoch + 1) % self.config.validate_every and not self._over(self.total_steps)):
            return
        self.task.eval()
        if self.average is not None:
            self.average.settle()
            self._show(self.average.tensors)
        try:
            with torch.no_grad():
                metrics = self.validate() if self._leads or self._sharded else {}
            self.seconds = time.perf_counter() - self._began_s
            if self.parallel is not None:
                metrics, self.seconds = self.parallel.from_leader((metrics, self.seconds))
            self._keep_if_best(epoch, metrics)
        finally:
            self._hide()
        self.history.append({"epoch": epoch, **metrics})
        self.log.write({"step": self.step, "epoch": epoch, "validation": metrics}, self.seconds)

    def _keep_if_best(self, epoch: int, metrics: Mapping[str, float]) -> None:
        if not self.metric:
            return
        value = metrics[self.metric]
        if self.best is None or value > self.best:
            self.best, self._best_epoch = value, epoch
            self._best_weights = {name: tensor.detach().clone() for name, tensor in self.task.state_dict().items()}
        self.stopped = self.config.patience is not None and epoch - self._best_epoch >= self.config.patience

    def _show(self, held: dict[str, Tensor]) -> None:
        exchange(self.task, held)
        self._shown = held

    def _hide(self) -> None:
        if self._shown is not None:
            exchange(self.task, self._shown)
            self._shown = None

    def _show_final(self) -> None:
        if self._best_weights is not None:
            self._show(self._best_weights)
        elif self.average is not None:
            self.average.settle()
            self._show(self.average.tensors)

    def _save_if_due(self) -> None:
        due = self.save_every_s is not None and self.seconds - self._saved_s >= self.save_every_s
        if self.save is not None and (due or self._told_to_stop):
            self._save_now()

    def _save_now(self) -> None:
        if self.parallel is None:  # a signal while validating; other ranks hear of one with the gradients
            self._told_to_stop = self._told_to_stop or self._signal.asked
        writes = self._leads or self._sharded
        saved = self.save(self.state()) if self.save is not None and writes else None
        self._saved_s = self.seconds
        if self._told_to_stop:
            raise Interrupted(
                f"stopped by {self._told_to_stop} after step {self.step} of {int(self.total_steps)}",
                where=self.label,
                fix=f"the state is saved{f' in {saved}' if saved else ''}: resume to go on",
            )

    def _get_rng(self) -> dict[str, Tensor]:
        found = {"rng": torch.get_rng_state()}
        if self.device.type == "cuda":
            found["rng.cuda"] = torch.cuda.get_rng_state(self.device)
        return found

    def _set_rng(self) -> None:
        if "rng" in self._rng:
            torch.set_rng_state(self._rng["rng"])
        if "rng.cuda" in self._rng and self.device.type == "cuda":
            torch.cuda.set_rng_state(self._rng["rng.cuda"], self.device)

    def state(self) -> TrainingState:
        """Everything that the next `run` needs to go on bit for bit. The tensors are live: write them before going on.

        Shown weights (the best ones, after `run`) are told apart from those that training goes on from.
        """
        now = self.task.state_dict()
        held = self._shown or {}
        tensors = {f"task.{name}": tensor for name, tensor in {**now, **held}.items()}
        if self._best_weights is not None:
            best = {name: now[name] for name in held} if held is self._best_weights else self._best_weights
            tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
        average: dict[str, Any] = {}
        if self.average is not None:
            found, average = self.average.state()
            if held is self.average.tensors:
                found |= {name: now[name] for name in held}
            tensors |= {f"average.{name}": tensor for name, tensor in found.items()}
        of_optimizers, numbers = pack_optimizers(self.optimizers)
        tensors |= of_optimizers
        tensors |= self._get_rng() if self._running else self._rng
        meta = {
            "step": self.step,
            "steps_per_epoch": self.steps_per_epoch,
            "total_steps": int(self.total_steps),
            "seconds": self.seconds,
            "losses": list(self.losses),
            "sum": self._sum,
            "best": self.best,
            "best_epoch": self._best_epoch,
            "stopped": self.stopped,
            "history": list(self.history),
            "seed": self.config.seed,
            "table_optimizer": self.config.table_optimizer,
            "average": average,
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
        if bool(meta.get("average")) != (self.average is not None):
            raise CheckpointError(
                "training state of another run: weight averages in one of the two alone", fix="give the same ema_decay"
            )
        if meta.get("table_optimizer", "adagrad") != self.config.table_optimizer:
            raise CheckpointError(
                "training state of another run (table optimiser)",
                got=meta["table_optimizer"],
                allowed=self.config.table_optimizer,
            )
        self._hide()
        try:
            self.task.load_state_dict(under(state.tensors, "task."))
        except RuntimeError as error:
            raise CheckpointError("training state of another model", got=str(error)) from None
        unpack_optimizers(self.optimizers, state.tensors, meta["numbers"])
        best = under(state.tensors, "best.")
        self._best_weights = {name: tensor.clone().to(self.device) for name, tensor in best.items()} or None
        if self.average is not None:
            self.average.load_state(under(state.tensors, "average."), meta["average"])
        self._rng = {name: state.tensors[name].cpu() for name in ("rng", "rng.cuda") if name in state.tensors}
        self.step, self.seconds, self._sum = meta["step"], meta["seconds"], meta["sum"]
        self.losses, self.history = list(meta["losses"]), list(meta["history"])
        self.best, self._best_epoch = meta["best"], meta["best_epoch"]
        self.stopped = meta.get("stopped", False)
        self.log.go_on_from(self.step, self.seconds)

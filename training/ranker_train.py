"""Train the server ranker, and fill events with its predictions without letting it see the day it scores.

kir train ranker --data events:EVENTS --out runs/ranker --preset tiny     (some seconds on two cores)
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from contract.catalogue import UserTable
from contract.errors import CheckpointError, InputError
from contract.events import COLUMN, Events, null_column
from contract.history import PositiveIndex
from contract.vocabulary import PXTR_HEADS
from training.checkpoint import Checkpoint, load_checkpoint, model_card, save_checkpoint
from training.days import before, cut_before_last_days, days_of
from training.ranker import SERVED, Ranker, RankerConfig, masked_bce, preset_config
from training.ranker_data import RankerBatch, RankerData
from training.ranker_eval import ranker_metrics, ranker_protocol
from training.tables import SparseTables, table_keys
from training.trainer import TrainConfig, Trainer, keep_log, log_beside


class RankerTask(nn.Module):
    """Net and tables as one thing to train."""

    def __init__(self, net: Ranker, tables: SparseTables):
        super().__init__()
        self.net, self.tables = net, tables

    def logits(self, batch: RankerBatch) -> Tensor:
        rows = {block: self.tables.rows(self.net.spec, block, batch.slots[block]) for block in SERVED}
        logits: Tensor = self.net(
            rows["user_rows"],
            batch.dense["user_dense"],
            rows["history_rows"],
            batch.mask,
            rows["candidate_rows"],
            batch.dense["candidate_dense"],
        )
        return logits

    def loss(self, batch: RankerBatch) -> tuple[Tensor, dict[str, float]]:
        return masked_bce(self.logits(batch), batch.labels), {}


def labelled_heads(events: Events) -> tuple[str, ...]:
    """Heads with at least one observed label."""
    return tuple(head for head in PXTR_HEADS if bool((events[head] >= 0).any()))


def _start_at_base_rates(net: Ranker, events: Events) -> None:
    with torch.no_grad():
        for x, head in enumerate(PXTR_HEADS):
            seen = events[head] >= 0
            rate = ((events[head] == 1).sum() + 0.5) / (seen.sum() + 1.0)
            net.out.bias[x] = float(np.log(rate / (1 - rate)))
        net.out.weight.mul_(0.1)


def make_task(events: Events, index: PositiveIndex, config: RankerConfig, seed: int, dropout: float) -> RankerTask:
    """Fresh net and tables with a row for every key of the events."""
    spec = config.spec()
    found = table_keys(
        spec, [("user_rows", events.columns), ("candidate_rows", events.columns), ("history_rows", index.columns)]
    )
    tables = SparseTables.from_spec_and_keys(spec, found, dropout=dropout, seed=seed)
    torch.manual_seed(seed)
    net = Ranker(replace(config, trained_heads=labelled_heads(events)), spec)
    _start_at_base_rates(net, events)
    return RankerTask(net, tables)


def _fit(
    events: Events, config: RankerConfig, schedule: TrainConfig, *, batch: int, dropout: float, utc_offset_hours: float,
    label: str, quiet: bool, until_step: int | None = None, resume: Checkpoint | None = None,
    log_path: Path | None = None,
) -> tuple[RankerTask, Trainer, dict[str, Any]]:  # fmt: skip
    index = PositiveIndex.from_events(events)
    task = make_task(events, index, config, schedule.seed, dropout)
    data = RankerData(
        events,
        index,
        config.spec(),
        task.tables,
        history=config.history,
        batch=batch,
        utc_offset_hours=utc_offset_hours,
    )
    trainer = Trainer(task, data.batches, data.steps_per_epoch, schedule, log_path=log_path, quiet=quiet, label=label)
    if resume is not None:
        trainer.load_state(resume.state())
    result = trainer.run(until_step=until_step)
    task.eval()
    return task, trainer, result.to_dict()


@torch.no_grad()
def predict(
    net: Ranker,
    tables: SparseTables,
    events: Events,
    rows: NDArray[np.int64] | None = None,
    *,
    utc_offset_hours: float = 0.0,
    cut_ms: int | None = None,
) -> NDArray[np.float32]:
    """Probabilities float32 [n, X] of impressions `rows`; NaN for heads that had no label in training.

    Histories come from `events`, frozen at each impression's day's start, or at `cut_ms` where that is earlier.
    """
    task = RankerTask(net, tables).eval()
    data = RankerData(
        events, PositiveIndex.from_events(events), net.spec, tables, rows=rows, history=net.config.history, batch=4096,
        utc_offset_hours=utc_offset_hours, cut_ms=cut_ms,
    )  # fmt: skip
    parts = [torch.sigmoid(task.logits(batch)).numpy() for batch in data.in_order()]
    pxtr_nX = np.concatenate(parts) if parts else null_column(COLUMN["pxtr"], 0)
    untrained = [x for x, head in enumerate(PXTR_HEADS) if head not in net.config.trained_heads]
    pxtr_nX[:, untrained] = np.nan
    return pxtr_nX


def annotate(events: Events, ranker: Checkpoint, *, utc_offset_hours: float = 0.0) -> Events:
    """The events with `pxtr` and `ranker_version` of a trained ranker.

    Only for events after its training: for those it was trained on use `rolling_pxtr`, or a reranker learns to trust
    predictions that have seen their labels.
    """
    pxtr = predict(load_ranker(ranker), ranker.tables, events, utc_offset_hours=utc_offset_hours)
    return events.with_columns(pxtr=pxtr, ranker_version=np.full(len(events), ranker.version, object))


def fold_days(events: Events, folds: int, utc_offset_hours: float = 0.0) -> list[NDArray[np.int64]]:
    """Groups of days: the first day, which nobody scores, then `folds` groups of about equal numbers of impressions."""
    days, counts = np.unique(days_of(events, utc_offset_hours), return_counts=True)
    days, counts = days[days >= 0], counts[days >= 0]
    if folds < 1 or len(days) < 2:
        raise InputError("rolling predictions need a fold and two days", got=f"{folds} folds, {len(days)} days")
    # A day belongs to the fold in which its middle impression falls (the first day's impressions not counted).
    middle = np.cumsum(counts[1:]) - counts[1:] / 2
    group = np.floor(middle * folds / counts[1:].sum()).astype(np.int64)
    return [days[:1], *(days[1:][group == g] for g in np.unique(group))]


def rolling_pxtr(
    events: Events,
    *,
    folds: int = 3,
    preset: str = "tiny",
    seed: int = 0,
    epochs: int = 2,
    max_seconds: float | None = None,
    batch: int = 1024,
    key_dropout: float = 0.05,
    utc_offset_hours: float = 0.0,
    quiet: bool = True,
) -> Events:
    """The events with `pxtr` from rankers that saw earlier days only (rolling origin).

    Each group of days is scored by a ranker trained from scratch on all days before the group, with histories frozen at
    the start of each scored day. The first day (and impressions without a time) keep null predictions, and so does a
    head without an earlier label. max_seconds: for all folds together.
    """
    days = days_of(events, utc_offset_hours)
    groups = fold_days(events, folds, utc_offset_hours)
    pxtr = null_column(COLUMN["pxtr"], len(events))
    version = np.full(len(events), "", object)
    weights = np.array([np.count_nonzero(days < group[0]) for group in groups[1:]], float)
    for fold, group in enumerate(groups[1:]):
        earlier = events.take(np.flatnonzero(days < group[0]))
        seconds = None if max_seconds is None else max_seconds * weights[fold] / weights.sum()
        schedule = TrainConfig(epochs=epochs, seed=seed, max_seconds=seconds)
        task, _, _ = _fit(
            earlier, preset_config(preset), schedule, batch=batch, dropout=key_dropout,
            utc_offset_hours=utc_offset_hours, label=f"ranker fold {fold + 1}/{len(groups) - 1}", quiet=quiet,
        )  # fmt: skip
        scored = np.flatnonzero(np.isin(days, group))
        pxtr[scored] = predict(task.net, task.tables, events, scored, utc_offset_hours=utc_offset_hours)
        version[scored] = f"rolling-{int(group[0])}"
    return events.with_columns(pxtr=pxtr, ranker_version=version)


def train_ranker(
    events: Events,
    users: UserTable | None,
    out_dir: str | Path,
    *,
    preset: str = "tiny",
    seed: int = 0,
    epochs: int = 2,
    max_seconds: float | None = None,
    steps: int | None = None,
    holdout_days: int = 0,
    utc_offset_hours: float = 0.0,
    batch: int = 1024,
    key_dropout: float = 0.05,
    train_config: TrainConfig | None = None,
    resume: str | Path | None = None,
    data_name: str = "",
    overwrite: bool = False,
    quiet: bool = True,
) -> Checkpoint:
    """Train on all days but the last `holdout_days` (0: all, as for serving), measure on those, save to `out_dir`.

    users   not read yet: users without an impression take the default row, trained by key dropout
    steps   stop after so many steps in all; the checkpoint's state then lets `resume` go on
    Raises InputError for data without labels, CheckpointError for an existing `out_dir` without `overwrite`.
    """
    out_dir = Path(out_dir)
    if out_dir.exists() and not overwrite:
        raise CheckpointError(
            "checkpoint directory exists", where=out_dir, fix="choose another --out or pass --overwrite"
        )
    cut_ms = cut_before_last_days(events, holdout_days, utc_offset_hours) if holdout_days else None
    seen = events if cut_ms is None else before(events, cut_ms)
    if not labelled_heads(seen):
        raise InputError("no label of any head to train on", got=f"{len(seen)} events", allowed=PXTR_HEADS)
    schedule = train_config or TrainConfig(epochs=epochs, seed=seed, max_seconds=max_seconds)
    task, trainer, result = _fit(
        seen, preset_config(preset), schedule, batch=batch, dropout=key_dropout, utc_offset_hours=utc_offset_hours,
        label="ranker", quiet=quiet, until_step=steps,
        resume=None if resume is None else load_checkpoint(resume, kind="ranker"), log_path=log_beside(out_dir),
    )  # fmt: skip
    state = trainer.state()
    metrics: dict[str, Any] = {"final_loss": result["losses"][-1] if result["losses"] else None}
    if cut_ms is not None:
        metrics |= _measure(task.net, task.tables, events, cut_ms, utc_offset_hours)
    training: dict[str, Any] = {
        "data": data_name, "seed": seed, "events": len(seen), "batch": batch, "schedule": asdict(schedule),
        "trained_until_ms": int(seen["time_ms"].max(initial=-1)) + 1 if cut_ms is None else cut_ms,
        "utc_offset_hours": utc_offset_hours, "history_as_of": "day", "result": result,
    }  # fmt: skip
    about: dict[str, Any] = {"preset": preset, "heads": ", ".join(task.net.config.trained_heads)}
    about |= {name: training[name] for name in ("data", "seed", "events")}
    saved = save_checkpoint(
        out_dir,
        kind="ranker",
        model=task.net,
        tables=task.tables,
        spec=task.net.spec,
        model_config=task.net.config.to_dict(),
        training=training,
        metrics=metrics,
        card_text=model_card("Server ranker", about, metrics),
        state=state,
        overwrite=overwrite,
    )
    keep_log(out_dir)
    return saved


def evaluate_ranker(checkpoint: Checkpoint, events: Events, cut_ms: int) -> dict[str, Any]:
    """Metrics on impressions from `cut_ms` on, histories frozen there; the protocol in words under "protocol"."""
    offset = float(checkpoint.config["training"]["utc_offset_hours"])
    return _measure(load_ranker(checkpoint), checkpoint.tables, events, cut_ms, offset)


def _measure(net: Ranker, tables: SparseTables, events: Events, cut_ms: int, utc_offset_hours: float) -> dict[str, Any]:
    rows = np.flatnonzero(events["time_ms"] >= cut_ms)
    later = events.take(rows)
    pxtr = predict(net, tables, events, rows, utc_offset_hours=utc_offset_hours, cut_ms=cut_ms)
    return {**ranker_metrics(later, pxtr, before(events, cut_ms)), "protocol": ranker_protocol(later, cut_ms)}


def load_ranker(checkpoint: Checkpoint) -> Ranker:
    """The dense net of a checkpoint, in eval mode."""
    net = Ranker(RankerConfig.from_dict(checkpoint.model_config), checkpoint.spec)
    checkpoint.load_into(net)
    return net.eval()

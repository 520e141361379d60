"""Train the server ranker, and fill events with its predictions without letting it see the day it scores.

kir train ranker --data events:EVENTS --out runs/ranker --preset tiny     (some seconds on two cores)
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from contract.catalogue import UserTable
from contract.errors import CheckpointError, InputError
from contract.events import COLUMN, Events, null_column
from contract.files import check_vacant
from contract.history import HistoryIndex
from contract.vocabulary import PXTR_HEADS, X_PXTR
from training.checkpoint import Checkpoint, TrainingState, load_checkpoint, model_card, save_checkpoint
from training.days import cut_before_last_days, days_of, held_out, split_at
from training.ranker import SERVED, Ranker, RankerConfig, preset_config
from training.ranker_data import RANKED, RankerBatch, RankerData
from training.ranker_eval import ranker_metrics, ranker_protocol, scored_long_views
from training.ranker_loss import ranker_loss
from training.real_time import against_outcomes, live_index, told_live
from training.tables import SparseTables, table_keys
from training.trainer import TrainConfig, Trainer, keep_log, log_beside
from training.within_user import CLAIM_POSITIVES, ScoredLog, no_claim


class RankerTask(nn.Module):
    """Net and tables as one thing to train."""

    def __init__(self, net: Ranker, tables: SparseTables):
        super().__init__()
        self.net, self.tables = net, tables

    def logits(self, batch: RankerBatch) -> Tensor:
        """[B, M, X + 1], the watched share last."""
        rows = {block: self.tables.rows(self.net.spec, block, batch.slots[block]) for block in SERVED}
        logits: Tensor = self.net({**rows, **batch.dense}, batch.visible, batch.match)
        return logits

    def loss(self, batch: RankerBatch) -> tuple[Tensor, dict[str, float]]:
        return ranker_loss(self.logits(batch), batch)


def labelled_heads(events: Events) -> tuple[str, ...]:
    """Heads with at least one observed label."""
    return tuple(head for head in PXTR_HEADS if bool((events[head] >= 0).any()))


def _start_at_base_rates(net: Ranker, events: Events) -> None:
    with torch.no_grad():
        for x, head in enumerate(PXTR_HEADS):
            seen = events[head] >= 0
            rate = ((events[head] == 1).sum() + 0.5) / (seen.sum() + 1.0)
            net.out.bias[x] = float(np.log(rate / (1 - rate)))
        for layer in (net.out, net.direct, net.direct_user):
            layer.weight.mul_(0.1)


@dataclass(frozen=True)
class RankerPlan:
    """How the ranker is trained: impressions without a time first, as they tell taste and nothing of the moment, then
    the others, with calmer tables.

    epochs, history_epochs   passes over impressions with a time, and over those without
    batch                    about so many targets a step
    key_dropout              share of look-ups that read the default row, so that it serves unknown keys
    user_dropout             the same of the users' own rows, which are learnt by heart within an epoch
    max_seconds              for both stages together, shared out by the impressions they pass over
    """

    epochs: int = 2
    history_epochs: int = 2
    batch: int = 1024
    learning_rate: float = 2e-3
    table_rate: float = 0.05
    table_rate_after_history: float = 0.001
    ema_decay: float = 0.99
    key_dropout: float = 0.05
    user_dropout: float = 0.5
    max_seconds: float | None = None
    seed: int = 0

    def stages(self, events: Events) -> list[tuple[NDArray[np.int64], TrainConfig]]:
        """Which impressions each stage passes over, and how. Stages without any are left out."""
        timed = events["time_ms"] >= 0
        rows = [np.flatnonzero(~timed), np.flatnonzero(timed)]
        epochs = [self.history_epochs, self.epochs]
        rates = [self.table_rate, self.table_rate_after_history if len(rows[0]) else self.table_rate]
        work = np.array([len(r) * e for r, e in zip(rows, epochs, strict=True)], float)
        shares = work / max(work.sum(), 1.0)
        return [
            (
                rows[i],
                TrainConfig(
                    epochs=epochs[i],
                    max_seconds=None if self.max_seconds is None else self.max_seconds * shares[i],
                    learning_rate=self.learning_rate,
                    table_rate=rates[i],
                    ema_decay=self.ema_decay,
                    seed=self.seed,
                ),
            )
            for i in (0, 1)
            if len(rows[i])
        ]


def make_task(events: Events, index: HistoryIndex, config: RankerConfig, seed: int, dropout: float) -> RankerTask:
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


@dataclass(frozen=True)
class _Fitted:
    """A trained task, the state that `resume` goes on from, and what each stage did."""

    task: RankerTask
    state: TrainingState
    stages: list[dict[str, Any]]


def _fit(
    events: Events, config: RankerConfig, plan: RankerPlan, *, utc_offset_hours: float, label: str, quiet: bool,
    until_step: int | None = None, resume: Checkpoint | None = None, log_path: Path | None = None,
) -> _Fitted:  # fmt: skip
    """Both stages, or those that `resume` has left; until_step counts the steps of all."""
    index = HistoryIndex.from_events(events, every=True)
    task = make_task(events, index, config, plan.seed, plan.key_dropout)
    task.tables.dropout_of["user"] = plan.user_dropout
    before = None if resume is None else resume.state()
    first = 0 if before is None else int(before.meta.get("stage", 0))
    stages, done, told = plan.stages(events), 0, []
    if first >= len(stages):
        raise CheckpointError(
            "training state of another run (its stage)", got=f"stage {first + 1}", allowed=f"1 … {len(stages)}",
            fix="resume with the same data",
        )  # fmt: skip
    for number, (rows, schedule) in enumerate(stages):
        data = RankerData(
            events, index, config.spec(), task.tables, rows=rows, history=config.history, batch=plan.batch,
            utc_offset_hours=utc_offset_hours,
        )  # fmt: skip
        trainer = Trainer(
            task, data.batches, data.steps_per_epoch, schedule, log_path=log_path, quiet=quiet,
            label=label if len(stages) == 1 else f"{label} {number + 1}/{len(stages)}",
        )  # fmt: skip
        left = None if until_step is None else until_step - done
        done += int(trainer.total_steps)
        if number < first:
            continue
        if before is not None and number == first:
            trainer.load_state(before)
        if len(stages) > 1:
            trainer.log.write({"stage": number + 1, "of": len(stages), "step": trainer.step}, trainer.seconds)
        result = trainer.run(until_step=None if left is None or left >= trainer.total_steps else left)
        told.append(result.to_dict())
        state = trainer.state()
        state = TrainingState(state.tensors, {**state.meta, "stage": number})
        if left is not None and left < trainer.total_steps:
            break
    task.eval()
    return _Fitted(task, state, told)


@torch.no_grad()
def predict(
    net: Ranker,
    tables: SparseTables,
    events: Events,
    rows: NDArray[np.int64] | None = None,
    *,
    utc_offset_hours: float = 0.0,
    cut_ms: int | None = None,
    live: bool = False,
) -> NDArray[np.float32]:
    """Probabilities float32 [n, X] of impressions `rows`; NaN for heads that had no label in training.

    Histories come from `events`, as of each impression's page or day (`ranker_data.known_until_ms`); with `cut_ms`
    from the impressions before it alone, and as of it at the latest. live: real-time feedback (`training.real_time`).
    """
    task = RankerTask(net, tables).eval()
    late = np.zeros(len(events), bool) if cut_ms is None else held_out(events, cut_ms, utc_offset_hours)
    index = live_index(events, late) if live else HistoryIndex.from_events(events, every=True, among=~late)
    data = RankerData(
        events, index, net.spec, tables, rows=rows, history=net.config.history, batch=4096,
        utc_offset_hours=utc_offset_hours, cut_ms=cut_ms, live=live,
    )  # fmt: skip
    found = null_column(COLUMN["pxtr"], len(events))
    for batch in data.in_order():
        real = batch.event >= 0
        found[batch.event[real]] = torch.sigmoid(task.logits(batch)).numpy()[real][:, :X_PXTR]
    pxtr_nX = found if rows is None else found[rows]
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
    plan: RankerPlan | None = None,
    utc_offset_hours: float = 0.0,
    quiet: bool = True,
) -> Events:
    """The events with `pxtr` from rankers that saw earlier days only (rolling origin).

    Each group of days is scored by a ranker trained from scratch on all days before the group; its histories go on
    within the group (`ranker_data.known_until_ms`), as a server's do. The first day (and impressions without a time)
    keep null predictions, and so does a head without an earlier label. plan.max_seconds: for all folds together.
    """
    plan = plan or RankerPlan()
    days = days_of(events, utc_offset_hours)
    groups = fold_days(events, folds, utc_offset_hours)
    pxtr = null_column(COLUMN["pxtr"], len(events))
    version = np.full(len(events), "", object)
    weights = np.array([np.count_nonzero(days < group[0]) for group in groups[1:]], float)
    for fold, group in enumerate(groups[1:]):
        earlier = events.take(np.flatnonzero(days < group[0]))
        seconds = None if plan.max_seconds is None else plan.max_seconds * weights[fold] / weights.sum()
        fitted = _fit(
            earlier, preset_config(preset), replace(plan, max_seconds=seconds), utc_offset_hours=utc_offset_hours,
            label=f"ranker fold {fold + 1}/{len(groups) - 1}", quiet=quiet,
        )  # fmt: skip
        scored = np.flatnonzero(np.isin(days, group))
        net, tables = fitted.task.net, fitted.task.tables
        pxtr[scored] = predict(net, tables, events, scored, utc_offset_hours=utc_offset_hours)
        version[scored] = f"rolling-{int(group[0])}"
    return events.with_columns(pxtr=pxtr, ranker_version=version)


def train_ranker(
    events: Events,
    users: UserTable | None,
    out_dir: str | Path,
    *,
    preset: str = "tiny",
    plan: RankerPlan | None = None,
    steps: int | None = None,
    holdout_days: int = 0,
    utc_offset_hours: float = 0.0,
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
    out_dir, plan = Path(out_dir), plan or RankerPlan()
    check_vacant(out_dir, overwrite, "checkpoint directory", CheckpointError)
    cut_ms = cut_before_last_days(events, holdout_days, utc_offset_hours) if holdout_days else None
    seen = events if cut_ms is None else split_at(events, cut_ms, utc_offset_hours)[0]
    if not labelled_heads(seen):
        raise InputError("no label of any head to train on", got=f"{len(seen)} events", allowed=PXTR_HEADS)
    fitted = _fit(
        seen, preset_config(preset), plan, utc_offset_hours=utc_offset_hours, label="ranker", quiet=quiet,
        until_step=steps, resume=None if resume is None else load_checkpoint(resume, kind="ranker"),
        log_path=log_beside(out_dir),
    )  # fmt: skip
    net, tables = fitted.task.net, fitted.task.tables
    losses = fitted.stages[-1]["losses"]
    metrics: dict[str, Any] = {"final_loss": losses[-1] if losses else None}
    if cut_ms is not None:
        metrics |= _measure(net, tables, events, cut_ms, utc_offset_hours)
    training: dict[str, Any] = {
        "data": data_name, "seed": plan.seed, "events": len(seen), "plan": asdict(plan),
        "trained_until_ms": int(seen["time_ms"].max(initial=-1)) + 1 if cut_ms is None else cut_ms,
        "utc_offset_hours": utc_offset_hours, "history_as_of": "page, or day", "stages": fitted.stages,
    }  # fmt: skip
    about: dict[str, Any] = {"preset": preset, "heads": ", ".join(net.config.trained_heads)}
    about |= {name: training[name] for name in ("data", "seed", "events")}
    saved = save_checkpoint(
        out_dir,
        kind="ranker",
        model=net,
        tables=tables,
        spec=net.spec,
        model_config=net.config.to_dict(),
        training=training,
        metrics=metrics,
        card_text=model_card("Server ranker", about, metrics, _note(metrics)),
        state=fitted.state,
        overwrite=overwrite,
    )
    keep_log(out_dir)
    return saved


def _note(metrics: dict[str, Any]) -> str:
    few = ", ".join(f"{head} ({n})" for head, n in no_claim(metrics).items())
    return f"No claim: heads with fewer than {CLAIM_POSITIVES} positives: {few}." if few else ""


def evaluate_ranker(
    checkpoint: Checkpoint, events: Events, cut_ms: int, *, live: bool = False
) -> tuple[dict[str, Any], list[ScoredLog]]:
    """Metrics on impressions from `cut_ms` on, the protocol in words under "protocol"; and how the long_view head
    scored each of them, beside the item rate (none where no label was observed).

    Histories are frozen at the cut. live: they go on (`training.real_time`); then the same head past only stands
    second, and the control of that setting third.
    """
    offset = float(checkpoint.config["training"]["utc_offset_hours"])
    net = load_ranker(checkpoint)
    earlier, later = split_at(events, cut_ms, offset)
    pxtr = _predict_from(net, checkpoint.tables, events, cut_ms, offset)
    protocol = ranker_protocol(later, cut_ms)
    scored = scored_long_views(checkpoint.version, later, pxtr, earlier, protocol)
    if live and scored:
        late, control = held_out(events, cut_ms, offset), pxtr.copy()
        control[:, RANKED] = against_outcomes(events, late, pxtr[:, RANKED])
        pxtr = _predict_from(net, checkpoint.tables, events, cut_ms, offset, live=True)
        protocol = ranker_protocol(later, cut_ms, told_live(events, late))
        now = scored_long_views(f"{checkpoint.version} real-time", later, pxtr, earlier, protocol)[0]
        bet = scored_long_views("control: bets against outcomes", later, control, earlier, protocol)[0]
        scored = [now, scored[0], bet, *scored[1:]]
    return {**ranker_metrics(later, pxtr, earlier), "protocol": protocol}, scored


def _predict_from(
    net: Ranker, tables: SparseTables, events: Events, cut_ms: int, utc_offset_hours: float, live: bool = False
) -> NDArray[np.float32]:
    """pXTR of the impressions from `cut_ms` on, with histories frozen there, or live."""
    rows = np.flatnonzero(held_out(events, cut_ms, utc_offset_hours))
    return predict(net, tables, events, rows, utc_offset_hours=utc_offset_hours, cut_ms=cut_ms, live=live)


def _measure(net: Ranker, tables: SparseTables, events: Events, cut_ms: int, utc_offset_hours: float) -> dict[str, Any]:
    earlier, later = split_at(events, cut_ms, utc_offset_hours)
    pxtr = _predict_from(net, tables, events, cut_ms, utc_offset_hours)
    return {**ranker_metrics(later, pxtr, earlier), "protocol": ranker_protocol(later, cut_ms)}


def load_ranker(checkpoint: Checkpoint) -> Ranker:
    """The dense net of a checkpoint, in eval mode."""
    net = Ranker(RankerConfig.from_dict(checkpoint.model_config), checkpoint.spec)
    checkpoint.load_into(net)
    return net.eval()

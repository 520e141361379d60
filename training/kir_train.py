"""Training the reranker on a log: all positions of every window at once, all tasks together, tables beside the net.

    .venv/bin/python -m training.simulator --users 100 --days 3 --out runs/sim
    .venv/bin/python -m training.kir_train --events runs/sim/events.parquet --out runs/kir     (a minute on one core)

Source: KIR (CIKM 2022) sections 4 and 5 for tasks and placed context; weights of tasks and of the fusion are data.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from contract.errors import CheckpointError, InputError
from contract.events import Events
from contract.files import check_vacant
from contract.vocabulary import MASK_VALUE, TASKS
from training.checkpoint import Checkpoint, load_checkpoint, model_card, save_checkpoint
from training.kir import Kir, KirConfig
from training.kir_data import Batch, Batches, KirData, View, coverage, prepare, pxtr_constants
from training.kir_eval import calibration, fused, ranking_metrics, score, server_scores
from training.kir_layers import HARD_MASK
from training.kir_objective import (
    TASK_WEIGHTS,
    fusion_of,
    list_reward_of,
    task_columns,
    task_losses,
    weighted_log_loss,
)
from training.kir_start import refit_scores, start_scores
from training.kir_targets import choose_spec, labelled_in, new_keys, reads_pxtr
from training.tables import SparseTables
from training.trainer import TrainConfig, Trainer

USER_DROPOUT = 0.2  # of users' own rows, which are learnt by heart: on KuaiRand log loss rises from the second epoch
BEST = "minus_judging_loss"
KEY_DROPOUT = 0.03  # trains the default rows; at 0.1 it hid too much of what a session watched (GAUC 0.74 for 0.77)
LOGIT_WEIGHT = 0.1
MIN_COVERAGE = 0.01
HELD_OUT = 0.1
JUDGING = 0.05  # of the log, before what is held out: chooses the epoch and sets the scores right
WINDOWS = 64  # of a batch; fewer for small logs, so that an epoch has about STEPS steps
STEPS, LEAST_WINDOWS = 400, 8
RATE = 0.16  # learning rate × width: the wider the net the smaller its steps

Log = Callable[[str], None]


class KirTask(nn.Module):
    """The net with its tables and its loss, as `training.trainer` wants it."""

    def __init__(self, net: Kir, tables: SparseTables):
        super().__init__()
        self.net, self.tables = net, tables

    def scores(self, batch: Batch, mask_value: float = HARD_MASK) -> Tensor:
        """Logits [B, M, T]."""
        rows = {block: self.tables.rows(self.net.spec, block, slots) for block, slots in batch.slots.items()}
        return self.net({**batch.blocks, **rows}, mask_value)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Weighted sum of the tasks' losses, or the weighted loss of one score, and what loud attention is charged."""
        loss, told = self.task_loss(self.scores(batch), batch.labels)
        return loss + LOGIT_WEIGHT * self.net.logit_excess(), told

    def task_loss(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Of logits [B, M, T] and labels [B, M, len(TASKS)], NaN = null; and that of each task."""
        config = self.net.config
        if config.loss == "weighted":
            label, watched = (labels[..., TASKS.index(task)] for task in (config.tasks[0], "watch_time"))
            loss = weighted_log_loss(logits[..., 0], label, watched)
            return loss, {config.tasks[0]: float(loss.detach())}
        losses_T = task_losses(logits, labels[..., task_columns(config.tasks)])
        weights_T = torch.tensor([TASK_WEIGHTS[task] for task in config.tasks])
        return (losses_T * weights_T).sum(), dict(zip(config.tasks, losses_T.tolist(), strict=True))


def split_by_time(data: KirData, held_out: float) -> NDArray[np.bool_]:
    """True for training events: those before the last `held_out` share of the log; without times, of each user's.

    Events without a time are older than those with one (KuaiRand's first days), so the share is of the latter.
    """
    time_ms, n = data.events["time_ms"], len(data)
    known = time_ms >= 0
    if known.any():
        return ~known | (time_ms < np.quantile(time_ms[known], 1 - held_out))
    user = np.unique(data.events["user_id"], return_inverse=True)[1]
    size = np.bincount(user)
    rank = np.arange(n) - (np.cumsum(size) - size)[user]
    return rank < (1 - held_out) * size[user]


def _start(
    data: KirData, train: NDArray[np.bool_], config: KirConfig, seed: int, pxtr_only: bool, without: Iterable[str]
) -> tuple[Kir, SparseTables, dict[str, Any]]:
    spec, shares, dropped = choose_spec(data, train, pxtr_only, MIN_COVERAGE, without)
    if not reads_pxtr(spec):
        config = replace(config, skip=False)  # a log without predictions
    torch.manual_seed(seed)
    net = Kir(config, spec)
    net.set_pxtr_constants(*pxtr_constants(data, train))
    start_scores(net, data, train)
    tables = SparseTables.from_spec_and_keys(spec, new_keys(spec, data, train), dropout=KEY_DROPOUT, seed=seed)
    return net, tables, {"coverage": shares, "min_coverage": MIN_COVERAGE, "dropped_fields": dropped}


def _continue(data: KirData, train: NDArray[np.bool_], before: Checkpoint) -> tuple[Kir, SparseTables, dict[str, Any]]:
    """The checkpoint's net and spec, its tables grown by the new keys. pXTR constants stay, as part of the net."""
    net = Kir(KirConfig.from_json(before.model_config), before.spec)
    before.load_into(net)
    tables = before.tables
    tables.dropout = KEY_DROPOUT
    tables.grow(new_keys(before.spec, data, train))
    kept = {name: before.config["training"].get(name) for name in ("min_coverage", "dropped_fields")}
    return net, tables, {**kept, "coverage": coverage(before.spec, data, train), "init_from": before.version}


def judging_loss(task: KirTask, batches: Batches) -> dict[str, float]:
    """`BEST`: minus the tasks' loss over all targets of `batches`. The epoch with the highest is kept: on a log of few
    impressions later epochs learn it by heart."""
    scores_nT, rows = score(task, batches)
    loss, _ = task.task_loss(torch.from_numpy(scores_nT)[None], torch.from_numpy(batches.data.labels_nT[rows])[None])
    return {BEST: -float(loss)}


@torch.no_grad()
def mask_gap(task: KirTask, batches: Batches) -> float:
    """Largest difference in a probability between the hard mask of training and the graphs' −30, over a few batches.

    Here the masked slots hold later videos, which tempt more than the zeros a phone has there. Near 0, or the net's
    logits have grown so large that cached and whole graphs would part.
    """
    task.eval()
    pairs = [(task.scores(batch), task.scores(batch, MASK_VALUE)) for batch in islice(batches.in_turn(), 3)]
    return max((float((a.sigmoid() - b.sigmoid()).abs().max()) for a, b in pairs), default=0.0)


def evaluate(
    task: KirTask,
    data: KirData,
    held_out: NDArray[np.bool_],
    threshold: float,
    view: View | None = None,
    fusion: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Ranking on held-out events, of the net, of `server_scores` (`server_*`: one order for all tasks, which is that of
    pXTR of long_view where the log has it), and by `fusion`, None = of all tasks (`fused_*`)."""
    batches = Batches(data, task.net.spec, task.tables, held_out, windows=4 * WINDOWS, view=view)
    scores_nT, rows = score(task, batches)
    if not len(rows):
        return {}
    tasks = task.net.config.tasks
    found = ranking_metrics(scores_nT, tasks, data, rows, threshold)
    # Odds of the weighted loss grow with the time watched: no chances.
    chances = {} if task.net.config.loss == "weighted" else calibration(scores_nT, tasks, data, rows)
    baseline, _ = server_scores(data, rows)
    server = ranking_metrics(np.repeat(baseline[:, None], len(TASKS), axis=1), TASKS, data, rows, threshold)
    fused_T = np.repeat(fused(scores_nT, tasks, fusion or fusion_of(tasks))[:, None], len(TASKS), axis=1)
    value = ranking_metrics(fused_T, TASKS, data, rows, threshold)
    return {
        **found,
        **chances,
        **{f"server_{name}": x for name, x in server.items() if _ranks(name, "effective_view", "watch_time")},
        **{f"fused_{name}": x for name, x in value.items() if _ranks(name, "watch_time")},
        "mask_gap": mask_gap(task, batches),
    }


def _ranks(metric: str, *tasks: str) -> bool:
    """Whether it says how well one of these tasks is ranked."""
    return metric.endswith(tasks) and "auc" in metric


def train_kir(
    events: Events,
    out_dir: str | Path,
    preset: str = "tiny",
    *,
    seed: int = 0,
    epochs: int = 4,
    max_seconds: float | None = None,
    init_from: Checkpoint | str | Path | None = None,
    pxtr_only: bool = False,
    held_out: float = HELD_OUT,
    changes: Mapping[str, Any] | None = None,
    without: Iterable[str] = (),
    view: View | None = None,
    overwrite: bool = False,
    data_name: str = "",
    log: Log | None = None,
) -> Checkpoint:
    """Train and save the reranker; returns the checkpoint (kind "kir").

    preset       one of kir_config.PRESETS; taken from the checkpoint when init_from is given
    max_seconds  budget of the training loop alone; preparation and evaluation come on top
    init_from    fine-tune this checkpoint into the next version: same spec and sizes, tables grown by new keys
    pxtr_only    no served fields: the phone needs no rows
    held_out     share of the log, latest in time, that is kept for the metrics. On `JUDGING` of it before those the
                 epoch is chosen (or the beginning, where no epoch does better) and the scores are set right
    changes      of the preset's configuration; without: fields left out of the spec; view: what choices may know.
                 For ablations; not with init_from
    data_name    what the events are called, for the checkpoint

    Tasks that the log never observed stay in the net, but neither fusion nor list reward reads them.
    Raises InputError when there is nothing to train on.
    """
    check_vacant(out_dir, overwrite, "checkpoint directory", CheckpointError)
    say = log or (lambda line: None)
    began = time.perf_counter()
    if isinstance(init_from, str | Path):
        init_from = load_checkpoint(init_from, kind="kir")
    config = KirConfig.from_json(init_from.model_config) if init_from else KirConfig.of(preset, **(changes or {}))
    data = prepare(events, config.watched)
    held = ~split_by_time(data, held_out)
    train = split_by_time(data, min(held_out + JUDGING, 1.0))
    if not train.any():
        raise InputError("no events to train on", got=f"{len(events)} events, held out {held_out}")
    net, tables, facts = (
        _continue(data, train, init_from) if init_from else _start(data, train, config, seed, pxtr_only, without)
    )
    labelled = labelled_in(config, data, train, init_from)
    tables.dropout_of["user"] = USER_DROPOUT
    task = KirTask(net, tables)
    batches = Batches(data, net.spec, tables, train, placed=config.placed, view=view)
    batches.size = min(WINDOWS, max(LEAST_WINDOWS, len(batches.pieces) // STEPS))
    if not reads_pxtr(net.spec):
        say("no predictions of a server in this log: scores begin at base rates (kir annotate predicts)")
    took_s = time.perf_counter() - began
    say(f"{int(train.sum())} targets in {len(batches.pieces)} windows; prepared in {took_s:.1f} s")
    rate = RATE / config.width
    rate = rate / 5 if init_from else rate
    plan = TrainConfig(epochs=epochs, max_seconds=max_seconds, seed=seed, learning_rate=rate)
    judging = Batches(data, net.spec, tables, ~train & ~held, windows=4 * WINDOWS, view=view)
    judge: dict[str, Any] = {"validate": lambda: judging_loss(task, judging), "metric": BEST} if len(judging) else {}
    begin = {name: tensor.detach().clone() for name, tensor in task.state_dict().items()}
    begin_loss = judging_loss(task, judging)[BEST] if len(judging) else None
    result = Trainer(task, batches.epoch, len(batches), plan, label="kir", quiet=log is None, **judge).run()
    if init_from is None and begin_loss is not None and result.best is not None and begin_loss > result.best:
        say("no epoch does better on later events than the scores that training began with: those are kept")
        task.load_state_dict(begin)
    found = refit_scores(net, data, *score(task, judging)) if config.loss == "tasks" else {}
    if told := ", ".join(f"{name} × {fit['beta']:.2f}" for name, fit in found.items()):
        say(f"set right on {int((~train & ~held).sum())} later events: {told}")
    net.balance()
    threshold = float(np.nanmean(data.labels_nT[train, TASKS.index("watch_time")]))
    metrics = evaluate(task, data, held, threshold, view, fusion_of(labelled))
    say(f"trained {result.steps} steps in {result.seconds:.1f} s; " + _headline(metrics))
    facts |= {
        "seed": seed, "impressions": len(data), "training_impressions": int(train.sum()),
        "held_out": held_out, "judging": JUDGING, "set_right": found, "begin": begin_loss, "data": data_name,
        "users": len(np.unique(data.events["user_id"])), "plan": asdict(plan), "result": result.to_dict(),
        "task_weights": {task: TASK_WEIGHTS[task] for task in config.tasks}, "key_dropout": KEY_DROPOUT,
        "user_dropout": USER_DROPOUT,
        "watch_share_threshold": threshold, "labelled_tasks": list(labelled), "fusion": fusion_of(labelled),
        "by_epoch": [dict(one) for one in result.history],
        "trained_until_ms": int(data.events["time_ms"][~held].max(initial=-1)) + 1,
        "server_baseline": server_scores(data, np.arange(min(len(data), 10_000)))[1], "pxtr_only": pxtr_only,
    }  # fmt: skip
    return save_checkpoint(
        out_dir,
        kind="kir",
        model=net,
        tables=tables,
        spec=net.spec,
        model_config={
            **net.config.to_json(),
            "fusion": fusion_of(labelled),
            "list_reward": list_reward_of(labelled),
        },
        training=facts,
        metrics=metrics,
        card_text=_card(config, net, facts, metrics),
        overwrite=overwrite,
    )


def _headline(metrics: dict[str, float]) -> str:
    names = ("auc_effective_view", "gauc_effective_view", "server_gauc_effective_view")
    return ", ".join(f"{name} {metrics[name]:.4f}" for name in names if name in metrics) or "nothing held out"


def _card(config: KirConfig, net: Kir, facts: dict[str, Any], metrics: dict[str, float]) -> str:
    lines = {
        "preset": config.preset,
        "dense parameters": sum(p.numel() for p in net.parameters()),
        "training impressions": facts["training_impressions"],
        "fields without data, dropped": ", ".join(facts["dropped_fields"] or ["none"]),
        "fusion": ", ".join(f"{task} {weight:g}" for task, weight in facts["fusion"].items()),
    }
    note = "`server_*` ranks by what the server sent alone; GAUC is per user, weighted by positives."
    return model_card("KIR, the on-device reranker", lines, metrics, note)

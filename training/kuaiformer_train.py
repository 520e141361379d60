"""Train KuaiFormer on events and save a checkpoint.

kir train kuaiformer --data events:EVENTS --out runs/kuaiformer --preset tiny     (under a minute on two cores)
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from contract.catalogue import Catalogue
from contract.errors import CheckpointError, InputError
from contract.events import Events
from contract.history import PositiveIndex
from training.checkpoint import Checkpoint, load_checkpoint, model_card, save_checkpoint
from training.days import before, cut_before_last_days
from training.kuaiformer import KuaiFormer, KuaiFormerConfig, preset_config, score
from training.kuaiformer_data import KuaiFormerBatch, KuaiFormerData, item_columns
from training.losses import FrequencyEstimator, in_batch_softmax
from training.retrieval_eval import evaluate_popularity, evaluate_retrieval, protocol
from training.tables import SparseTables, table_keys
from training.trainer import TrainConfig, Trainer, keep_log, log_beside

TABLE_RATE = 0.15  # Recall@10 on the simulator .199, with the trainer's 0.05 .188 (tiny, three epochs, one seed)


@dataclass(frozen=True)
class LossConfig:
    """Eq. 10–11 and smoothing; `logq` off trains without the correction."""

    logq: bool = True
    smoothing: str = "none"
    alpha: float = 0.1


class KuaiFormerTask(nn.Module):
    """Net, tables and frequency estimator as one thing to train."""

    def __init__(self, net: KuaiFormer, tables: SparseTables, estimator: FrequencyEstimator, loss: LossConfig):
        super().__init__()
        self.net, self.tables, self.estimator = net, tables, estimator
        self.loss_config = loss
        self.scale = 1.0 / net.config.temperature if net.config.normalise else 1.0

    def loss(self, batch: KuaiFormerBatch) -> tuple[Tensor, dict[str, float]]:
        spec = self.net.spec
        interests_BKD = self.net(self.tables.rows(spec, "history_rows", batch.history), batch.mask)
        items_TD = self.net.item_vector(self.tables.rows(spec, "item_rows", batch.item))
        scores_TT = score(interests_BKD, items_TD)[batch.row] * self.scale
        self.estimator.update(batch.target)
        log_q_T = self.estimator.log_q(batch.target) if self.loss_config.logq else None
        loss = in_batch_softmax(
            scores_TT,
            batch.target,
            log_q_T,
            owner_B=batch.owner,
            smoothing=self.loss_config.smoothing,
            alpha=self.loss_config.alpha,
        )
        hits = (scores_TT.detach().argmax(dim=1) == torch.arange(len(batch.target))).float().mean()
        return loss, {"accuracy": float(hits)}


def make_tables(
    events: Events, catalogue: Catalogue, config: KuaiFormerConfig, *, dropout: float, seed: int
) -> SparseTables:
    """Rows for what training sees: histories and targets. An item without a positive keeps to its content rows."""
    spec = config.spec()
    index = PositiveIndex.from_events(events)
    content = {**item_columns(catalogue), "video_id": np.zeros(0, np.uint64)}
    keys = table_keys(spec, [("history_rows", index.columns), ("item_rows", content)])
    return SparseTables.from_spec_and_keys(spec, keys, dropout=dropout, seed=seed)


def train_kuaiformer(
    events: Events,
    catalogue: Catalogue,
    out_dir: str | Path,
    *,
    preset: str = "tiny",
    seed: int = 0,
    epochs: int = 3,
    max_seconds: float | None = None,
    steps: int | None = None,
    holdout_days: int = 1,
    utc_offset_hours: float = 0.0,
    batch: int = 256,
    targets: int = 4,
    per_user: int | None = None,
    key_dropout: float = 0.05,
    train_config: TrainConfig | None = None,
    loss_config: LossConfig | None = None,
    model_changes: dict[str, Any] | None = None,
    resume: str | Path | None = None,
    data_name: str = "",
    overwrite: bool = False,
    quiet: bool = True,
) -> Checkpoint:
    """Train on all days but the last `holdout_days`, measure on those, save to `out_dir`.

    steps      stop after so many steps in all; the checkpoint then holds the state that `resume` goes on from
    resume     a checkpoint directory whose state to go on from; data, preset, epochs and seed must be the same
    batch      targets of a batch; targets: next positives to be found from one history (see kuaiformer_data)
    per_user   at most so many histories of a user per epoch
    Raises InputError for data without enough positives, CheckpointError for an existing `out_dir` without `overwrite`.
    """
    torch.manual_seed(seed)
    cut_ms = cut_before_last_days(events, holdout_days, utc_offset_hours) if holdout_days else None
    seen = events if cut_ms is None else before(events, cut_ms)
    config = preset_config(preset, **(model_changes or {}))
    index = PositiveIndex.from_events(seen)
    if len(index) < 2:
        raise InputError("too few positives to train on", got=len(index), fix="give more events")
    tables = make_tables(seen, catalogue, config, dropout=key_dropout, seed=seed)
    data = KuaiFormerData(index, config.spec(), tables, batch=batch, targets=targets, per_user=per_user)
    estimator = FrequencyEstimator.from_counts(data.counts(tables.n_rows["video"]), batch)
    loss_config = loss_config or LossConfig()
    task = KuaiFormerTask(KuaiFormer(config, config.spec()), tables, estimator, loss_config)
    schedule = train_config or TrainConfig(epochs=epochs, max_seconds=max_seconds, seed=seed, table_rate=TABLE_RATE)
    out_dir = Path(out_dir)
    if out_dir.exists() and not overwrite:
        raise CheckpointError(
            "checkpoint directory exists", where=out_dir, fix="choose another --out or pass --overwrite"
        )
    trainer = Trainer(
        task,
        data.batches,
        data.steps_per_epoch,
        schedule,
        log_path=log_beside(out_dir),
        quiet=quiet,
        label="kuaiformer",
    )
    if resume is not None:
        trainer.load_state(load_checkpoint(resume, kind="kuaiformer").state())
    result = trainer.run(until_step=steps)
    state = trainer.state()
    task.eval()
    metrics: dict[str, Any] = {"final_loss": result.losses[-1] if result.losses else None}
    if cut_ms is not None:
        metrics |= evaluate_retrieval(task.net, tables, events, catalogue, cut_ms)
        floor = evaluate_popularity(events, catalogue, cut_ms)
        metrics |= {f"popularity_{name}": value for name, value in floor.items()}
        metrics["protocol"] = protocol(events, catalogue, cut_ms)
    until_ms = int(seen["time_ms"].max(initial=-1)) + 1
    training: dict[str, Any] = {
        "data": data_name, "seed": seed, "events": len(seen), "positives": len(index),
        "batch": batch, "targets": targets,
        "trained_until_ms": cut_ms if cut_ms is not None else until_ms, "utc_offset_hours": utc_offset_hours,
        "schedule": asdict(schedule), "loss": asdict(loss_config), "result": result.to_dict(),
    }  # fmt: skip
    about: dict[str, Any] = {"preset": preset, "interests": config.interests, "width": config.width}
    about |= {name: training[name] for name in ("data", "seed", "positives")}
    saved = save_checkpoint(
        out_dir,
        kind="kuaiformer",
        model=task.net,
        tables=tables,
        spec=config.spec(),
        model_config=config.to_dict(),
        training=training,
        metrics=metrics,
        card_text=model_card("KuaiFormer (arXiv 2411.10057)", about, metrics),
        state=state,
        overwrite=overwrite,
    )
    keep_log(out_dir)
    return saved


def load_kuaiformer(checkpoint: Checkpoint) -> KuaiFormer:
    """The dense net of a checkpoint, in eval mode."""
    net = KuaiFormer(KuaiFormerConfig.from_dict(checkpoint.model_config), checkpoint.spec)
    checkpoint.load_into(net)
    return net.eval()

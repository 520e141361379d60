"""Train KuaiFormer on a split and save a checkpoint.

kir train kuaiformer --data events:EVENTS --out runs/kuaiformer --preset tiny     (under a minute on two cores)
kir train kuaiformer --data ml-1m:PATH --out runs/ml-1m --recipe ml-1m            (hours; kill it and run it again with
                                                                                   --resume: it goes on bit for bit)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from contract.errors import CheckpointError, InputError
from contract.files import check_vacant
from contract.vocabulary import MISSING_KEY
from training.autosave import Autosave
from training.candidates import OwnedItems
from training.checkpoint import Checkpoint, TrainingState, model_card, save_checkpoint
from training.distributed import DataParallel
from training.frequency import FrequencyEstimator
from training.kuaiformer import KuaiFormer, KuaiFormerConfig, preset_label
from training.kuaiformer_task import KuaiFormerTask
from training.recency import TABLE as RECENT
from training.recency import recency_of, write_recency
from training.recipe import Recipe
from training.retrieval_eval import KuaiFormerScorer, Popularity, evaluate
from training.retrieval_metrics import figure_names
from training.retrieval_result import RetrievalResult
from training.retrieval_split import RetrievalSplit
from training.row_memory import row_memory
from training.segments import SegmentData, item_columns
from training.tables import SparseTables, table_keys
from training.trainer import TrainConfig, Trainer, keep_log, log_beside

Keys = dict[str, NDArray[np.uint64]]
SAVE_EVERY_S = 300.0


def known_keys(split: RetrievalSplit, config: KuaiFormerConfig) -> Keys:
    """Keys per table of what training sees: histories and targets. An item without a positive keeps to its content."""
    spec, places = config.spec(), split.train_places()
    columns = {name: column[places] for name, column in split.index.columns.items()}
    content = {**item_columns(split.items), "video_id": np.zeros(0, np.uint64)}
    keys = table_keys(spec, [("history_rows", columns), ("item_rows", content)])
    if config.recency_days is not None:
        keys[RECENT] = split.items.video_id[recency_of(split, config.recency_days).now_N > 0]
    return keys


def untold_fields(split: RetrievalSplit) -> tuple[str, ...]:
    """Served fields that are null throughout the data: their rows would be the default row for ever."""
    config = KuaiFormerConfig()
    spec = config.spec()
    empty = {table for table, keys in known_keys(split, config).items() if not (keys != MISSING_KEY).any()}
    return tuple(f.name for f in spec.fields if f.table in empty and f.table != "video")


def make_task(split: RetrievalSplit, recipe: Recipe) -> tuple[KuaiFormerTask, SegmentData]:
    """The task and the data it is trained on, freshly initialised. Raises InputError without positives."""
    seed = recipe.train.seed
    torch.manual_seed(seed)
    config = recipe.config(untold_fields(split))
    spec = config.spec()
    tables = SparseTables.from_spec_and_keys(
        spec, known_keys(split, config), dropout=recipe.data.key_dropout, seed=seed, init_std=recipe.data.init_std
    )
    data = segments_of(split, recipe, config, tables)
    return task_of(split, recipe, KuaiFormer(config, spec), tables, data.item_slots), data


def segments_of(split: RetrievalSplit, recipe: Recipe, config: KuaiFormerConfig, tables: SparseTables) -> SegmentData:
    """The training positives of a split as a recipe has them batched."""
    return SegmentData(
        split,
        config.spec(),
        tables,
        windows=config.windows,
        latest=config.latest,
        stride=recipe.data.stride,
        batch=recipe.data.batch,
        cap=recipe.data.cap,
        half_life_days=recipe.data.half_life_days,
        item_dropout=recipe.data.item_dropout,
        day_P=None if config.recency_days is None else recency_of(split, config.recency_days).day_P,
    )


def task_of(
    split: RetrievalSplit, recipe: Recipe, net: KuaiFormer, tables: SparseTables, item_slots: dict[str, torch.Tensor]
) -> KuaiFormerTask:
    """Net and tables as a task; frequencies, what users own and priors are those of the split's training positives."""
    counts_N = torch.from_numpy(split.counts().astype(np.float32))
    estimator = FrequencyEstimator.from_counts(counts_N, recipe.data.batch)
    owned = None
    if recipe.loss.except_owned:
        places = split.train_places()
        user_P = split.index.user_P
        places = places[split.row_P[places] >= 0]
        owner, item = torch.from_numpy(user_P[places]), torch.from_numpy(split.row_P[places])
        owned = OwnedItems.from_pairs(owner, item, owners=len(split.index.user_id))
    prior_NG = None
    if net.config.recency_days is not None:
        found = recency_of(split, net.config.recency_days)
        write_recency(tables, split.items.video_id, found.now_N)
        prior_NG = torch.from_numpy(found.log_NG)
    return KuaiFormerTask(
        net, tables, estimator, item_slots, recipe.loss, owned, recipe.train.seed, prior_NG, counts_N > 0
    )


def train_kuaiformer(
    split: RetrievalSplit,
    out_dir: str | Path,
    recipe: Recipe | None = None,
    *,
    steps: int | None = None,
    resume: bool = False,
    utc_offset_hours: float = 0.0,
    overwrite: bool = False,
    quiet: bool = True,
    parallel: DataParallel | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Checkpoint | None:
    """Train on what the split allows, measure on `val`, save to `out_dir`. None on the ranks that do not lead.

    steps    stop after so many steps in all and save a checkpoint of that state
    resume   go on from the state that an earlier call (killed, interrupted or stopped by `steps`) left beside `out_dir`
    say      takes lines for a person; of ranks, the one that leads
    Without `val` (all days trained on) every epoch of the recipe is trained and the last one kept.
    Raises InputError for data without positives and a metric that `val` does not have, CheckpointError for an existing
    `out_dir` without `overwrite` and for a state of other data or another recipe, Interrupted after a signal (the state
    is saved then).
    """
    recipe = recipe or Recipe()
    out_dir = Path(out_dir)
    check_vacant(out_dir, overwrite, "checkpoint directory", CheckpointError)
    select = recipe.data.select_by if "val" in split.queries else ""
    if select and select not in figure_names(split.n_items):
        raise InputError("no such metric", where="data.select_by", got=select, allowed=figure_names(split.n_items))
    config = recipe.train if "val" in split.queries else replace(recipe.train, patience=None)
    task, data = make_task(split, recipe)
    scorer = KuaiFormerScorer(task.net, task.tables)
    told = recipe.loss.told(split.n_items)
    if told and (parallel is None or parallel.leads):
        say(told)

    def validate() -> dict[str, float]:
        return _figures(evaluate(split, "val", scorer, quick=True))

    saver = Autosave.beside(out_dir, _told(split, recipe), Recipe().to_dict())
    if not resume:
        saver.clear()
    trainer = Trainer(
        task,
        data.batches,
        data.steps_per_epoch,
        config,
        validate=validate if select else None,
        metric=select,
        save=saver.save,
        save_every_s=SAVE_EVERY_S,
        log_path=log_beside(out_dir, keep=resume),
        quiet=quiet,
        label="kuaiformer",
        parallel=parallel,
    )
    if resume:
        trainer.load_state(saver.load())
    result = trainer.run(until_step=steps)
    if parallel is not None and not parallel.leads:
        return None
    task.net.encoder.set_recency()
    found = {name: evaluate(split, name, scorer) for name in split.queries if name == "val"}
    saved = save_trained(
        split,
        task,
        recipe,
        out_dir,
        found,
        result.to_dict(),
        state=row_memory(trainer.optimizers, task.tables),
        utc_offset_hours=utc_offset_hours,
        overwrite=overwrite,
    )
    keep_log(out_dir)
    if trainer.step >= trainer.total_steps or steps is None:
        saver.clear()
    return saved


def _told(split: RetrievalSplit, recipe: Recipe) -> dict[str, Any]:
    """What a state must have been trained by to be gone on from. Device and time budget are free."""
    by = replace(recipe, train=replace(recipe.train, device=TrainConfig().device, max_seconds=None)).to_dict()
    by["data"] |= {"name": split.name, "positives": len(split.train_places()), "items": split.n_items}
    return by


def save_trained(
    split: RetrievalSplit,
    task: KuaiFormerTask,
    recipe: Recipe,
    out_dir: Path,
    found: dict[str, RetrievalResult],
    result: dict[str, Any],
    *,
    state: TrainingState | None = None,
    about: Mapping[str, Any] | None = None,
    beside: Mapping[str, float] | None = None,
    utc_offset_hours: float = 0.0,
    overwrite: bool = False,
) -> Checkpoint:
    """Write the checkpoint of a trained task.

    found: split -> what `evaluate` gave; about: more facts of the training; beside: figures to stand beside the metrics
    """
    metrics: dict[str, Any] = {"final_loss": result["losses"][-1] if result["losses"] else None}
    for name, measured in found.items():
        metrics |= _figures(measured)
        floor = evaluate(split, name, Popularity(), quick=True)
        metrics |= {f"popularity_{figure}": value for figure, value in _figures(floor).items()}
        metrics["protocol"] = measured.protocol
    metrics |= beside or {}
    places = split.train_places()
    config = task.net.config
    training: dict[str, Any] = {
        "data": split.name, "seed": recipe.train.seed, "positives": len(places), "items": split.n_items,
        "trained_until_ms": split.cut_ms if split.cut_ms is not None else int(split.index.time_ms.max(initial=-1)) + 1,
        "utc_offset_hours": utc_offset_hours, "recipe": recipe.to_dict(), "candidates": task.candidates,
        "correction": task.correction, "result": result, **(about or {}),
    }  # fmt: skip
    card: dict[str, Any] = {"preset": preset_label(config), "interests": config.interests, "width": config.width}
    card |= {name: training[name] for name in ("data", "seed", "positives", "candidates", "correction")}
    return save_checkpoint(
        out_dir,
        kind="kuaiformer",
        model=task.net,
        tables=task.tables,
        spec=config.spec(),
        model_config=config.to_dict(),
        training=training,
        metrics=metrics,
        card_text=model_card("KuaiFormer (arXiv 2411.10057)", card, metrics),
        state=state,
        overwrite=overwrite,
    )


def _figures(result: RetrievalResult) -> dict[str, float]:
    return {name: one.mean for name, one in result.metrics.items()}


def load_kuaiformer(checkpoint: Checkpoint) -> KuaiFormer:
    """The dense net of a checkpoint, in eval mode."""
    net = KuaiFormer(KuaiFormerConfig.from_dict(checkpoint.model_config), checkpoint.spec)
    checkpoint.load_into(net)
    return net.eval()


def with_budget(recipe: Recipe, **values: Any) -> Recipe:
    """The recipe with changed values of `train`; None leaves a value as it is."""
    return replace(recipe, train=replace(recipe.train, **{k: v for k, v in values.items() if v is not None}))

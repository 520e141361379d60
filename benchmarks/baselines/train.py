"""Train a baseline on a split, save it, load it as a scorer.

kir bench baseline sasrec --data events:EVENTS --out runs/sasrec                    (about a minute on a small log)
kir bench baseline sasrec --data ml-1m:PATH --out runs/sasrec                       (kill it and go on with --resume)
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from benchmarks.baselines.comirec import ComiRecDR, ComiRecSA
from benchmarks.baselines.gru4rec import GRU4Rec
from benchmarks.baselines.recipe import DataConfig, Recipe
from benchmarks.baselines.sasrec import SASRec
from benchmarks.baselines.sequences import SequenceScorer, SequenceTask, baseline_spec
from contract.errors import CheckpointError, InputError
from contract.files import check_vacant

if TYPE_CHECKING:
    from training.checkpoint import Checkpoint
    from training.retrieval_split import Queries, RetrievalSplit
    from training.segments import SegmentData

KIND = "baseline"
METRIC = "ndcg@10"  # chooses the epoch
SAVE_EVERY_S = 300.0
NETS: dict[str, type[nn.Module]] = {
    "sasrec": SASRec,
    "gru4rec": GRU4Rec,
    "comirec-sa": ComiRecSA,
    "comirec-dr": ComiRecDR,
}
TITLES = {
    "sasrec": "SASRec (Kang & McAuley 2018)",
    "gru4rec": "GRU4Rec (Hidasi et al. 2016)",
    "comirec-sa": "ComiRec-SA (Cen et al. 2020)",
    "comirec-dr": "ComiRec-DR (Cen et al. 2020)",
}


def make_net(name: str, settings: dict[str, Any]) -> nn.Module:
    """A fresh net from its settings, `width` and `length` among them. Raises InputError."""
    try:
        return NETS[name](**settings)
    except KeyError:
        raise InputError("no such baseline is trained", got=name, allowed=sorted(NETS)) from None
    except TypeError as error:
        raise InputError(f"not settings of {name}", got=str(error)) from None


def make_task(split: RetrievalSplit, recipe: Recipe) -> tuple[SequenceTask, SegmentData]:
    """The task and the data it is trained on, freshly initialised; a row for every item that training saw."""
    import torch

    from training.segments import SegmentData
    from training.tables import SparseTables

    seed = recipe.train_config().seed
    torch.manual_seed(seed)
    net = make_net(recipe.name, dict(recipe.model))
    spec = baseline_spec(recipe.model["width"])
    seen = split.index.columns["video_id"][split.train_places()]
    tables = SparseTables.from_spec_and_keys(spec, {"video": seen}, seed=seed)
    how = recipe.data
    data = SegmentData(
        split,
        spec,
        tables,
        latest=how.latest,
        stride=how.stride,
        batch=how.batch,
        half_life_days=how.half_life_days,
    )
    return SequenceTask(net, tables, spec, data.item_slots, how.negatives, how.except_seen), data


def train_baseline(
    split: RetrievalSplit,
    out_dir: str | Path,
    recipe: Recipe,
    *,
    steps: int | None = None,
    resume: bool = False,
    utc_offset_hours: float = 0.0,
    overwrite: bool = False,
    quiet: bool = True,
) -> Checkpoint:
    """Train on what the split allows, keep the epoch that is best on `val` (the last one without `val`), save.

    steps, resume  as in training.kuaiformer_train.train_kuaiformer
    Raises InputError for data without positives, CheckpointError for an existing `out_dir` without `overwrite` and for
    a state of other data or another recipe, Interrupted after a signal (the state is saved then).
    """
    from training.autosave import Autosave
    from training.retrieval_eval import evaluate
    from training.trainer import TrainConfig, Trainer, keep_log, log_beside

    out_dir = Path(out_dir)
    check_vacant(out_dir, overwrite, "checkpoint directory", CheckpointError)
    task, data = make_task(split, recipe)
    scorer = SequenceScorer(recipe.name, task.net, task.tables, task.spec, recipe.model["length"])
    config = recipe.train_config()
    chooses = "val" in split.queries and recipe.data.val_queries != 0
    sample = some_queries(split, recipe.data.val_queries) if chooses else None
    if sample is None:
        config = replace(config, patience=None)  # nothing to stop early by

    def validate() -> dict[str, float]:
        assert sample is not None, "called only where there is a val"
        return evaluate(split, sample, scorer, quick=True).values

    told = {"name": recipe.name, "data": {**asdict(recipe.data), "of": split.name, "items": split.n_items}}
    told |= {"model": dict(recipe.model), "train": asdict(replace(config, max_seconds=None))}
    saver = Autosave.beside(out_dir, told, {"data": asdict(DataConfig()), "train": asdict(TrainConfig())})
    if not resume:
        saver.clear()
    trainer = Trainer(
        task,
        data.batches,
        data.steps_per_epoch,
        config,
        validate=validate if sample is not None else None,
        metric=METRIC if sample is not None else "",
        save=saver.save,
        save_every_s=SAVE_EVERY_S,
        log_path=log_beside(out_dir, keep=resume),
        quiet=quiet,
        label=recipe.name,
    )
    if resume:
        trainer.load_state(saver.load())
    result = trainer.run(until_step=steps)
    measured = evaluate(split, "val", scorer) if "val" in split.queries else None
    metrics: dict[str, Any] = {"final_loss": result.losses[-1] if result.losses else None}
    if measured is not None:
        metrics |= {**measured.values, "protocol": measured.protocol}
    saved = _save(split, task, recipe, out_dir, metrics, result.to_dict(), utc_offset_hours, overwrite)
    keep_log(out_dir)
    if trainer.step >= trainer.total_steps or steps is None:
        saver.clear()
    return saved


def some_queries(split: RetrievalSplit, n: int | None) -> Queries:
    """A sample of `val` that is the same for every model and seed; all of it where it has no more than n."""
    queries = split.chosen("val")
    if n is None or len(queries) <= n:
        return queries
    return queries.take(np.sort(np.random.default_rng(0).permutation(len(queries))[:n]))


def _save(
    split: RetrievalSplit,
    task: SequenceTask,
    recipe: Recipe,
    out_dir: Path,
    metrics: dict[str, Any],
    result: dict[str, Any],
    utc_offset_hours: float,
    overwrite: bool,
) -> Checkpoint:
    from training.checkpoint import model_card, save_checkpoint

    until_ms = split.cut_ms if split.cut_ms is not None else int(split.index.time_ms.max(initial=-1)) + 1
    training = {
        "data": split.name, "seed": recipe.train_config().seed, "positives": len(split.train_places()),
        "items": split.n_items, "trained_until_ms": until_ms, "utc_offset_hours": utc_offset_hours,
        "recipe": recipe.to_dict(), "result": result,
    }  # fmt: skip
    about = {**recipe.model, **{name: training[name] for name in ("data", "seed", "positives")}}
    return save_checkpoint(
        out_dir,
        kind=KIND,
        model=task.net,
        tables=task.tables,
        spec=task.spec,
        model_config={"name": recipe.name, **recipe.model},
        training=training,
        metrics=metrics,
        card_text=model_card(TITLES[recipe.name], about, metrics),
        overwrite=overwrite,
    )


def load_baseline(directory: str | Path, name: str = "") -> SequenceScorer:
    """A saved baseline, ready to score. name: what it is called in tables; the model's own by default."""
    from training.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(directory, kind=KIND)
    settings = dict(checkpoint.model_config)
    model = str(settings.pop("name"))
    net = make_net(model, settings)
    checkpoint.load_into(net)
    return SequenceScorer(name or model, net.eval(), checkpoint.tables, checkpoint.spec, int(settings["length"]))

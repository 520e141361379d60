"""Go on from a KuaiFormer checkpoint with what came since: new users, new items and new days, in a minute or so.

    kir train kuaiformer --resume runs/kuaiformer --events new/events.parquet --data events:runs/data --out runs/next

The dense net starts from the checkpoint's weights, at a share of the rates it was trained with. New keys get rows,
copies of the default row; known rows go on with what the optimiser remembers of them (training/row_memory.py), so that
a row seen often moves little. Old positives are replayed among the new ones.

Whole: a new net, so a new version, which is exported aside and swapped whole. Items only: encoder and item net stand
still, rows alone move; the version, a hash of the net, stays, `rows_revision` grows with the data, and `kir convert
items` brings the changed rows and vectors to a running server.

What each part is worth: `kir bench incremental --ablate`. docs/incremental.md is the guide.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from contract.errors import CheckpointError, InputError
from contract.files import check_vacant
from training.checkpoint import Checkpoint
from training.evaluation import trained_until
from training.incremental_data import NewDays, WithReplay, join_days
from training.kuaiformer import KuaiFormer, KuaiFormerConfig
from training.kuaiformer_task import KuaiFormerTask
from training.kuaiformer_train import known_keys, load_kuaiformer, save_trained, segments_of, task_of
from training.readers import LogData
from training.recipe import Recipe
from training.retrieval_eval import KuaiFormerScorer, evaluate
from training.retrieval_result import RetrievalResult
from training.row_memory import read_row_memory, row_memory, take_up
from training.trainer import Trainer, keep_log, log_beside

EPOCHS = 4
RATE = 0.2  # of the recipe's peak rates
REPLAY = 0.5  # old positives for each new one
STEPS_PER_PASS = 20  # at least, as far as LEAST_BATCH allows: few events still make steps enough to learn from
LEAST_BATCH = 64
FIRST_REVISION = 1
MINUTE_MS = 60_000


def train_incremental(
    base: Checkpoint,
    new: LogData,
    out_dir: str | Path,
    *,
    old: LogData | None = None,
    items_only: bool = False,
    replay: float = REPLAY,
    settings: Iterable[str] = (),
    holdout_days: int = 0,
    utc_offset_hours: float = 0.0,
    overwrite: bool = False,
    quiet: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> Checkpoint:
    """Train `base` further on what `new` has since its training ended, save to `out_dir`.

    old         the log before: histories of the new positives, and what is replayed; None = as far as `new` has it
    items_only  the net stands still: same version, a later rows_revision
    replay      old positives for each new one
    settings    changes to the recipe, as `--set` takes them; its rates are then those of this training
    holdout_days  last days kept for the metrics, which are then those of `base` too ("before_…")
    Raises CheckpointError for a checkpoint that can't go on (no times, other features, no row memory), InputError for
    events without positives since, or all from before.
    """
    out_dir = Path(out_dir)
    check_vacant(out_dir, overwrite, "checkpoint directory", CheckpointError)
    if replay < 0:
        raise InputError("replay is a number of old positives for each new one", got=replay, allowed="from 0")
    since_ms = _since(base)
    days = join_days(
        new,
        old,
        since_ms,
        str(base.config["training"]["data"]),
        holdout_days=holdout_days,
        utc_offset_hours=utc_offset_hours,
    )
    say(days.told())
    trained_by = _recipe(base)
    recipe = gentle(trained_by, int(days.new_P.sum())).changed(settings)
    memory = read_row_memory(base) if recipe.train.table_optimizer != "adam" else {}
    net, tables = load_kuaiformer(base), copy.deepcopy(base.tables)
    origins = tables.grow(known_keys(days.split, net.config))
    tables.dropout = recipe.data.key_dropout
    say(_grown(origins))
    if told := recipe.loss.told(days.split.n_items):
        say(told)
    new_data = segments_of(days.only(days.new_P), recipe, net.config, tables)
    old_data = segments_of(days.only(days.old_P), recipe, net.config, tables) if replay and days.old_P.any() else None
    data = WithReplay(new_data, old_data, replay)
    torch.manual_seed(recipe.train.seed)
    task = task_of(days.split, recipe, net, tables, new_data.item_slots)
    if items_only:
        freeze_all_but_items(task)
    trainer = Trainer(
        task,
        data.batches,
        data.steps_per_epoch,
        recipe.train,
        log_path=log_beside(out_dir, keep=False),
        quiet=quiet,
        label="kuaiformer",
    )
    if memory:
        take_up(trainer.optimizers, tables, memory, origins)
    result = trainer.run()
    task.eval()
    net.encoder.set_recency()
    found = _measured(days, net, tables)
    before = _measured(days, load_kuaiformer(base), base.tables)
    saved = save_trained(
        days.split,
        task,
        trained_by,
        out_dir,
        found,
        result.to_dict(),
        state=row_memory(trainer.optimizers, tables),
        about=_about(base, days, recipe, origins, items_only=items_only, replay=replay),
        beside={f"before_{figure}": value for one in before.values() for figure, value in one.values.items()},
        utc_offset_hours=utc_offset_hours,
        overwrite=overwrite,
    )
    keep_log(out_dir)
    return saved


def gentle(recipe: Recipe, n_new: int) -> Recipe:
    """The recipe of a few passes over `n_new` new positives: small rates, small batches where there are few."""
    train = replace(
        recipe.train,
        epochs=EPOCHS,
        max_steps=None,
        max_seconds=None,
        patience=None,
        learning_rate=RATE * recipe.train.learning_rate,
        table_rate=RATE * recipe.train.table_rate,
    )
    batch = min(recipe.data.batch, max(LEAST_BATCH, n_new // STEPS_PER_PASS))
    return replace(recipe, train=train, data=replace(recipe.data, batch=batch, cap=None, select_by=""))


def freeze_all_but_items(task: KuaiFormerTask) -> None:
    """Leave the rows of item fields trainable: items move, and what histories read of them moves with them."""
    task.net.requires_grad_(False)
    of_items = {column.field.table for column in task.net.spec.columns("item_rows")}
    for table, weight in task.tables.weights.items():
        weight.requires_grad_(table in of_items)


def _since(base: Checkpoint) -> int:
    since_ms = trained_until(base.path)
    if since_ms is None:
        raise CheckpointError(
            "the checkpoint was trained on data without times, so nothing tells what is new", where=base.path
        )
    return since_ms


def _recipe(base: Checkpoint) -> Recipe:
    """How the checkpoint was first trained. Raises CheckpointError for features or a recipe that are not known here."""
    if KuaiFormerConfig.from_dict(base.model_config).spec().fingerprint != base.spec.fingerprint:
        raise CheckpointError(
            "the checkpoint's features are not those of this version", where=base.path, fix="train from zero"
        )
    if "recipe" not in base.config["training"]:
        raise CheckpointError("the checkpoint does not say how it was trained", where=base.path, fix="train from zero")
    return Recipe.from_dict(base.config["training"]["recipe"], base.path)


def _measured(days: NewDays, net: KuaiFormer, tables: Any) -> dict[str, RetrievalResult]:
    scorer = KuaiFormerScorer(net, tables)
    return {name: evaluate(days.split, name, scorer, quick=True) for name in days.split.queries}


def _grown(origins: Mapping[str, NDArray[np.int64]]) -> str:
    counts = {table: int((origin < 0).sum()) for table, origin in origins.items()}
    found = ", ".join(f"{n} {table}" for table, n in counts.items() if n)
    return f"new rows: {found or 'none'}"


def _later_revision(revision: int, days: NewDays) -> int:
    """The minute that the data end in: of two row sets from one base, the one that saw more has the later revision."""
    split = days.split
    until_ms = split.cut_ms if split.cut_ms is not None else int(split.index.time_ms.max()) + 1
    return max(revision + 1, until_ms // MINUTE_MS)


def _about(
    base: Checkpoint,
    days: NewDays,
    recipe: Recipe,
    origins: Mapping[str, NDArray[np.int64]],
    *,
    items_only: bool,
    replay: float,
) -> dict[str, Any]:
    """Facts of the training beside those that every training tells."""
    revision = int(base.config["training"].get("rows_revision", FIRST_REVISION))
    found = {"data": recipe.data, "train": recipe.train}
    return {
        "rows_revision": _later_revision(revision, days) if items_only else FIRST_REVISION,
        "incremental": {
            "from": base.version,
            "from_revision": revision,
            "since_ms": days.since_ms,
            "new_positives": int(days.new_P.sum()),
            "old_positives": int(days.old_P.sum()),
            "new_rows": {table: int((origin < 0).sum()) for table, origin in origins.items()},
            "items_only": items_only,
            "replay": replay,
            "recipe": {part: vars(config) for part, config in found.items()},
        },
    }

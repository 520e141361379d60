"""`kir bench baseline`, and `kir evaluate`, which is training's with these models added. Light at import.

kir bench baseline sasrec --data events:runs/data --out runs/sasrec --epochs 2
kir bench baseline item-cf --data events:runs/data
kir evaluate runs/sasrec --data events:runs/data
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.baselines import COUNTED, TRAINED, load_baseline
from contract.errors import InputError

if TYPE_CHECKING:
    from benchmarks.baselines.recipe import Recipe
    from training.retrieval_split import RetrievalSplit


def add_baseline_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("name", choices=(*COUNTED, *TRAINED), help="popularity and item-cf count: measured, not saved")
    add("--data", required=True, help="kuairand:PATH | events:PATH | sim:… | ml-1m:PATH | amazon-beauty:PATH")
    add("--out", type=Path, help="checkpoint directory to write")
    add("--seed", type=int, help="of initial weights and batches (default: 0, or the recipe's)")
    add("--epochs", type=int, help="passes over the data at most (default: the recipe's)")
    add("--max-seconds", type=float, help="time budget of the training loop; not reproducible (default: none)")
    add("--steps", type=int, help="stop after so many steps in all; --resume goes on from there")
    add("--resume", action="store_true", help="go on from the state that a killed training left beside --out")
    add("--holdout-days", type=int, default=1, help="logs: last days kept as val; 0 = train on all (default: 1)")
    add("--utc-offset-hours", type=float, help="where the users' days begin (default: kuairand 8, else 0)")
    add(
        "--set", action="append", default=[], metavar="PART.KEY=VALUE",
        help="change the recipe (benchmarks/baselines/recipes.json), as model.dropout=0.5; repeatable",
    )  # fmt: skip
    add("--overwrite", action="store_true", help="replace an existing --out")
    add("--json", type=Path, help="write the result here instead of below the table")


def run_baseline(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Make or train it and measure it on `val`: result and table. Raises InputError."""
    from benchmarks.baselines.recipe import Recipe
    from training.cli import KUAIRAND_UTC_OFFSET
    from training.readers import open_data
    from training.retrieval_split import split_of

    if args.holdout_days < 0:
        raise InputError("--holdout-days can't be negative", got=args.holdout_days)
    kind = args.data.partition(":")[0]
    given = [
        f"train.{name}={value}"
        for name in ("seed", "epochs", "max_seconds")
        if (value := getattr(args, name)) is not None
    ]
    offset = args.utc_offset_hours
    if offset is None:
        offset = KUAIRAND_UTC_OFFSET if kind == "kuairand" else 0.0
    counted = args.name in COUNTED
    if counted and args.out is not None:
        raise InputError(f"{args.name} is not saved", got=f"--out {args.out}", fix="leave --out away")
    if not counted and args.out is None:
        raise InputError(f"{args.name} is saved", fix="pass --out DIR")
    recipe = Recipe.shipped(args.name, kind).changed([*given, *args.set])
    split = split_of(open_data(args.data), kind, holdout_days=args.holdout_days, utc_offset_hours=offset)
    if counted:
        return _measure(split, recipe)
    return _train(args, split, recipe, offset)


def _measure(split: RetrievalSplit, recipe: Recipe) -> tuple[dict[str, Any], str]:
    from benchmarks.baselines.item_cf import make_item_cf
    from training.retrieval_eval import Popularity, evaluate

    scorer = Popularity() if recipe.name == "popularity" else make_item_cf(split, recipe)
    result = evaluate(split, "val", scorer, about={"recipe": recipe.to_dict()})
    return {"benchmark": "baseline", **result.to_dict()}, result.table()


def _train(
    args: argparse.Namespace, split: RetrievalSplit, recipe: Recipe, offset: float
) -> tuple[dict[str, Any], str]:
    from benchmarks.baselines.train import train_baseline
    from training.evaluation import metrics_text

    saved = train_baseline(
        split,
        args.out,
        recipe,
        steps=args.steps,
        resume=args.resume,
        utc_offset_hours=offset,
        overwrite=args.overwrite,
        quiet=False,
    )
    facts = {"benchmark": "baseline", "name": recipe.name, "data": args.data, "version": saved.version}
    facts |= {"path": str(saved.path), "metrics": dict(saved.metrics), "training": saved.config["training"]}
    return facts, f"{metrics_text(saved.version, saved.metrics)}\nsaved to {saved.path}"


def add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `kir evaluate`: training's."""
    from training.cli import add_evaluate_arguments as add

    add(parser)


def run_evaluate(args: argparse.Namespace) -> int:
    """`kir evaluate` for any checkpoint: the training room can't import the baselines, so they are handed to it."""
    from training.cli import run_evaluate as run

    return run(args, load_baseline)

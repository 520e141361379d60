"""Flags and runs of the benchmarks of retrieval: comparisons, ablations, updates, speed of training and encoding.

kir bench retrieval runs/kuaiformer runs/sasrec --baseline popularity,item-cf --data events:runs/data
kir bench loss --targets 512 --candidates 500 --rounds 2   # the softmax loss beside cross entropy, seconds
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.typed import typed
from contract.errors import InputError


def add_retrieval_arguments(add: Callable[..., Any]) -> None:
    add(
        "models", nargs="*", metavar="MODEL", help="[NAME=]PATH[,PATH…]: saved result, dump or checkpoint; more = seeds"
    )
    add("--baseline", default="", help="baselines to make here, with commas: popularity, item-cf")
    add(
        "--prior", action="append", default=[], metavar="NAME=WEIGHT",
        help="an arm more: this model with what was watched of late added to its scores (half life: a day); repeatable",
    )  # fmt: skip
    add("--data", help="data of checkpoints and baselines, as kir evaluate takes them; saved results need none")
    add("--split", choices=("val", "test"), default="val", help="queries to ask (default: %(default)s)")
    add("--from-ms", type=int, help="logs: queries from here on (default: where the latest training ended)")
    add("--holdout-days", type=int, help="logs: queries of the last days instead")
    add("--utc-offset-hours", type=float, help="where the users' days begin (kuairand: 8, else 0)")
    add("--top", type=int, default=0, help="items of every ranked list that results keep (default: ranks alone)")
    add("--out", type=Path, default=Path("runs/retrieval"), help="report and results (default: %(default)s)")
    add("--json", type=Path, help="write the result here instead of below the table")


def run_retrieval_bench(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from benchmarks.baselines.prior import prior_weights
    from benchmarks.retrieval import bench_retrieval
    from training.evaluation import Cut

    return bench_retrieval(
        args.models,
        [name for name in args.baseline.split(",") if name],
        args.out,
        typed(args),
        data=args.data,
        split=args.split,
        cut=Cut(args.from_ms, args.holdout_days, offset(args)),
        top=args.top,
        priors=prior_weights(args.prior),
    )


def add_ablation_arguments(add: Callable[..., Any]) -> None:
    add("plan", metavar="PLAN|FILE", help="paper-claims, compression, losses, or a JSON file (benchmarks/ablation.py)")
    add("--data", required=True, help="kuairand:PATH | events:PATH | sim:… | ml-1m:PATH | amazon-beauty:PATH")
    add("--out", type=Path, default=Path("runs/ablation"), help="checkpoints and result (default: %(default)s)")
    add("--only", default="", help="arms to train now, with commas; the table holds all that are done")
    add("--seeds", default="0", help="seeds to train each arm with, with commas (default: %(default)s)")
    add("--epochs", type=int, help="instead of the plan's")
    add("--history", type=int, help="positives before a query that a model may read (default: the protocol's)")
    add("--holdout-days", type=int, default=1, help="logs: queries of the last days (default: %(default)s)")
    add("--utc-offset-hours", type=float, help="where the users' days begin (kuairand: 8, else 0)")
    add("--json", type=Path, help="write the result here instead of below the table")


def run_ablation_bench(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from benchmarks.ablation import run_ablation

    seeds = seeds_of(args.seeds)
    only = [arm for arm in args.only.split(",") if arm]
    return run_ablation(
        args.plan,
        args.data,
        args.out,
        seeds=seeds,
        only=only,
        epochs=args.epochs,
        history=args.history,
        holdout_days=args.holdout_days,
        utc_offset_hours=offset(args),
        command=typed(args),
    )


def add_incremental_arguments(add: Callable[..., Any]) -> None:
    add("--data", default="sim:users=400,items=3000,days=7", help="sim:… | events:PATH | kuairand:PATH (%(default)s)")
    add("--hide", type=float, default=0.1, help="of users and videos: absent before the new day (default: %(default)s)")
    add("--recipe", metavar="NAME|FILE", help="of training from zero (default: kir train kuaiformer's)")
    add("--epochs", type=int, help="instead of the recipe's")
    add("--seeds", default="0", help="seeds of training, with commas (default: %(default)s)")
    add("--ablate", action="store_true", help="also without replay, without row memory, without the old log")
    add("--utc-offset-hours", type=float, help="where the users' days begin (kuairand: 8, else 0)")
    add("--out", type=Path, default=Path("runs/incremental"), help="checkpoints of the arms (default: %(default)s)")
    add("--json", type=Path, help="write the result here instead of below the table")


def run_incremental_bench(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from benchmarks.incremental import Plan, bench_incremental
    from training.recipe import Recipe, read_recipe

    recipe = read_recipe(args.recipe) if args.recipe else Recipe()
    if args.epochs is not None:
        recipe = recipe.changed([f"train.epochs={args.epochs}"])
    plan = Plan(args.data, recipe, args.hide, offset(args))
    return bench_incremental(plan, args.out, typed(args), seeds=seeds_of(args.seeds), ablate=args.ablate)


def add_training_arguments(add: Callable[..., Any]) -> None:
    add("--preset", default="small", help="size of the model (default: %(default)s)")
    add("--recipe", metavar="NAME|FILE", help="a recipe instead of the preset's defaults")
    add("--data", default="sim:users=400,days=4", help="as kir train kuaiformer takes it (default: %(default)s)")
    add("--rounds", type=int, default=5, help="turns of the precisions (default: %(default)s)")
    add("--steps", type=int, default=4, help="steps of each in a turn (default: %(default)s)")
    add("--rows", type=int, default=1_000_000, help="rows of the table for its optimisers (default: %(default)s)")
    add("--json", type=Path, help="write the result here instead of below the table")


def run_training_bench(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from benchmarks.training_speed import measure_training
    from training.recipe import Recipe, read_recipe

    recipe = read_recipe(args.recipe) if args.recipe else Recipe.from_dict({"preset": args.preset}, "--preset")
    counts = {name: getattr(args, name) for name in ("rounds", "steps", "rows")}
    return measure_training(recipe, args.data, **counts, command=typed(args))


def add_loss_arguments(add: Callable[..., Any]) -> None:
    add("--targets", type=int, default=4096, help="rows of a batch (default: %(default)s)")
    add("--candidates", type=int, default=3416, help="items of the softmax (default: %(default)s, ML-1M's catalogue)")
    add("--width", type=int, default=64, help="of the vectors (default: %(default)s)")
    add("--queries", type=int, nargs="+", default=[1, 4], help="queries of a row, one table each (default: 1 4)")
    add("--rounds", type=int, default=10, help="timed steps of each way (default: %(default)s)")
    add("--json", type=Path, help="write the result here instead of below the table")


def run_loss_bench(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from benchmarks.loss_speed import measure_loss

    names = ("targets", "candidates", "width", "queries", "rounds")
    return measure_loss(**{name: getattr(args, name) for name in names})


def add_encoder_arguments(add: Callable[..., Any]) -> None:
    add("--checkpoint", type=Path, help="KuaiFormer checkpoint (default: random weights, width 256, 6 layers)")
    add("--hidden", type=int, help="feed-forward width of the random net (default: 688)")
    add("--batches", type=int, nargs="+", default=[1, 8, 32], help="users of a call (default: 1 8 32)")
    add("--rounds", type=int, default=15, help="turns of floor and runtimes (default: %(default)s)")
    add("--no-compile", action="store_true", help="leave torch.compile out, which compiles for minutes")
    add("--out", dest="json", type=Path, help="write the result here instead of below the table")


def run_encoder_bench(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    if args.checkpoint is not None and args.hidden is not None:
        raise InputError("--hidden is of the random net, --checkpoint has its own", got=args.hidden)
    from benchmarks.encoder_speed import measure_encoder

    return measure_encoder(
        args.checkpoint,
        batches=args.batches,
        rounds=args.rounds,
        compiled=not args.no_compile,
        size={"hidden": args.hidden} if args.hidden is not None else None,
        command=typed(args),
    )


def add_ann_arguments(add: Callable[..., Any]) -> None:
    add("--items", type=int, default=50_000, help="made-up vectors (default: %(default)s)")
    add("--width", type=int, default=64, help="of them (default: %(default)s)")
    add("--retrieval", type=Path, metavar="DIR", help="an export's item vectors instead")
    add("--recall", type=float, default=0.98, help="wanted at 100 (default: %(default)s)")
    add("--json", type=Path, help="write the result here instead of below the table")


def run_ann_bench(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from benchmarks.ann_recall import measure_ann

    return measure_ann(args.items, args.width, retrieval=args.retrieval, recall=args.recall)


def offset(args: argparse.Namespace) -> float:
    """Hours from UTC to where the users' days begin: as told, or KuaiRand's."""
    from training.cli import KUAIRAND_UTC_OFFSET

    if args.utc_offset_hours is not None:
        return float(args.utc_offset_hours)
    return KUAIRAND_UTC_OFFSET if (args.data or "").startswith("kuairand:") else 0.0


def seeds_of(text: str) -> list[int]:
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError:
        raise InputError("--seeds are numbers with commas", got=text) from None


def add_windows_arguments(add: Callable[..., Any]) -> None:
    add("--preset", default="paper", help="KuaiFormer's size (default: %(default)s)")
    add("--positives", type=int, nargs="+", default=[5], help="new ones between two answers of a user (default: 5)")
    add("--answers", type=int, default=96, help="timed of each arm (default: %(default)s)")
    add("--seed", type=int, default=0, help="of weights and histories (default: %(default)s)")
    add("--json", type=Path, help="write the result here instead of below the table")


def run_windows_bench(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from benchmarks.kept_windows import measure_windows

    return measure_windows(
        args.preset, positives=args.positives, answers=args.answers, seed=args.seed, command=typed(args)
    )

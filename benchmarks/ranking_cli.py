"""Flags and runs of the benchmarks of scores: rankers within users, and the reranker with one change at a time.

kir bench ranking runs/ranker --baseline item-rate,lightgbm --data events:runs/data
kir bench rerank-ablation --data events:runs/data --only one-shot
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.retrieval_cli import offset
from benchmarks.typed import typed


def add_ranking_arguments(add: Callable[..., Any]) -> None:
    add("models", nargs="*", metavar="MODEL", help="[NAME=]PATH[,PATH…]: dump of scores or ranker; more = seeds")
    add("--baseline", default="", help="baselines to make here, with commas: item-rate, fm, lightgbm")
    add("--data", help="the log of checkpoints and baselines: kuairand:PATH | events:PATH | sim:…")
    add("--from-ms", type=int, help="score what was shown from here on (default: where the latest training ended)")
    add("--holdout-days", type=int, help="score the log's last days instead")
    add("--utc-offset-hours", type=float, help="where the users' days begin (kuairand: 8, else 0)")
    add("--real-time", action="store_true", help="score rankers with histories that go on as well, and what it gains")
    add("--seed", type=int, default=0, help="of the trained baselines (default: %(default)s)")
    add("--out", type=Path, default=Path("runs/ranking"), help="scores of every model (default: %(default)s)")
    add("--json", type=Path, help="write the result here instead of below the table")


def run_ranking_bench(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from benchmarks.ranking import bench_ranking
    from training.evaluation import Cut

    return bench_ranking(
        args.models,
        [name for name in args.baseline.split(",") if name],
        args.out,
        typed(args),
        data=args.data,
        cut=Cut(args.from_ms, args.holdout_days, offset(args)),
        seed=args.seed,
        real_time=args.real_time,
    )


def add_rerank_ablation_arguments(add: Callable[..., Any]) -> None:
    add("--data", required=True, help="a log with pXTR: events:FOLDER of kir annotate")
    add("--out", type=Path, default=Path("runs/rerank"), help="checkpoints of the arms (default: %(default)s)")
    add("--only", default="", help="arms, with commas; `full` is always among them (default: all)")
    add("--preset", default="tiny", help="sizes of all arms (default: %(default)s)")
    add("--epochs", type=int, default=4, help="of every arm (default: %(default)s)")
    add("--seed", type=int, default=0, help="of every arm (default: %(default)s)")
    add("--json", type=Path, help="write the result here instead of below the table")


def run_rerank_ablation_bench(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from benchmarks.rerank_ablation import run_rerank_ablation

    only = tuple(word for word in args.only.split(",") if word)
    return run_rerank_ablation(
        args.data, args.out, typed(args), preset=args.preset, epochs=args.epochs, seed=args.seed, only=only
    )

"""Flags and runs of the converter's benchmarks: `kir bench conversion`, `compression` and `head-qat`.

kir bench conversion runs/kir --rounds 3 --no-compile --recipe int8-dynamic    # a minute
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.typed import typed


def add_conversion_arguments(add: Callable[..., Any]) -> None:
    add("checkpoint", type=Path, help="checkpoint directory: KIR, ranker or KuaiFormer")
    add("--data", metavar="PATH|KIND:PATH", help="held-out data, as `kir convert model` takes them")
    add("--recipe", action="append", default=[], metavar="NAME|FILE.json", help="may be repeated (default: all)")
    add("--windows", type=int, default=256, help="held-out samples to verify on (default: %(default)s)")
    add("--rounds", type=int, default=7, help="turns of everything that is timed (default: %(default)s)")
    add("--calls", type=int, default=40, help="of each in a turn (default: %(default)s)")
    add("--no-compile", action="store_true", help="leave torch.compile out: it takes most of the time")
    add("--seed", type=int, default=0, help="draws held-out samples (default: %(default)s)")
    add("--json", type=Path, help="write the result here instead of below the table")


def run_conversion(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from benchmarks.conversion import measure_conversion
    from convert.cli import print_progress
    from convert.flags import check_numbers

    check_numbers(args)
    return measure_conversion(
        args.checkpoint,
        typed(args),
        data=args.data,
        recipes=args.recipe,
        windows=args.windows,
        rounds=args.rounds,
        calls=args.calls,
        compiled=not args.no_compile,
        seed=args.seed,
        log=print_progress,
    )


def add_compression_arguments(add: Callable[..., Any]) -> None:
    add("checkpoint", type=Path, help="KIR checkpoint directory")
    add("--data", required=True, help="the log that it was trained on: events:FOLDER of kir annotate")
    add("--out", type=Path, default=Path("runs/compression"), help="checkpoints and graphs (default: %(default)s)")
    add("--only", default="", help='arms, with commas, such as "prune 50%%,cluster 32" (default: all)')
    add("--epochs", type=int, default=1, help="of training on with masks or centroids held (default: %(default)s)")
    add("--min-weights", type=int, default=500, help="smaller matrices stay as they are (default: %(default)s)")
    add("--windows", type=int, default=256, help="held-out ones for tau and first choice (default: %(default)s)")
    add("--seed", type=int, default=0, help="of windows and batches (default: %(default)s)")
    add("--json", type=Path, help="write the result here instead of below the table")


def run_compression_bench(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from benchmarks.compression import run_compression

    return run_compression(
        args.checkpoint,
        args.data,
        args.out,
        typed(args),
        only=[arm for arm in args.only.split(",") if arm],
        epochs=args.epochs,
        min_weights=args.min_weights,
        windows=args.windows,
        seed=args.seed,
    )


def add_head_qat_arguments(add: Callable[..., Any]) -> None:
    add("checkpoint", type=Path, help="KIR checkpoint directory")
    add("--data", required=True, help="a log: events:FOLDER of kir annotate")
    add("--pages", type=int, default=256, help="held-out ones to judge on (default: %(default)s)")
    add("--training-pages", type=int, default=512, help="earlier ones to train on (default: %(default)s)")
    add("--epochs", type=int, default=40, help="of aware training (default: %(default)s)")
    add("--seed", type=int, default=0, help="of pages and batches (default: %(default)s)")
    add("--json", type=Path, help="write the result here instead of below the table")


def run_head_qat(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from benchmarks.stats import machine
    from convert.head_qat import compare_head

    names = ("pages", "training_pages", "epochs", "seed")
    found = compare_head(args.checkpoint, args.data, **{name: getattr(args, name) for name in names})
    return {"benchmark": "head-qat", "machine": machine(), **found.to_json()}, found.table()

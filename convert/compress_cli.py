"""Flags and run of `kir convert compress`. Nothing heavy is imported before it runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

# Structural zeros aside: a block's matrices in `tiny` have 512 of 2,048. Smaller ones are a twentieth of the net.
MIN_WEIGHTS = 500


def add_compress_arguments(jobs: Any) -> None:
    """The job `compress` of `kir convert`. jobs: what add_subparsers gave."""
    add = jobs.add_parser("compress", help="KIR checkpoint -> pruned or clustered checkpoint: a smaller download")
    add.add_argument("checkpoint", type=Path, help="KIR checkpoint directory")
    add.add_argument(
        "--out", type=Path, required=True, help="checkpoint directory to write; `kir convert model` takes it"
    )
    add.add_argument("--data", required=True, metavar="PATH|KIND:PATH", help="the log that it was trained on")
    how = add.add_mutually_exclusive_group(required=True)
    how.add_argument("--prune", type=float, metavar="SHARE", help="of each matrix that becomes zero, such as 0.5")
    how.add_argument("--cluster", type=int, metavar="N", help="different values left in each matrix, such as 32")
    add.add_argument("--epochs", type=int, default=1, help="of training on with it held; 0 = none (default: 1)")
    add.add_argument(
        "--min-weights", type=int, default=MIN_WEIGHTS,
        help="smaller matrices stay as they are; structural zeros don't count (default: %(default)s)",
    )  # fmt: skip
    add.add_argument("--seed", type=int, default=0, help="of the batches (default: 0)")
    add.add_argument("--json", type=Path, metavar="FILE", help="also write the result as JSON")
    add.add_argument("--overwrite", action="store_true", help="replace the output directory")


def run_compress(args: argparse.Namespace) -> int:
    from convert.cli import print_progress, show
    from convert.compress import compress
    from convert.tfmot import Cluster, Prune

    result = compress(
        args.checkpoint,
        args.out,
        Cluster(args.cluster) if args.prune is None else Prune(args.prune),
        args.data,
        epochs=args.epochs,
        min_weights=args.min_weights,
        seed=args.seed,
        overwrite=args.overwrite,
        progress=print_progress,
    )
    return show(result, args.json)

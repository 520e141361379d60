"""`kir bench edge`: flags and call."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.typed import typed


def add_edge_arguments(add: Callable[..., Any]) -> None:
    add("checkpoint", type=Path, nargs="?", help="KIR checkpoint directory (default: random weights of --preset)")
    add("--preset", default="kir", help="sizes of the random weights (default: %(default)s)")
    add("--l", type=int, nargs="+", default=[50], help="capacity of the watched list, one model each (default: 50)")
    add("--n", type=int, nargs="+", default=[32], help="candidates of a page (default: 32)")
    add("--swipes", type=int, default=2_000, help="timed swipes of each case (default: %(default)s)")
    add("--soak", type=int, default=0, help="swipes of one more session, for memory and p99 (default: none)")
    add("--json", type=Path, help="write the result here instead of below the table")


def run_edge(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from benchmarks.edge_latency import measure_edge

    return measure_edge(
        args.checkpoint,
        typed(args),
        preset=args.preset,
        lengths=args.l,
        candidates=sorted(args.n),
        swipes=args.swipes,
        soak=args.soak,
        log=lambda line: print(line, file=sys.stderr, flush=True),
    )

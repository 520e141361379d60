"""The benchmarks' commands: `kir demo` and `kir bench`.

kir demo --out demo-out --quick                        # a smoke test of the whole loop, about a minute
kir bench closed-loop --work demo-out                  # after a demo: the simulator's arms again, more sessions
kir bench swipe --cdn demo-out/cdn                     # latency of a swipe's parts beside the whole net
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from contract.errors import InputError


def add_demo_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", type=Path, default=Path("demo-out"), help="work folder and report (default: %(default)s)")
    add("--data", default="sim", help="sim, kuairand:PATH or events:PATH (default: %(default)s)")
    add("--seed", type=int, default=0, help="seed of everything (default: %(default)s)")
    add("--seeds", type=int, default=5, help="seeds of the closed loop (default: %(default)s)")
    add("--sessions", type=int, default=60, help="sessions per seed of the closed loop (default: %(default)s)")
    add("--phones", type=int, default=4, help="users who swipe over sockets (default: %(default)s)")
    add("--swipes", type=int, default=50, help="videos each of them watches (default: %(default)s)")
    add("--page-size", type=int, default=20, help="candidates per page (default: %(default)s)")
    add("--quick", action="store_true", help="everything small: shows that it runs, measures nothing of worth")


def run_demo(args: argparse.Namespace) -> int:
    """The whole loop; 0 when the report was written."""
    from benchmarks.demo import DemoConfig
    from benchmarks.demo import run_demo as run

    names = ("out", "data", "seed", "seeds", "sessions", "phones", "swipes", "page_size", "quick")
    run(DemoConfig(**{name: getattr(args, name) for name in names}))
    return 0


def add_bench_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="bench", metavar="WHAT", required=True)
    closed = kinds.add_parser(
        "closed-loop", help="watch time in the simulator by arm, over several worlds or one demo's"
    )
    closed.add_argument("--work", type=Path, help="a demo's folder: its models, its world")
    closed.add_argument("--worlds", type=int, default=0, help="train everything anew in so many worlds, one seed each")
    closed.add_argument("--seeds", type=int, default=5, help="session seeds with --work (default: %(default)s)")
    closed.add_argument("--sessions", type=int, default=100, help="sessions per seed or world (default: %(default)s)")
    closed.add_argument("--page-size", type=int, default=20, help="candidates per page (default: %(default)s)")
    closed.add_argument("--out", type=Path, default=Path("runs/closed-loop"), help="work folder of --worlds")
    closed.add_argument("--json", type=Path, help="write the result here as well")
    swipe = kinds.add_parser("swipe", help="what a swipe costs on this machine, part by part, beside the whole net")
    swipe.add_argument("--cdn", required=True, help="published models: URL or directory")
    swipe.add_argument("--repeats", type=int, default=2000, help="timed calls of each part (default: %(default)s)")
    swipe.add_argument("--json", type=Path, help="write the result here as well")


def run_bench(args: argparse.Namespace) -> int:
    """One benchmark: a table, then one JSON line."""
    if args.bench == "swipe":
        if args.repeats < 1:
            raise InputError("--repeats starts at 1", got=args.repeats)
        from benchmarks.swipe_latency import measure_swipe

        result, table = measure_swipe(args.cdn, args.repeats)
    else:
        from benchmarks.closed_loop_runs import run_work, run_worlds

        if args.worlds:
            result, table = run_worlds(args.out, args.worlds, args.sessions, args.page_size)
        else:
            result, table = run_work(args.work, args.seeds, args.sessions, args.page_size)
    print(table)
    line = json.dumps(result, default=float)
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(line + "\n")
    print(line)
    return 0

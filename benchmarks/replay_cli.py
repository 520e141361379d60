"""`kir bench replay`: flags, call and table of the replay on real logs (benchmarks/log_replay.py)."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.typed import typed
from contract.errors import InputError


def add_replay_arguments(add: Callable[..., Any]) -> None:
    add("checkpoint", type=Path, help="KIR checkpoint directory: its tables stand for the embedding server")
    add("--model", type=Path, required=True, metavar="DIR", help="the same net published: CDN or version directory")
    add("--data", required=True, help="events:PATH with pXTR that saw earlier days only (`kir annotate`)")
    add("--sizes", type=int, nargs="+", default=[3, 6, 8], help="impressions of a page (default: 3 6 8)")
    add("--holdout-days", type=int, default=1, help="replay the log's last days (default: %(default)s)")
    add("--utc-offset-hours", type=float, default=0.0, help="where the users' days begin (default: %(default)s)")
    add("--max-pages", type=int, default=100_000, help="of each size (default: %(default)s)")
    add("--json", type=Path, help="write the result here instead of below the table")


def run_replay(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Result and table.

    Raises InputError for a checkpoint of another version than the published model, or trained on what it would replay.
    """
    import numpy as np

    from benchmarks.log_replay import replay_log
    from benchmarks.stats import machine
    from contract.vocabulary import PXTR_HEADS
    from edge import InstalledModel
    from training.checkpoint import load_checkpoint
    from training.days import cut_before_last_days
    from training.evaluation import trained_until
    from training.readers import LogData, open_data

    if min(*args.sizes, args.max_pages, args.holdout_days) < 1 or min(args.sizes) < 2:
        raise InputError("a page has 2 impressions or more, counts start at 1", got=args.sizes, where="--sizes")
    installed, checkpoint = InstalledModel.open_published(args.model), load_checkpoint(args.checkpoint)
    if checkpoint.kind != "kir" or checkpoint.version != installed.dense_version:
        got = {"checkpoint": f"{checkpoint.kind} {checkpoint.version}", "published": installed.dense_version}
        raise InputError("rows and dense net are of different models", where=args.checkpoint, got=got)
    data = open_data(args.data)
    if not isinstance(data, LogData):
        raise InputError("a replay needs impressions with feedback", got=args.data, allowed="events:PATH")
    start_ms = cut_before_last_days(data.events, args.holdout_days, args.utc_offset_hours)
    told = np.isfinite(data.events["pxtr"][data.events["time_ms"] >= start_ms, PXTR_HEADS.index("long_view")])
    if not told.any():
        raise InputError(
            "no pXTR of long_view in the days to replay: theirs is the order to beat",
            where=args.data,
            got=f"{len(told)} impressions",
            fix="predict them first: kir annotate",
        )
    until_ms = trained_until(args.checkpoint)
    if until_ms is None or until_ms > start_ms:
        seen = (
            "it does not say how far" if until_ms is None else f"trained up to {until_ms} ms, replay from {start_ms} ms"
        )
        fix = f"kir train kir --holdout-days {args.holdout_days} --utc-offset-hours {args.utc_offset_hours:g} …"
        raise InputError("the model may have seen what it would be judged on", where=args.checkpoint, got=seen, fix=fix)
    found = replay_log(
        data.events, installed, checkpoint.tables, sizes=args.sizes, start_ms=start_ms, max_pages=args.max_pages
    )
    result = {
        "benchmark": "replay",
        "kind": "host",
        "command": typed(args),
        "machine": machine(),
        "model": installed.dense_version,
        "trained_until_ms": until_ms,
        "replayed_from_ms": start_ms,
        **found,
    }
    return result, replay_table(result)


def replay_table(result: dict[str, Any]) -> str:
    """The protocol, a line a page size with the nDCG of every order, and a line a size with the paired differences."""
    from benchmarks.log_replay import GAINS, ORDERS

    names = {name: name.replace("_", "-") for name in ORDERS}
    lines = [result["protocol"], ""]
    lines.append(f"{'page':>4} {'mixed':>6} {'all same':>8}" + "".join(f" {name:>9}" for name in names.values()))
    for row in result["sizes"]:
        counts = f"{row['size']:>4} {row['pages']:>6} {row['pages_all_same']:>8}"
        lines.append(counts + "".join(f" {row[name]:>9.4f}" for name in ORDERS))
    if not result["sizes"]:
        return "\n".join([*lines, "no user has a whole page with labels of both kinds in these days"])
    heads = [f"{names[a]} − {names[b]}" for a, b in GAINS.values()]
    lines += ["", f"{'page':>4}" + "".join(f"  {head:<26}" for head in heads).rstrip()]
    for row in result["sizes"]:
        gains = (f"{row[g]['mean']:+.4f} [{row[g]['low']:+.4f}, {row[g]['high']:+.4f}]" for g in GAINS)
        lines.append(f"{row['size']:>4}" + "".join(f"  {gain:<26}" for gain in gains).rstrip())
    return "\n".join(lines)

"""`kir bench device`, or `kir bench --serial …`: flags and call."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from contract.errors import InputError


def add_device_arguments(add: Callable[..., Any]) -> None:
    add("--serial", help="host, an adb serial, or HOST:PORT to connect to (default: the only device there is)")
    add("--model", type=Path, required=True, help="published version, or a CDN directory: its current one")
    add(
        "--kind",
        choices=("host", "emulated-arm64", "android-emulator", "device"),
        help="count the results as this kind; an emulator never counts as a device",
    )
    add("--variant", action="append", default=[], metavar="NAME", help="only this variant; may be repeated")
    add("--threads", type=int, nargs="+", default=[], help="thread counts, up to 64 (default: 1 2 4; 1 where emulated)")
    add("--runs", type=int, default=0, help="timed calls of each (default: 200; 15 where instructions are counted)")
    add("--repeats", type=int, default=0, help="rounds of everything timed (default: 3 on phones, else 1)")
    add("--cooldown-s", type=float, help="pause between rounds (default: 30 on phones, else 0)")
    add("--pin", default="", metavar="big|none|MASK", help="cores to stay on (default: big on phones, else none)")
    add("--benchmark-binary", type=Path, metavar="FILE", help="your benchmark_model, run beside the probe")
    add("--compare", type=Path, metavar="OLD.json", help="an older result of this device; exit 1 beyond the gate")
    add("--gate-percent", type=float, help="with --compare (default: 2 for instructions, 10 for wall time)")
    add("--json", type=Path, help="write the result here instead of below the table")
    add("--html", type=Path, metavar="DIR", help="write report.html and report.json into this folder")


def run_device(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Result and table; what makes it a failure is in the result's `problems`.

    The JSON is written as soon as there is a result. Raises InputError for what a person can mend, before measuring.
    """
    from benchmarks.device.compare import check_comparable, check_gate, compare_results, read_result
    from benchmarks.device.measure import Plan, measure_device
    from benchmarks.device.report import write_device_report
    from benchmarks.device.result import device_table, save_result
    from benchmarks.device.target import open_target

    check_gate(args.gate_percent, args.compare)
    _check_places(args)
    old = read_result(args.compare) if args.compare is not None else None
    plan = Plan(
        args.model,
        tuple(args.variant),
        tuple(args.threads),
        args.runs,
        args.repeats,
        args.cooldown_s,
        args.pin,
        args.benchmark_binary,
    )
    command = shlex.join(["kir", *sys.argv[1:]])
    with open_target(args.serial, args.kind or "", _log) as target:
        if old is not None:
            check_comparable(old, target.kind, target.unit, target.properties.get("model", ""))
        result = measure_device(target, plan, command, _log)
    if args.json is not None:  # before anything that may fail: what was measured is kept
        save_result(args.json, result)
    if old is not None:
        result["compare"] = compare_results(old, result, args.gate_percent)
        if not result["compare"]["ok"]:
            result["problems"].append(f"slower or larger than {args.compare} beyond the gate")
        if args.json is not None:
            save_result(args.json, result)
    if args.html is not None:
        print(f"report: {write_device_report(args.html, result)}", file=sys.stderr)
    return result, device_table(result)


def _check_places(args: argparse.Namespace) -> None:
    """Raises InputError where --json or --html can't be written, before minutes of measuring. Makes nothing."""
    for flag, path, folder in (("--json", args.json, False), ("--html", args.html, True)):
        if path is None:
            continue
        if path.exists() and path.is_dir() != folder:
            raise InputError(f"{flag} takes a {'folder' if folder else 'file'}", got=str(path))
        there = next(one for one in (path, *path.absolute().parents) if one.is_dir() or one.exists())
        if path.exists() and not folder:
            there = path.absolute().parent
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            raise InputError(f"{flag} can't be written", where=path, got=str(there), fix="name another place")


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

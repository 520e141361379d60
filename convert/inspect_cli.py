"""Flags and run of `kir inspect`. Nothing heavy is imported before it runs, and never torch."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_inspect_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `kir inspect`."""
    parser.add_argument(
        "paths", type=Path, nargs="+", metavar="FILE.tflite|DIR",
        help="one file in full; several, or a converted or published directory, one line each",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result as JSON")


def run_inspect(args: argparse.Namespace) -> int:
    """0; 2 when a file among several is damaged. Raises KirError for the only one."""
    from convert.cli import show
    from convert.inspect_directory import InspectedDirectory, inspect_paths

    result = inspect_paths(args.paths)
    show(result, args.json)
    return 2 if isinstance(result, InspectedDirectory) and result.damaged else 0

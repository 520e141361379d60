"""Flags that several commands of `kir convert` share, and what is checked of them before anything heavy is imported."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from contract.errors import InputError

LEAST = {"windows": 1, "calibrate": 1, "seed": 0}  # flag -> the smallest number it takes


def add_subject_arguments(parser: argparse.ArgumentParser) -> None:
    """What is converted: a checkpoint, or a module with its contract."""
    parser.add_argument("checkpoint", type=Path, nargs="?", help="checkpoint directory: KIR, ranker or KuaiFormer")
    parser.add_argument(
        "--module", metavar="PKG.MOD:FACTORY", help="in its place: a function that gives a torch module"
    )
    parser.add_argument("--contract", type=Path, metavar="FILE.json", help="the module's tensors (convert/foreign.py)")


def check_numbers(args: argparse.Namespace) -> None:
    """Raises InputError for a number below what its flag takes, and for --json that is a directory."""
    for name, least in LEAST.items():
        if getattr(args, name, least) < least:
            raise InputError(f"--{name} starts at {least}", got=getattr(args, name))
    path = getattr(args, "json", None)
    if path is not None and path.is_dir():
        raise InputError("--json is a directory", got=str(path), fix="name a file in it")


def check_subject(args: argparse.Namespace, words: tuple[str, ...]) -> None:
    """Raises InputError for both or neither of checkpoint and module, and for one that is not there. words: what else
    may have been meant by a checkpoint that is none."""
    if (args.checkpoint is None) == (args.module is None) or (args.module is None) != (args.contract is None):
        raise InputError(
            f"kir convert {args.job} takes a checkpoint directory, or --module with --contract, and not both",
            got={"checkpoint": args.checkpoint, "--module": args.module, "--contract": args.contract},
        )
    if args.checkpoint is not None and not args.checkpoint.exists():
        raise InputError("no such checkpoint", where=args.checkpoint, fix=f"or say: {', '.join(words)}")
    if args.contract is not None and not args.contract.exists():
        raise InputError("no such contract", where=args.contract)


def subject_of(args: argparse.Namespace) -> Any:
    """The checkpoint's path, or the job of a foreign module."""
    if args.module is None:
        return args.checkpoint
    from convert.foreign import ModuleJob

    return ModuleJob.load(args.module, args.contract)

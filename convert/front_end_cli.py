"""Flags and runs of `kir convert setup` and `kir convert cross-check`. Nothing heavy is imported before they run."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from contract.errors import ConversionError
from convert.flags import add_subject_arguments, check_subject, subject_of

# Names only, as in convert/cli.py: convert/frontends imports torch.
FRONT_ENDS = ("onnx2tf", "onnx2tf-dynamo", "litert-torch", "tensorflow")


def add_front_end_arguments(jobs: Any) -> None:
    """The jobs `setup` and `cross-check` of `kir convert`. jobs: what add_subparsers gave."""
    setup = jobs.add_parser(
        "setup",
        help="install onnx2tf, which no extra can name, and what it imports",
        description="Install onnx2tf without its dependencies, whose pins contradict the others', and what it "
        "imports. Tried on Python 3.11, which onnx2tf's metadata refuse and its code does not. On 3.12 and 3.13 the "
        "same line installs it; there `kir convert compress` also needs setuptools, for distutils. What `pip check` "
        "lists afterwards, and why each is well: docs/conversion.md, The install.",
    )
    setup.add_argument(
        "--litert-torch", action="store_true", help="also the second front end that `cross-check` asks (0.7 GB)"
    )
    check = jobs.add_parser(
        "cross-check", help="one checkpoint or module by several front ends: who differs from torch"
    )
    add_subject_arguments(check)
    check.add_argument(
        "--front-end", action="append", choices=FRONT_ENDS, metavar="NAME",
        help=f"may be repeated (default: all that are installed of {', '.join(FRONT_ENDS)})",
    )  # fmt: skip
    check.add_argument(
        "--graph", action="append", metavar="KEY", help="such as swipe/N20, may be repeated (default: all)"
    )
    check.add_argument("--data", metavar="PATH|KIND:PATH", help="held-out data, as `kir convert model` takes them")
    check.add_argument("--windows", type=int, default=16, help="held-out samples to compare on (default: %(default)s)")
    check.add_argument("--seed", type=int, default=0, help="draws the samples (default: 0)")
    check.add_argument("--json", type=Path, metavar="FILE", help="also write the result as JSON")


def run_setup(args: argparse.Namespace) -> int:
    """pip install of what pyproject can't name. Raises ConversionError when pip fails."""
    from convert.tflite import ONNX2TF, ONNX2TF_COMPANIONS

    _pip(*ONNX2TF_COMPANIONS)
    _pip("--no-deps", "--ignore-requires-python", ONNX2TF)
    if args.litert_torch:
        from convert.frontends.litert_torch import LITERT_CONVERTER, LITERT_TORCH, LITERT_TORCH_COMPANIONS

        _pip(*LITERT_TORCH_COMPANIONS)
        _pip("--no-deps", LITERT_CONVERTER, LITERT_TORCH)
    return 0


def _pip(*words: str) -> None:
    print("pip install " + " ".join(words), file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "-q", *words]
    if subprocess.run(command, stdin=subprocess.DEVNULL).returncode:
        raise ConversionError("pip could not install it", got=" ".join(words))


def run_cross_check(args: argparse.Namespace) -> int:
    """1 when the front end that ships is off, or made no file; else 0. Raises KirError."""
    check_subject(args, ("cross-check CHECKPOINT", "cross-check --module PKG.MOD:FACTORY --contract FILE.json"))
    from convert.cli import print_progress, show
    from convert.frontends import ONNX2TF, installed
    from convert.frontends.cross_check import cross_check_job
    from convert.jobs import open_job

    what = subject_of(args)
    job = open_job(what) if isinstance(what, Path) else what
    opened, _ = job.open(args.data, args.seed)
    names = tuple(args.front_end or installed())
    with TemporaryDirectory(prefix="kir-cross-check-") as scratch:
        subject = job.subject(opened, args.windows, args.seed)
        found = cross_check_job(subject, scratch, names, args.graph or (), progress=print_progress)
    show(found, args.json)
    return int(ONNX2TF in names and not found.agrees(ONNX2TF))

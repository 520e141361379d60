"""Flags and run of `kir convert debug`. Nothing heavy is imported before it runs."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contract.errors import InputError

if TYPE_CHECKING:
    from convert.debug_bisect import Bisection
    from convert.debug_report import DebugReport


def add_debug_arguments(jobs: Any) -> None:
    """The job `debug` of `kir convert`. jobs: what add_subparsers gave."""
    debug = jobs.add_parser("debug", help="which layer of a lossy variant is to blame, and what mends it")
    debug.add_argument(
        "paths", type=Path, nargs="+", metavar="PATH",
        help="a converted directory; or REFERENCE.tflite|.onnx and VARIANT.tflite; or, with --bisect, MODEL.onnx",
    )  # fmt: skip
    debug.add_argument("--graph", default="", help="graph of the converted directory, such as swipe/N20")
    debug.add_argument("--variant", default="", help="its variant, such as int8-dynamic; float32 is held against ONNX")
    debug.add_argument(
        "--inputs", type=Path, metavar="FILE.npz",
        help="inputs by name, one sample or several stacked (default: where a variant missed a gate the worst it was "
        "verified on, else the golden case, or random ones)",
    )  # fmt: skip
    debug.add_argument("--seed", type=int, default=0, help="draws random inputs (default: 0)")
    debug.add_argument("--recipe", metavar="NAME|FILE.json", help="what made the variant, where it is not known")
    debug.add_argument(
        "--bisect", action="store_true", help="find the ONNX node that is converted wrongly, down to a minimal model"
    )
    debug.add_argument("--out", type=Path, metavar="DIR", help="write JSON, an HTML page, the mended recipe and file")
    debug.add_argument("--overwrite", action="store_true", help="replace the output directory")
    debug.add_argument("--json", type=Path, metavar="FILE", help="also write the result as JSON")


def run_debug(args: argparse.Namespace) -> int:
    """0 also when something is to blame. Raises InputError for paths that go with no mode, ConversionError."""
    from convert.cli import show

    if args.bisect and args.out is None:
        raise InputError("--bisect writes a model and its inputs", fix="name a directory with --out")
    result = _bisected(args) if args.bisect else _debugged(args)
    if args.out is not None:
        from convert.files import written_aside

        with written_aside(args.out, args.overwrite) as aside:
            result.save(aside)
    return show(result, args.json)


def _debugged(args: argparse.Namespace) -> DebugReport:
    from convert.debug import debug_converted, debug_files
    from convert.quantize import load_recipe

    recipe = load_recipe(args.recipe) if args.recipe else None
    if len(args.paths) == 2:
        return debug_files(*args.paths, inputs=args.inputs, recipe=recipe, seed=args.seed)
    if len(args.paths) == 1 and args.paths[0].suffix not in (".onnx", ".tflite"):
        return debug_converted(args.paths[0], args.graph, args.variant, inputs=args.inputs, recipe=recipe)
    raise InputError(
        "kir convert debug takes a converted directory, or a reference and a variant",
        got=[str(path) for path in args.paths], fix="one .onnx file goes with --bisect",
    )  # fmt: skip


def _bisected(args: argparse.Namespace) -> Bisection | DebugReport:
    """The bisection; where the converter is right and the float file at hand is not, that file's layers."""
    from convert.debug import debug_files
    from convert.debug_bisect import bisect
    from convert.debug_inputs import Converted, load_inputs, random_inputs
    from convert.debug_taps import OnnxTaps
    from convert.quantize import FLOAT

    onnx, inputs, file = args.paths[0], args.inputs, None
    if len(args.paths) > 1 or (onnx.suffix != ".onnx" and not onnx.is_dir()):
        raise InputError("--bisect takes a converted directory or one .onnx file", got=[str(p) for p in args.paths])
    if onnx.is_dir():
        converted = Converted.read(onnx, args.graph, FLOAT)
        onnx, inputs, file = converted.onnx, inputs or converted.case, converted.float_file
    signature = OnnxTaps(onnx).inputs
    samples = load_inputs(inputs, signature) if inputs else random_inputs(signature, args.seed)
    found = bisect(onnx, samples)
    if not found.agrees or file is None:
        return replace(found, directory=str(args.out))
    report = debug_files(onnx, file, inputs=samples)
    if report.first_bad is None:
        return found
    return replace(report, advice="a fresh conversion agrees with ONNX and this file does not: convert again")

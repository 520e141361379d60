"""kir convert setup | model | … | debug, kir publish, kir verify, kir inspect. One-minute CPU version:

kir convert model CHECKPOINT --out converted && kir publish converted --cdn cdn && kir verify --cdn cdn
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contract.errors import InputError
from convert.compress_cli import add_compress_arguments, run_compress
from convert.debug_cli import add_debug_arguments, run_debug
from convert.flags import add_subject_arguments, check_numbers, check_subject, subject_of
from convert.front_end_cli import FRONT_ENDS, add_front_end_arguments, run_cross_check, run_setup
from convert.inspect_cli import add_inspect_arguments, run_inspect
from convert.publish_cli import add_publish_arguments, publish_words, run_publish

# Of kir's commands, those that stand in another file.
__all__ = ["add_inspect_arguments", "add_publish_arguments", "publish_words", "run_inspect", "run_publish"]

# Names only: importing the recipes would be quick, importing what they need would not.
DEFAULT_RECIPES = ("float32", "int8-dynamic", "int8-weight-only")


JOBS = ("setup", "model", "server", "retrieval", "rows", "items", "compress", "cross-check", "debug")


def convert_words(argv: Sequence[str]) -> list[str]:
    """`kir convert CHECKPOINT …` and `kir convert --module …` are `kir convert model …`."""
    words = list(argv)
    at = words.index("convert") + 1
    first = words[at] if at < len(words) else ""
    if first and first not in (*JOBS, "-h", "--help"):
        words.insert(at, "model")
    return words


def add_convert_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `kir convert`."""
    jobs = parser.add_subparsers(dest="job", metavar="JOB", required=True)
    add_front_end_arguments(jobs)
    model = jobs.add_parser(
        "model", help="checkpoint or torch module -> verified ONNX, TFLite float and int8, golden cases"
    )
    add_subject_arguments(model)
    model.add_argument("--out", type=Path, help="directory to write; `kir publish` takes it")
    model.add_argument(
        "--stages", type=Path, metavar="DIR",
        help="keep what each stage makes here, with what made it; a later run starts from what still fits",
    )  # fmt: skip
    model.add_argument(
        "--until", choices=("onnx", "tflite", "quantise"), help="end after this stage, in --stages; nothing is verified"
    )
    model.add_argument(
        "--recipe", action="append", metavar="NAME|FILE.json",
        help=f"quantisation recipe, may be repeated (default: {', '.join(DEFAULT_RECIPES)})",
    )  # fmt: skip
    model.add_argument(
        "--data", metavar="PATH|KIND:PATH",
        help="held-out data: a log (KIR, default synthetic, and ranker), KIND:PATH (KuaiFormer too), .npz (a module)",
    )  # fmt: skip
    model.add_argument(
        "--auto", choices=("size", "speed"),
        help="search a recipe for each graph, layer by layer, and ship the smallest or fastest inside the gates",
    )  # fmt: skip
    model.add_argument(
        "--gate", action="append", default=[], metavar="NAME=VALUE",
        help="another bound than the default for what ships, may be repeated: tau, top1, gauc_loss, gauc_abs, snr_db, "
        "cosine, float_max_abs, halves_max_abs",
    )  # fmt: skip
    model.add_argument(
        "--whole", action="store_true", help="apply the recipes to KIR's whole net too, which no phone loads"
    )
    model.add_argument(
        "--no-float", action="store_true", help="end with status 1 where nothing quantised passes and float would ship"
    )
    model.add_argument(
        "--outcomes", action="store_true", help="also print GAUC and nDCG@5 of each variant with their intervals"
    )
    model.add_argument(
        "--calibrate", type=int, default=100, metavar="N",
        help="samples, none of them verified on, that recipes with fixed ranges are calibrated on (default: 100)",
    )  # fmt: skip
    model.add_argument("--allow-synthetic", action="store_true", help="calibrate on stand-ins where there are no data")
    model.add_argument(
        "--front-end", default="onnx2tf", choices=FRONT_ENDS, help="torch to float TFLite (default: onnx2tf)"
    )
    model.add_argument("--windows", type=int, default=256, help="held-out samples to verify on (default: 256)")
    model.add_argument("--seed", type=int, default=0, help="draws windows and the golden session (default: 0)")
    server = jobs.add_parser("server", help="retrieval, ranker and KIR checkpoints -> server bundle without torch")
    server.add_argument("--retrieval", type=Path, required=True, help="KuaiFormer checkpoint directory")
    server.add_argument("--ranker", type=Path, required=True, help="ranker checkpoint directory")
    server.add_argument(
        "--kir", type=Path, nargs="+", action="extend", required=True,
        help="KIR checkpoint directories whose rows go live; two versions may",
    )  # fmt: skip
    server.add_argument("--catalogue", type=Path, required=True, help="catalogue.parquet")
    server.add_argument("--users", type=Path, required=True, help="users.parquet")
    server.add_argument("--histories", type=Path, help="events that users had before the server starts")
    server.add_argument("--out", type=Path, required=True, help="bundle directory to write")
    retrieval = jobs.add_parser(
        "retrieval", help="KuaiFormer checkpoint alone -> encoder, item vectors and their index"
    )
    retrieval.add_argument("checkpoint", type=Path, help="KuaiFormer checkpoint directory")
    retrieval.add_argument("--catalogue", type=Path, help="catalogue.parquet (default: the videos of --data)")
    retrieval.add_argument("--out", type=Path, required=True, help="directory to write; `kir retrieve` takes it")
    for job in (server, retrieval):
        _add_choices(job)
    rows = jobs.add_parser("rows", help="add one KIR checkpoint's rows to a server bundle, before publishing it")
    rows.add_argument("checkpoint", type=Path, help="KIR checkpoint directory")
    rows.add_argument("--bundle", type=Path, required=True, help="bundle directory")
    items = jobs.add_parser("items", help="new, changed and retrained items into a server bundle, while it serves")
    items.add_argument("--bundle", type=Path, required=True, help="bundle directory")
    items.add_argument("--catalogue", type=Path, help="the newer catalogue.parquet")
    items.add_argument("--retrieval", type=Path, help="KuaiFormer checkpoint with newer rows of the same net")
    add_compress_arguments(jobs)
    add_debug_arguments(jobs)
    for job in (model, server, retrieval, rows, items):
        job.add_argument("--json", type=Path, metavar="FILE", help="also write the result as JSON")
    for job in (model, server, retrieval):
        job.add_argument("--overwrite", action="store_true", help="replace the output directory")


def _add_choices(job: argparse.ArgumentParser) -> None:
    """Of KuaiFormer's encoder and item index: `convert.server_models.RetrievalChoices`."""
    job.add_argument(
        "--encoder", choices=("float32", "int8", "auto"), default="float32",
        help="int8 only where its gate on --data passes; auto: the quicker that may serve (default: %(default)s)",
    )  # fmt: skip
    job.add_argument("--data", default="", metavar="KIND:PATH", help="real histories, as `kir train --data` takes them")
    job.add_argument(
        "--recall", type=float, default=0.98,
        help="of the item index at 100 against exact search, beyond 50,000 items (default: %(default)s)",
    )  # fmt: skip


def _choices(args: argparse.Namespace) -> Any:
    from convert.server_models import RetrievalChoices

    return RetrievalChoices(encoder=args.encoder, data=args.data, recall=args.recall)


def run_convert(args: argparse.Namespace) -> int:
    """Exit status 0; raises KirError (VerificationFailed = 1, everything else = 2)."""
    check_numbers(args)
    elsewhere = {
        "setup": run_setup, "cross-check": run_cross_check, "compress": run_compress, "debug": run_debug,
    }  # fmt: skip
    if args.job in elsewhere:
        return elsewhere[args.job](args)
    result: Any
    if args.job == "model":
        result = _convert(args)
    elif args.job == "rows":
        from convert.bundle import add_rows

        result = add_rows(args.bundle, args.checkpoint)
    elif args.job == "items":
        from convert.items import update_items

        result = update_items(args.bundle, catalogue=args.catalogue, retrieval=args.retrieval)
    elif args.job == "retrieval":
        from convert.retrieval import write_retrieval

        result = write_retrieval(
            args.out,
            checkpoint=args.checkpoint,
            catalogue=args.catalogue,
            choices=_choices(args),
            overwrite=args.overwrite,
            progress=print_progress,
        )
    else:
        from convert.bundle import write_bundle

        result = write_bundle(
            args.out,
            retrieval=args.retrieval,
            ranker=args.ranker,
            kir=args.kir,
            catalogue=args.catalogue,
            users=args.users,
            histories=args.histories,
            choices=_choices(args),
            overwrite=args.overwrite,
            progress=print_progress,
        )
    status = show(result, args.json)
    if args.job == "model" and args.outcomes and args.until is None:
        print(result.verification.outcomes_table())
    return status


def _convert(args: argparse.Namespace) -> Any:
    if (args.out is None) == (args.until is None):
        got = f"--out {args.out}, --until {args.until}"
        raise InputError("kir convert model takes --out, or --until with --stages", got=got)
    if args.until is not None and args.auto is not None:
        raise InputError("--auto searches behind the stages, and does not go with --until", got=f"--auto {args.auto}")
    if args.until is not None and args.gate:
        raise InputError("--gate bounds what is verified, and nothing is before --out", got=f"--until {args.until}")
    if args.until is not None and args.stages is None:
        raise InputError("--until leaves its files in --stages, which is missing", got=f"--until {args.until}")
    check_subject(args, JOBS)
    from convert.quantize import load_recipes
    from convert.report import Gates

    # What was typed is checked before torch and the converters are imported, which takes longer than typing it again.
    gates, recipes = Gates().changed(args.gate), tuple(args.recipe or DEFAULT_RECIPES)
    load_recipes(recipes)
    from convert.model import convert_model, convert_until

    settings: dict[str, Any] = {
        "data": args.data,
        "recipes": recipes,
        "seed": args.seed,
        "calibrate": args.calibrate,
        "allow_synthetic": args.allow_synthetic,
        "front_end": args.front_end,
        "whole": args.whole,
        "progress": print_progress,
    }
    if args.until is not None:
        return convert_until(args.until, subject_of(args), args.stages, **settings)
    return convert_model(
        subject_of(args), args.out, gates=gates, windows=args.windows, auto=args.auto, stages=args.stages,
        no_float=args.no_float, overwrite=args.overwrite, **settings,
    )  # fmt: skip


def add_verify_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `kir verify`."""
    parser.add_argument("--cdn", type=Path, required=True, metavar="ROOT", help="CDN directory")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result as JSON")


def run_verify(args: argparse.Namespace) -> int:
    """Hashes of everything, then every variant of every version against its golden tensors."""
    from convert.check_published import check_published
    from convert.replay import check_goldens

    check = check_published(args.cdn)
    for version in check.versions:
        print_progress(check_goldens(args.cdn / "models" / version))
    return show(check, args.json)


def print_progress(line: str) -> None:
    """Progress goes to stderr; stdout is the result's."""
    print(line, file=sys.stderr, flush=True)


def show(result: Any, path: Path | None) -> int:
    """Print the result's table; write its JSON where asked."""
    print(result.table())
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result.to_json(), indent=2, sort_keys=True) + "\n")
    return 0

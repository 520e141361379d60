"""`kir simulate | annotate | train | evaluate | describe`: thin calls into the training room. Light at import: torch
comes later.

kir simulate --out runs/sim --users 200 --days 4
kir annotate --data events:runs/sim --out runs/data
kir train kuaiformer --data events:runs/sim --out runs/kuaiformer --preset tiny --epochs 1
kir evaluate runs/kuaiformer --data events:runs/sim
kir describe runs/kuaiformer
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contract.errors import InputError

if TYPE_CHECKING:
    from training.checkpoint import Checkpoint
    from training.ranker_train import RankerPlan
    from training.readers import LogData
    from training.retrieval_rank import Scorer

MODELS = ("kuaiformer", "ranker", "kir")
RANKER_PRESETS = ("tiny", "small", "paper")
PRESETS = ("tiny", "small", "paper", "seed", "kir", "kir2020", "kir2022")
KUAIRAND_UTC_OFFSET = 8.0
DATA_HELP = "kuairand:PATH | events:PATH | sim:users=200,days=4"


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value


def add_simulate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, type=Path, help="folder for events, catalogue and users (Parquet)")
    parser.add_argument("--users", type=_positive, default=400)
    parser.add_argument("--items", type=_positive, default=3000)
    parser.add_argument("--days", type=_positive, default=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--drift", type=float, default=1.0, help="how far taste moves within a session; 0 = not at all")
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier run wrote")


def run_simulate(args: argparse.Namespace) -> int:
    """Write OUT/events.parquet, OUT/catalogue.parquet and OUT/users.parquet: what `--data events:OUT` reads."""
    from contract.catalogue import write_catalogue, write_users
    from contract.parquet import write_events
    from training.simulator import SimConfig, World, simulate_logs

    folder = args.out.parent if args.out.suffix == ".parquet" else args.out
    path = args.out if args.out.suffix == ".parquet" else folder / "events.parquet"
    if path.exists() and not args.overwrite:
        raise InputError("file exists", where=path, fix="choose another --out or pass --overwrite")
    config = SimConfig(n_users=args.users, n_items=args.items, days=args.days, seed=args.seed, drift=args.drift)
    world = World(config)
    events = simulate_logs(world)
    folder.mkdir(parents=True, exist_ok=True)
    write_events(path, events)
    write_catalogue(folder / "catalogue.parquet", world.items)
    write_users(folder / "users.parquet", world.users)
    print(f"{len(events)} impressions of {args.users} users and {args.items} videos over {args.days} days: {path}")
    return 0


def add_annotate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, help=DATA_HELP)
    parser.add_argument("--out", required=True, type=Path, help="folder for events, catalogue and users (Parquet)")
    parser.add_argument(
        "--folds", type=_positive, default=3, help="rankers trained, each scores the days after its own"
    )
    parser.add_argument("--preset", choices=RANKER_PRESETS, default="tiny", help="size of each ranker")
    parser.add_argument("--epochs", type=_positive, help="passes over the impressions with a time (default: 2)")
    parser.add_argument("--history-epochs", type=_positive, help="passes over those without a time (default: 2)")
    parser.add_argument("--utc-offset-hours", type=float, help="where the users' days begin (kuairand: 8, else 0)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier run wrote")


def run_annotate(args: argparse.Namespace) -> int:
    """Fill pXTR by rankers that saw earlier days only: what the reranker trains on. Writes what `events:OUT` reads."""
    import numpy as np

    from contract.catalogue import write_catalogue, write_users
    from contract.parquet import write_events
    from training.checkpoint import CONFIG
    from training.ranker_train import rolling_pxtr

    path = args.out / "events.parquet"
    if path.exists() and not args.overwrite:
        raise InputError("file exists", where=path, fix="choose another --out or pass --overwrite")
    if (args.out / CONFIG).exists():
        raise InputError("--out is a checkpoint directory", where=args.out, fix="name another folder for the log")
    data = _open(args.data)
    options = {"folds": args.folds, "preset": args.preset, "plan": _ranker_plan(args), "quiet": False}
    events = rolling_pxtr(data.events, utc_offset_hours=_utc_offset(args), **options)
    write_events(path, events)
    write_catalogue(args.out / "catalogue.parquet", data.items)
    write_users(args.out / "users.parquet", data.users)
    filled = float(np.isfinite(events["pxtr"]).any(axis=1).mean())
    print(f"{len(events)} impressions, {filled:.0%} with pXTR of a ranker that saw earlier days only: {path}")
    return 0


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--data", help=f"{DATA_HELP}; with --events: the log before them")
    parser.add_argument("--out", required=True, type=Path, help="checkpoint directory to write")
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        help="size of the model; the rest follows from it, beside --recipe too, which then says how it is trained. "
        "kuaiformer: tiny, small, paper, seed; ranker: tiny, small, paper; kir: tiny, kir, kir2020, kir2022 (default: "
        "tiny, or the recipe's)",
    )
    parser.add_argument(
        "--epochs", type=_positive, help="passes over the data (default: kuaiformer 10, ranker 2, kir 4)"
    )
    parser.add_argument(
        "--history-epochs",
        type=_positive,
        help="ranker: passes over impressions without a time, first (default: 2)",
    )
    parser.add_argument("--steps", type=_positive, help="stop after so many steps in all; --resume goes on from there")
    parser.add_argument("--max-seconds", type=float, help="time budget of the training loop; not reproducible")
    parser.add_argument(
        "--holdout-days",
        type=int,
        help="last days kept for the metrics; 0 = train on all (default: 1, with --events 0). kir: last days left out "
        "besides the tenth kept for its metrics, as `kir bench replay` wants it (default: 0)",
    )
    parser.add_argument(
        "--utc-offset-hours", type=float, help="where the users' days begin (default: kuairand 8, else 0)"
    )
    parser.add_argument("--seed", type=int, help="of initial weights and batches (default: 0, or the recipe's)")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="DIR",
        help="kuaiformer: without DIR, go on from the state that a killed training left beside --out; with --events, "
        "train this checkpoint further; ranker: go on from the state in this checkpoint",
    )
    parser.add_argument(
        "--init-from",
        metavar="DIR",
        help="kir: fine-tune this checkpoint: its sizes and fields stay, its tables grow by new keys",
    )
    parser.add_argument("--pxtr-only", action="store_true", help="kir: no rows of ids, so that a page needs none")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing --out")
    since = parser.add_argument_group("kuaiformer, on what came since a checkpoint (training/incremental.py)")
    since.add_argument(
        "--events", metavar="FILE", help="event file or folder with the new days, new users and items among them"
    )
    since.add_argument(
        "--items-only",
        action="store_true",
        help="the net stands still, rows of items move: same version, for `kir convert items`",
    )
    since.add_argument("--replay", type=float, help="old positives trained on for each new one (default: 0.5)")
    recipes = parser.add_argument_group("kuaiformer's recipe (training/recipe.py)")
    recipes.add_argument("--recipe", metavar="NAME|FILE", help="one that ships, or a JSON file")
    recipes.add_argument(
        "--set", action="append", default=[], metavar="PART.KEY=VALUE", help="change it, as model.layers=4; repeatable"
    )


def run_train(args: argparse.Namespace) -> int:
    """Train one model, print its metrics with the protocol above them."""
    if args.holdout_days is not None and args.holdout_days < 0:
        raise InputError("--holdout-days can't be negative", got=args.holdout_days)
    kirs = [flag for flag, value in (("--pxtr-only", args.pxtr_only), ("--init-from", args.init_from)) if value]
    if kirs and args.model != "kir":
        raise InputError(f"{kirs[0]} is for kir", got=f"train {args.model} with {' '.join(kirs)}")
    if args.init_from and (args.preset or args.pxtr_only):
        beside = "--preset" if args.preset else "--pxtr-only"
        raise InputError("a fine-tuned checkpoint keeps its sizes and fields", got=f"--init-from with {beside}")
    if args.events is None and args.data is None:
        raise InputError("nothing to train on", fix=f"pass --data {DATA_HELP}")
    given = {"--events": args.events, "--items-only": args.items_only or None, "--replay": args.replay}
    since = [flag for flag, value in given.items() if value is not None]
    if since and (args.model != "kuaiformer" or args.events is None or not args.resume):
        raise InputError(
            "a KuaiFormer checkpoint is trained further",
            got=f"train {args.model} with {' '.join(since)}",
            fix="kir train kuaiformer --resume CHECKPOINT --events FILE",
        )
    if args.events is not None:
        checkpoint: Checkpoint | None = _train_since(args)
    else:
        checkpoint = _train_kuaiformer(args) if args.model == "kuaiformer" else _train(args, _open(args.data))
    if checkpoint is None:  # a rank of torchrun that does not lead
        return 0
    from training.evaluation import metrics_text

    print(metrics_text(checkpoint.version, checkpoint.metrics))
    print(f"saved to {checkpoint.path}")
    return 0


def _train_kuaiformer(args: argparse.Namespace) -> Checkpoint | None:
    from training.distributed import DataParallel
    from training.kuaiformer_train import train_kuaiformer
    from training.readers import open_data
    from training.recipe import Recipe, read_recipe
    from training.retrieval_split import split_of

    recipe = read_recipe(args.recipe) if args.recipe else Recipe()
    if args.preset:
        recipe = replace(recipe, preset=args.preset, model={})  # the recipe's sizes are changes to its own preset
    recipe = recipe.changed([*_train_settings(args), *args.set])
    if args.resume:
        raise InputError(
            "kuaiformer goes on from the state beside --out, or from a checkpoint with what came since",
            got=f"--resume {args.resume}",
            fix="--resume alone, or --resume CHECKPOINT --events FILE",
        )
    split = split_of(
        open_data(args.data),
        args.data.partition(":")[0],
        holdout_days=_holdout(args),
        utc_offset_hours=_utc_offset(args),
    )
    parallel = DataParallel.from_environment(recipe.train.device)
    checkpoint = train_kuaiformer(
        split,
        args.out,
        recipe,
        steps=args.steps,
        resume=args.resume is not None,
        utc_offset_hours=_utc_offset(args),
        overwrite=args.overwrite,
        quiet=False,
        parallel=parallel,
        say=_to_stderr,
    )
    if parallel is not None:
        parallel.leave()
    return checkpoint


def _train_since(args: argparse.Namespace) -> Checkpoint:
    """Incremental training: --resume CHECKPOINT --events FILE [--data the log before]."""
    given = {"--recipe": args.recipe, "--preset": args.preset, "--steps": args.steps}
    refused = [flag for flag, value in given.items() if value is not None]
    if refused:
        raise InputError("a checkpoint goes on with its own recipe", got=" ".join(refused), fix="change it by --set")
    from training.checkpoint import load_checkpoint
    from training.incremental import train_incremental

    if "RANK" in os.environ:
        raise InputError("incremental training runs in one process", fix="start it without torchrun")
    base = load_checkpoint(args.resume, kind="kuaiformer")
    options: dict[str, Any] = {"overwrite": args.overwrite, "items_only": args.items_only}
    if args.replay is not None:
        options["replay"] = args.replay
    return train_incremental(
        base,
        _open(f"events:{args.events}"),
        args.out,
        old=None if args.data is None else _open(args.data),
        settings=[*_train_settings(args), *args.set],
        holdout_days=args.holdout_days or 0,
        utc_offset_hours=_utc_offset(args, base.config["training"].get("utc_offset_hours")),
        quiet=False,
        say=_to_stderr,
        **options,
    )


def _train_settings(args: argparse.Namespace) -> list[str]:
    """The flags that are values of a recipe."""
    named = {name: getattr(args, name) for name in ("epochs", "max_seconds", "seed")}
    return [f"train.{name}={value}" for name, value in named.items() if value is not None]


def _holdout(args: argparse.Namespace) -> int:
    return 1 if args.holdout_days is None else int(args.holdout_days)


def _train(args: argparse.Namespace, data: LogData) -> Checkpoint:
    if args.recipe or args.set:
        raise InputError("recipes are kuaiformer's", got=f"train {args.model} with --recipe or --set")
    if args.model == "kir":
        names = ("steps", "resume")
        refused = [f"--{name.replace('_', '-')}" for name in names if getattr(args, name) is not None]
        if refused:
            fix = "cut it short with --max-seconds or --epochs"
            raise InputError("kir is trained in one go", got=" ".join(refused), fix=fix)
        from training.days import cut_before_last_days, split_at
        from training.kir_train import train_kir

        events, offset = data.events, _utc_offset(args)
        if args.holdout_days:
            events, _ = split_at(events, cut_before_last_days(events, args.holdout_days, offset), offset)
        kir: dict[str, Any] = {"max_seconds": args.max_seconds, "seed": args.seed or 0, "overwrite": args.overwrite}
        kir |= {"data_name": args.data, "init_from": args.init_from}
        if args.epochs is not None:
            kir["epochs"] = args.epochs
        return train_kir(events, args.out, args.preset or "tiny", **kir, pxtr_only=args.pxtr_only, log=_to_stderr)
    if args.resume == "" or (args.resume and not Path(args.resume).is_dir()):
        raise InputError("no such checkpoint directory", where=f"--resume {args.resume}".rstrip())
    options: dict[str, Any] = {name: getattr(args, name) for name in ("steps", "overwrite", "resume")}
    options |= {"preset": args.preset or "tiny", "holdout_days": _holdout(args)}
    options |= {"data_name": args.data, "quiet": False, "utc_offset_hours": _utc_offset(args)}
    from training.ranker_train import train_ranker

    return train_ranker(data.events, data.users, args.out, plan=_ranker_plan(args), **options)


def _ranker_plan(args: argparse.Namespace) -> RankerPlan:
    from training.ranker_train import RankerPlan

    given = {name: getattr(args, name, None) for name in ("epochs", "history_epochs", "max_seconds", "seed")}
    return RankerPlan(**{name: value for name, value in given.items() if value is not None})


def add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("checkpoint", type=Path, nargs="?", help="checkpoint directory (kuaiformer, a baseline, ranker or kir)")
    add("--data", help=f"{DATA_HELP} | ml-1m:PATH | amazon-beauty:PATH (sequences: retrieval alone)")
    add("--split", choices=("val", "test"), help="retrieval's queries; logs have val alone (default: val)")
    add("--from-ms", type=int, help="score what was shown from here on (default: where training ended)")
    add("--holdout-days", type=int, help="score the log's last days instead")
    add("--utc-offset-hours", type=float, help="where the users' days begin (kuairand: 8, else 0)")
    add(
        "--real-time",
        action="store_true",
        help="ranker: histories go on through the scored days, by what was known at each impression; beside past only",
    )
    add(
        "--dump",
        type=Path,
        metavar="FILE",
        help="write what was scored there (Parquet): retrieval's ranked lists, or each impression's score",
    )
    add("--top", type=_positive, default=100, help="length of the dumped lists (default: %(default)s)")
    add("--from-dump", type=Path, metavar="FILE", help="work the metrics out anew from a dump, without model and data")
    add("--json", type=Path, metavar="FILE", help="write the metrics there as well")


def run_evaluate(args: argparse.Namespace, open_baseline: Callable[[Path, str], Scorer] | None = None) -> int:
    """Score a checkpoint on what it was not trained on; the protocol stands above the figures.

    open_baseline  opens what `kir bench baseline` saved, for those who may import it; `kir evaluate` does
    """
    given = [flag for flag in ("checkpoint", "data", "from_dump") if getattr(args, flag) is not None]
    if given not in (["checkpoint", "data"], ["from_dump"]):
        raise InputError("give a checkpoint and --data, or --from-dump alone", got=given)
    from training.evaluation import Cut, evaluate_checkpoint, evaluate_dump

    if args.from_dump is not None:
        done = evaluate_dump(args.from_dump)
    else:
        cut = Cut(args.from_ms, args.holdout_days, _utc_offset(args))
        options = {name: getattr(args, name) for name in ("split", "dump", "top", "real_time")}
        done = evaluate_checkpoint(args.checkpoint, args.data, cut, open_baseline=open_baseline, **options)
    print(done.text)
    _write_json(args.json, done.found)
    return 0


def add_describe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, help="checkpoint, converted model, published version or CDN directory")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write it there as well")


def run_describe(args: argparse.Namespace) -> int:
    """Print what a directory holds: features, parameters, bytes, and for KIR what a swipe costs."""
    from training.describe import describe

    found = describe(args.path)
    print(found.text())
    _write_json(args.json, found.to_dict())
    return 0


def _write_json(path: Path | None, found: Mapping[str, Any]) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=2, sort_keys=True, default=float) + "\n")


def _open(name: str) -> LogData:
    from training.readers import LogData, open_data

    data = open_data(name)
    if not isinstance(data, LogData):
        raise InputError("these data have no events", where=f"--data {name}", allowed=DATA_HELP)
    return data


def _utc_offset(args: argparse.Namespace, of_base: float | None = None) -> float:
    """What was asked for, else that of the checkpoint that is trained further, else that of the data."""
    if args.utc_offset_hours is not None:
        return float(args.utc_offset_hours)
    if of_base is not None:
        return float(of_base)
    return KUAIRAND_UTC_OFFSET if (args.data or "").startswith("kuairand:") else 0.0


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

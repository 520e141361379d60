"""The benchmarks' commands: `kir demo` and `kir bench`.

kir demo --out demo-out --quick                        # a smoke test of the whole loop, about a minute
kir bench closed-loop --work demo-out                  # after a demo: the simulator's arms again, more sessions
kir bench encoder --rounds 3 --batches 1 --no-compile  # KuaiFormer's encoder beside the arithmetic floor, a minute
kir bench loss --targets 512 --candidates 500 --rounds 2   # the softmax loss beside cross entropy, seconds
kir bench training --preset tiny --rounds 2 --steps 2  # a training step in float32 and bfloat16, half a minute
kir bench swipe --cdn demo-out/cdn                     # latency of a swipe's parts beside the whole net
kir bench --serial host --model demo-out/cdn           # on a device: this machine, an emulated one, a phone
kir bench baseline sasrec --data events:runs/data --out runs/sasrec --epochs 2
kir bench ranking runs/ranker --baseline item-rate,lightgbm --data events:runs/data   # within users, paired
kir bench compression runs/kir --data events:runs/data --only "prune 50%"   # what it saves and costs, 5 minutes
kir bench head-qat runs/kir --data events:runs/data --epochs 5   # aware training of the head, two minutes
kir bench retrieval runs/kuaiformer runs/sasrec --baseline popularity,item-cf --data events:runs/data
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.baselines.cli import add_baseline_arguments, run_baseline
from benchmarks.conversion_cli import (
    add_compression_arguments,
    add_conversion_arguments,
    add_head_qat_arguments,
    run_compression_bench,
    run_conversion,
    run_head_qat,
)
from benchmarks.conversion_doc import add_conversion_doc_arguments, run_conversion_doc
from benchmarks.device.bench_cli import add_device_arguments, run_device
from benchmarks.edge_cli import add_edge_arguments, run_edge
from benchmarks.replay_cli import add_replay_arguments, run_replay
from benchmarks.typed import PARSER, typed
from contract.errors import InputError
from contract.files import replacing


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


def bench_words(argv: Sequence[str]) -> list[str]:
    """`kir bench --serial …` is `kir bench device --serial …`."""
    words = list(argv)
    at = words.index("bench") + 1
    if at < len(words) and words[at].startswith("--") and words[at] != "--help":
        words.insert(at, "device")
    return words


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
    closed.add_argument("--sweep", action="store_true", help="with --work: the beam search by k and t as well")
    closed.add_argument("--out", type=Path, default=Path("runs/closed-loop"), help="work folder of --worlds")
    closed.add_argument("--json", type=Path, help="write the result here as well")
    retrieval = kinds.add_parser("retrieval", help="retrieval models on the same queries, with paired differences")
    _add_retrieval_arguments(retrieval.add_argument)
    ranking = kinds.add_parser("ranking", help="models that score impressions, within users, with paired differences")
    _add_ranking_arguments(ranking.add_argument)
    ablation = kinds.add_parser("ablation", help="KuaiFormer with one change at a time: quality and cost, arm by arm")
    _add_ablation_arguments(ablation.add_argument)
    rerank = kinds.add_parser("rerank-ablation", help="the reranker with one change at a time, on the same impressions")
    _add_rerank_ablation_arguments(rerank.add_argument)
    small = kinds.add_parser("compression", help="pruning and clustering of the reranker: download against ranking")
    add_compression_arguments(small.add_argument)
    head = kinds.add_parser("head-qat", help="quantisation-aware training of the reranker's head beside post-training")
    add_head_qat_arguments(head.add_argument)
    since = kinds.add_parser("incremental", help="updates of KuaiFormer against the old model and training from zero")
    _add_incremental_arguments(since.add_argument)
    baseline = kinds.add_parser("baseline", help="train or make what KuaiFormer is compared with; measured on val")
    add_baseline_arguments(baseline)
    ann = kinds.add_parser("ann", help="item indexes by recall and cost, and what changing items costs")
    ann.add_argument("--items", type=int, default=50_000, help="made-up vectors (default: %(default)s)")
    ann.add_argument("--width", type=int, default=64, help="of them (default: %(default)s)")
    ann.add_argument("--retrieval", type=Path, metavar="DIR", help="an export's item vectors instead")
    ann.add_argument("--recall", type=float, default=0.98, help="wanted at 100 (default: %(default)s)")
    ann.add_argument("--json", type=Path, help="write the result here as well")
    encoder = kinds.add_parser("encoder", help="one user's encoding: torch, torch.compile, onnxruntime, and the floor")
    _add_encoder_arguments(encoder.add_argument)
    conversion = kinds.add_parser(
        "conversion", help="every recipe of a checkpoint beside torch and onnxruntime: bytes, ranking, latency, floor"
    )
    add_conversion_arguments(conversion.add_argument)
    doc = kinds.add_parser("conversion-doc", help="the manual's table of every recipe and model, from saved results")
    add_conversion_doc_arguments(doc.add_argument)
    doc.set_defaults(json=None)  # what it reads is the result
    training = kinds.add_parser("training", help="a training step in float32 and bfloat16, saves, table optimisers")
    _add_training_arguments(training.add_argument)
    loss = kinds.add_parser("loss", help="a step of the softmax loss: plain, torch's fused one, chunked, and this one")
    _add_loss_arguments(loss.add_argument)
    load = kinds.add_parser(
        "load", help="what reranking costs the server: pages, bytes, CPU per 100 swipes, by page size"
    )
    load.add_argument("--work", required=True, type=Path, help="a demo's folder: its models, its world")
    load.add_argument("--page-sizes", type=int, nargs="+", default=[6, 12, 20], help="candidates (default: 6 12 20)")
    load.add_argument("--sessions", type=int, default=40, help="of each arm and page size (default: %(default)s)")
    load.add_argument("--seed", type=int, default=0, help="of users and sessions (default: %(default)s)")
    load.add_argument("--json", type=Path, help="write the result here as well")
    replay = kinds.add_parser("replay", help="logged pages in the order the reranker would have shown, against the log")
    add_replay_arguments(replay.add_argument)
    edge = kinds.add_parser(
        "edge", help="a swipe end to end beside the whole net in LiteRT, onnxruntime and torch; cold start, soak"
    )
    add_edge_arguments(edge.add_argument)
    device = kinds.add_parser(
        "device",
        help="a published model on this machine, an emulated arm64 device or a phone: kir bench --serial …",
    )
    add_device_arguments(device.add_argument)
    swipe = kinds.add_parser("swipe", help="what a swipe costs on this machine, part by part, beside the whole net")
    swipe.add_argument("--cdn", required=True, help="published models: URL or directory")
    from edge.cli import add_trust_arguments

    add_trust_arguments(swipe)
    swipe.add_argument("--repeats", type=int, default=2000, help="timed calls of each part (default: %(default)s)")
    swipe.add_argument("--json", type=Path, help="write the result here as well")
    for kind in kinds.choices.values():
        kind.set_defaults(**{PARSER: kind})


def _add_ablation_arguments(add: Callable[..., Any]) -> None:
    add("plan", metavar="PLAN|FILE", help="paper-claims, compression, losses, or a JSON file (benchmarks/ablation.py)")
    add("--data", required=True, help="kuairand:PATH | events:PATH | sim:… | ml-1m:PATH | amazon-beauty:PATH")
    add("--out", type=Path, default=Path("runs/ablation"), help="checkpoints and result (default: %(default)s)")
    add("--only", default="", help="arms to train now, with commas; the table holds all that are done")
    add("--seeds", default="0", help="seeds to train each arm with, with commas (default: %(default)s)")
    add("--epochs", type=int, help="instead of the plan's")
    add("--history", type=int, help="positives before a query that a model may read (default: the protocol's)")
    add("--holdout-days", type=int, default=1, help="logs: queries of the last days (default: %(default)s)")
    add("--utc-offset-hours", type=float, help="where the users' days begin (kuairand: 8, else 0)")
    add("--json", type=Path, help="write the result here as well")


def _add_incremental_arguments(add: Callable[..., Any]) -> None:
    add("--data", default="sim:users=400,items=3000,days=7", help="sim:… | events:PATH | kuairand:PATH (%(default)s)")
    add("--hide", type=float, default=0.1, help="of users and videos: absent before the new day (default: %(default)s)")
    add("--recipe", metavar="NAME|FILE", help="of training from zero (default: kir train kuaiformer's)")
    add("--epochs", type=int, help="instead of the recipe's")
    add("--seeds", default="0", help="seeds of training, with commas (default: %(default)s)")
    add("--ablate", action="store_true", help="also without replay, without row memory, without the old log")
    add("--utc-offset-hours", type=float, help="where the users' days begin (kuairand: 8, else 0)")
    add("--out", type=Path, default=Path("runs/incremental"), help="checkpoints of the arms (default: %(default)s)")
    add("--json", type=Path, help="write the result here as well")


def _run_incremental(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from benchmarks.incremental import Plan, bench_incremental
    from training.recipe import Recipe, read_recipe

    recipe = read_recipe(args.recipe) if args.recipe else Recipe()
    if args.epochs is not None:
        recipe = recipe.changed([f"train.epochs={args.epochs}"])
    plan = Plan(args.data, recipe, args.hide, _offset(args))
    given = {"--recipe": args.recipe, "--epochs": args.epochs, "--utc-offset-hours": args.utc_offset_hours}
    flags = [str(word) for flag, value in given.items() if value is not None for word in (flag, value)]
    words = ["--data", args.data, "--hide", str(args.hide), *flags, "--seeds", args.seeds, "--out", str(args.out)]
    command = shlex.join(["kir", "bench", "incremental", *words, *(["--ablate"] if args.ablate else [])])
    return bench_incremental(plan, args.out, command, seeds=_seeds(args.seeds), ablate=args.ablate)


def _offset(args: argparse.Namespace) -> float:
    from training.cli import KUAIRAND_UTC_OFFSET

    if args.utc_offset_hours is not None:
        return float(args.utc_offset_hours)
    return KUAIRAND_UTC_OFFSET if (args.data or "").startswith("kuairand:") else 0.0


def _seeds(text: str) -> list[int]:
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError:
        raise InputError("--seeds are numbers with commas", got=text) from None


def _add_rerank_ablation_arguments(add: Callable[..., Any]) -> None:
    add("--data", required=True, help="a log with pXTR: events:FOLDER of kir annotate")
    add("--out", type=Path, default=Path("runs/rerank"), help="checkpoints of the arms (default: %(default)s)")
    add("--only", default="", help="arms, with commas; `full` is always among them (default: all)")
    add("--preset", default="tiny", help="sizes of all arms (default: %(default)s)")
    add("--epochs", type=int, default=4, help="of every arm (default: %(default)s)")
    add("--seed", type=int, default=0, help="of every arm (default: %(default)s)")
    add("--json", type=Path, help="write the result here as well")


def _run_rerank_ablation(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from benchmarks.rerank_ablation import run_rerank_ablation

    only = tuple(word for word in args.only.split(",") if word)
    words = ["kir", "bench", "rerank-ablation"]
    for name in ("data", "only", "preset", "epochs", "seed"):
        words += [f"--{name}", str(getattr(args, name))] if getattr(args, name) != "" else []
    return run_rerank_ablation(
        args.data, args.out, shlex.join(words), preset=args.preset, epochs=args.epochs, seed=args.seed, only=only
    )


def _run_ablation(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from benchmarks.ablation import run_ablation

    seeds = _seeds(args.seeds)
    only = [arm for arm in args.only.split(",") if arm]
    return run_ablation(
        args.plan,
        args.data,
        args.out,
        seeds=seeds,
        only=only,
        epochs=args.epochs,
        history=args.history,
        holdout_days=args.holdout_days,
        utc_offset_hours=_offset(args),
        command=typed(args),
    )


def _add_retrieval_arguments(add: Callable[..., Any]) -> None:
    add(
        "models", nargs="*", metavar="MODEL", help="[NAME=]PATH[,PATH…]: saved result, dump or checkpoint; more = seeds"
    )
    add("--baseline", default="", help="baselines to make here, with commas: popularity, item-cf")
    add("--data", help="data of checkpoints and baselines, as kir evaluate takes them; saved results need none")
    add("--split", choices=("val", "test"), default="val", help="queries to ask (default: %(default)s)")
    add("--from-ms", type=int, help="logs: queries from here on (default: where the latest training ended)")
    add("--holdout-days", type=int, help="logs: queries of the last days instead")
    add("--utc-offset-hours", type=float, help="where the users' days begin (kuairand: 8, else 0)")
    add("--top", type=int, default=0, help="items of every ranked list that results keep (default: ranks alone)")
    add("--out", type=Path, default=Path("runs/retrieval"), help="report and results (default: %(default)s)")
    add("--json", type=Path, help="write the result here as well")


def _add_ranking_arguments(add: Callable[..., Any]) -> None:
    add("models", nargs="*", metavar="MODEL", help="[NAME=]PATH[,PATH…]: dump of scores or ranker; more = seeds")
    add("--baseline", default="", help="baselines to make here, with commas: item-rate, fm, lightgbm")
    add("--data", help="the log of checkpoints and baselines: kuairand:PATH | events:PATH | sim:…")
    add("--from-ms", type=int, help="score what was shown from here on (default: where the latest training ended)")
    add("--holdout-days", type=int, help="score the log's last days instead")
    add("--utc-offset-hours", type=float, help="where the users' days begin (kuairand: 8, else 0)")
    add("--real-time", action="store_true", help="score rankers with histories that go on as well, and what it gains")
    add("--seed", type=int, default=0, help="of the trained baselines (default: %(default)s)")
    add("--out", type=Path, default=Path("runs/ranking"), help="scores of every model (default: %(default)s)")
    add("--json", type=Path, help="write the result here as well")


def _add_encoder_arguments(add: Callable[..., Any]) -> None:
    add("--checkpoint", type=Path, help="KuaiFormer checkpoint (default: random weights, width 256, 6 layers)")
    add("--hidden", type=int, help="feed-forward width of the random net (default: 688)")
    add("--batches", type=int, nargs="+", default=[1, 8, 32], help="users of a call (default: 1 8 32)")
    add("--rounds", type=int, default=15, help="turns of floor and runtimes (default: %(default)s)")
    add("--no-compile", action="store_true", help="leave torch.compile out, which compiles for minutes")
    add("--out", dest="json", type=Path, help="write the result here as well")


def _add_training_arguments(add: Callable[..., Any]) -> None:
    add("--preset", default="small", help="size of the model (default: %(default)s)")
    add("--recipe", metavar="NAME|FILE", help="a recipe instead of the preset's defaults")
    add("--data", default="sim:users=400,days=4", help="as kir train kuaiformer takes it (default: %(default)s)")
    add("--rounds", type=int, default=5, help="turns of the precisions (default: %(default)s)")
    add("--steps", type=int, default=4, help="steps of each in a turn (default: %(default)s)")
    add("--rows", type=int, default=1_000_000, help="rows of the table for its optimisers (default: %(default)s)")
    add("--json", type=Path, help="write the result here as well")


def _add_loss_arguments(add: Callable[..., Any]) -> None:
    add("--targets", type=int, default=4096, help="rows of a batch (default: %(default)s)")
    add("--candidates", type=int, default=3416, help="items of the softmax (default: %(default)s, ML-1M's catalogue)")
    add("--width", type=int, default=64, help="of the vectors (default: %(default)s)")
    add("--queries", type=int, nargs="+", default=[1, 4], help="queries of a row, one table each (default: 1 4)")
    add("--rounds", type=int, default=10, help="timed steps of each way (default: %(default)s)")
    add("--json", type=Path, help="write the result here as well")


def run_bench(args: argparse.Namespace) -> int:
    """One benchmark: a table, then one JSON line. 1 when the result tells problems, as a gate that it did not pass."""
    benches = {
        "ablation": _run_ablation,
        "rerank-ablation": _run_rerank_ablation,
        "ann": _run_ann,
        "baseline": run_baseline,
        "closed-loop": _run_closed_loop,
        "conversion": run_conversion,
        "conversion-doc": run_conversion_doc,
        "compression": run_compression_bench,
        "device": run_device,
        "edge": run_edge,
        "encoder": _run_encoder,
        "head-qat": run_head_qat,
        "incremental": _run_incremental,
        "load": _run_load,
        "loss": _run_loss,
        "ranking": _run_ranking,
        "replay": run_replay,
        "retrieval": _run_retrieval,
        "swipe": _run_swipe,
        "training": _run_training,
    }
    result, table = benches[args.bench](args)
    print(table)
    line = json.dumps(result, default=float)
    if args.json is not None:
        with replacing(args.json) as file:  # an interruption leaves what a benchmark may have written itself
            file.write(f"{line}\n".encode())
    print(line)
    return 1 if result.get("problems") else 0


def _run_swipe(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    if args.repeats < 1:
        raise InputError("--repeats starts at 1", got=args.repeats)
    from benchmarks.swipe_latency import measure_swipe

    return measure_swipe(args.cdn, args.repeats, root=args.root, unsigned=args.unsigned)


def _run_load(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from benchmarks.load import run_load

    return run_load(args.work, args.page_sizes, args.sessions, args.seed)


def _run_loss(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from benchmarks.loss_speed import measure_loss

    names = ("targets", "candidates", "width", "queries", "rounds")
    return measure_loss(**{name: getattr(args, name) for name in names})


def _run_closed_loop(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from benchmarks.closed_loop_runs import run_work, run_worlds

    if args.worlds:
        if args.sweep:
            raise InputError("--sweep needs one demo's model", got="--worlds", fix="pass --work DIR instead")
        return run_worlds(args.out, args.worlds, args.sessions, args.page_size)
    return run_work(args.work, args.seeds, args.sessions, args.page_size, args.sweep)


def _run_ann(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from benchmarks.ann_recall import measure_ann

    return measure_ann(args.items, args.width, retrieval=args.retrieval, recall=args.recall)


def _run_encoder(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    if args.checkpoint is not None and args.hidden is not None:
        raise InputError("--hidden is of the random net, --checkpoint has its own", got=args.hidden)
    from benchmarks.encoder_speed import measure_encoder

    return measure_encoder(
        args.checkpoint,
        batches=args.batches,
        rounds=args.rounds,
        compiled=not args.no_compile,
        size={"hidden": args.hidden} if args.hidden is not None else None,
        command=typed(args),
    )


def _run_training(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from benchmarks.training_speed import measure_training
    from training.recipe import Recipe, read_recipe

    recipe = read_recipe(args.recipe) if args.recipe else Recipe.from_dict({"preset": args.preset}, "--preset")
    counts = {name: getattr(args, name) for name in ("rounds", "steps", "rows")}
    return measure_training(recipe, args.data, **counts, command=typed(args))


def _run_ranking(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from benchmarks.ranking import bench_ranking
    from training.evaluation import Cut

    names = ("baseline", "data", "from_ms", "holdout_days", "utc_offset_hours", "seed", "out")
    return bench_ranking(
        args.models,
        [name for name in args.baseline.split(",") if name],
        args.out,
        _command("ranking", args, names) + " --real-time" * args.real_time,
        data=args.data,
        cut=Cut(args.from_ms, args.holdout_days, _offset(args)),
        seed=args.seed,
        real_time=args.real_time,
    )


def _command(bench: str, args: argparse.Namespace, names: Sequence[str]) -> str:
    """What was typed, flags that say nothing left out."""
    given = {f"--{name.replace('_', '-')}": getattr(args, name) for name in names}
    flags = [str(word) for flag, value in given.items() if value not in (None, "", 0) for word in (flag, value)]
    return shlex.join(["kir", "bench", bench, *args.models, *flags])


def _run_retrieval(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from benchmarks.retrieval import bench_retrieval
    from training.evaluation import Cut

    names = ("baseline", "data", "split", "from_ms", "holdout_days", "utc_offset_hours", "top", "out")
    return bench_retrieval(
        args.models,
        [name for name in args.baseline.split(",") if name],
        args.out,
        _command("retrieval", args, names),
        data=args.data,
        split=args.split,
        cut=Cut(args.from_ms, args.holdout_days, _offset(args)),
        top=args.top,
    )

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
from collections.abc import Sequence
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
from benchmarks.ranking_cli import (
    add_ranking_arguments,
    add_rerank_ablation_arguments,
    run_ranking_bench,
    run_rerank_ablation_bench,
)
from benchmarks.replay_cli import add_replay_arguments, run_replay
from benchmarks.retrieval_cli import (
    add_ablation_arguments,
    add_ann_arguments,
    add_encoder_arguments,
    add_incremental_arguments,
    add_loss_arguments,
    add_retrieval_arguments,
    add_training_arguments,
    add_windows_arguments,
    run_ablation_bench,
    run_ann_bench,
    run_encoder_bench,
    run_incremental_bench,
    run_loss_bench,
    run_retrieval_bench,
    run_training_bench,
    run_windows_bench,
)
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
    closed.add_argument("--json", type=Path, help="write the result here instead of below the table")
    retrieval = kinds.add_parser("retrieval", help="retrieval models on the same queries, with paired differences")
    add_retrieval_arguments(retrieval.add_argument)
    ranking = kinds.add_parser("ranking", help="models that score impressions, within users, with paired differences")
    add_ranking_arguments(ranking.add_argument)
    ablation = kinds.add_parser("ablation", help="KuaiFormer with one change at a time: quality and cost, arm by arm")
    add_ablation_arguments(ablation.add_argument)
    rerank = kinds.add_parser("rerank-ablation", help="the reranker with one change at a time, on the same impressions")
    add_rerank_ablation_arguments(rerank.add_argument)
    small = kinds.add_parser("compression", help="pruning and clustering of the reranker: download against ranking")
    add_compression_arguments(small.add_argument)
    head = kinds.add_parser("head-qat", help="quantisation-aware training of the reranker's head beside post-training")
    add_head_qat_arguments(head.add_argument)
    since = kinds.add_parser("incremental", help="updates of KuaiFormer against the old model and training from zero")
    add_incremental_arguments(since.add_argument)
    baseline = kinds.add_parser("baseline", help="train or make what KuaiFormer is compared with; measured on val")
    add_baseline_arguments(baseline)
    ann = kinds.add_parser("ann", help="item indexes by recall and cost, and what changing items costs")
    add_ann_arguments(ann.add_argument)
    encoder = kinds.add_parser("encoder", help="one user's encoding: torch, torch.compile, onnxruntime, and the floor")
    add_encoder_arguments(encoder.add_argument)
    windows = kinds.add_parser("windows", help="what 256 compressed items cost the server beside raw 64, as it answers")
    add_windows_arguments(windows.add_argument)
    conversion = kinds.add_parser(
        "conversion", help="every recipe of a checkpoint beside torch and onnxruntime: bytes, ranking, latency, floor"
    )
    add_conversion_arguments(conversion.add_argument)
    doc = kinds.add_parser("conversion-doc", help="the manual's table of every recipe and model, from saved results")
    add_conversion_doc_arguments(doc.add_argument)
    doc.set_defaults(json=None)  # what it reads is the result
    training = kinds.add_parser("training", help="a training step in float32 and bfloat16, saves, table optimisers")
    add_training_arguments(training.add_argument)
    loss = kinds.add_parser("loss", help="a step of the softmax loss: plain, torch's fused one, chunked, and this one")
    add_loss_arguments(loss.add_argument)
    load = kinds.add_parser(
        "load", help="what reranking costs the server: pages, bytes, CPU per 100 swipes, by page size"
    )
    load.add_argument("--work", required=True, type=Path, help="a demo's folder: its models, its world")
    load.add_argument("--page-sizes", type=int, nargs="+", default=[6, 12, 20], help="candidates (default: 6 12 20)")
    load.add_argument("--sessions", type=int, default=40, help="of each arm and page size (default: %(default)s)")
    load.add_argument("--seed", type=int, default=0, help="of users and sessions (default: %(default)s)")
    load.add_argument("--json", type=Path, help="write the result here instead of below the table")
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
    swipe.add_argument("--json", type=Path, help="write the result here instead of below the table")
    for kind in kinds.choices.values():
        kind.set_defaults(**{PARSER: kind})


def run_bench(args: argparse.Namespace) -> int:
    """One benchmark: a table, and one JSON line into --json, or below the table without it.

    1 when the result tells problems, as a gate that it did not pass.
    """
    benches = {
        "ablation": run_ablation_bench,
        "rerank-ablation": run_rerank_ablation_bench,
        "ann": run_ann_bench,
        "baseline": run_baseline,
        "closed-loop": _run_closed_loop,
        "conversion": run_conversion,
        "conversion-doc": run_conversion_doc,
        "compression": run_compression_bench,
        "device": run_device,
        "edge": run_edge,
        "encoder": run_encoder_bench,
        "head-qat": run_head_qat,
        "incremental": run_incremental_bench,
        "load": _run_load,
        "loss": run_loss_bench,
        "ranking": run_ranking_bench,
        "replay": run_replay,
        "retrieval": run_retrieval_bench,
        "swipe": _run_swipe,
        "training": run_training_bench,
        "windows": run_windows_bench,
    }
    result, table = benches[args.bench](args)
    result.setdefault("command", typed(args))
    print(table)
    line = json.dumps(result, default=float)
    if args.json is not None:
        with replacing(args.json) as file:  # an interruption leaves what a benchmark may have written itself
            file.write(f"{line}\n".encode())
    else:
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


def _run_closed_loop(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from benchmarks.closed_loop_runs import run_work, run_worlds

    if args.worlds:
        if args.sweep:
            raise InputError("--sweep needs one demo's model", got="--worlds", fix="pass --work DIR instead")
        return run_worlds(args.out, args.worlds, args.sessions, args.page_size)
    return run_work(args.work, args.seeds, args.sessions, args.page_size, args.sweep)

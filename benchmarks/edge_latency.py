"""A swipe end to end on this machine, beside the whole net in LiteRT, onnxruntime and torch: same weights, same run.

    kir bench edge                                        # preset kir, random weights, L = 50, N = 32: two minutes
    kir bench edge runs/kir --n 20 36 --json edge.json    # a trained checkpoint
    kir bench edge --l 10 50 100 --n 8 16 32 64 100       # the sweep; one model per L
    kir bench edge --soak 10000                           # memory and p99 over a long session

A swipe is feedback in, next video out, through `EdgeSession`, with `maintain` outside as the player calls it; once more
with a state file (in the folder of temporary files: let TMPDIR be a real disk), and with Python's collector at work.
The golden cases of the published files are replayed first. In each round some swipes are scored by the whole float net
as well, on the same inputs: Kendall's tau and the share of equal first videos are printed. Session and LiteRT run in a
process of their own, without torch (benchmarks/edge_swiper.py), onnxruntime and torch in this one. Everything takes
turns in rounds, on one thread, so that noise falls on all alike: read the ratios (kind: host).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.edge_models import Subject, make_subject
from benchmarks.edge_swiper import WHOLE, SwiperProcess, timed
from benchmarks.edge_table import edge_table
from benchmarks.flops import Floor, Product, products_of, total_flops
from benchmarks.stats import machine, percentiles
from contract.errors import InputError, KirError, VerificationFailed
from edge import Engine, replay

Call = Callable[[], Any]
SQUARE = Product(1, 256, 256, 256)  # its rate is the floor's
ROUNDS, PEER_CALLS, COMPARED, PAGES = 20, 20, 5, 6
SWIPES = ("swipe", "swipe_state", "swipe_collected")
LITERT, ORT, EAGER = "whole net, LiteRT float32", "whole net, onnxruntime float32", "whole net, torch eager"


def measure_edge(
    checkpoint: Path | None,
    command: str,
    *,
    preset: str = "kir",
    lengths: Sequence[int] = (50,),
    candidates: Sequence[int] = (32,),
    swipes: int = 2_000,
    soak: int = 0,
    log: Callable[[str], None] = print,
) -> tuple[dict[str, Any], str]:
    """Result and table. Raises VerificationFailed when golden cases do not replay, InputError for sizes below 1."""
    if min(*candidates, swipes) < 1 or soak < 0:
        raise InputError("sizes and counts start at 1", got={"--n": candidates, "--swipes": swipes, "--soak": soak})
    if odd := [length for length in lengths if length < 2 or length % 2]:
        raise InputError("--l: a watched list holds an even number of videos, from 2", got=odd)
    if checkpoint is not None and len(lengths) > 1:
        raise InputError("a checkpoint has one L; --l is for random weights", got=list(lengths))
    import torch

    torch.set_num_threads(1)
    middle = candidates[len(candidates) // 2]  # soak and cold start
    cases = []
    for length in lengths:
        with tempfile.TemporaryDirectory(prefix="kir-edge-") as folder:
            log(f"converting {checkpoint or preset}, L {length}, N {', '.join(map(str, candidates))}")
            subject = make_subject(checkpoint, preset, length, candidates, Path(folder))
            report = replay(subject.installed)
            if not report.ok:
                raise VerificationFailed("golden cases do not replay on this machine", got=report.table())
            for n in candidates:
                log(f"timing L {subject.source.capacities['L']}, N {n}")
                cases.append(_case(subject, Path(folder), n, swipes, soak if n == middle else 0))
                if n == middle:
                    cases[-1] |= _cold_start(subject, Path(folder), n)
            cases[-1] |= _growth(cases[-len(candidates) :])
    result = {
        "benchmark": "edge",
        "kind": "host",
        "command": command,
        "machine": machine(),
        "model": {"checkpoint": str(checkpoint) if checkpoint else f"random weights of {preset}"},
        "settings": {"swipes": swipes, "rounds": ROUNDS, "peer_calls": PEER_CALLS},
        "cases": cases,
    }
    return result, edge_table(result)


def _case(subject: Subject, folder: Path, n: int, swipes: int, soak: int) -> dict[str, Any]:
    import onnx

    from convert.measure import ranking

    engine = Engine(subject.installed)
    bucket = f"N{engine.bucket_for(n)}"
    graphs = ("watch/T1", f"swipe/{bucket}")
    if (shipped := subject.installed.manifest.graph(WHOLE, bucket).ship) != "float32":
        raise InputError("the whole net is compared in float32", where=f"{WHOLE}/{bucket}", got=shipped)
    pages = folder / f"pages-{n}"
    pages.mkdir()
    for number in range(PAGES):
        (pages / f"{number}.bin").write_bytes(subject.page(n, number))
    peers = _peers(subject, bucket)
    multiply_adds = {
        key: total_flops(products_of(onnx.load(str(subject.onnx[key])), 1)) // 2
        for key in (*graphs, f"page/{bucket}", f"whole/{bucket}")
    }
    gemm = Floor({SQUARE: 1})
    times: dict[str, list[float]] = defaultdict(list)
    rates, theirs, ours = [], [], []
    with SwiperProcess(folder / "cache", pages, n, bucket) as phone:
        for number in range(ROUNDS + 1):
            turn = phone.ask(swipes=max(swipes // ROUNDS, 1), calls=PEER_CALLS, compared=COMPARED)
            found = {name: turn[f"{name}_us"] for name in (*SWIPES, "page")} | {LITERT: turn["calls_us"].pop(WHOLE)}
            found |= turn["calls_us"] | {f"stage {name}": values for name, values in turn["stages_us"].items()}
            found |= {name: timed(call, PEER_CALLS) for name, call in peers.items()}
            rates.append(SQUARE.flops / 2 / gemm.seconds())
            ours += [np.array(slate, np.float32) for slate in turn["swipe_values"]]
            theirs += [np.array(slate, np.float32) for slate in turn["whole_values"]]
            if number == 0:  # the first round warms caches and clocks
                rates.clear()
                continue
            for name, values in found.items():
                times[name] += values
        endurance = _soak(phone, soak) if soak else {}
    order = ranking(theirs, ours)
    stages = {name.partition(" ")[2]: values for name, values in times.items() if name.startswith("stage ")}
    p50 = {name: float(np.median(values)) for name, values in times.items() if values}
    engine_us = sum(p50[name] for name in graphs)
    floor_us = (multiply_adds["watch/T1"] + multiply_adds[f"swipe/{bucket}"]) / float(np.median(rates)) * 1e6
    return {
        "L": engine.capacity,
        "N": n,
        "bucket": bucket,
        "variants": {
            graph: subject.installed.manifest.graph(*graph.split("/")).ship for graph in (*graphs, f"page/{bucket}")
        },
        **{f"{name}_us": percentiles(times[name]) for name in SWIPES},
        "page_us": percentiles(times["page"]),
        "stages_us": {name: float(np.median(values)) for name, values in stages.items()},
        "engine_us": {name: percentiles(times[name]) for name in graphs},
        "peers_us": {name: percentiles(times[name]) for name in (LITERT, *peers)},
        "multiply_adds": multiply_adds,
        "floor_us": floor_us,
        "swipe_p50_us": p50["swipe"],
        "page_p50_us": p50["page"],
        "engine_share": engine_us / p50["swipe"],
        "engine_over_floor": engine_us / floor_us,
        "over_litert": p50["swipe"] / p50[LITERT],
        "over_onnxruntime": p50["swipe"] / p50[ORT],
        "over_torch": p50["swipe"] / p50[EAGER],
        "state_over_plain": p50["swipe_state"] / p50["swipe"],
        "compared": len(ours),
        "kendall_tau": order.tau,
        "top1": order.top1,
    } | endurance


def _peers(subject: Subject, bucket: str) -> dict[str, Call]:
    """The whole net, inputs set and outputs read, in the runtimes that no phone has beside LiteRT."""
    import torch

    from convert.onnx_export import OnnxGraph

    key = f"whole/{bucket}"
    whole = subject.installed.manifest.graph(*key.split("/"))
    case = np.load(subject.installed.paths[subject.installed.manifest.golden.tensors[key]])
    feeds = {tensor.name: case[tensor.name] for tensor in whole.inputs}
    ort = OnnxGraph(subject.onnx[key])
    module = subject.source.graphs[key].module
    tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in feeds.items()}

    def eager() -> Any:
        with torch.inference_mode():
            return module(**tensors)

    return {ORT: lambda: ort.run(feeds), EAGER: eager}


def _cold_start(subject: Subject, folder: Path, n: int) -> dict[str, Any]:
    """From a process of its own: the model in the cache, the page in memory (benchmarks/edge_cold.py)."""
    page = folder / "page.bin"
    page.write_bytes(subject.page(n, 0))
    found: dict[str, list[float]] = defaultdict(list)
    for _ in range(5):
        command = [sys.executable, "-m", "benchmarks.edge_cold", str(folder / "cache"), str(page)]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120)
        if done.returncode:
            raise KirError("the cold start failed", got=done.stderr[-500:])
        for name, value in json.loads(done.stdout.splitlines()[-1]).items():
            found[name].append(value)
    return {name: float(np.median(values)) for name, values in found.items()}


def _soak(phone: SwiperProcess, swipes: int) -> dict[str, Any]:
    """Resident memory and p99 in the first and the last tenth of a long session; the collector as Python has it."""
    found = phone.ask(soak=swipes)
    first, last = (percentiles(found.pop(name)) for name in ("first_us", "last_us"))
    memory = found["resident_mib"]
    return {
        "soak": found | {"first_tenth_us": first, "last_tenth_us": last},
        "soak_growth_mib": memory[-1] - memory[0],
        "soak_p99_ratio": last["p99"] / first["p99"],
    }


def _growth(cases: Sequence[dict[str, Any]]) -> dict[str, float]:
    """From one N to the next, by how much a swipe grows over by how much N does: the worst step; none for one N."""
    steps = [b["swipe_p50_us"] / a["swipe_p50_us"] / (b["N"] / a["N"]) for a, b in pairwise(cases) if b["N"] > a["N"]]
    return {"over_linear": max(steps)} if steps else {}

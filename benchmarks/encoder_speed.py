"""What one user's encoding costs: torch and onnxruntime side by side, beside the least that arithmetic allows.

    kir bench encoder                              # width 256, 6 layers; about five minutes
    kir bench encoder --rounds 3 --batches 1 --no-compile      # one minute
    kir bench encoder --checkpoint runs/kuaiformer --out docs/results/encoder.json

One thread; correctness first. The runtimes take turns, and the floor is measured anew in every round, so that a noisy
machine falls on all alike: read the ratios. CPU time compares engines, wall percentiles are what a caller would see.
onnxruntime is asked as the server asks it, at most 4 users a call; torch is given the whole batch.
"""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.flops import Floor, products_of, total_flops
from benchmarks.stats import machine, percentiles
from contract.errors import InputError, VerificationFailed

if TYPE_CHECKING:
    from convert.onnx_export import OnnxGraph
    from training.kuaiformer import KuaiFormer

# d 256, 6 layers, 4 heads, plan 2 + 5 + 48, 4 queries, and a SwiGLU of 688, which has as many weights as a plain feed
# forward layer of 1024: the size on which the project's first runtime figures were taken (915 MFLOP a user).
DEFAULT = {"width": 256, "layers": 6, "heads": 4, "hidden": 688, "interests": 4, "video_width": 64}
DEFAULT |= {"attribute_width": 16}
FLOAT_MAX_ABS, INT8_MIN_COSINE = 1e-4, 0.99
EAGER, COMPILED, ORT, ORT_INT8 = "torch eager", "torch.compile", "onnxruntime", "onnxruntime int8"
TARGET = 1.3  # onnxruntime float32 over the floor, at most

Floats = NDArray[np.float32]
Feeds = dict[str, Floats]


@dataclass
class Runtime:
    """run: feeds -> interests [B, K, D]. wall_ms, cpu_ms: of each timed call; over_floor: CPU over floor, by round."""

    name: str
    run: Callable[[Feeds], Floats]
    wall_ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    over_floor: list[float] = field(default_factory=list)

    def timed(self, feeds: Feeds, calls: int, floor_s: float) -> None:
        """One warm call, then `calls` that count."""
        self.run(feeds)
        spent = []
        for _ in range(calls):
            wall, cpu = time.perf_counter(), time.thread_time()
            self.run(feeds)
            spent.append(time.thread_time() - cpu)
            self.wall_ms.append(1e3 * (time.perf_counter() - wall))
        self.cpu_ms += [1e3 * s for s in spent]
        self.over_floor.append(float(np.median(spent)) / floor_s)


def measure_encoder(
    checkpoint: Path | None = None,
    *,
    batches: Sequence[int] = (1, 8, 32),
    rounds: int = 15,
    compiled: bool = True,
    size: dict[str, Any] | None = None,
    seed: int = 0,
    command: str = "",
) -> tuple[dict[str, Any], str]:
    """Returns the result and its table. size: KuaiFormerConfig fields in place of DEFAULT's; command: what was typed.

    Raises VerificationFailed when a runtime's answers differ from eager torch, InputError for rounds or batches < 1.
    """
    if rounds < 1 or any(batch < 1 for batch in batches) or not batches:
        raise InputError("--rounds and --batches start at 1", got=(rounds, tuple(batches)))
    from convert.encoder_graph import encoder_graph
    from convert.encoder_int8 import quantise
    from convert.onnx_export import OnnxGraph

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    net = _net(checkpoint, size).requires_grad_(False)
    width = net.spec.width("history_rows")
    graph = encoder_graph(net.encoder, width)
    result: dict[str, Any] = {
        "benchmark": "encoder",
        "command": command,
        "kind": "host",
        "machine": machine(),
        "weights": "random" if checkpoint is None else "trained",
        "config": net.config.to_dict(),
        "parameters": sum(p.numel() for p in net.encoder.parameters()),
        "mflop_per_user": {
            "as trained": _eager_flops(net, width) / 1e6,
            "as served": total_flops(products_of(graph, 1)) / 1e6,
        },
        "rounds": rounds,
        "target_over_floor": TARGET,
        "batches": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "encoder.onnx"
        path.write_bytes(graph.SerializeToString())
        int8 = OnnxGraph(quantise(path, Path(folder) / "int8.onnx"))
        runtimes = _runtimes(net, OnnxGraph(path), int8, compiled)
        for batch in batches:
            result["batches"][str(batch)] = _measure(net, graph, runtimes, batch, rounds, seed)
    return result, _table(result)


def _net(checkpoint: Path | None, size: dict[str, Any] | None) -> KuaiFormer:
    from training.checkpoint import load_checkpoint
    from training.kuaiformer import KuaiFormer, KuaiFormerConfig
    from training.kuaiformer_train import load_kuaiformer

    if checkpoint is not None:
        return load_kuaiformer(load_checkpoint(checkpoint, kind="kuaiformer"))
    config = KuaiFormerConfig(**{"preset": "bench", **DEFAULT, **(size or {})})
    return KuaiFormer(config, config.spec()).eval()


def _runtimes(net: KuaiFormer, ort: OnnxGraph, int8: OnnxGraph, compiled: bool) -> dict[str, Callable[[Feeds], Floats]]:
    def by_torch(module: Any) -> Callable[[Feeds], Floats]:
        def run(feeds: Feeds) -> Floats:
            with torch.inference_mode():
                found: Floats = module(*(torch.from_numpy(value) for value in feeds.values())).numpy()
            return found

        return run

    found = {EAGER: by_torch(net.encoder)}
    if compiled:
        with warnings.catch_warnings():  # torch imports parts of itself that it calls deprecated
            warnings.simplefilter("ignore", DeprecationWarning)
            found[COMPILED] = by_torch(torch.compile(net.encoder, dynamic=False))
    return found | {ORT: _in_calls(ort), ORT_INT8: _in_calls(int8)}


def _in_calls(graph: OnnxGraph) -> Callable[[Feeds], Floats]:
    """As `Retrieval.encode_many` asks: AT_ONCE users a call."""
    from server_stub.retrieval import AT_ONCE

    def run(feeds: Feeds) -> Floats:
        starts = range(0, len(feeds["history_mask"]), AT_ONCE)
        parts = [{name: value[start : start + AT_ONCE] for name, value in feeds.items()} for start in starts]
        return np.concatenate([graph.run(part)["interests"] for part in parts])

    return run


def _measure(
    net: KuaiFormer, graph: Any, runs: dict[str, Callable[[Feeds], Floats]], batch: int, rounds: int, seed: int
) -> dict[str, Any]:
    """One batch size: answers compared, then `rounds` turns of floor and runtimes."""
    feeds = _feeds(net, batch, np.random.default_rng(seed), full=False)
    agreement = _checked(runs, feeds)
    feeds = _feeds(net, batch, np.random.default_rng(seed), full=True)
    products = products_of(graph, batch)
    floor, bfloat16 = Floor(products), Floor(products, bfloat16=True)
    runtimes = [Runtime(name, run) for name, run in runs.items()]
    floors, calls = [], max(1, 6 // batch)
    for number in range(rounds + 1):
        before = floor.seconds()
        order = runtimes if number % 2 else runtimes[::-1]
        for runtime in order:
            if number:  # the first round warms caches and clocks
                runtime.timed(feeds, calls, before)
            else:
                runtime.run(feeds)
        if number:
            floors.append(before)
    told = {r.name: _told(r, batch) for r in runtimes}
    for name, row in told.items():
        row["agreement"] = agreement[name]
        row["over_eager"] = row["cpu_ms_per_user"]["p50"] / told[EAGER]["cpu_ms_per_user"]["p50"]
    middle = float(np.median(floors))
    return {
        "floor_ms_per_user": 1e3 * middle / batch,
        "floor_bfloat16_ms_per_user": 1e3 * bfloat16.seconds() / batch,
        "gemm_gflops": total_flops(products) / middle / 1e9,
        "load_average": os.getloadavg()[0],
        "runtimes": told,
    }


def _told(runtime: Runtime, batch: int) -> dict[str, Any]:
    cpu = percentiles([ms / batch for ms in runtime.cpu_ms])
    ratio = np.percentile(runtime.over_floor, [25, 50, 75])
    return {
        "cpu_ms_per_user": cpu,
        "wall_ms_per_call": percentiles(runtime.wall_ms),
        "users_per_cpu_s": 1e3 / cpu["p50"],
        "over_floor": {"p25": float(ratio[0]), "p50": float(ratio[1]), "p75": float(ratio[2])},
    }


def _checked(runs: dict[str, Callable[[Feeds], Floats]], feeds: Feeds) -> dict[str, dict[str, float]]:
    """Every runtime beside eager torch, on full, short and empty histories. Raises VerificationFailed."""
    want, found = runs[EAGER](feeds), {}
    for name, run in runs.items():
        got = run(feeds)
        apart = float(np.abs(got - want).max()) if got.shape == want.shape else float("inf")
        norms = np.linalg.norm(got, axis=-1) * np.linalg.norm(want, axis=-1)
        cosine = float(((got * want).sum(axis=-1) / np.maximum(norms, 1e-12)).mean())
        good = cosine >= INT8_MIN_COSINE if name == ORT_INT8 else apart <= FLOAT_MAX_ABS
        if not good:
            raise VerificationFailed(
                f"{name} gives other answers than {EAGER}", got=f"max abs {apart:.3g}, {cosine:.4f}"
            )
        found[name] = {"max_abs": apart, "mean_cosine": cosine}
    return found


def _feeds(net: KuaiFormer, batch: int, rng: np.random.Generator, *, full: bool) -> Feeds:
    length = net.config.length
    rows = rng.normal(0.0, 0.5, (batch, length, net.spec.width("history_rows"))).astype(np.float32)
    real = np.full(batch, length) if full else np.resize([length, 0, length // 3, 1], batch)
    mask = (np.arange(length)[None] >= length - real[:, None]).astype(np.float32)
    return {"history_rows": rows, "history_mask": mask}


def _eager_flops(net: KuaiFormer, width: int) -> int:
    """Of one user, by torch's own counter."""
    from torch.utils.flop_counter import FlopCounterMode

    length = net.config.length
    with FlopCounterMode(display=False) as counter:
        net.encoder(torch.zeros(1, length, width), torch.ones(1, length))
    return int(counter.get_total_flops())


def _table(result: dict[str, Any]) -> str:
    flops, config = result["mflop_per_user"], result["config"]
    lines = [
        f"KuaiFormer's encoder, {result['weights']} weights: width {config['width']}, {config['layers']} layers, "
        f"hidden {config['hidden']}, {result['parameters'] / 1e6:.1f} M parameters; "
        f"{flops['as trained']:.0f} MFLOP a user as trained, {flops['as served']:.0f} as served",
        f"{result['machine']['cpu']}, one thread (kind: host), {result['rounds']} rounds; cpu = CPU time of the thread",
    ]
    for batch, row in result["batches"].items():
        lines.append("")
        lines.append(
            f"batch {batch}: floor {row['floor_ms_per_user']:.2f} ms a user as served "
            f"({row['gemm_gflops']:.0f} GFLOP/s; bfloat16 {row['floor_bfloat16_ms_per_user']:.2f} ms)"
        )
        lines.append(
            f"{'runtime':<18} {'cpu ms/user':>11} {'users/cpu s':>11} {'wall p50':>9} {'p90':>8} {'p99':>8} "
            f"{'x floor':>8} {'(quartiles)':>12} {'x eager':>8}"
        )
        for name, r in row["runtimes"].items():
            wall, over = r["wall_ms_per_call"], r["over_floor"]
            quartiles = f"{over['p25']:.2f}-{over['p75']:.2f}"
            lines.append(
                f"{name:<18} {r['cpu_ms_per_user']['p50']:>11.2f} {r['users_per_cpu_s']:>11.0f} {wall['p50']:>9.2f} "
                f"{wall['p90']:>8.2f} {wall['p99']:>8.2f} {over['p50']:>8.2f} {quartiles:>12} {r['over_eager']:>8.2f}"
            )
    return "\n".join(lines)

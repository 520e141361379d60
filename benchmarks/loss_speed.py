"""What a step of the softmax loss costs, forward and backward: plain, torch's fused one, in chunks, and the project's.

    kir bench loss                                     # 4,096 targets, 3,416 candidates, 1 and 4 queries; two minutes
    kir bench loss --targets 1024 --candidates 57289 --queries 1 --rounds 5
    kir bench loss --targets 512 --candidates 500 --rounds 2           # seconds: shows that it runs

Correctness first: each way must give plain cross entropy's loss and gradients before it is timed. The ways take turns,
and the machine's rate of square products is measured anew in every round, so that a noisy machine falls on all alike:
read the ratios, medians over rounds. CPU time compares the ways; wall time is what a training waits for.

Shapes: T targets, K queries, C candidates, D width.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.stats import machine
from contract.errors import InputError, VerificationFailed

PLAIN, TORCH, TORCH_CHUNKED = "cross entropy", "torch linear_cross_entropy", "torch linear_cross_entropy, chunked"
CHUNKED, OURS, OURS_BF16 = "cross entropy, 512 rows", "candidate_softmax", "candidate_softmax bfloat16"
TOLERANCE = {OURS_BF16: 2e-2}  # of loss and gradients against plain cross entropy, relative; others 1e-4
SQUARE = 1024  # side of the products that stand for the machine's rate
SCALE = 20.0  # of normalised vectors, as in training


@dataclass
class Way:
    """step: forward and backward, gives loss, users' and candidates' gradient."""

    name: str
    step: Callable[[], tuple[Any, Any, Any]]
    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    def timed(self) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        self.step()
        self.cpu_s.append(time.process_time() - cpu)
        self.wall_s.append(time.perf_counter() - wall)


def measure_loss(
    *,
    targets: int = 4096,
    candidates: int = 3416,
    width: int = 64,
    queries: Sequence[int] = (1, 4),
    rounds: int = 10,
    seed: int = 0,
) -> tuple[dict[str, Any], str]:
    """Returns the result and its table. Raises VerificationFailed when a way's answer is not cross entropy's."""
    if min(targets, candidates, width, rounds, *queries) < 1:
        raise InputError("sizes and rounds start at 1", got=(targets, candidates, width, rounds, *queries))
    import torch

    result: dict[str, Any] = {
        "benchmark": "loss",
        "kind": "host",
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "targets": targets,
        "candidates": candidates,
        "width": width,
        "rounds": rounds,
        "seed": seed,
        "queries": {},
    }
    for K in queries:
        ways = _ways(targets, candidates, width, K, seed)
        errors = _check(ways)
        peaks: dict[str, list[float]] = {"float32": [], "bfloat16": []}
        for _ in range(rounds):
            for precision, rates in peaks.items():
                rates.append(_square_gflop_per_s(precision))
            for way in ways:
                way.timed()
        # Scores, and two products of the same size for the gradients.
        gflop = 3 * 2e-9 * targets * K * candidates * width
        result["queries"][str(K)] = _figures(ways, peaks, errors, gflop, targets)
    return result, _table(result)


def _ways(T: int, C: int, D: int, K: int, seed: int) -> list[Way]:
    import torch
    from torch.nn import functional

    from training.losses import candidate_softmax

    generator = torch.Generator().manual_seed(seed)
    users_TKD = functional.normalize(torch.randn(T, K, D, generator=generator), dim=2).requires_grad_()
    candidates_CD = functional.normalize(torch.randn(C, D, generator=generator), dim=1).requires_grad_()
    target_T = torch.randint(C, (T,), generator=generator)

    def rows(first: int, last: int) -> Any:
        scores_TKC = torch.einsum("tkd,cd->tkc", users_TKD[first:last] * SCALE, candidates_CD)
        scores_TC = scores_TKC[:, 0] if K == 1 else scores_TKC.amax(dim=1)
        return functional.cross_entropy(scores_TC, target_T[first:last], reduction="sum") / T

    def chunked() -> Any:
        """Forward and backward of one chunk after the other, so that one chunk's scores live at a time."""
        total = torch.zeros(())
        for first in range(0, T, 512):
            loss = rows(first, first + 512)
            loss.backward()
            total += loss.detach()
        return total

    def ours(precision: str) -> Any:
        return candidate_softmax(users_TKD, candidates_CD, target_T, scale=SCALE, precision=precision)

    losses: dict[str, Callable[[], Any]] = {PLAIN: lambda: rows(0, T), CHUNKED: chunked}
    fused = getattr(functional, "linear_cross_entropy", None)  # torch 2.13 has it, 2.11 has not
    if fused is not None and K == 1:
        options = torch.nn.LinearCrossEntropyOptions()
        losses[TORCH] = lambda: fused(users_TKD[:, 0] * SCALE, candidates_CD, target_T)
        losses[TORCH_CHUNKED] = lambda: fused(users_TKD[:, 0] * SCALE, candidates_CD, target_T, options=options)
    losses[OURS] = lambda: ours("float32")
    losses[OURS_BF16] = lambda: ours("bfloat16")

    def step(name: str) -> tuple[Any, Any, Any]:
        users_TKD.grad = candidates_CD.grad = None
        loss = losses[name]()
        if loss.requires_grad:
            loss.backward()
        return loss.detach(), users_TKD.grad, candidates_CD.grad

    return [Way(name, lambda name=name: step(name)) for name in losses]  # type: ignore[misc]


def _square_gflop_per_s(precision: str) -> float:
    """Best of a few square products, per CPU second."""
    import torch

    a = torch.randn(SQUARE, SQUARE).to(getattr(torch, precision))
    out = torch.empty_like(a)
    seconds = []
    for _ in range(4):
        cpu = time.process_time()
        torch.mm(a, a, out=out)
        seconds.append(time.process_time() - cpu)
    return 2e-9 * SQUARE**3 / min(seconds)


def _check(ways: Sequence[Way]) -> dict[str, float]:
    """Largest relative error of loss and gradients (by norm) of each way against the first."""
    expected, *_ = answers = [way.step() for way in ways]
    errors = {}
    for way, answer in zip(ways, answers, strict=True):
        pairs = zip(answer, expected, strict=True)
        errors[way.name] = max(float((one - other).norm() / other.norm()) for one, other in pairs)
        if not errors[way.name] <= TOLERANCE.get(way.name, 1e-4):
            raise VerificationFailed(
                "loss or gradients differ from cross entropy's", where=way.name, got=errors[way.name]
            )
    return errors


def _figures(
    ways: Sequence[Way], peaks: dict[str, list[float]], errors: dict[str, float], gflop: float, targets: int
) -> dict[str, Any]:
    rates = {name: np.array(rate) for name, rate in peaks.items()}
    plain = np.array(ways[0].cpu_s)
    figures = {}
    for way in ways:
        cpu, wall = np.array(way.cpu_s), np.array(way.wall_s)
        rate = rates["bfloat16" if way.name == OURS_BF16 else "float32"]
        figures[way.name] = {
            "wall_ms": 1e3 * float(np.median(wall)),
            "least_wall_ms": 1e3 * float(wall.min()),
            "cpu_ms": 1e3 * float(np.median(cpu)),
            "least_cpu_ms": 1e3 * float(cpu.min()),
            "times_plain": float(np.median(plain / cpu)),
            "targets_per_s": targets / float(np.median(wall)),
            "share_of_peak": float(np.median(gflop / cpu / rate)),
            "error": errors[way.name],
        }
    return {"gflop": gflop, "peak_gflop_per_s": {k: float(np.median(v)) for k, v in rates.items()}, "ways": figures}


def _table(result: dict[str, Any]) -> str:
    lines = [
        f"softmax over {result['candidates']:,} candidates, {result['targets']:,} targets, width {result['width']}: "
        f"forward and backward on {result['machine']['cpu']}, threads: {result['threads']} (kind: host)"
    ]
    for K, part in result["queries"].items():
        peaks = ", ".join(f"{rate:.0f} GFLOP/s {name}" for name, rate in part["peak_gflop_per_s"].items())
        lines.append(f"\nqueries: {K}; {part['gflop']:.1f} GFLOP of products; square products run at {peaks}")
        lines.append(
            f"{'way':<38} {'wall ms':>8} {'CPU ms':>8} {'least':>8} {'x plain':>8} {'targets/s':>10} {'of peak':>8} "
            f"{'error':>8}"
        )
        for name, row in part["ways"].items():
            error = "exact" if row["error"] == 0 else f"1e{math.log10(row['error']):.1f}"
            lines.append(
                f"{name:<38} {row['wall_ms']:>8.1f} {row['cpu_ms']:>8.1f} {row['least_cpu_ms']:>8.1f} "
                f"{row['times_plain']:>8.2f} {row['targets_per_s']:>10,.0f} {row['share_of_peak']:>8.0%} {error:>8}"
            )
    return "\n".join(lines)

"""What a training step costs on this machine, in float32 and bfloat16, beside its matrix products' arithmetic; and what
saves and table optimisers cost.

    kir bench training                                    # preset small, simulated data; about two minutes
    kir bench training --preset tiny --rounds 2 --steps 2 --rows 20000       # half a minute

The precisions take turns on the same batches, the rate of matrix products is measured in every round, so that a noisy
machine falls on all alike: read the ratios. CPU time of the process; torch's threads as they are (OMP_NUM_THREADS).
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.stats import machine, percentiles
from contract.errors import InputError

if TYPE_CHECKING:
    from training.recipe import Recipe
    from training.retrieval_split import RetrievalSplit
    from training.trainer import Trainer

SIM = "sim:users=400,days=4"
PRECISIONS = ("float32", "bfloat16")
# The part of a step that stays in float32 outruns emulated products, so a share of their rate may pass 100 %.
EMULATED = "this machine has no bfloat16 in hardware: its products are emulated and no rate to take a share of"
GEMM = 1024  # side of the square products that stand for the machine's rate
TABLE_WIDTH, TABLE_READS = 64, 40_000


def measure_training(
    recipe: Recipe, data: str = SIM, *, rounds: int = 5, steps: int = 4, rows: int = 1_000_000, seed: int = 0,
    command: str = "",
) -> tuple[dict[str, Any], str]:  # fmt: skip
    """Returns the result and its table. steps: of each precision in a round; rows: of the table for the optimisers;
    command: what was typed.

    Raises InputError for rounds, steps or rows below 1.
    """
    from training.devices import has_bfloat16
    from training.readers import open_data
    from training.retrieval_split import split_of

    if min(rounds, steps, rows) < 1:
        raise InputError("--rounds, --steps and --rows start at 1", got=(rounds, steps, rows))
    split = split_of(open_data(data), data.partition(":")[0])
    trainers, flops, targets = _trainers(split, recipe, steps)
    cpu_s: dict[str, list[float]] = {name: [] for name in PRECISIONS}
    gemm: dict[str, list[float]] = {name: [] for name in PRECISIONS}
    for number in range(rounds + 1):
        for name in PRECISIONS if number % 2 else PRECISIONS[::-1]:
            rate = _gemm_flops_per_s(getattr(torch, name))
            spent = _cpu_seconds(partial(trainers[name].run, trainers[name].step + steps))
            if number:  # the first round warms caches and clocks
                gemm[name].append(rate)
                cpu_s[name].append(spent / steps)
    in_hardware = has_bfloat16(torch.device("cpu"))
    whys = {"float32": "", "bfloat16": "" if in_hardware else EMULATED}
    result: dict[str, Any] = {
        "benchmark": "training",
        "command": command,
        "kind": "host",
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "bfloat16_in_hardware": in_hardware,
        "data": data,
        "recipe": recipe.to_dict(),
        "targets_per_step": targets,
        "gflop_per_step": flops / 1e9,
        "steps": {name: _told(cpu_s[name], gemm[name], flops, targets, whys[name]) for name in PRECISIONS},
        "bfloat16_over_float32": _ratio(cpu_s["bfloat16"], cpu_s["float32"]),
        "autosave": _autosave(trainers["float32"]),
        "table_optimizers_ms": _table_optimizers(rows, rounds, seed),
        "table_rows": rows,
    }
    return result, _table(result)


def _trainers(split: RetrievalSplit, recipe: Recipe, steps: int) -> tuple[dict[str, Trainer], float, float]:
    """A trainer for each precision over the same few batches, their matrix flops and targets, means of a step."""
    from training.kuaiformer_train import make_task
    from training.trainer import Trainer

    found = {}
    for name in PRECISIONS:
        # No end in sight: a trainer validates and shows its best weights where it ends.
        train = replace(
            recipe.train,
            precision=name,
            device="cpu",
            epochs=1_000_000,
            max_steps=None,
            max_seconds=None,
            patience=None,
        )
        task, data = make_task(split, replace(recipe, train=train))
        batches = list(itertools.islice(data.batches(0, 0), min(steps, data.steps_per_epoch)))
        found[name] = Trainer(task, partial(_same, batches), len(batches), train)
    with flop_counter() as counter:
        for batch in batches:
            task.loss(batch)[0].float().backward()
    targets = sum(len(batch.item) for batch in batches) / len(batches)
    return found, counter.get_total_flops() / len(batches), targets


def flop_counter() -> FlopCounterMode:
    """torch's counter of matrix products, taught the one that adds in place."""

    def addmm_(c: Any, a: Any, b: Any, **_: Any) -> int:
        return int(2 * a[0] * a[1] * b[1])

    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: addmm_})


def _same(batches: list[Any], epoch: int, seed: int) -> list[Any]:
    return batches


def _cpu_seconds(call: Callable[[], Any]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def _gemm_flops_per_s(dtype: torch.dtype) -> float:
    """Best of a few square products, per CPU second."""
    a, b = (torch.randn(GEMM, GEMM).to(dtype) for _ in range(2))
    out = torch.empty(GEMM, GEMM, dtype=dtype)
    seconds = min(_cpu_seconds(lambda: torch.mm(a, b, out=out)) for _ in range(4))
    return float(2 * GEMM**3 / seconds)


def _told(cpu_s: list[float], gemm: list[float], flops: float, targets: float, no_share: str = "") -> dict[str, Any]:
    """no_share: why there is none of the square products' rate; "" where there is."""
    middle = float(np.median(cpu_s))
    found: dict[str, Any] = {
        "cpu_ms": percentiles([1e3 * s for s in cpu_s]),
        "targets_per_cpu_s": targets / middle,
        "gflops": flops / middle / 1e9,
        "gemm_gflops": float(np.median(gemm)) / 1e9,
        "share_of_gemm": None if no_share else flops / middle / float(np.median(gemm)),
    }
    return {**found, "no_share": no_share} if no_share else found


def _ratio(ones: list[float], others: list[float]) -> dict[str, float]:
    """Of neighbours in time: quartiles."""
    low, middle, high = np.percentile(np.array(ones) / np.array(others), [25, 50, 75])
    return {"p25": float(low), "p50": float(middle), "p75": float(high)}


def _autosave(trainer: Trainer) -> dict[str, float]:
    from training.autosave import Autosave

    with tempfile.TemporaryDirectory() as folder:
        saver = Autosave(Path(folder) / "save")
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            saver.save(trainer.state())
            seconds.append(time.perf_counter() - start)
        size = sum(path.stat().st_size for path in saver.directory.iterdir())
    return {"megabytes": size / 1e6, "wall_ms": 1e3 * float(np.median(seconds))}


def _table_optimizers(rows: int, rounds: int, seed: int) -> dict[str, float]:
    """CPU milliseconds of an update by a sparse gradient: TABLE_READS reads, the popular rows more often."""
    from training.table_optimizers import TABLE_OPTIMIZERS, make_optimizers

    weights = {kind: nn.Parameter(torch.randn(rows, TABLE_WIDTH) * 0.05) for kind in TABLE_OPTIMIZERS}
    optimizers = {kind: make_optimizers([], [weight], 0.05, kind)[0] for kind, weight in weights.items()}
    spent: dict[str, list[float]] = {kind: [] for kind in TABLE_OPTIMIZERS}
    for _, gradient in zip(range(rounds + 1), _gradients(rows, seed)):  # noqa: B905  (the gradients have no end)
        for kind, weight in weights.items():
            weight.grad = gradient
            spent[kind].append(_cpu_seconds(optimizers[kind].step))
    return {kind: 1e3 * float(np.median(seconds[1:])) for kind, seconds in spent.items()}


def _gradients(rows: int, seed: int) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        read = (torch.rand(TABLE_READS, generator=generator) ** 3 * rows).long().clamp(max=rows - 1)
        values = torch.randn(TABLE_READS, TABLE_WIDTH, generator=generator)
        yield torch.sparse_coo_tensor(read[None], values, (rows, TABLE_WIDTH)).coalesce()


def _table(result: dict[str, Any]) -> str:
    threads, batch = result["threads"], result["targets_per_step"]
    lines = [
        f"a step of {batch:.0f} targets, preset {result['recipe']['preset']}, {result['gflop_per_step']:.2f} GFLOP of "
        f"matrix products, {threads} thread{'s' if threads > 1 else ''}",
        f"{'precision':<12}{'CPU ms':>9}{'targets/CPU s':>15}{'GFLOP/s':>9}{'of square GEMM':>16}",
    ]
    for name, row in result["steps"].items():
        lines.append(
            f"{name:<12}{row['cpu_ms']['p50']:>9.1f}{row['targets_per_cpu_s']:>15.0f}{row['gflops']:>9.1f}"
            + ("–".rjust(15) if row["share_of_gemm"] is None else f"{row['share_of_gemm']:>15.0%}")
        )
    ratio, save = result["bfloat16_over_float32"], result["autosave"]
    lines += [
        f"bfloat16 / float32: {ratio['p50']:.2f} [{ratio['p25']:.2f}, {ratio['p75']:.2f}] of the time"
        + ("" if result["bfloat16_in_hardware"] else f"; {EMULATED}"),
        f"a save: {save['megabytes']:.1f} MB in {save['wall_ms']:.0f} ms of wall time",
        f"an update of {result['table_rows']} x {TABLE_WIDTH} rows by {TABLE_READS} reads, CPU ms: "
        + ", ".join(f"{kind} {ms:.1f}" for kind, ms in result["table_optimizers_ms"].items()),
    ]
    return "\n".join(lines)

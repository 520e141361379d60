"""Percentiles, bootstrap intervals, and the facts of the machine that belong beside every figure."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.stats import Interval, cluster_bootstrap_mean, percentiles

__all__ = ["Interval", "bootstrap_mean", "cluster_bootstrap_mean", "machine", "percentiles", "t_interval"]

PACKAGES = ("numpy", "ai-edge-litert", "onnxruntime", "torch", "tensorflow", "onnx2tf", "grpcio", "faiss-cpu")


def bootstrap_mean(values: Sequence[float] | NDArray[Any], seed: int = 0, draws: int = 2000) -> Interval:
    """Percentile bootstrap of a mean; for a paired comparison, hand in the per-unit differences."""
    data = np.asarray(values, np.float64)
    if data.size == 0:
        return Interval(float("nan"), float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    means = np.array([data[rng.integers(0, data.size, data.size)].mean() for _ in range(draws)])
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(data.mean()), float(low), float(high))


# 97.5 % quantiles of Student's t by degrees of freedom; beyond the table the normal one.
_T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def t_interval(values: Sequence[float] | NDArray[Any]) -> Interval:
    """Student's interval of a mean of few units (a percentile bootstrap of five covers 83 %). NaN below three."""
    data = np.asarray(values, np.float64)
    if data.size < 3:
        return Interval(float(data.mean()) if data.size else float("nan"), float("nan"), float("nan"))
    quantile = _T975[data.size - 2] if data.size - 2 < len(_T975) else 1.96
    half = quantile * float(data.std(ddof=1)) / np.sqrt(data.size)
    return Interval(float(data.mean()), float(data.mean() - half), float(data.mean() + half))


def machine() -> dict[str, Any]:
    """What a reader needs to judge a figure: CPU, cores, memory, Python, package versions, commit."""
    from convert.provenance import commit

    return {
        "cpu": _cpu_model(),
        "cores": _cores(),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "commit": commit(),
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_gib() -> float:
    try:
        kib = int(Path("/proc/meminfo").read_text().split("MemTotal:")[1].split()[0])
        return round(kib / 2**20, 1)
    except (OSError, IndexError, ValueError):
        return 0.0

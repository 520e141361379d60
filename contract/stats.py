"""What stands beside a figure in every room: a mean with its bootstrap interval, percentiles of samples. numpy alone.

Shapes: n values, U clusters (users), M figures of each value, S draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

DRAWS = 2000
_COUNTS_AT_ONCE = 1 << 22  # drawn clusters held in memory at a time, 64 MiB with their counts


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0

    def to_json(self) -> dict[str, float]:
        return {"mean": self.mean, "low": self.low, "high": self.high}


def cluster_bootstrap(
    values_nM: NDArray[Any], clusters: NDArray[Any], seed: int = 0, draws: int = DRAWS
) -> list[Interval]:
    """Percentile bootstrap of M means over the same n values, whole clusters drawn (all queries of a user at once).

    values_nM: [n, M]; clusters: [n], equal = drawn together. Every figure sees the same draws, so intervals of one
    call belong together; for a paired comparison hand in differences. Cost is S·U whatever the size of the clusters.
    Means without any value are NaN; draws = 0 gives NaN bounds.
    """
    values_nM = np.asarray(values_nM, np.float64)
    if not len(values_nM):
        return [Interval(float("nan"), float("nan"), float("nan"))] * values_nM.shape[1]
    index = np.unique(clusters, return_inverse=True)[1]
    # The last column counts, so that one product gives sums and sizes of a draw.
    ones = np.ones((len(values_nM), 1))
    columns = np.hstack([values_nM, ones]).T
    sums_UM: NDArray[np.float64] = np.stack([np.bincount(index, weights=column) for column in columns], axis=1)
    means_SM = _drawn_means(sums_UM, np.random.default_rng(seed), draws)
    centre = sums_UM[:, :-1].sum(axis=0) / sums_UM[:, -1].sum()
    if not draws:
        return [Interval(float(mean), float("nan"), float("nan")) for mean in centre]
    low, high = np.percentile(means_SM, [2.5, 97.5], axis=0)
    return [Interval(*map(float, ends)) for ends in zip(centre, low, high, strict=True)]


def _drawn_means(sums_UM: NDArray[np.float64], random: np.random.Generator, draws: int) -> NDArray[np.float64]:
    """Means of each draw, [S, M - 1]: how often each cluster was drawn, times the clusters' sums."""
    n = len(sums_UM)
    step = max(1, _COUNTS_AT_ONCE // n)
    found = [np.zeros((0, sums_UM.shape[1]))]
    for first in range(0, draws, step):
        rows = min(step, draws - first)
        drawn = random.integers(0, n, (rows, n)) + np.arange(rows)[:, None] * n
        counts_SU = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)
        found.append(counts_SU @ sums_UM)
    totals_SM = np.concatenate(found)
    means: NDArray[np.float64] = totals_SM[:, :-1] / totals_SM[:, -1:]
    return means


def cluster_bootstrap_mean(values: NDArray[Any], clusters: NDArray[Any], seed: int = 0, draws: int = DRAWS) -> Interval:
    """`cluster_bootstrap` of one figure."""
    return cluster_bootstrap(np.asarray(values, np.float64)[:, None], clusters, seed, draws)[0]


def percentiles(values: Sequence[float] | NDArray[Any]) -> dict[str, float]:
    """p50, p90, p95, p99, max, mean and count, in the unit of the values."""
    data = np.asarray(values, np.float64)
    if data.size == 0:
        return {"count": 0}
    p50, p90, p95, p99 = np.percentile(data, [50, 90, 95, 99])
    return {
        "count": int(data.size),
        "mean": float(data.mean()),
        "p50": float(p50),
        "p90": float(p90),
        "p95": float(p95),
        "p99": float(p99),
        "max": float(data.max()),
    }

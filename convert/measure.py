"""How far two outputs lie apart, and how far two rankings. Legend: n candidates, T tasks, S slates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
TOP = 6  # what a phone preloads at most


@dataclass(frozen=True)
class Distance:
    """max and mean absolute difference over all outputs, and the cosine of the flattened vectors."""

    max_abs: float
    mean_abs: float
    cosine: float


@dataclass(frozen=True)
class Ranking:
    """Means over slates: Kendall's tau of the fused value, share with the same first, overlap of the first six."""

    tau: float
    top1: float
    top6: float


def distance(want: Sequence[Floats], got: Sequence[Floats]) -> Distance:
    """Infinite when anything is not finite or a shape differs: such an output agrees with nothing."""
    if any(a.shape != b.shape for a, b in zip(want, got, strict=True)):
        return Distance(float("inf"), float("inf"), 0.0)
    a = np.concatenate([x.reshape(-1) for x in want]).astype(np.float64)
    b = np.concatenate([x.reshape(-1) for x in got]).astype(np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return Distance(float("inf"), float("inf"), 0.0)
    apart = np.abs(a - b)
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    cosine = float(a @ b) / norms if norms else float(not apart.any())
    return Distance(float(apart.max(initial=0.0)), float(apart.mean()) if len(apart) else 0.0, cosine)


def kendall_tau(want_n: Floats, got_n: Floats) -> float:
    """(concordant − discordant) / pairs; pairs that `want` ties count for neither. 1 for fewer than two candidates."""
    upper = np.triu_indices(len(want_n), 1)
    a = np.sign(want_n[:, None] - want_n[None, :])[upper]
    b = np.sign(got_n[:, None] - got_n[None, :])[upper]
    pairs = int((a != 0).sum())
    return float((a * b).sum() / pairs) if pairs else 1.0


def ranking(want: Sequence[Floats], got: Sequence[Floats]) -> Ranking:
    """want, got: fused values of each slate's real candidates, [n]. Ties go to the earlier candidate."""
    taus, firsts, overlaps = [], [], []
    for a, b in zip(want, got, strict=True):
        if not np.isfinite(b).all():
            return Ranking(-1.0, 0.0, 0.0)
        order_a, order_b = np.argsort(-a, kind="stable"), np.argsort(-b, kind="stable")
        top = min(TOP, len(a))
        taus.append(kendall_tau(a, b))
        firsts.append(float(order_a[0] == order_b[0]))
        overlaps.append(len(np.intersect1d(order_a[:top], order_b[:top])) / top)
    return Ranking(float(np.mean(taus)), float(np.mean(firsts)), float(np.mean(overlaps)))

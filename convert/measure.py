"""How far two outputs lie apart, and how far two rankings. Legend: n candidates of a slate, S slates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.stats import Interval

Floats = NDArray[np.float32]
TOP = 6  # what a phone preloads at most
SNR_MAX = 200.0  # decibels; float32 itself ends at about 140


@dataclass(frozen=True)
class Distance:
    """max and mean absolute difference over all outputs, the cosine of the flattened vectors, and signal to noise in
    decibels (10 log10 Σ want² / Σ (want − got)²; SNR_MAX where nothing differs)."""

    max_abs: float
    mean_abs: float
    cosine: float
    snr_db: float


_NOTHING_ALIKE = Distance(float("inf"), float("inf"), 0.0, -SNR_MAX)


@dataclass(frozen=True)
class Ranking:
    """Means over slates: Kendall's tau of the fused value, share with the same first, overlap of the first six."""

    tau: float
    top1: float
    top6: float


def distance(want: Sequence[Floats], got: Sequence[Floats]) -> Distance:
    """Infinite when anything is not finite or a shape differs: such an output agrees with nothing."""
    if any(a.shape != b.shape for a, b in zip(want, got, strict=True)):
        return _NOTHING_ALIKE
    a = np.concatenate([x.reshape(-1) for x in want]).astype(np.float64)
    b = np.concatenate([x.reshape(-1) for x in got]).astype(np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return _NOTHING_ALIKE
    apart = np.abs(a - b)
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    cosine = float(a @ b) / norms if norms else float(not apart.any())
    signal, noise = float(a @ a), float(apart @ apart)
    snr_db = SNR_MAX if noise == 0.0 else -SNR_MAX if signal == 0.0 else 10.0 * float(np.log10(signal / noise))
    mean_abs = float(apart.mean()) if len(apart) else 0.0
    return Distance(float(apart.max(initial=0.0)), mean_abs, cosine, min(snr_db, SNR_MAX))


def kendall_tau(want_n: Floats, got_n: Floats) -> float:
    """(concordant − discordant) / pairs; pairs that `want` ties count for neither. 1 for fewer than two candidates."""
    upper = np.triu_indices(len(want_n), 1)
    a = np.sign(want_n[:, None] - want_n[None, :])[upper]
    b = np.sign(got_n[:, None] - got_n[None, :])[upper]
    pairs = int((a != 0).sum())
    return float((a * b).sum() / pairs) if pairs else 1.0


def ranking(want: Sequence[Floats], got: Sequence[Floats]) -> Ranking:
    """want, got: values of each slate's real candidates, [n]. Ties go to the earlier candidate. Without any slate of
    two candidates nothing is ranked, and nothing differs."""
    taus, firsts, overlaps = [], [], []
    for a, b in zip(want, got, strict=True):
        if not len(a):
            continue
        if not np.isfinite(b).all():
            return Ranking(-1.0, 0.0, 0.0)
        order_a, order_b = np.argsort(-a, kind="stable"), np.argsort(-b, kind="stable")
        top = min(TOP, len(a))
        taus.append(kendall_tau(a, b))
        firsts.append(float(order_a[0] == order_b[0]))
        overlaps.append(len(np.intersect1d(order_a[:top], order_b[:top])) / top)
    if not taus:
        return Ranking(1.0, 1.0, 1.0)
    return Ranking(float(np.mean(taus)), float(np.mean(firsts)), float(np.mean(overlaps)))


@dataclass(frozen=True)
class OutcomeGap:
    """What quantisation does to known outcomes: GAUC and nDCG@5 of a variant minus float's, 95 %, slates drawn whole.

    slates: with at least one positive and one negative.
    """

    gauc: Interval
    ndcg5: Interval
    slates: int

    def __str__(self) -> str:
        named = (("GAUC", self.gauc), ("nDCG@5", self.ndcg5))
        sides = (f"{name} {x.mean:+.4f} [{x.low:+.4f}, {x.high:+.4f}]" for name, x in named)
        return f"{', '.join(sides)} over {self.slates} slates"

    @staticmethod
    def from_json(data: Mapping[str, Any] | None) -> OutcomeGap | None:
        if data is None:
            return None
        return OutcomeGap(Interval(**data["gauc"]), Interval(**data["ndcg5"]), int(data["slates"]))


def outcome_gap(labels: Sequence[Floats], want: Sequence[Floats], got: Sequence[Floats]) -> OutcomeGap | None:
    """labels: 1, 0 or NaN = unknown, [n] of each slate. None where no slate has both, or a value is not finite."""
    from training.within_user import difference, per_user

    known = [~np.isnan(label) for label in labels]
    both = [i for i, label in enumerate(labels) if 0 < np.nansum(label) < known[i].sum()]
    if not both or not all(np.isfinite(got[i]).all() for i in both):
        return None
    slate = np.concatenate([np.full(int(known[i].sum()), i, np.uint64) for i in both])
    label = np.concatenate([labels[i][known[i]] for i in both])
    sides = [np.concatenate([one[i][known[i]] for i in both]).astype(np.float64) for one in (got, want)]
    apart = difference(*(per_user(slate, label, side) for side in sides))
    return OutcomeGap(apart["gauc"], apart["ndcg@5"], len(both))

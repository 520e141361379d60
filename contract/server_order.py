"""The server's order of a page: a fused value of pXTR, as data. One rule for the server and for offline baselines.

    value = Σ weight[head] · pXTR[head]  +  weight["watch_time"] · E[watch time, capped] / cap

The watch-time term keeps the floor honest: a reranker that maximises watch time must not win against a server that
maximised something else. It needs no head of its own: P(played ≥ 7 s) and P(played ≥ 18 s) are two points of the
survival curve of play time, and its integral up to the duration is the expected play time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.errors import InputError
from contract.vocabulary import PXTR_HEADS, WATCH_TIME_CAP_MS

Floats = NDArray[np.float32]

WATCH_TIME = "watch_time"
DEFAULT_FUSION = {WATCH_TIME: 1.0, "like": 0.05, "follow": 0.05, "comment": 0.03, "forward": 0.05, "hate": -0.5}

CLICK_S, LONG_VIEW_S = 7.0, 18.0  # what `click` and `long_view` mean: played at least so long, or to the end
_CLICK, _LONG_VIEW = PXTR_HEADS.index("click"), PXTR_HEADS.index("long_view")
_LEAST_P = 1e-4


def expected_watch_s(pxtr_nX: Floats, duration_ms: NDArray[Any]) -> Floats:
    """Expected seconds of play, at most WATCH_TIME_CAP_MS: float32 [n]. 0 where the duration or both heads are null.

    The survival curve is 1 at 0, P(click) at 7 s and P(long_view) at 18 s (or at the end of a shorter video), straight
    between them, and falls on at the last rate beyond. A missing one of the two heads is taken from the other.
    """
    end_n = np.minimum(np.maximum(duration_ms, 0), WATCH_TIME_CAP_MS).astype(np.float64) / 1000.0
    click_n, long_n = pxtr_nX[:, _CLICK].astype(np.float64), pxtr_nX[:, _LONG_VIEW].astype(np.float64)
    unknown_n = np.isnan(click_n) & np.isnan(long_n)
    click_n = np.where(np.isnan(click_n), long_n, click_n)
    long_n = np.where(np.isnan(long_n), click_n, long_n)
    click_n = np.clip(np.where(unknown_n, 0.5, click_n), _LEAST_P, 1.0)
    long_n = np.clip(np.where(unknown_n, 0.5, long_n), _LEAST_P, click_n)  # a survival curve never rises
    first_n, second_n = np.minimum(end_n, CLICK_S), np.minimum(end_n, LONG_VIEW_S)
    watched_n = (1 + click_n) / 2 * first_n + (click_n + long_n) / 2 * (second_n - first_n)
    rate_n = np.maximum(np.log(click_n / long_n) / (LONG_VIEW_S - CLICK_S), 1e-6)
    watched_n += long_n * -np.expm1(-rate_n * (end_n - second_n)) / rate_n
    return np.where(unknown_n, 0.0, watched_n).astype(np.float32)


def server_value(pxtr_nX: Floats, duration_ms: NDArray[Any], fusion: Mapping[str, float]) -> Floats:
    """Fused value per candidate: float32 [n]. Null pXTR count as 0. `fusion` as `checked_fusion` gives it."""
    weights_X = np.array([fusion.get(head, 0.0) for head in PXTR_HEADS], np.float32)
    value_n = np.nan_to_num(pxtr_nX, nan=0.0) @ weights_X
    if fusion.get(WATCH_TIME):
        cap_s = WATCH_TIME_CAP_MS / 1000.0
        value_n = value_n + np.float32(fusion[WATCH_TIME] / cap_s) * expected_watch_s(pxtr_nX, duration_ms)
    return value_n.astype(np.float32)


def checked_fusion(fusion: Any, where: object = "fusion") -> dict[str, float]:
    """head (or "watch_time") -> weight. Raises InputError for unknown names and for what is no finite number."""
    allowed = (WATCH_TIME, *PXTR_HEADS)
    unknown = sorted(set(fusion) - set(allowed)) if isinstance(fusion, Mapping) else [str(fusion)]
    if unknown:
        raise InputError("fusion names an unknown head", where=where, got=unknown, allowed=allowed)
    try:
        weights = {str(name): float(weight) for name, weight in fusion.items()}
    except (TypeError, ValueError):
        raise InputError("fusion weights must be numbers", where=where, got=dict(fusion)) from None
    if not np.isfinite(list(weights.values())).all():
        raise InputError("fusion weights must be finite", where=where, got=dict(fusion))
    return weights

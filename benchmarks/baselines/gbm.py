"""LightGBM (Ke et al., NeurIPS 2017) on past-only aggregates, binary objective: the tabular baseline of ranking.

Each training day is described by what came before it, so a row never meets its own label. LambdaRank was worse here:
users have a median of two rows a day.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.baselines.aggregates import CATEGORICAL, aggregates, by_day
from contract.errors import InputError, MissingExtra

if TYPE_CHECKING:
    from contract.events import Events

PARAMETERS: dict[str, Any] = {
    "objective": "binary",
    "num_leaves": 31,
    "learning_rate": 0.03,
    "min_child_samples": 100,
    "feature_fraction": 0.5,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "lambda_l2": 5.0,
    "verbosity": -1,
    "deterministic": True,
}
ROUNDS = 250


def gbm_scores(events: Events, cut_ms: int, *, seed: int = 0, utc_offset_hours: float = 0.0) -> NDArray[np.float64]:
    """Chances of long_view of the impressions from `cut_ms` on, in the log's order. Raises InputError without a timed
    day before the cut."""
    try:
        import lightgbm
    except ImportError:
        raise MissingExtra("lightgbm", "bench") from None
    except OSError as error:  # its wheel brings no OpenMP
        raise InputError(
            "LightGBM does not load", got=str(error), fix="install libgomp (Debian: apt-get install libgomp1)"
        ) from None
    from training.days import days_of, split_at

    earlier, later = split_at(events, cut_ms, utc_offset_hours)
    earlier = earlier.take(np.flatnonzero(earlier["long_view"] >= 0))
    day_of = days_of(earlier, utc_offset_hours)
    days = np.unique(day_of[day_of >= 0])
    if not len(days):
        raise InputError("LightGBM trains on days with times, and none lies before the cut", got=cut_ms)
    x_nA, rows = by_day(earlier, day_of, days.tolist())
    x_later, names = aggregates(earlier, later)
    data = lightgbm.Dataset(x_nA, earlier["long_view"][rows], feature_name=names, categorical_feature=list(CATEGORICAL))
    booster = lightgbm.train({**PARAMETERS, "seed": seed}, data, ROUNDS)
    return np.asarray(booster.predict(x_later), np.float64)

"""How long and how many videos ago each watched video was, both in one pass: what a swipe works out for the whole list.

Equal to `features.since_watched` and `features.videos_behind`, bit for bit (tests/contract/test_ages.py).
Legend: L1 = L + 1 slots of a watched list.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from contract.features import BEHIND_CAP, BEHIND_DIVISOR, SINCE_CAP_S, SINCE_DIVISOR, Floats

_UNIT = np.array([[1000.0], [1.0]])
_CAP = np.array([[float(SINCE_CAP_S)], [float(BEHIND_CAP)]])
_DIVISOR = np.array([[SINCE_DIVISOR], [BEHIND_DIVISOR]])


class Ages:
    """The one pass, with buffers of its own for a list of L1 slots. Not thread-safe."""

    def __init__(self, slots: int):
        self._now = np.zeros((2, 1))
        self._ages = np.zeros((2, slots))

    def write(self, now_ms: int, number_now: int, at: NDArray[np.float64], out: Floats) -> None:
        """at: float64 [2, L1] as `WatchedList.at`, infinity = null; out: float32 [2, L1], since and behind, 0 for
        nulls.
        """
        now, ages = self._now, self._ages
        now[0, 0], now[1, 0] = now_ms, number_now
        np.subtract(now, at, out=ages)
        np.divide(ages, _UNIT, out=ages)
        np.maximum(ages, 0.0, out=ages)  # what never was is minus infinity, and 0 here
        np.minimum(ages, _CAP, out=ages)
        np.log1p(ages, out=ages)
        np.divide(ages, _DIVISOR, out=out, casting="same_kind")

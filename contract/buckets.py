"""Bucketing rules, in integer arithmetic so that Python, Kotlin and JavaScript agree. Null (negative) goes nowhere:
the functions return -1 for it, which a one-hot leaves all zero and a key function turns into the missing key.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.integer]

DURATION_CAP_MS = 300_000

# Upper bounds (exclusive), milliseconds: 1 s … 1 week.
GAP_BOUNDS_MS = np.array(
    [1_000, 5_000, 15_000, 60_000, 300_000, 1_800_000, 7_200_000, 43_200_000, 86_400_000, 604_800_000], np.int64
)
# Upper bounds (exclusive) of watch time: short play, the 7 s and 18 s of click and long view, a minute, …
WATCH_BOUNDS_MS = np.array([1_000, 3_000, 7_000, 12_000, 18_000, 30_000, 60_000, 120_000], np.int64)
AGE_BOUNDS_DAYS = np.array([1, 3, 7, 14, 30, 90, 365], np.int64)
REGISTER_BOUNDS_DAYS = np.array([8, 31, 61, 91, 181, 366, 731], np.int64)
INDEX_BOUNDS = np.array([1, 2, 4, 8, 16, 32, 64], np.int64)
DURATION_BOUNDS_MS = np.array(
    [
        3_000,
        5_000,
        7_000,
        9_000,
        11_000,
        14_000,
        17_000,
        21_000,
        26_000,
        34_000,
        45_000,
        60_000,
        90_000,
        150_000,
        240_000,
    ],
    np.int64,
)


def duration_bucket_1000(duration_ms: Ints) -> Ints:
    """KuaiFormer Eq. 4, `int(min(dur, 300) / 300 * 1000)`, clamped so that 300 s stays inside 1000 rows."""
    clipped = np.minimum(duration_ms.astype(np.int64), DURATION_CAP_MS - 1)
    return np.where(duration_ms < 0, -1, clipped * 1000 // DURATION_CAP_MS)


def play_ratio_bucket(play_time_ms: Ints, duration_ms: Ints) -> Ints:
    """Tenths of the duration, 0..10; 10 = 100 % and more. -1 when either is null."""
    known = (play_time_ms >= 0) & (duration_ms > 0)
    tenths = play_time_ms.astype(np.int64) * 10 // np.maximum(duration_ms.astype(np.int64), 1)
    return np.where(known, np.minimum(tenths, 10), -1)


def bounded_bucket(values: Ints, bounds: NDArray[np.int64]) -> Ints:
    """Index of the first bound above the value, 0..len(bounds); -1 for null."""
    return np.where(values < 0, -1, bounds.searchsorted(values, side="right"))

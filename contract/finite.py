"""Whether an array is all numbers, in one call where it is: a swipe asks twice, a page once a table."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def all_finite(values: NDArray[np.float32]) -> bool:
    """No NaN and no infinity. The sum of squares tells, unless it overflows: then each value is looked at."""
    return math.isfinite(np.vdot(values, values)) or bool(np.isfinite(values).all())

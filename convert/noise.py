"""Noise:signal, pooled over samples: sum of squared differences by sum of squared reference values.

0 = equal, 1 = as much noise as signal; a tenth of the amplitude is 1e-2. Infinite when a value is not finite where the
reference's is, when a shape differs, and when there is noise and no signal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FLOOR = 1e-9  # float rounding stays below 1e-12; the step of an int8 weight lies above 1e-6
NOTHING = float("inf")


@dataclass
class Noise:
    """Adds up samples of one tensor."""

    error: float = 0.0
    signal: float = 0.0
    max_abs: float = 0.0

    def add(self, want: NDArray[Any], got: NDArray[Any]) -> None:
        if want.shape != got.shape:
            self.error = self.max_abs = NOTHING
            return
        a, b = want.astype(np.float64), got.astype(np.float64)
        finite = np.isfinite(a)
        if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(b[finite]).all():
            self.error = self.max_abs = NOTHING
            return
        apart = b[finite] - a[finite]
        self.error += float(np.square(apart).sum())
        self.signal += float(np.square(a[finite]).sum())
        self.max_abs = max(self.max_abs, float(np.abs(apart).max(initial=0.0)))

    @property
    def ratio(self) -> float:
        if self.error == 0.0:
            return 0.0
        return self.error / self.signal if self.signal and math.isfinite(self.error) else NOTHING


def told(ratio: float | None) -> str:
    """ "1.2e-04"; "-" when it is not known."""
    return "-" if ratio is None else f"{ratio:.1e}" if ratio else "0"


def for_json(ratio: float | None) -> float | str | None:
    """JSON has no infinity: "inf"."""
    return "inf" if ratio is not None and math.isinf(ratio) else ratio

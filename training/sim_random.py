"""Counter-based random numbers: a draw is a pure function of what it is for, so nothing has to happen in order.

Two policies on the same session differ only by their choices (common random numbers): the outcome of showing item i at
step t is drawn from (session seed, i, t), whatever was shown before. The mixer is SplitMix64's (Steele et al., OOPSLA
2014).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E37_79B9_7F4A_7C15)
_MIX_1 = np.uint64(0xBF58_476D_1CE4_E5B9)
_MIX_2 = np.uint64(0x94D0_49BB_1331_11EB)

# What a draw is for; a counter of its hash.
OUTCOME, NEXT, MOOD, NETWORK = range(1, 5)


def hashed(*counters: Any) -> NDArray[np.uint64]:
    """uint64 of the broadcast shape of `counters` (integers; negative ones wrap), at least one-dimensional."""
    state = np.zeros(1, np.uint64)
    with np.errstate(over="ignore"):
        for counter in counters:
            word = np.asarray(counter).astype(np.uint64, copy=False)
            x = state ^ ((word + np.uint64(1)) * _GOLDEN)
            x = (x ^ (x >> np.uint64(30))) * _MIX_1
            x = (x ^ (x >> np.uint64(27))) * _MIX_2
            state = x ^ (x >> np.uint64(31))
    return state


def uniform(*counters: Any) -> NDArray[np.float64]:
    """float64 in the open interval (0, 1), of the broadcast shape of `counters`."""
    return ((hashed(*counters) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def uniforms(n_draws: int, *counters: Any) -> NDArray[np.float64]:
    """`n_draws` independent uniforms for each entry of `counters` [n]: float64 [n, n_draws]."""
    return uniform(hashed(*counters)[:, None], np.arange(n_draws))


def normal_of(u_1: NDArray[np.float64], u_2: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard normals from two uniforms (Box-Muller)."""
    return np.sqrt(-2.0 * np.log(u_1)) * np.cos(2.0 * np.pi * u_2)

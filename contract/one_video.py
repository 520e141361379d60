"""The token of one watched video, as fast as a swipe needs it: the features of `contract.features` for a single row.

What a candidate brings (duration, pXTR) is worked out for a whole page at once when it arrives; what feedback adds is
written into that row in plain Python, since numpy takes microseconds a call whatever the number of rows. Equal to
`dense_block` over the same columns, bit for bit (tests/contract/test_one_video.py).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract import buckets
from contract.features import DENSE_FEATURES, SIGNAL_OF_HEAD, STAY_CAP_MS, Columns, Floats
from contract.spec import FeatureSpec
from contract.vocabulary import SIGNALS

BLOCK = "watched_dense"
Values = Mapping[str, Any]  # column -> int, float, or a list of them
# (columns of one video, row of the block, the feature's first column there): writes what is not zero.
RowFeature = Callable[[Values, Floats, int], None]

# Raw columns that row features read.
READ = (
    "play_time_ms",
    "duration_ms",
    "gap_ms",
    "signals",
    "pxtr",
    "profile_stay_ms",
    "comment_stay_ms",
    "volume",
    "landscape",
)
NOTHING: Mapping[str, Floats] = MappingProxyType({})
OF_THE_CANDIDATE = ("start", "duration", "pxtr")  # features that no feedback changes


def _bucket_of(name: str, bounds: NDArray[np.int64]) -> RowFeature:
    uppers = bounds.tolist()

    def row(values: Values, out: Floats, at: int) -> None:
        value = values[name]
        if value >= 0:
            out[at + bisect_right(uppers, value)] = 1.0

    return row


def _play_ratio(values: Values, out: Floats, at: int) -> None:
    play_time_ms, duration_ms = values["play_time_ms"], values["duration_ms"]
    if play_time_ms >= 0 and duration_ms > 0:
        out[at + min(play_time_ms * 10 // duration_ms, 10)] = 1.0


def _signals(values: Values, out: Floats, at: int) -> None:
    for number, signal in enumerate(values["signals"], start=at):
        if signal >= 0:
            out[number + len(SIGNALS)] = 1.0
            if signal == 1:
                out[number] = 1.0


_HEADS = tuple(enumerate(SIGNAL_OF_HEAD.tolist()))


def _surprise(values: Values, out: Floats, at: int) -> None:
    signals, pxtr = values["signals"], values["pxtr"]
    for head, signal in _HEADS:
        if signals[signal] >= 0 and pxtr[head] == pxtr[head]:  # no NaN
            out[at + head] = signals[signal] - pxtr[head]


def _stays(values: Values, out: Floats, at: int) -> None:
    for column, name in ((at, "profile_stay_ms"), (at + 2, "comment_stay_ms")):
        value = values[name]
        if value >= 0:
            out[column], out[column + 1] = min(value, STAY_CAP_MS) / STAY_CAP_MS, 1.0


def _posture(values: Values, out: Floats, at: int) -> None:
    volume, landscape = values["volume"], values["landscape"]
    if not math.isnan(volume):
        out[at], out[at + 1] = min(max(volume, 0.0), 1.0), 1.0
    if landscape >= 0:
        out[at + 2], out[at + 3] = landscape == 1, 1.0


ROW_FEATURES: dict[str, RowFeature] = {
    "play_ratio": _play_ratio,
    "watch_time": _bucket_of("play_time_ms", buckets.WATCH_BOUNDS_MS),
    "signals": _signals,
    "gap": _bucket_of("gap_ms", buckets.GAP_BOUNDS_MS),
    "surprise": _surprise,
    "stays": _stays,
    "posture": _posture,
}


class TokenRows:
    """`watched_dense` of one spec, row by row. `possible` is False for a spec with a feature that has no row form: its
    tokens are built by `dense_block`.
    """

    def __init__(self, spec: FeatureSpec):
        self._spec = spec
        columns = spec.columns(BLOCK)
        known = {*ROW_FEATURES, *OF_THE_CANDIDATE}
        self.possible = all(column.field.feature in known for column in columns)
        self._rows = [(ROW_FEATURES[c.field.feature], c.offset) for c in columns if c.field.feature in ROW_FEATURES]

    def of_candidates(self, candidates: Columns, n: int, known: Mapping[str, Floats] = NOTHING) -> Floats:
        """The rows of n candidates before any feedback: float32 [n, Fw]. candidates: those columns that they have;
        known: features that are worked out already, [n, width] by name.

        A candidate is no start token, and what was not observed is zero.
        """
        out = np.zeros((n, self._spec.width(BLOCK)), np.float32)
        for column in self._spec.columns(BLOCK):
            feature = column.field.feature
            if feature in known:
                out[:, column.slice] = known[feature]
            elif feature in ("duration", "pxtr"):
                DENSE_FEATURES[feature](candidates, out[:, column.slice])
        return out

    def write(self, values: Values, before_F: Floats, out_F: Floats) -> None:
        """The token of one video into out_F: before_F of `of_candidates`, and the READ columns as lists and Python
        numbers."""
        out_F[:] = before_F
        for feature, at in self._rows:
            feature(values, out_F, at)

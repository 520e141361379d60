"""A slow, obvious phone: whole-net inputs at a swipe, from the contract's functions alone.

Goldens and held-out inputs come from here, so that what the edge does fast is compared with what is written plainly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.features import Columns, block_keys, dense_block, pool_rows, since_watched, videos_behind
from contract.spec import FeatureSpec
from contract.vocabulary import MASK_VALUE
from contract.watched import WatchedList
from training.tables import SparseTables

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Sample:
    """Inputs of `whole/N…` by name, and how many candidates and watched videos in them are real.

    labels: float32 [n_candidates], whether the user watched it long, NaN = not shown to this user; None = not known.
    """

    inputs: Mapping[str, Floats]
    bucket: int
    n_candidates: int
    n_watched: int
    labels: Floats | None = None


class Rows:
    """Rows by key for one spec: decoded tables and where each key stands. A block of several fields in one call."""

    def __init__(self, spec: FeatureSpec, tables: SparseTables, decoded: Mapping[str, Floats]):
        self._spec, self._tables, self._decoded = spec, tables, decoded

    def block(self, block: str, columns: Columns) -> Floats:
        """float32 [n, spec.width(block)]."""
        keys = block_keys(self._spec, block, columns)
        slots = {
            column.field.name: self._tables.slots(column.field.table, keys[column.field.name])
            for column in self._spec.columns(block)
        }
        n = len(next(iter(slots.values())))
        out = np.zeros((n, self._spec.width(block)), np.float32)
        return pool_rows(self._spec, block, self._decoded, slots, out)


def smallest_bucket(buckets: Sequence[int], n: int) -> int:
    """The smallest N bucket that holds n candidates; the largest when none does."""
    return next((bucket for bucket in sorted(buckets) if bucket >= n), max(buckets))


def dense(spec: FeatureSpec, block: str, columns: Columns) -> Floats:
    """float32 [n, width] of a dense block."""
    n = len(next(iter(columns.values())))
    return dense_block(spec, block, columns, np.zeros((n, spec.width(block)), np.float32))


def whole_inputs(
    spec: FeatureSpec,
    capacities: Mapping[str, Any],
    *,
    user: Columns,
    candidates: Columns,
    swipe: Columns,
    watched: WatchedList,
    rows: Mapping[str, Floats],
    now_ms: int,
    number: int,
) -> Sample:
    """One sample. number: the user's running number of the impression that is being chosen.
    `user` and `swipe` hold one entry, `candidates` n (n ≤ the largest bucket); rows: block name -> rows.

    rows["watched_rows"] has one row per filled slot, the start token's first.
    """
    n = len(next(iter(candidates.values())))
    bucket, slots = smallest_bucket(capacities["N"], n), int(capacities["L"]) + 1
    filled = watched.columns()
    since = since_watched(now_ms, filled["shown_at_ms"], np.zeros(watched.length, np.float32))
    behind = videos_behind(number, filled["number"], np.zeros(watched.length, np.float32))
    found: dict[str, tuple[int, Floats]] = {}
    for block, columns, size in (
        ("user_dense", user, 0),
        ("candidate_dense", candidates, bucket),
        ("watched_dense", filled, slots),
        ("swipe_dense", swipe, 0),
        ("candidate_swipe", candidates, bucket),
    ):
        if spec.width(block):
            found[block] = (size, dense(spec, block, columns))
    for block, size in (("user_rows", 0), ("candidate_rows", bucket), ("watched_rows", slots)):
        if spec.width(block):
            found[block] = (size, rows[block])
    inputs = {block: _padded(values, size) for block, (size, values) in found.items()}
    for name, values in (("since", since), ("behind", behind)):
        inputs[name] = _padded(values[:, None], slots)[:, :, 0]
    inputs["memory_mask"] = np.full((1, slots), MASK_VALUE, np.float32)
    inputs["memory_mask"][0, : watched.length] = 0.0
    return Sample(inputs, bucket, n, watched.n_watched)


def _padded(values: Floats, size: int) -> Floats:
    """[n, width] -> [1, size, width] with zeros below; size 0: one entry, [1, width]."""
    if size == 0:
        return np.ascontiguousarray(values[:1], np.float32)
    out = np.zeros((1, size, values.shape[1]), np.float32)
    out[0, : len(values)] = values
    return out

"""Sparse rows on the wire: float32, float16, or int8 with one float16 scale per row.

int8: the scale is max|row| / 127, rounded UP to float16 (so that no value overflows), at least 2**-14, and the row is
quantised with the rounded scale. Non-finite values are refused. Offline metrics and goldens use decoded rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from contract.errors import PageError
from contract.finite import all_finite
from contract.spec import WIDTH_MAX

INT8, FLOAT16, FLOAT32 = "int8", "float16", "float32"
ENCODINGS = (INT8, FLOAT16, FLOAT32)
SCALE_FLOOR = 2.0**-14
_ITEM_BYTES = {INT8: 1, FLOAT16: 2, FLOAT32: 4}


@dataclass(frozen=True)
class EncodedRows:
    """R rows of one table. `values`: R * width * item bytes, little-endian; `scales`: R float16, int8 only."""

    encoding: str
    width: int
    values: bytes
    scales: bytes = b""

    @property
    def n_bytes(self) -> int:
        return len(self.values) + len(self.scales)

    @cached_property
    def decoded(self) -> NDArray[np.float32]:
        """float32 [R, width], worked out once: not to be written to. Raises as `decode_rows`."""
        return decode_rows(self)


def encode_rows(rows: NDArray[np.floating], encoding: str = INT8) -> EncodedRows:
    """rows: float [R, width]. Raises PageError for non-finite values or an unknown encoding."""
    if encoding not in ENCODINGS:
        raise PageError("unknown row encoding", got=encoding, allowed=ENCODINGS)
    if rows.ndim != 2:
        raise PageError("rows must be [R, width]", got=rows.shape)
    rows = np.asarray(rows, np.float32)
    if not np.isfinite(rows).all():
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        raise PageError("rows hold non-finite values", got=f"rows {bad[:5].tolist()}", fix="retrain or drop these rows")
    width = rows.shape[1]
    if encoding == FLOAT32:
        return EncodedRows(encoding, width, rows.astype("<f4").tobytes())
    if encoding == FLOAT16:
        limit = float(np.finfo(np.float16).max)
        return EncodedRows(encoding, width, np.clip(rows, -limit, limit).astype("<f2").tobytes())
    scales = _scales_rounded_up(np.abs(rows).max(axis=1, initial=0.0))
    values = np.clip(np.rint(rows / scales.astype(np.float32)[:, None]), -127, 127).astype(np.int8)
    return EncodedRows(encoding, width, values.tobytes(), scales.astype("<f2").tobytes())


def _scales_rounded_up(peak: NDArray[np.float32]) -> NDArray[np.float16]:
    exact = np.minimum(np.maximum(peak / np.float32(127), np.float32(SCALE_FLOOR)), np.finfo(np.float16).max)
    scales = exact.astype(np.float16)
    low = scales.astype(np.float32) < exact
    up: NDArray[np.float16] = np.nextafter(scales, np.float16(np.inf), out=scales, where=low)
    return up


def decode_rows(encoded: EncodedRows, max_rows: int = 1_000_000) -> NDArray[np.float32]:
    """float32 [R, width], one vectorised pass. Raises PageError when the bytes contradict width, encoding or scales."""
    if encoded.encoding not in ENCODINGS:
        raise PageError("unknown row encoding", got=encoded.encoding, allowed=ENCODINGS)
    if not 1 <= encoded.width <= WIDTH_MAX:
        raise PageError("row width out of range", got=encoded.width, allowed=f"1 … {WIDTH_MAX}")
    row_bytes = encoded.width * _ITEM_BYTES[encoded.encoding]
    n, rest = divmod(len(encoded.values), row_bytes)
    if rest or n > max_rows:
        raise PageError("row bytes do not fit the width", got=len(encoded.values), allowed=f"a multiple of {row_bytes}")
    if encoded.encoding == INT8:
        if len(encoded.scales) != 2 * n:
            raise PageError("one float16 scale per row", got=len(encoded.scales), allowed=2 * n)
        scales = np.frombuffer(encoded.scales, "<f2").astype(np.float32)
        if not all_finite(scales):  # asked before: 0 times infinity would warn
            raise PageError("row scales are non-finite", fix="the server must refuse them at export")
        return np.frombuffer(encoded.values, np.int8).reshape(n, encoded.width) * scales[:, None]
    kind = "<f2" if encoded.encoding == FLOAT16 else "<f4"
    rows = np.frombuffer(encoded.values, kind).astype(np.float32).reshape(n, encoded.width)
    if not all_finite(rows):
        raise PageError("rows hold non-finite values", fix="the server must refuse them at export")
    return rows

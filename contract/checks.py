"""Plain values that a caller hands in, checked where they come in: one error that says what, got and allowed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from contract.errors import InputError

INT32_MAX, INT64_MAX, UINT64_MAX = 2**31 - 1, 2**63 - 1, 2**64 - 1


def check_whole(what: str, value: Any, low: int, high: int, *, optional: bool = False) -> None:
    """A whole number from low to high, numpy's as well; no bool, no float. optional: or None. Raises InputError."""
    if optional and value is None:
        return
    if type(value) is int and low <= value <= high:  # the everyday case, in a tenth of a microsecond
        return
    try:
        fits = not isinstance(value, bool) and low <= value.__index__() <= high
    except (AttributeError, TypeError):
        fits = False
    if not fits:
        allowed = f"a whole number from {low} to {high}" + (", or None" if optional else "")
        raise InputError(what, got=_shown(value), allowed=allowed)


def check_number(what: str, value: Any, low: float, high: float, *, optional: bool = False) -> None:
    """A number from low to high, no NaN. optional: or None. Raises InputError."""
    if optional and value is None:
        return
    try:
        fits = not isinstance(value, bool | str) and low <= float(value) <= high
    except (TypeError, ValueError):
        fits = False
    if not fits:
        upper = "" if math.isinf(high) else f" to {high:g}"
        allowed = f"a number from {low:g}{upper}" + (", or None" if optional else "")
        raise InputError(what, got=_shown(value), allowed=allowed)


def check_flag(what: str, value: Any, *, optional: bool = False) -> None:
    """True or False, numpy's as well; optional: or None. Raises InputError."""
    if isinstance(value, bool | np.bool_) or (optional and value is None):
        return
    raise InputError(what, got=_shown(value), allowed="True, False" + (", None" if optional else ""))


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of them that are numpy's, as Python's own: messages and state files take no others."""
    return {name: value.item() for name, value in values.items() if isinstance(value, np.generic)}


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {value!r}"[:100]

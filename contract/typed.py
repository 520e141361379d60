"""Whether a frozen dataclass that was made from JSON holds what its annotations say: JSON brings any type anywhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import numpy as np

_INT_MIN, _INT_MAX = -(2**63), 2**64 - 1  # the integers of any column: int64 and uint64
_FLOAT_MAX = float(np.finfo(np.float32).max)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and _INT_MIN <= value <= _INT_MAX


def _is_float(value: Any) -> bool:
    """A finite float32, or an integer as JSON may spell it."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _FLOAT_MAX


def _is_list(of: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list | tuple) and all(of(item) for item in value)


def _is_mapping(of: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, Mapping) and all(_is_text(key) and of(item) for key, item in value.items())


# Annotation -> test. Annotations that are not here are those of parts that were checked when they were made.
_TESTS: dict[str, Callable[[Any], bool]] = {
    "str": _is_text,
    "int": _is_int,
    "float": _is_float,
    "tuple[int, ...]": _is_list(_is_int),
    "tuple[str, ...]": _is_list(_is_text),
    "Sequence[int]": _is_list(_is_int),
    "Sequence[float]": _is_list(_is_float),
    "Sequence[Sequence[float]]": _is_list(_is_list(_is_float)),
    "Mapping[str, Any]": _is_mapping(lambda value: True),
    "Mapping[str, str]": _is_mapping(_is_text),
    "Mapping[str, int]": _is_mapping(_is_int),
    "Mapping[str, float]": _is_mapping(_is_float),
}


def check_types(instance: Any) -> None:
    """Compare the fields of a dataclass with its annotations. Raises TypeError that names class and field.

    The class's module must defer annotations (`from __future__ import annotations`): they are compared as text.
    """
    for field in fields(instance):
        test = _TESTS.get(str(field.type))
        value = getattr(instance, field.name)
        if test is not None and not test(value):
            kind = type(instance).__name__
            raise TypeError(f"{kind}.{field.name} must be {field.type}, not {_told(value)}")


def _told(value: Any) -> str:
    """Type and value, shortened: the value may be a document of its own."""
    plain = isinstance(value, str | float | bool) or (isinstance(value, int) and abs(value) < 10**30)
    return f"{type(value).__name__} {value!r:.60}" if plain else type(value).__name__

"""Why a float file differs from torch, where that can be told cheaply: inputs or outputs under each other's names, axes
exchanged, a mask read the other way round; else the first layer that is off.

Each guess is tried: a file that agrees with torch once its inputs are put that way is wrong in that way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.errors import KirError
from convert.chain import Feeds, Run

SAMPLES = 4  # held-out inputs that a guess has to agree on
Outputs = Mapping[str, NDArray[Any]]
Change = Callable[[Any], dict[str, NDArray[Any]]]


def explain(
    run: Run, feeds: Sequence[Feeds], want: Sequence[Outputs], allowed: float, onnx: Path | None, file: Path | None
) -> str:
    """In words, or "". run: the file at fault; want: torch's outputs for the feeds; onnx, file: the graph as ONNX and
    as float TFLite, to look for a layer in."""
    feeds, want, got = _worst(run, feeds, want)
    if not feeds:
        return ""
    for words, change in _of_inputs(feeds):
        if _agrees([run(change(one)) for one in feeds], want, allowed):
            return words
    for words, change in _of_outputs(want[0]):
        if _agrees([change(one) for one in got], want, allowed):
            return words
    return _layer(onnx, file, feeds) if onnx is not None and file is not None else ""


def _worst(
    run: Run, feeds: Sequence[Feeds], want: Sequence[Outputs]
) -> tuple[list[Feeds], list[Outputs], list[Outputs]]:
    """Feeds, torch's outputs and the file's, of the samples that are off most: on others any guess would agree."""
    got = [run(one) for one in feeds]
    off = [max(float(np.abs(a[name] - b[name]).max(initial=0.0)) for name in a) for a, b in zip(want, got, strict=True)]
    some = [int(i) for i in np.argsort(np.nan_to_num(off, nan=np.inf))[::-1][:SAMPLES]]
    return [feeds[i] for i in some], [want[i] for i in some], [got[i] for i in some]


def _of_inputs(feeds: Sequence[Feeds]) -> Iterator[tuple[str, Change]]:
    first = feeds[0]
    for a, b in combinations(first, 2):
        if _alike(first[a], first[b]):
            yield f"inputs '{a}' and '{b}' stand in each other's place", _exchanged(a, b)
    for name, value in first.items():
        for i, j in _equal_axes(value):
            yield f"input '{name}' is read with axes {i} and {j} exchanged", _transposed(name, i, j)
    for name in first:
        values = np.unique(np.concatenate([np.unique(one[name]) for one in feeds]))
        if len(values) == 2:
            yield f"input '{name}' masks what it should let through", _turned(name, values)


def _of_outputs(want: Outputs) -> Iterator[tuple[str, Change]]:
    for a, b in combinations(want, 2):
        if _alike(want[a], want[b]):
            yield f"outputs '{a}' and '{b}' stand in each other's place", _exchanged(a, b)
    for name, value in want.items():
        for i, j in _equal_axes(value):
            yield f"output '{name}' comes with axes {i} and {j} exchanged", _transposed(name, i, j)


def _alike(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype


def _equal_axes(value: NDArray[Any]) -> list[tuple[int, int]]:
    """Axes whose exchange no check of shapes sees."""
    return [(i, j) for i, j in combinations(range(value.ndim), 2) if value.shape[i] == value.shape[j] > 1]


def _exchanged(a: str, b: str) -> Change:
    return lambda one: {**one, a: one[b], b: one[a]}


def _transposed(name: str, i: int, j: int) -> Change:
    return lambda one: {**one, name: np.ascontiguousarray(np.swapaxes(one[name], i, j))}


def _turned(name: str, values: NDArray[Any]) -> Change:
    """One of an input's two values for the other."""
    return lambda one: {**one, name: np.where(one[name] == values[0], values[1], values[0]).astype(one[name].dtype)}


def _agrees(got: Sequence[Outputs], want: Sequence[Outputs], allowed: float) -> bool:
    return all(
        bool(np.abs(a[name] - b[name]).max(initial=0.0) <= allowed)
        for a, b in zip(want, got, strict=True)
        for name in a
    )


def _layer(onnx: Path, file: Path, feeds: Sequence[Feeds]) -> str:
    """The first bad layer by `kir convert debug`; "" where that finds none."""
    from convert.debug import debug_files

    try:
        bad = debug_files(onnx, file, inputs=list(feeds)).first_bad
    except KirError:  # a diagnosis must not hide what it is about
        return ""
    return "" if bad is None else f"the first bad layer is {bad.operator} '{bad.name}'"

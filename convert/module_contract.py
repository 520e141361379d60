"""The tensor contract of a module that others wrote: JSON, read strictly, and the held-out inputs that go with it.

The contract is JSON:

    {"name": "din",
     "inputs":  [{"name": "user", "shape": [1, 16], "dtype": "float32"},
                 {"name": "ids", "shape": [1, 20], "dtype": "int32", "below": 1000},
                 {"name": "mask", "shape": [1, 20], "dtype": "float32", "values": [0, 1]}],
     "outputs": ["scores"],
     "rank":    {"output": "scores", "column": 0}}

below: the first integer that is none (a table's size). values: what the input's elements may be; a mask drawn as any
number would hide what it masks from the gates. Both say how stand-ins are drawn, and what a file of inputs may hold.
rank: which output orders candidates; they stand on its last axis, or on the last but one when `column` picks one of
several scores; left out for a model that ranks nothing, which is then gated by cosine.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.errors import InputError
from contract.manifest import Tensor
from convert.chain import WHOLE

DTYPES = ("float32", "int32", "int64")
NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
LEAST_INPUTS = 2  # one to calibrate on, one to verify on

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class ModuleContract:
    """name: of the graph. below: input -> end of its integers. rank: (output, column or None); None ranks nothing.
    values: input -> what its elements may be."""

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[str, ...]
    below: Mapping[str, int]
    rank: tuple[str, int | None] | None = None
    values: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @staticmethod
    def read(path: str | Path) -> ModuleContract:
        """Raises InputError naming what is wrong with the file; a key that is not known is wrong, too: misspelt, it
        would switch a gate off."""
        try:
            data = json.loads(Path(path).read_text())
            _keys(path, "the contract", data, ("name", "inputs", "outputs"), ("rank",))
            for number, one in enumerate(data["inputs"]):
                what = f"input {one.get('name', number)!r}"
                _keys(path, what, one, ("name", "shape", "dtype"), ("below", "values"))
            if (rank := data.get("rank")) is not None:
                _keys(path, "rank", rank, ("output",), ("column",))
            inputs = tuple(
                Tensor(str(t["name"]), tuple(int(n) for n in t["shape"]), t["dtype"]) for t in data["inputs"]
            )
            found = ModuleContract(
                str(data["name"]),
                inputs,
                tuple(str(name) for name in data["outputs"]),
                {str(t["name"]): int(t["below"]) for t in data["inputs"] if "below" in t},
                None if rank is None else (str(rank["output"]), rank.get("column")),
                {str(t["name"]): tuple(map(float, t["values"])) for t in data["inputs"] if "values" in t},
            )
        except OSError as error:
            raise InputError("contract can't be read", where=path, got=error.strerror) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError("contract is malformed", where=path, got=f"{type(error).__name__}: {error}") from None
        found._check(path)
        return found

    def _check(self, where: object) -> None:
        self._check_inputs(where)
        names = [t.name for t in self.inputs] + list(self.outputs)
        if not self.inputs or not self.outputs or len(set(names)) != len(names):
            raise InputError("contract: inputs and outputs have names of their own", where=where, got=names)
        if not re.fullmatch(NAME, self.name) or self.name == WHOLE:
            what = "contract: name is of letters, digits, '_', '-' and '.', for files are named by it"
            raise InputError(what, where=where, got=self.name, allowed=f"{NAME}, and not '{WHOLE}'")
        column = None if self.rank is None else self.rank[1]
        if column is not None and type(column) is not int:  # JSON's true would pass for 1
            raise InputError("contract: rank's column is a whole number", where=where, got=column)
        if self.rank is not None and self.rank[0] not in self.outputs:
            raise InputError("contract: rank names no output", where=where, got=self.rank[0], allowed=self.outputs)

    def _check_inputs(self, where: object) -> None:
        for tensor in self.inputs:
            if tensor.dtype not in DTYPES:
                what = f"contract: dtype of input '{tensor.name}'"
                raise InputError(what, where=where, got=tensor.dtype, allowed=DTYPES)
            if not tensor.shape or min(tensor.shape) < 1:
                what = f"contract: shape of input '{tensor.name}' is fixed and positive"
                raise InputError(what, where=where, got=tensor.shape)
        for name, end in self.below.items():
            if end < 1:
                raise InputError(f"contract: below of input '{name}' starts at 1", where=where, got=end)
        for name, values in self.values.items():
            if not values or not np.isfinite(values).all():
                raise InputError(
                    f"contract: values of input '{name}' are numbers, one at least", where=where, got=values
                )

    def check_rank(self, shape: tuple[int, ...], where: object) -> None:
        """Raises InputError for a `rank` that orders fewer than two candidates, picks a column that is not there, or
        could mean two axes. shape: of its output."""
        if self.rank is None:
            return
        output, column = self.rank
        if column is not None and not 0 <= column < (shape or (0,))[-1]:
            what = f"contract: rank's column is none of the last axis of '{output}'"
            raise InputError(what, where=where, got=column, allowed=f"0 … {(shape or (0,))[-1] - 1}")
        candidates = shape if column is None else shape[:-1]
        if sum(n > 1 for n in candidates) > 1:
            raise InputError(
                f"contract: rank leaves open which axis of '{output}' is that of the candidates", where=where,
                got=f"{list(shape)}, column {column}",
                fix='with scores on the last axis say which of them ranks: "column": 0',
            )  # fmt: skip
        if np.prod(candidates, dtype=int) < 2:
            raise InputError(
                f"contract: rank orders one candidate of '{output}'", where=where, got=(list(shape), column),
                fix="candidates stand on the last axis, with a column on the last but one; leave rank out for none",
            )  # fmt: skip

    def drawn(self, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
        """Stand-in inputs; integers without a bound are drawn from 0 and 1, which a verdict refuses (`check_drawn`)."""
        found: dict[str, NDArray[Any]] = {}
        for tensor in self.inputs:
            if tensor.name in self.values:
                found[tensor.name] = rng.choice(self.values[tensor.name], tensor.shape).astype(tensor.dtype)
            elif tensor.dtype == "float32":
                found[tensor.name] = rng.normal(0.0, 1.0, tensor.shape).astype(np.float32)
            else:
                end = self.below.get(tensor.name, 2)
                found[tensor.name] = rng.integers(0, end, tensor.shape).astype(tensor.dtype)
        return found

    def check_drawn(self) -> None:
        """Raises InputError for integers of which nothing says how large they may be: a verdict on two rows of a table
        would look like any other."""
        bare = [
            t.name
            for t in self.inputs
            if t.dtype != "float32" and t.name not in self.below and t.name not in self.values
        ]
        if bare:
            raise InputError(
                "integers can't be drawn without a bound", got=", ".join(bare),
                fix='say "below" (a table\'s size) or "values" in the contract, or give real inputs: --data FILE.npz',
            )  # fmt: skip

    def read_inputs(self, path: str | Path) -> Arrays:
        """Held-out inputs of a .npz file: an array [S, …] for each input, S the same for all.

        Raises InputError for what is no such file, and for values that the contract leaves out, by array and row.
        """
        try:
            with open(path, "rb") as raw:
                if not zipfile.is_zipfile(raw):
                    raise ValueError("no zip of arrays")
                raw.seek(0)
                file = np.load(raw, allow_pickle=False)
                missing = [tensor.name for tensor in self.inputs if tensor.name not in file.files]
                if missing:
                    what = f"held-out inputs lack {', '.join(missing)}"
                    raise InputError(what, where=path, got=", ".join(file.files), fix="np.savez(FILE, NAME=array, …)")
                arrays = {tensor.name: file[tensor.name] for tensor in self.inputs}
        except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
            got = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise InputError("held-out inputs can't be read", where=path, got=got, allowed=".npz of np.savez") from None
        for tensor in self.inputs:
            self._check_array(tensor, arrays[tensor.name], path)
        lengths = {name: len(array) for name, array in arrays.items()}
        if len(set(lengths.values())) != 1:
            raise InputError("held-out inputs differ in number", where=path, got=lengths)
        if min(lengths.values()) < LEAST_INPUTS:
            few = min(lengths.values())
            raise InputError("held-out inputs are too few", where=path, got=few, allowed=f"from {LEAST_INPUTS} on")
        return arrays

    def _check_array(self, tensor: Tensor, array: NDArray[Any], where: object) -> None:
        if array.shape[1:] != tensor.shape or array.dtype != tensor.dtype:
            raise InputError(
                f"held-out input '{tensor.name}' is not of the contract", where=where,
                got=f"{array.dtype} {list(array.shape)}", allowed=f"{tensor.dtype} [S, {str(list(tensor.shape))[1:]}",
            )  # fmt: skip
        allowed, wrong = "finite numbers", ~np.isfinite(array)
        if tensor.name in self.values:
            allowed = f"one of {', '.join(f'{x:g}' for x in self.values[tensor.name])}"
            wrong = ~np.isin(array, np.asarray(self.values[tensor.name], array.dtype))
        elif tensor.name in self.below:
            allowed = f"0 … {self.below[tensor.name] - 1}"
            wrong = (array < 0) | (array >= self.below[tensor.name])
        rows = np.flatnonzero(wrong.reshape(len(array), -1).any(axis=1)) if len(array) else np.zeros(0, int)
        if len(rows):
            value = array[rows[0]][wrong[rows[0]]].reshape(-1)[0]
            what = f"held-out input '{tensor.name}' holds what the contract leaves out"
            raise InputError(what, where=where, got=f"{value} in row {rows[0]} ({len(rows)} rows)", allowed=allowed)


def _keys(where: object, what: str, given: Any, needed: Collection[str], more: Collection[str]) -> None:
    if not isinstance(given, dict):
        raise InputError(f"contract is malformed: {what} is no object", where=where, got=type(given).__name__)
    unknown, absent = sorted(given.keys() - {*needed, *more}), [key for key in needed if key not in given]
    if unknown or absent:
        found = [f"no {key!r}" for key in absent] + [f"{key!r}" for key in unknown]
        allowed = f"{', '.join(needed)}, and perhaps {', '.join(more)}"
        raise InputError(f"contract is malformed: keys of {what}", where=where, got=", ".join(found), allowed=allowed)

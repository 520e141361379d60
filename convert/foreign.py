"""Any torch module with a tensor contract as a job: `kir convert --module package:factory --contract spec.json`.

The factory takes nothing and gives an `nn.Module` with its weights loaded, whose forward takes the contract's inputs by
name. The contract is JSON:

    {"name": "din",
     "inputs":  [{"name": "user", "shape": [1, 16], "dtype": "float32"},
                 {"name": "ids", "shape": [1, 20], "dtype": "int32", "below": 1000},
                 {"name": "mask", "shape": [1, 20], "dtype": "float32", "values": [0, 1]}],
     "outputs": ["scores"],
     "rank":    {"output": "scores", "column": 0}}

For stand-in inputs, below: the first integer that is none (a table's size); values: what the input's elements may be. A
mask drawn as any number would hide what it masks from the gates. rank: which output orders candidates; they
stand on its last axis, or on the last but one when `column` picks one of several scores; left out for a model that
ranks nothing, which is then gated by cosine. `--data FILE.npz` holds inputs, [S, ...] each; without it they are drawn.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from contract.errors import InputError, KirError
from contract.manifest import Tensor
from convert.build import BuiltGraph
from convert.chain import WHOLE, Feeds
from convert.graph_job import graph_card, write_graph_golden
from convert.onnx_export import TorchGraph
from convert.report import Verification
from convert.subject import GraphSubject, Outputs

DTYPES = ("float32", "int32", "int64")
NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
Floats = NDArray[np.float32]


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
        """Raises InputError naming what is wrong with the file."""
        try:
            data = json.loads(Path(path).read_text())
            inputs = tuple(
                Tensor(str(t["name"]), tuple(int(n) for n in t["shape"]), t["dtype"]) for t in data["inputs"]
            )
            below = {str(t["name"]): int(t["below"]) for t in data["inputs"] if "below" in t}
            rank = data.get("rank")
            found = ModuleContract(
                str(data["name"]),
                inputs,
                tuple(str(name) for name in data["outputs"]),
                below,
                None if rank is None else (str(rank["output"]), rank.get("column")),
                {str(t["name"]): tuple(map(float, t["values"])) for t in data["inputs"] if "values" in t},
            )
        except OSError as error:
            raise InputError("contract can't be read", where=path, got=error.strerror) from None
        except (ValueError, KeyError, TypeError) as error:
            raise InputError("contract is malformed", where=path, got=f"{type(error).__name__}: {error}") from None
        found._check(path)
        return found

    def _check(self, where: object) -> None:
        for tensor in self.inputs:
            if tensor.dtype not in DTYPES:
                what = f"contract: dtype of input '{tensor.name}'"
                raise InputError(what, where=where, got=tensor.dtype, allowed=DTYPES)
            if not tensor.shape or min(tensor.shape) < 1:
                what = f"contract: shape of input '{tensor.name}' is fixed and positive"
                raise InputError(what, where=where, got=tensor.shape)
        for name, values in self.values.items():
            if not values or not np.isfinite(values).all():
                raise InputError(
                    f"contract: values of input '{name}' are numbers, one at least", where=where, got=values
                )
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


@dataclass(frozen=True)
class ModuleJob:
    module: torch.nn.Module
    contract: ModuleContract
    factory: str
    kind: str = "module"

    @staticmethod
    def load(factory: str, contract: str | Path) -> ModuleJob:
        """factory: "package.module:function". Raises InputError when there is none, when it gives no module, and when
        the module does not take the contract's inputs; ConversionError for another number of outputs."""
        job = ModuleJob(_make(factory).eval(), ModuleContract.read(contract), factory)
        try:
            next(iter(job.graphs.values())).contract()
            job._check_rank(contract)
        except KirError:
            raise
        except Exception as error:  # the user's own code: what it says is what helps
            what = "--module does not run on its contract's inputs"
            raise InputError(what, where=factory, got=f"{type(error).__name__}: {error}") from error
        return job

    @property
    def version(self) -> str:
        return self.contract.name

    @property
    def graphs(self) -> Mapping[str, TorchGraph]:
        inputs = {name: torch.from_numpy(value) for name, value in self._drawn(np.random.default_rng(0)).items()}
        graph = TorchGraph(self.contract.name, "", self.module, inputs, self.contract.outputs)
        return {graph.key: graph}

    def _drawn(self, rng: np.random.Generator) -> Feeds:
        found: dict[str, NDArray[Any]] = {}
        for tensor in self.contract.inputs:
            if tensor.name in self.contract.values:
                found[tensor.name] = rng.choice(self.contract.values[tensor.name], tensor.shape).astype(tensor.dtype)
            elif tensor.dtype == "float32":
                found[tensor.name] = rng.normal(0.0, 1.0, tensor.shape).astype(np.float32)
            else:
                end = self.contract.below.get(tensor.name, 2)
                found[tensor.name] = rng.integers(0, end, tensor.shape).astype(tensor.dtype)
        return found

    def open(self, data: Any, seed: int) -> tuple[Mapping[str, NDArray[Any]] | None, str]:
        """data: .npz with an array [S, ...] for each input."""
        if data is None:
            return None, "inputs drawn at random"
        try:
            with np.load(Path(data), allow_pickle=False) as file:
                arrays = {tensor.name: file[tensor.name] for tensor in self.contract.inputs}
        except (OSError, ValueError, KeyError) as error:
            raise InputError("held-out inputs can't be read", where=data, got=str(error), allowed=".npz") from None
        for tensor in self.contract.inputs:
            got = arrays[tensor.name]
            if got.shape[1:] != tensor.shape or got.dtype != tensor.dtype:
                raise InputError(
                    f"held-out input '{tensor.name}' is not of the contract", where=data,
                    got=f"{got.dtype} {list(got.shape)}", allowed=f"{tensor.dtype} [S, {str(list(tensor.shape))[1:]}",
                )  # fmt: skip
        lengths = {len(array) for array in arrays.values()}
        if len(lengths) != 1 or min(lengths) < 2:
            raise InputError("held-out inputs differ in number, or are too few", where=data, got=sorted(lengths))
        return arrays, f"{Path(data).name}: {lengths.pop()} inputs"

    def subject(self, opened: Mapping[str, NDArray[Any]] | None, n: int, seed: int) -> GraphSubject:
        return self._subject(opened, n, seed, 0)

    def calibration(self, opened: Mapping[str, NDArray[Any]] | None, n: int, seed: int) -> GraphSubject:
        return self._subject(opened, n, seed, 1)

    def _subject(self, opened: Mapping[str, NDArray[Any]] | None, n: int, seed: int, half: int) -> GraphSubject:
        """Every second input of a file, or drawn ones."""
        if opened is None:
            rng = np.random.default_rng([seed, half])
            feeds = [self._drawn(rng) for _ in range(n)]
        else:
            some = range(half, len(next(iter(opened.values()))), 2)[:n]
            feeds = [{name: array[i] for name, array in opened.items()} for i in some]
        outputs, rank = self.contract.outputs, self.contract.rank

        def real(sample: int, found: Outputs) -> Floats:
            return np.concatenate([found[name].reshape(-1) for name in ((rank[0],) if rank else outputs)])

        shape = self._shape_of(rank[0]) if rank else ()

        def value(sample: int, found: Floats) -> Floats:
            scores = found.reshape(shape)
            column = rank[1] if rank else None
            return (scores if column is None else scores[..., column]).reshape(-1)

        graph = next(iter(self.graphs.values()))
        return GraphSubject(graph, tuple(feeds), real, value if rank else None, self.version)

    def _check_rank(self, where: object) -> None:
        """Raises InputError for a `rank` that orders fewer than two candidates, or picks a column that is not there."""
        if self.contract.rank is None:
            return
        output, column = self.contract.rank
        shape = self._shape_of(output)
        if column is not None and not 0 <= column < (shape or (0,))[-1]:
            what = f"contract: rank's column is none of the last axis of '{output}'"
            raise InputError(what, where=where, got=column, allowed=f"0 … {(shape or (0,))[-1] - 1}")
        candidates = shape if column is None else shape[:-1]
        if np.prod(candidates, dtype=int) < 2:
            raise InputError(
                f"contract: rank orders one candidate of '{output}'", where=where, got=(list(shape), column),
                fix="candidates stand on the last axis, with a column on the last but one; leave rank out for none",
            )  # fmt: skip

    def _shape_of(self, output: str) -> tuple[int, ...]:
        graph = next(iter(self.graphs.values()))
        return next(t.shape for t in graph.contract()[1] if t.name == output)

    def goldens(
        self, built: Mapping[str, BuiltGraph], report: Verification, opened: Any, out: Path, seed: int
    ) -> dict[str, Any]:
        return write_graph_golden(self.subject(opened, 1, seed), built, report, out)

    def about(self) -> dict[str, Any]:
        return {"factory": self.factory}

    def card(self, report: Verification) -> str:
        parameters = sum(p.numel() for p in self.module.parameters())
        facts = {"made by": f"`{self.factory}`", "parameters": parameters}
        title = f"{self.contract.name}, a torch module"
        return graph_card(title, "Converted by its tensor contract.", self.graphs[self.contract.name], report, facts)


def _make(factory: str) -> torch.nn.Module:
    name, _, function = factory.partition(":")
    if not name or not function:
        raise InputError("--module is PACKAGE.MODULE:FACTORY", got=factory)
    try:
        make = getattr(importlib.import_module(name), function)
    except (ImportError, AttributeError) as error:
        raise InputError("--module can't be found", got=factory, fix=f"put it on PYTHONPATH ({error})") from None
    except Exception as error:  # the user's own code
        what = "--module can't be imported"
        raise InputError(what, where=factory, got=f"{type(error).__name__}: {error}") from error
    try:
        made = make()
    except Exception as error:  # the user's own code
        raise InputError("--module's factory failed", where=factory, got=f"{type(error).__name__}: {error}") from error
    if not isinstance(made, torch.nn.Module):
        raise InputError("--module gives no torch module", got=type(made).__name__, allowed="torch.nn.Module")
    return made

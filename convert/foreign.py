"""Any torch module with a tensor contract as a job: `kir convert --module package:factory --contract spec.json`.

The factory takes nothing and gives an `nn.Module` with its weights loaded, whose forward takes the contract's inputs by
name. The contract is that of `convert/module_contract.py`. `--data FILE.npz` holds inputs, [S, ...] each; without it
they are drawn.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from contract.errors import InputError, KirError
from convert.build import BuiltGraph
from convert.graph_job import graph_card, write_graph_golden
from convert.module_contract import ModuleContract
from convert.onnx_export import TorchGraph
from convert.report import Verification
from convert.subject import GraphSubject, Outputs

Floats = NDArray[np.float32]


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
            if job.contract.rank is not None:
                job.contract.check_rank(job._shape_of(job.contract.rank[0]), contract)
        except KirError:
            raise
        except Exception as error:  # the user's own code: what it says is what helps
            what = "--module does not run on its contract's inputs"
            got = _signature_gap(job.module, [t.name for t in job.contract.inputs])
            got = got or f"{type(error).__name__}: {error}"
            fix = f"the inputs' names, shapes and bounds stand in {contract}"
            raise InputError(what, where=factory, got=got, fix=fix) from error
        return job

    @property
    def version(self) -> str:
        return self.contract.name

    @property
    def graphs(self) -> Mapping[str, TorchGraph]:
        inputs = {
            name: torch.from_numpy(value) for name, value in self.contract.drawn(np.random.default_rng(0)).items()
        }
        graph = TorchGraph(self.contract.name, "", self.module, inputs, self.contract.outputs)
        return {graph.key: graph}

    def open(self, data: Any, seed: int) -> tuple[Mapping[str, NDArray[Any]] | None, str]:
        """data: .npz with an array [S, ...] for each input."""
        if data is None:
            self.contract.check_drawn()
            return None, "inputs drawn at random"
        arrays = self.contract.read_inputs(data)
        return arrays, f"{Path(data).name}: {len(next(iter(arrays.values())))} inputs"

    def subject(self, opened: Mapping[str, NDArray[Any]] | None, n: int, seed: int) -> GraphSubject:
        return self._subject(opened, n, seed, 0)

    def calibration(self, opened: Mapping[str, NDArray[Any]] | None, n: int, seed: int) -> GraphSubject:
        return self._subject(opened, n, seed, 1)

    def _subject(self, opened: Mapping[str, NDArray[Any]] | None, n: int, seed: int, half: int) -> GraphSubject:
        """Every second input of a file, or drawn ones."""
        if opened is None:
            rng = np.random.default_rng([seed, half])
            feeds = [self.contract.drawn(rng) for _ in range(n)]
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


def _signature_gap(module: torch.nn.Module, names: Sequence[str]) -> str:
    """Which of the names `forward` does not take, and what it wants beside them; "" where they fit."""
    parameters = inspect.signature(module.forward).parameters.values()
    free = any(p.kind is p.VAR_KEYWORD for p in parameters)
    takes = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    needs = [p.name for p in parameters if p.name in takes and p.default is p.empty and p.name not in names]
    unknown = [] if free else [name for name in names if name not in takes]
    told = [f"forward does not take {', '.join(unknown)}"] if unknown else []
    return "; ".join([*told, *([f"forward needs {', '.join(needs)}"] if needs else [])])


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

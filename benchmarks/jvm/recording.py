"""An engine that writes down every run of a graph: what a port of the edge has to feed it, call by call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from contract.manifest import Graph
from edge import Engine, InstalledModel
from edge._graph import GraphRunner

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Run:
    """One run of a graph: tensors by name, in and out."""

    name: str
    bucket: str
    inputs: dict[str, Floats]
    outputs: dict[str, Floats]


class RecordingRunner(GraphRunner):
    """A GraphRunner whose runs are kept, copied from LiteRT's own memory: what the graph saw, buffers reused."""

    def __init__(self, content: bytes, contract: Graph, runs: list[Run], *, allow_no_delegate: bool):
        super().__init__(content, contract, allow_no_delegate=allow_no_delegate)
        self._graph, self._runs = contract, runs

    def invoke(self) -> Mapping[str, Floats]:
        inputs = {name: view.copy() for name, view in self.inputs.items()}
        outputs = super().invoke()
        copies = {name: view.copy() for name, view in outputs.items()}
        self._runs.append(Run(self._graph.name, self._graph.bucket, inputs, copies))
        return outputs


class RecordingEngine(Engine):
    """runs: all since the creation, or since `runs.clear()`; trial runs at loading are none of them."""

    def __init__(self, installed: InstalledModel, *, allow_no_delegate: bool = True):
        self.runs: list[Run] = []
        super().__init__(installed, allow_no_delegate=allow_no_delegate)

    def load_graph(self, name: str, bucket: str, variant: str = "") -> GraphRunner:
        graph = self.manifest.graph(name, bucket)
        content = self.installed.read(graph.variant(variant).file)
        return RecordingRunner(content, graph, self.runs, allow_no_delegate=self._allow_no_delegate)

"""The runtime class that the app uses, LiteRT's CompiledModel, on this machine: published files, bound by name."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.compiled_model import CompiledModel

from contract.manifest import Graph
from edge import InstalledModel


@pytest.fixture(scope="module")
def installed(tiny_cdn: Path) -> InstalledModel:
    return InstalledModel.open_published(tiny_cdn / "models" / "kir-a")


def graphs(installed: InstalledModel) -> list[Graph]:
    """The smallest of each graph that a phone loads."""
    smallest = {graph.name: graph for graph in reversed(installed.manifest.graphs)}
    return [smallest[name] for name in ("page", "watch", "swipe", "place")]


def test_golden_tensors_through_buffers_made_by_name(installed: InstalledModel) -> None:
    for graph in graphs(installed):
        model = CompiledModel.from_file(str(installed.paths[graph.variant().file]))
        ((signature, names),) = model.get_signature_list().items()
        assert set(names["inputs"]) == {tensor.name for tensor in graph.inputs}
        assert set(names["outputs"]) == {tensor.name for tensor in graph.outputs}
        golden = np.load(io.BytesIO(installed.read(installed.manifest.golden.tensors[f"{graph.name}/{graph.bucket}"])))
        inputs = {t.name: model.create_input_buffer_by_name(signature, t.name) for t in graph.inputs}
        outputs = {t.name: model.create_output_buffer_by_name(signature, t.name) for t in graph.outputs}
        for tensor in graph.inputs:
            inputs[tensor.name].write(np.ascontiguousarray(golden[tensor.name].reshape(-1)))
        model.run_by_name(signature, inputs, outputs)
        for tensor in graph.outputs:
            found = outputs[tensor.name].read(int(np.prod(tensor.shape)), np.float32)
            np.testing.assert_allclose(found, golden[tensor.name].reshape(-1), rtol=0, atol=graph.variant().tolerance)

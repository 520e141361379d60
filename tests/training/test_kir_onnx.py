"""Every graph exports to ONNX (opset 20) with its own tensor names, runs, and needs no gather."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from contract.specs import kir_spec
from training.kir import Kir, KirConfig, graphs

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

UNWANTED = {"Gather", "GatherND", "GatherElements", "Expand", "Where", "ScatterND", "Cast", "LayerNormalization", "Erf"}
KEYS = [("page", "N20"), ("watch", "T1"), ("watch", "T10"), ("swipe", "N20"), ("place", "N20"), ("whole", "N20")]


@pytest.fixture(scope="module")
def made():
    torch.manual_seed(2)
    return graphs(Kir(KirConfig.of("tiny"), kir_spec()))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's exporter warns about its own parts
@pytest.mark.parametrize("key", KEYS, ids="-".join)
def test_exported_graph_equals_torch(made, key, tmp_path):
    graph = made[key]
    path = tmp_path / "graph.onnx"
    program = torch.onnx.export(
        graph.module,
        (),
        kwargs=graph.inputs,
        dynamo=True,
        opset_version=20,
        input_names=list(graph.inputs),
        output_names=list(graph.outputs),
        external_data=False,
        verbose=False,
    )
    program.save(path)
    assert not {node.op_type for node in onnx.load(path).graph.node} & UNWANTED
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [x.name for x in session.get_inputs()] == list(graph.inputs)
    assert [x.name for x in session.get_outputs()] == list(graph.outputs)
    found = session.run(None, {name: x.numpy() for name, x in graph.inputs.items()})
    with torch.no_grad():
        expected = graph.module(**graph.inputs)
    for ours, theirs in zip(found, expected if isinstance(expected, tuple) else (expected,), strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5, rtol=0)

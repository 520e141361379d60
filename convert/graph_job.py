"""Goldens and cards of models that are one graph: the ranker, the encoder, foreign modules."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.build import BuiltGraph
from convert.files import write_golden
from convert.golden import tensor_case
from convert.onnx_export import TorchGraph
from convert.quantize import FLOAT
from convert.report import Verification
from convert.subject import GraphSubject
from convert.tflite import TfliteGraph


def write_graph_golden(
    subject: GraphSubject, built: Mapping[str, BuiltGraph], report: Verification, out: Path
) -> dict[str, Any]:
    """One tensor case: the first held-out sample."""
    key, graph = next(iter(built.items()))
    feeds = subject.feeds[0]
    shipped, floats = (TfliteGraph(graph.variants[name]).run(feeds) for name in (report.shipped[key], FLOAT))
    write_golden(out, key, tensor_case(feeds, shipped, floats))
    return {}


def graph_card(title: str, does: str, graph: TorchGraph, report: Verification, facts: Mapping[str, object]) -> str:
    """Markdown: what it is, its tensors, how it was checked."""
    inputs, outputs = graph.contract()
    told = {
        **facts,
        "verified on": f"{report.n_samples} samples ({report.data})",
        "kept of float torch": report.kept,
        "ships": f"{report.shipped[graph.key]}, {report.shipped_bytes} bytes",
    }
    rows = [f"| {name} | {value} |" for name, value in told.items()]
    tensors = [f"- `{t.name}` {list(t.shape)} {t.dtype}" for t in (*inputs, *outputs)]
    lines = [f"# {title}", "", does, "", "| | |", "|---|---|", *rows, "", "## Tensors", "", *tensors]
    lines += ["", "## Conversion", "", "```", report.table(), "```", ""]
    return "\n".join(lines)

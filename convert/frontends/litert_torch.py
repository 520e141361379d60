"""torch -> TFLite by litert-torch: torch.export, StableHLO, LiteRT's own converter. No ONNX anywhere.

An independent second opinion. Static shapes only: a free length ends in an error of its own making.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from contract.errors import ConversionError, InputError
from convert.onnx_export import TorchGraph, in_signature_order
from convert.quiet import quiet
from convert.tensor_names import named_by_signature

LITERT_TORCH = "litert-torch==0.10.0"  # exact: the one that takes ai-edge-litert 2.3 and ai-edge-quantizer 0.10
LITERT_CONVERTER = "litert-converter==0.5.0"  # exact: litert-torch 0.10.0 wants 0.5.*
# What the two above import and would bring themselves, with 30 packages more that conversion never imports
# (transformers, kagglehub, xdsl, ...) and that lower two of our pins. jax 0.10.2 brings jaxlib.
LITERT_TORCH_COMPANIONS = ("jax==0.10.2", "torchao==0.18.0")


class Named(nn.Module):
    """A module that gives its outputs by name: the only names litert-torch keeps."""

    def __init__(self, module: nn.Module, outputs: tuple[str, ...]):
        super().__init__()
        self.module, self.outputs = module, outputs

    def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        found = self.module(**inputs)
        found = found if isinstance(found, tuple) else (found,)
        return dict(zip(self.outputs, found, strict=True))


def convert_torch(graph: TorchGraph, path: str | Path) -> Path:
    """Write the float32 TFLite file of a graph, with the contract's names.

    Raises InputError when litert-torch is absent, ConversionError when it fails and for a graph with a free length.
    """
    if graph.dynamic:
        raise ConversionError("litert-torch takes fixed shapes only", where=graph.key, got=dict(graph.dynamic))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with quiet(f"litert-torch on {graph.key}"):
        converter = _litert_torch()
        graph.module.eval()
        inputs = in_signature_order(graph)
        converter.convert(Named(graph.module, graph.outputs), sample_kwargs=inputs).export(str(path))
    path.write_bytes(named_by_signature(path.read_bytes(), where=path))
    return path


def _litert_torch() -> Any:
    try:
        return importlib.import_module("litert_torch")
    except ImportError as error:
        what = f"this front end needs litert-torch ({error})"
        raise InputError(what, fix="install it with: kir convert setup --litert-torch") from None

"""What a checkpoint holds: spec, parameters, bytes; and for KIR what each graph costs and reads.

Multiply-adds are those of a graph's matrix products as the device runs them. A graph's weights are the parameters and
constants that it reads, so a weight that two graphs share counts in both: each graph is one file. A file also holds its
operations (some tens of KB), and int8 keeps biases and scales wider: `kir describe CONVERTED` tells true sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from training.checkpoint import Checkpoint, load_checkpoint
from training.description import (
    FLOAT_TARGET_BYTES,
    INT8_TARGET_BYTES,
    Description,
    Section,
    against,
    fields_of,
    spec_facts,
    spec_sections,
)
from training.kir import Graph, KirConfig, cost, graphs, load_kir
from training.kuaiformer import KuaiFormerConfig, preset_label

SWIPE_TARGET, SWIPE_L, SWIPE_N = 0.25, 50, 32  # share of (swipe + watch of one video) in the whole, at L and N


def describe_checkpoint(path: Path) -> Description:
    """Raises CheckpointError for a directory that holds no whole checkpoint."""
    checkpoint = load_checkpoint(path)
    training: Mapping[str, Any] = checkpoint.config["training"]
    parameters = {name: tensor.numel() for name, tensor in checkpoint.dense.items()}
    tables: list[dict[str, Any]] = []
    for name, rows in checkpoint.tables.n_rows.items():
        width = checkpoint.tables.widths[name]
        tables.append(
            {"table": name, "rows": rows, "width": width, "parameters": rows * width, "bytes": 4 * rows * width}
        )
    sizes = {name: value for name, value in checkpoint.model_config.items() if name != "preset"}
    facts: dict[str, Any] = {
        "kind": checkpoint.kind,
        "version": checkpoint.version,
        "preset": _preset(checkpoint),
        "sizes": ", ".join(f"{name} {_word(value)}" for name, value in sizes.items()),
        "data": str(training.get("data") or "not said"),
        "seed": str(training.get("seed", "not said")),
        **spec_facts(checkpoint.spec),
        "dense_parameters": sum(parameters.values()),
        "dense_bytes": 4 * sum(parameters.values()),
        "sparse_parameters": sum(one["parameters"] for one in tables),
        "sparse_bytes": sum(one["bytes"] for one in tables),
    }
    data: dict[str, Any] = {"path": str(path), "spec_fields": fields_of(checkpoint.spec), "tables": tables}
    header = ("table", "rows", "width", "parameters", "bytes")
    sections = [*spec_sections(checkpoint.spec)]
    sections.append(Section("sparse tables, float32", header, [[one[name] for name in header] for one in tables]))
    if checkpoint.kind == "kir":
        found = kir_costs(checkpoint)
        facts |= found.facts
        data |= found.data
        sections += found.sections
    return Description(str(path), facts, sections, data)


def _preset(checkpoint: Checkpoint) -> str:
    if checkpoint.kind == "kuaiformer":
        return preset_label(KuaiFormerConfig.from_dict(checkpoint.model_config))
    return str(checkpoint.model_config.get("preset", "none"))


def kir_costs(checkpoint: Checkpoint) -> Description:
    """Every graph in every bucket, and a swipe beside the whole net at each N; N = 32 too, the target's."""
    kir = load_kir(checkpoint)
    config: KirConfig = kir.config
    sizes = tuple(sorted({*config.buckets, SWIPE_N}))
    found = {key: GraphCost.of(*key, graph) for key, graph in graphs(kir, buckets=sizes).items()}
    one_video = found["watch", "T1"].multiply_adds
    published = {f"N{n}" for n in config.buckets}
    loaded = [one for (name, bucket), one in found.items()
              if name != "whole" and (bucket in published or bucket.startswith("T"))]  # fmt: skip
    rows = [one.row(published) for one in found.values()]
    swipes = []
    for n in sizes:
        swipe, whole = (found[name, f"N{n}"].multiply_adds for name in ("swipe", "whole"))
        share = (swipe + one_video) / whole
        aim = (config.watched, n) == (SWIPE_L, SWIPE_N)
        kept = f"≤ {SWIPE_TARGET:.0%}: {'kept' if share <= SWIPE_TARGET else 'MISSED'}" if aim else ""
        bucket = f"N{n}" if f"N{n}" in published else f"N{n} (no bucket)"
        swipes.append([bucket, swipe, one_video, whole, share, kept])
    weights = sum(one.weights for one in loaded)
    files = f"weights alone of {len(loaded)} files, each graph and bucket but whole"
    facts = {
        "device_float_bytes": f"{4 * weights:,}, {against(4 * weights, FLOAT_TARGET_BYTES)}; {files}",
        "device_int8_bytes": f"{weights:,}, {against(weights, INT8_TARGET_BYTES)}; the same at a byte each",
    }
    costs = Section(
        f"graphs at L = {config.watched}: multiply-adds, and the weights that each file holds",
        ("graph", "bucket", "multiply-adds", "weights", "float32 bytes", "int8 bytes", "on a device"), rows,
    )  # fmt: skip
    shares = Section(
        "a swipe: what is run when one video more was watched, beside everything anew",
        ("bucket", "swipe", "watch T1", "whole", "share", "target"), swipes,
    )  # fmt: skip
    data = {
        "graphs": [one.to_dict() for one in found.values()],
        "swipes": [
            dict(zip(("bucket", "swipe", "watch_t1", "whole", "share"), row[:5], strict=True)) for row in swipes
        ],
        "device_weights": weights,
    }
    return Description("", facts, [costs, shares], data)


@dataclass(frozen=True)
class GraphCost:
    """One graph in one bucket: multiply-adds of a run, and the numbers that its file must hold."""

    name: str
    bucket: str
    multiply_adds: int
    weights: int

    @staticmethod
    def of(name: str, bucket: str, graph: Graph) -> GraphCost:
        return GraphCost(name, bucket, cost(graph), weights_read(graph))

    def row(self, published: set[str]) -> list[Any]:
        on = self.name != "whole" and (self.bucket in published or self.bucket.startswith("T"))
        return [self.name, self.bucket, self.multiply_adds, self.weights, 4 * self.weights, self.weights, on]

    def to_dict(self) -> dict[str, Any]:
        return {"graph": self.name, "bucket": self.bucket, "multiply_adds": self.multiply_adds, "weights": self.weights}


def weights_read(graph: Graph) -> int:
    """How many numbers of the module's parameters and buffers a run reads."""
    with _Reads([*graph.module.parameters(), *graph.module.buffers()]) as reads, torch.no_grad():
        graph.module(**graph.inputs)
    return sum(reads.found.values())


class _Reads(TorchDispatchMode):
    """Collects which of the tensors are operands, by their storage, so that views of them count as well."""

    def __init__(self, tensors: list[Tensor]):
        super().__init__()
        self.known = {one.untyped_storage().data_ptr(): one.numel() for one in tensors if one.numel()}
        self.found: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for one in tree_leaves((args, kwargs or {})):
            if isinstance(one, Tensor) and (at := one.untyped_storage().data_ptr()) in self.known:
                self.found[at] = self.known[at]
        return func(*args, **(kwargs or {}))


def _word(value: Any) -> str:
    return "/".join(map(str, value)) if isinstance(value, list | tuple) else str(value)

"""What conversion starts from: a KIR checkpoint as graphs, spec, capacities, fusion weights and decoded rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.beam import ListReward
from contract.errors import ConversionError, InputError
from contract.rows import INT8, decode_rows, encode_rows
from contract.spec import FeatureSpec
from contract.vocabulary import TASKS
from convert.chain import Layout
from convert.onnx_export import TorchGraph
from training.checkpoint import load_checkpoint
from training.kir import graphs as torch_graphs
from training.kir import load_kir
from training.kir_objective import fusion_of, list_reward_of
from training.tables import SparseTables

FIRST_ROWS_REVISION = 1


@dataclass(frozen=True)
class KirSource:
    """One KIR checkpoint, ready to convert. `graphs` share one folded copy of the net's weights.

    capacities: {"L", "P", "k", "N": [buckets], "t": [watch buckets]}, as in the manifest.
    """

    dense_version: str
    rows_revision: int
    spec: FeatureSpec
    capacities: Mapping[str, Any]
    fusion: Mapping[str, float]
    graphs: Mapping[str, TorchGraph]
    tables: SparseTables
    list_reward: ListReward | None
    tasks: tuple[str, ...] = TASKS
    card: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def layout(self) -> Layout:
        """What the halves' runner needs of the capacities, and the cache's shape."""
        watch = next(g.inputs for g in self.graphs.values() if g.name == "watch")
        past = tuple(watch["past"].shape) if "past" in watch else ()
        return Layout.of(self.capacities, past)

    @property
    def fusion_weights(self) -> NDArray[np.float32]:
        """float32 [T], in the order of the score columns."""
        return np.array([self.fusion.get(task, 0.0) for task in self.tasks], np.float32)

    @property
    def trained_until_ms(self) -> int | None:
        """Where training's events end; None where its log had no times or a checkpoint does not say."""
        return self.provenance.get("training", {}).get("trained_until_ms") or None

    def decoded_tables(self, encoding: str = INT8) -> dict[str, NDArray[np.float32]]:
        """Rows as a phone gets them: encoded and decoded again."""
        return {name: decode_rows(encode_rows(rows, encoding)) for name, rows in self.tables.numpy_rows().items()}


def load_source(checkpoint: str | Path) -> KirSource:
    """Read a KIR checkpoint. Raises CheckpointError for anything else, ConversionError for unusable weights."""
    found = load_checkpoint(checkpoint, kind="kir")
    net = load_kir(found)
    config = net.config
    graphs = {}
    for (name, bucket), graph in torch_graphs(net).items():
        one = TorchGraph(name, bucket, graph.module, graph.inputs, tuple(graph.outputs))
        graphs[one.key] = one
    capacities = {
        "L": config.watched,
        "P": config.placed,
        "k": config.beams if config.placed else 0,
        "N": sorted(int(g.bucket[1:]) for g in graphs.values() if g.name == "swipe"),
        "t": sorted(int(g.bucket[1:]) for g in graphs.values() if g.name == "watch"),
    }
    fusion = dict(found.model_config.get("fusion") or fusion_of(config.tasks))
    if set(fusion) - set(config.tasks):
        raise ConversionError("fusion names unknown tasks", where=found.path, got=sorted(fusion), allowed=config.tasks)
    # None where a training had no labels of staying; only checkpoints older than list_reward say nothing
    told = found.model_config.get("list_reward", list_reward_of(config.tasks))
    try:
        reward = None if told is None else ListReward.from_json(told, config.tasks)
    except InputError as error:
        raise ConversionError(error.what, where=found.path, got=error.got, allowed=error.allowed) from None
    return KirSource(
        dense_version=found.version,
        rows_revision=int(found.config["training"].get("rows_revision", FIRST_ROWS_REVISION)),
        spec=found.spec,
        capacities=capacities,
        fusion=fusion,
        graphs=graphs,
        tables=found.tables,
        list_reward=reward,
        tasks=config.tasks,
        card=found.card_path.read_text() if found.card_path.is_file() else "",
        provenance={"training": dict(found.config["training"]), "model": config.to_json()},
    )

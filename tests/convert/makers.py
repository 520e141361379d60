"""Small checkpoints with random weights, made in milliseconds, and the tables a server bundle takes. No training."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import torch
from ai_edge_litert import schema_py_generated as schema

from contract.catalogue import Catalogue, UserTable, write_catalogue, write_users
from contract.events import Events
from contract.parquet import write_events
from contract.specs import kir_spec
from contract.vocabulary import MISSING_KEY, TAGS_MAX
from convert.build import BuiltGraph
from convert.model import tensors_of
from training import kuaiformer, ranker
from training.checkpoint import Checkpoint, save_checkpoint
from training.kir_config import KirConfig
from training.kir_model import Kir
from training.tables import SparseTables

N_ITEMS = 60
VIDEOS = np.arange(1, N_ITEMS + 1, dtype=np.uint64) * np.uint64(7919)
SMALL: dict[str, Any] = {"watched": 6, "buckets": (5, 9), "width": 12, "blocks": 1, "ffn": 20, "expert": 10}


def _tables(spec: Any, seed: int) -> SparseTables:
    tables = SparseTables.from_spec_and_keys(spec, dict.fromkeys(spec.tables, VIDEOS), seed=seed)
    with torch.no_grad():
        for weight in tables.weights.values():
            weight.mul_(10.0)  # rows of trained size, so that scores spread
    return tables


def _save(directory: Path, kind: str, net: torch.nn.Module, spec: Any, config: dict[str, Any], seed: int) -> Checkpoint:
    return save_checkpoint(
        directory,
        kind=kind,
        model=net,
        tables=_tables(spec, seed),
        spec=spec,
        model_config=config,
        training={"seed": seed},
        metrics={},
        card_text=f"# {kind} of a test\n",
    )


def make_kir(directory: Path, seed: int = 0, *, spec: Any = None, **changes: Any) -> Checkpoint:
    """A KIR with two N buckets and L = 6; `changes` go into its configuration."""
    torch.manual_seed(seed)
    spec = spec or kir_spec(video=4, author=3, tag=3, user=4)
    config = KirConfig.of("tiny", **{**SMALL, **changes})
    return _save(directory, "kir", Kir(config, spec), spec, config.to_json(), seed)


def make_kuaiformer(
    directory: Path, seed: int = 0, spoil: Callable[[kuaiformer.KuaiFormer], None] | None = None, **changes: Any
) -> Checkpoint:
    """`changes` go into its configuration; `spoil` may plant a fault in its weights."""
    torch.manual_seed(seed)
    config = kuaiformer.preset_config("tiny", **{"width": 16, "video_width": 8, "attribute_width": 4, **changes})
    net = kuaiformer.KuaiFormer(config, config.spec())
    if spoil is not None:
        with torch.no_grad():
            spoil(net)
    return _save(directory, "kuaiformer", net, config.spec(), config.to_dict(), seed)


def make_ranker(directory: Path, seed: int = 0, heads: tuple[str, ...] = ("click", "long_view")) -> Checkpoint:
    torch.manual_seed(seed)
    config = replace(ranker.preset_config("tiny"), trained_heads=heads)
    net = ranker.Ranker(config, config.spec())
    return _save(directory, "ranker", net, config.spec(), config.to_dict(), seed)


def make_catalogue(path: Path, n: int = N_ITEMS) -> Path:
    number = np.arange(n)
    tags = np.full((n, TAGS_MAX), MISSING_KEY)
    tags[:, 0] = VIDEOS[number % 7]
    items = Catalogue(
        video_id=VIDEOS[:n],
        author_id=VIDEOS[number % 11],
        tags=tags,
        duration_ms=(5_000 + 700 * number).astype(np.int32),
        upload_ms=(1_700_000_000_000 - 86_400_000 * number).astype(np.int64),
    )
    return write_catalogue(path, items)


def make_events(folder: Path, n_users: int = 120, positives: int = 6) -> Path:
    """FOLDER/events.parquet: each user watches `positives` videos long, one after the other, two seconds apart."""
    user, step = np.repeat(np.arange(n_users), positives), np.tile(np.arange(positives), n_users)
    video = VIDEOS[(user * 7 + step * 3) % N_ITEMS]
    columns = {
        "user_id": user.astype(np.uint64) + np.uint64(1),
        "video_id": video,
        "time_ms": 1_700_000_000_000 + 2_000 * step.astype(np.int64),
        "play_time_ms": np.full(len(user), 1_000, np.int32),
        "long_view": np.ones(len(user), np.int8),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_events(folder / "events.parquet", Events(columns))
    return folder


def make_users(path: Path, n: int = 5) -> Path:
    number = np.arange(n, dtype=np.int32)
    return write_users(path, UserTable(user_id=VIDEOS[:n], activity=number, register_days=number * 30))


def built_from(directory: Path) -> dict[str, BuiltGraph]:
    """What `build_all` returned, from a converted model's directory."""
    found = {}
    for entry in json.loads((directory / "model.json").read_text())["graphs"]:
        variants = {name: directory / path for name, path in entry["variants"].items()}
        onnx = directory / "graphs" / f"{entry['name']}-{entry['bucket']}.onnx"
        sides = tensors_of(entry["inputs"]), tensors_of(entry["outputs"])
        graph = BuiltGraph(entry["name"], entry["bucket"], *sides, onnx, variants, {}, ("int8-dynamic",))
        found[graph.key] = graph
    return found


def edit_tflite(path: Path, change: Callable[[Any], None]) -> None:
    """Unpack a flatbuffer, let `change` have the model, and pack it again."""
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    change(model)
    builder = flatbuffers.Builder(path.stat().st_size + 1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    path.write_bytes(bytes(builder.Output()))


def scale_largest_weight(factor: float) -> Callable[[Any], None]:
    """The planted fault of a wrong weight: the largest float constant of the graph, times `factor`."""

    def change(model: Any) -> None:
        floats = [
            model.buffers[tensor.buffer]
            for tensor in model.subgraphs[0].tensors
            if tensor.type == schema.TensorType.FLOAT32 and model.buffers[tensor.buffer].data is not None
        ]
        largest = max(floats, key=lambda buffer: len(buffer.data))
        values = np.frombuffer(np.asarray(largest.data, np.uint8).tobytes(), "<f4") * np.float32(factor)
        largest.data = np.frombuffer(values.tobytes(), np.uint8)

    return change


def swap_inputs(one: str, other: str) -> Callable[[Any], None]:
    """The planted fault of two inputs of one shape under each other's names."""

    def change(model: Any) -> None:
        by_name = {bytes(t.name).decode(): t for t in model.subgraphs[0].tensors}
        by_name[one].name, by_name[other].name = other.encode(), one.encode()

    return change


def constants(path: Path, kind: int, dtype: str) -> list[Any]:
    """Matrices that stand in a TFLite file, of one type."""
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    found = []
    for tensor in model.subgraphs[0].tensors:
        data = model.buffers[tensor.buffer].data
        if tensor.type == kind and data is not None and len(data) and len(tensor.shape) > 1:
            found.append(np.frombuffer(np.asarray(data, np.uint8).tobytes(), dtype).reshape(tensor.shape))
    return found

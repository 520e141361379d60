"""The server's graphs: KuaiFormer's encoder and item side, and the ranker, as ONNX that takes looked-up rows.

Each is compared with torch in onnxruntime at several batch sizes before it is kept; item vectors come from the exported
item graph, so that index and encoder are of one make.

Shapes: b requests, L history, R row width, K interests, D width, n candidates or items, X heads.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from contract.catalogue import Catalogue
from contract.errors import ConversionError, VerificationFailed
from contract.history import KUAIFORMER_HISTORY
from contract.server_order import DEFAULT_FUSION, WATCH_TIME
from convert.measure import distance
from convert.onnx_export import OnnxGraph, TorchGraph, export_onnx
from convert.phone import Rows
from training.checkpoint import Checkpoint
from training.kuaiformer_train import load_kuaiformer
from training.ranker import RankerProbabilities
from training.ranker_train import load_ranker

PARITY_MAX_ABS = 1e-4
BATCHES = (1, 3, 40)  # tried besides the traced one
TRACED = 2
FLAT_UP_TO_ITEMS = 50_000
CHUNK = 8192
Floats = NDArray[np.float32]


def export_retrieval(checkpoint: Checkpoint, items: Catalogue, directory: Path) -> None:
    """encoder.onnx, item.onnx, the item matrix, its faiss index, tables, spec and config.

    Raises VerificationFailed when onnxruntime and torch disagree, ConversionError for vectors that are not finite.
    """
    directory.mkdir(parents=True)
    net, spec = load_kuaiformer(checkpoint).eval(), checkpoint.spec
    history = {"history_rows": (spec.width("history_rows"),), "history_mask": ()}
    encoder = _graph("encoder", net.encoder, history, {}, "interests", KUAIFORMER_HISTORY)
    _export(encoder, directory / "encoder.onnx")
    item = _graph("item", net.item, {}, {"item_rows": spec.width("item_rows")}, "item_vector", 0)
    runner = _export(item, directory / "item.onnx")
    vectors = item_matrix(checkpoint, items, runner)
    np.save(directory / "item_vectors.npy", vectors)
    np.save(directory / "item_ids.npy", items.video_id)
    index_kind = write_index(vectors, directory / "items.faiss")
    config = {"history": KUAIFORMER_HISTORY, "index": index_kind, "model": dict(checkpoint.model_config)}
    _write_common(checkpoint, config, directory)


def export_ranker(checkpoint: Checkpoint, directory: Path) -> None:
    """ranker.onnx, tables, spec, and config.json with the history length and the fusion of the trained heads."""
    directory.mkdir(parents=True)
    net, spec = load_ranker(checkpoint).eval(), checkpoint.spec
    history = net.config.history
    graph = _ranker_graph(RankerProbabilities(net).eval(), spec, history)
    _export(graph, directory / "ranker.onnx", fixed=("user_rows", "user_dense", "history_rows", "history_mask"))
    trained = net.config.trained_heads
    fusion = {name: weight for name, weight in DEFAULT_FUSION.items() if name in trained or name == WATCH_TIME}
    config = {"history": history, "heads": list(trained), "fusion": fusion, "model": dict(checkpoint.model_config)}
    _write_common(checkpoint, config, directory)


def item_matrix(checkpoint: Checkpoint, items: Catalogue, runner: OnnxGraph) -> Floats:
    """Vectors of all items by the exported graph, [I, D]."""
    rows = Rows(checkpoint.spec, checkpoint.tables, checkpoint.tables.numpy_rows())
    parts = []
    for start in range(0, len(items), CHUNK):
        cut = slice(start, start + CHUNK)
        names = ("video_id", "author_id", "tags", "duration_ms")
        columns = {name: getattr(items, name)[cut] for name in names}
        parts.append(runner.run({"item_rows": rows.block("item_rows", columns)})["item_vector"])
    if not parts:
        raise ConversionError("the catalogue is empty: nothing to index")
    vectors: Floats = np.concatenate(parts).astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise ConversionError("item vectors are not finite", got=f"items {items.video_id[bad[:3]].tolist()}")
    return vectors


def write_index(vectors: Floats, path: Path) -> str:
    """Inner-product index over the rows of `vectors`: exact up to FLAT_UP_TO_ITEMS, IVF with 8-bit codes above.

    Returns the index in faiss' words.
    """
    import faiss

    n, width = vectors.shape
    if n <= FLAT_UP_TO_ITEMS:
        kind = "Flat"
        index: Any = faiss.IndexFlatIP(width)
    else:
        lists = int(4 * np.sqrt(n))
        kind = f"IVF{lists},SQ8"
        index = faiss.index_factory(width, kind, faiss.METRIC_INNER_PRODUCT)
        sample = np.random.default_rng(0).choice(n, min(n, 64 * lists), replace=False)
        index.train(vectors[sample])
        index.nprobe = max(8, lists // 32)
    index.add(vectors)
    faiss.write_index(index, str(path))
    return kind


def _graph(
    name: str,
    module: torch.nn.Module,
    sequences: Mapping[str, tuple[int, ...]],
    flat: Mapping[str, int],
    output: str,
    length: int,
) -> TorchGraph:
    """A graph whose first axis is free. sequences: name -> trailing shape after [b, length]; flat: name -> width."""
    random = torch.Generator().manual_seed(0)
    inputs = {n: torch.randn((TRACED, length, *tail), generator=random) for n, tail in sequences.items()}
    inputs |= {n: torch.randn((TRACED, width), generator=random) for n, width in flat.items()}
    if "history_mask" in inputs:
        inputs["history_mask"] = _masks(TRACED, length)
    dynamic = {n: {0: "b"} for n in (*inputs, output)}
    return TorchGraph(name, "", module, inputs, (output,), dynamic)


def _ranker_graph(module: torch.nn.Module, spec: Any, history: int) -> TorchGraph:
    random = torch.Generator().manual_seed(0)
    widths = {block: spec.width(block) for block in ("user_rows", "user_dense", "candidate_rows", "candidate_dense")}
    inputs = {
        "user_rows": torch.randn((1, widths["user_rows"]), generator=random),
        "user_dense": torch.randn((1, widths["user_dense"]), generator=random),
        "history_rows": torch.randn((1, history, spec.width("history_rows")), generator=random),
        "history_mask": _masks(1, history),
        "candidate_rows": torch.randn((TRACED, widths["candidate_rows"]), generator=random),
        "candidate_dense": torch.randn((TRACED, widths["candidate_dense"]), generator=random),
    }
    dynamic = {name: {0: "n"} for name in ("candidate_rows", "candidate_dense", "pxtr")}
    return TorchGraph("ranker", "", module, inputs, ("pxtr",), dynamic)


def _masks(n: int, length: int, seed: int = 0) -> torch.Tensor:
    """1 = real, padding first; the first row is full, the second (if any) empty."""
    real = np.random.default_rng(seed).integers(0, length + 1, n)
    real[:2] = (length, 0)[: len(real[:2])]
    return torch.from_numpy((np.arange(length)[None] >= length - real[:, None]).astype(np.float32))


def _export(graph: TorchGraph, path: Path, fixed: tuple[str, ...] = ()) -> OnnxGraph:
    """Export and compare with torch at other sizes of the free axis. fixed: inputs whose first axis stays 1."""
    runner = OnnxGraph(export_onnx(graph, path))
    rng = np.random.default_rng(1)
    for size in BATCHES:
        feeds = {}
        for name, example in graph.inputs.items():
            shape = tuple(example.shape) if name in fixed else (size, *example.shape[1:])
            feeds[name] = rng.normal(0.0, 0.5, shape).astype(np.float32)
            if name == "history_mask":
                feeds[name] = _masks(shape[0], shape[1], seed=size).numpy()
        want, got = graph.run(feeds), runner.run(feeds)
        apart = distance([want[name] for name in graph.outputs], [got[name] for name in graph.outputs]).max_abs
        if not apart <= PARITY_MAX_ABS:
            raise VerificationFailed(
                f"{graph.name} in onnxruntime differs from torch",
                where=path,
                got=f"max abs {apart:.3g} at batch {size}",
                allowed=f"{PARITY_MAX_ABS:g}",
            )
    return runner


def _write_common(checkpoint: Checkpoint, config: dict[str, Any], directory: Path) -> None:
    shutil.copyfile(checkpoint.tables_path, directory / "tables.safetensors")
    (directory / "spec.json").write_text(json.dumps(checkpoint.spec.to_json(), indent=2, sort_keys=True) + "\n")
    (directory / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")

"""The server's graphs: KuaiFormer's encoder and item side, and the ranker, as ONNX that takes looked-up rows.

Each is compared with torch in onnxruntime at several batch sizes before it is kept; item vectors come from the exported
item graph, so that index and encoder are of one make.

Shapes: b requests, L history, R row width, K interests, D width, n candidates or items, X heads.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from contract.catalogue import Catalogue
from contract.errors import ConversionError, InputError, VerificationFailed
from contract.matches import K_MATCHES
from contract.server_order import DEFAULT_FUSION, WATCH_TIME
from contract.spec import FeatureSpec
from convert.encoder_graph import encoder_graph, tail_graph, window_graph
from convert.encoder_int8 import judge, quantise
from convert.encoder_queries import EncoderQueries, drawn_queries, real_queries
from convert.item_index import EXACT_UP_TO_ITEMS, IndexChoice, choose_index
from convert.measure import distance
from convert.onnx_export import OnnxGraph, TorchGraph, export_onnx
from convert.phone import Rows
from training.checkpoint import Checkpoint
from training.kuaiformer import KuaiFormer, KuaiFormerConfig
from training.kuaiformer_train import load_kuaiformer
from training.ranker import RankerProbabilities
from training.ranker_train import load_ranker
from training.tables import SparseTables

FORMAT = "kir-server-model/1"
PARITY_MAX_ABS = 1e-4
BATCHES = (1, 3, 40)  # tried besides the traced one
TRACED = 2
ENCODERS = ("float32", "int8", "auto")
CHUNK = 8192
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class RetrievalChoices:
    """What ships beside the weights.

    encoder  float32; int8 (VerificationFailed when the gate says no); auto: the quicker of those the gate lets through
    data     real histories as `kir train --data` takes them, for the gate and the index's recall; "" = none
    recall   of the index at 100, against exact search
    queries  histories that are measured on, drawn by `seed`
    """

    encoder: str = "float32"
    data: str = ""
    recall: float = 0.98
    queries: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.encoder not in ENCODERS:
            raise InputError("--encoder is unknown", got=self.encoder, allowed=ENCODERS)
        if self.encoder != "float32" and not self.data:
            raise InputError(
                f"--encoder {self.encoder} needs real histories to be judged by",
                fix="name the model's data: --data KIND:PATH",
            )


def export_retrieval(
    checkpoint: Checkpoint, items: Catalogue, directory: Path, choices: RetrievalChoices | None = None
) -> list[str]:
    """encoder.onnx, item.onnx, the item matrix, its index, tables, spec and config. Returns what it chose, in words.

    Raises VerificationFailed when onnxruntime and torch disagree or int8 was asked for and fails its gate,
    ConversionError for vectors that are not finite.
    """
    directory.mkdir(parents=True, exist_ok=True)
    choices = choices or RetrievalChoices()
    net, spec = load_kuaiformer(checkpoint), checkpoint.spec
    encoder = export_encoder(net, directory / "encoder.onnx")
    item = _graph("item", net.item, {}, {"item_rows": spec.width("item_rows")}, "item_vector", 0)
    vectors = item_matrix(checkpoint, items, _export(item, directory / "item.onnx"))
    np.save(directory / "item_vectors.npy", vectors)
    np.save(directory / "item_ids.npy", items.video_id)
    length, said = net.config.length, []
    queries = None
    if choices.data:
        queries = real_queries(checkpoint, items, choices.data, length=length, limit=choices.queries, seed=choices.seed)
    about: dict[str, Any] = {"kind": "float32"}
    if choices.encoder != "float32" and queries is not None:
        about = _ship_int8(encoder, vectors, queries, directory / "encoder.onnx", demand=choices.encoder == "int8")
        said.append(about.pop("said"))
    if net.config.windows and about["kind"] == "float32":  # int8 is judged whole
        export_halves(net, directory)
    index, measured = _index(checkpoint, items, vectors, encoder, queries, choices)
    faiss.write_index(index.index, str(directory / "items.faiss"))
    if index.tried:
        said.append(f"index {index.kind} {index.setting}\n{index.table()}")
    config = {
        "history": length,
        "encoder": about,
        "index": index.to_json(**measured),
        "model": dict(checkpoint.model_config),
    }
    _write_common(checkpoint, config, directory)
    return said


def _index(
    checkpoint: Checkpoint,
    items: Catalogue,
    vectors: Floats,
    encoder: OnnxGraph,
    queries: EncoderQueries | None,
    choices: RetrievalChoices,
) -> tuple[IndexChoice, dict[str, Any]]:
    """The item index, and what its recall was measured with (nothing for a small catalogue: exact search)."""
    if len(items) <= EXACT_UP_TO_ITEMS:
        return choose_index(vectors, vectors[:0]), {}
    length = KuaiFormerConfig.from_dict(checkpoint.model_config).length
    asked = queries or drawn_queries(checkpoint, items, length=length, limit=choices.queries, seed=choices.seed)
    interests = np.concatenate([encoder.run(asked.feeds(query))["interests"][0] for query in range(len(asked))])
    chosen = choose_index(vectors, interests, recall=choices.recall, seed=choices.seed)
    return chosen, {"asked": asked.source, "recall_wanted": choices.recall, "k": 100}


def export_encoder(net: KuaiFormer, path: Path) -> OnnxGraph:
    """Write the encoder's float graph and compare it with torch. Raises VerificationFailed."""
    model = encoder_graph(net.encoder, net.spec.width("history_rows"))
    path.write_bytes(model.SerializeToString(deterministic=True))
    history = {"history_rows": (net.spec.width("history_rows"),), "history_mask": ()}
    runner = OnnxGraph(path)
    _compare(_graph("encoder", net.encoder, history, {}, "interests", net.config.length), runner, path)
    return runner


def export_halves(net: KuaiFormer, directory: Path) -> None:
    """Write window.onnx and tail.onnx, for a server that keeps windows, and compare them with torch at the shortest, a
    middling and the full tail. Raises VerificationFailed."""
    encoder, width, config = net.encoder, net.spec.width("history_rows"), net.config
    runners = []
    for name, make in (("window", window_graph), ("tail", tail_graph)):
        path = directory / f"{name}.onnx"
        path.write_bytes(make(encoder, width).SerializeToString(deterministic=True))
        runners.append(OnnxGraph(path))
    window, tail = runners
    early, rng = sum(config.windows), np.random.default_rng(1)
    rows = rng.normal(0.0, 0.5, (TRACED, config.length, width)).astype(np.float32)
    mask, parts, end = _masks(TRACED, early).numpy(), [], 0
    for size in config.windows:
        place, end = slice(end, end + size), end + size
        parts.append(window.run({"history_rows": rows[:, place], "history_mask": mask[:, place]}))
    found = {"tokens": np.stack([part["token"] for part in parts], 1)}
    found |= {"present": np.stack([part["present"] for part in parts], 1)}
    with torch.no_grad():
        kept = encoder.compressed(torch.from_numpy(rows[:, :early]), torch.from_numpy(mask), config.windows)
        for n in sorted({1, config.latest // 2 + 1, config.latest}):
            raw = np.zeros((TRACED, config.latest, width), np.float32)
            there = np.zeros((TRACED, config.latest), np.float32)
            raw[:, :n], there[:, :n] = rows[:, early : early + n], 1.0
            got = tail.run({**found, "history_rows": raw, "history_mask": there})["interests"]
            want = encoder.behind(kept, torch.from_numpy(raw[:, :n]), torch.ones(TRACED, n))[:, 0].numpy()
            apart = float(np.abs(got - want).max())
            if not apart <= PARITY_MAX_ABS:
                raise VerificationFailed(
                    "the encoder's halves in onnxruntime differ from torch", where=directory / "tail.onnx",
                    got=f"max abs {apart:.3g} with {n} raw items", allowed=f"{PARITY_MAX_ABS:g}",
                )  # fmt: skip


def _ship_int8(
    encoder: OnnxGraph, vectors: Floats, queries: EncoderQueries, path: Path, *, demand: bool
) -> dict[str, Any]:
    """Put int8 in the place of `path` where the gate lets it and, unless it was demanded, where it is quicker."""
    aside = quantise(path, path.with_name("encoder.int8.onnx"))
    verdict = judge(encoder, OnnxGraph(aside), vectors, queries)
    if demand and not verdict.passed:
        raise VerificationFailed(
            "the int8 encoder may not serve", where=path.parent, got=str(verdict), fix="ship --encoder float32, or auto"
        )
    ships = verdict.passed and (demand or verdict.faster)
    if ships:
        aside.replace(path)
    else:
        aside.unlink()
    kind = "int8" if ships else "float32"
    return {"kind": kind, "int8": verdict.to_json(), "said": f"encoder {kind}: {verdict}"}


def export_ranker(checkpoint: Checkpoint, directory: Path) -> None:
    """ranker.onnx, tables, spec, and config.json with the history length and the fusion of the trained heads."""
    directory.mkdir(parents=True)
    net, spec = load_ranker(checkpoint).eval(), checkpoint.spec
    history = net.config.history
    graph = _ranker_graph(RankerProbabilities(net).eval(), spec, history)
    fixed = ("user_rows", "user_dense", "history_rows", "history_dense", "history_mask")
    _export(graph, directory / "ranker.onnx", fixed=fixed)
    trained = net.config.trained_heads
    fusion = {name: weight for name, weight in DEFAULT_FUSION.items() if name in trained or name == WATCH_TIME}
    config = {"history": history, "heads": list(trained), "fusion": fusion, "model": dict(checkpoint.model_config)}
    _write_common(checkpoint, config, directory)


def item_matrix(checkpoint: Checkpoint, items: Catalogue, runner: OnnxGraph) -> Floats:
    """Vectors of all items by the exported graph, [I, D]."""
    if not len(items):
        raise ConversionError("the catalogue is empty: nothing to index")
    return vectors_of(checkpoint.spec, checkpoint.tables, items, runner, np.arange(len(items)))


def vectors_of(
    spec: FeatureSpec, tables: SparseTables, items: Catalogue, runner: OnnxGraph, which: NDArray[np.int64]
) -> Floats:
    """Vectors of the rows `which` of a catalogue, [n, D]. Raises ConversionError for values that are not finite."""
    rows = Rows(spec, tables, tables.numpy_rows())
    # An empty part gives the width where nothing is asked for.
    starts = range(0, max(1, len(which)), CHUNK)
    parts = []
    for start in starts:
        cut = which[start : start + CHUNK]
        columns = {name: getattr(items, name)[cut] for name in ("video_id", "author_id", "tags", "duration_ms")}
        parts.append(runner.run({"item_rows": rows.block("item_rows", columns)})["item_vector"])
    vectors: Floats = np.concatenate(parts).astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise ConversionError("item vectors are not finite", got=f"items {items.video_id[which[bad[:3]]].tolist()}")
    return vectors


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
        "history_dense": torch.randn((1, history, spec.width("history_dense")), generator=random),
        "history_mask": _masks(1, history),
        "candidate_rows": torch.randn((TRACED, widths["candidate_rows"]), generator=random),
        "candidate_dense": torch.randn((TRACED, widths["candidate_dense"]), generator=random),
        "match": torch.randint(2, (TRACED, history, K_MATCHES), generator=random).float(),
    }
    dynamic = {name: {0: "n"} for name in ("candidate_rows", "candidate_dense", "match", "pxtr")}
    return TorchGraph("ranker", "", module, inputs, ("pxtr",), dynamic)


def _masks(n: int, length: int, seed: int = 0) -> torch.Tensor:
    """1 = real, padding first; the first row is full, the second (if any) empty."""
    real = np.random.default_rng(seed).integers(0, length + 1, n)
    real[:2] = (length, 0)[: len(real[:2])]
    return torch.from_numpy((np.arange(length)[None] >= length - real[:, None]).astype(np.float32))


def _export(graph: TorchGraph, path: Path, fixed: tuple[str, ...] = ()) -> OnnxGraph:
    """Export, and compare with torch. fixed: inputs whose first axis stays 1."""
    runner = OnnxGraph(export_onnx(graph, path))
    _compare(graph, runner, path, fixed)
    return runner


def _compare(graph: TorchGraph, runner: OnnxGraph, path: Path, fixed: tuple[str, ...] = ()) -> None:
    """onnxruntime beside torch at several sizes of the free axis. Raises VerificationFailed."""
    rng = np.random.default_rng(1)
    for size in BATCHES:
        feeds = {}
        for name, example in graph.inputs.items():
            shape = tuple(example.shape) if name in fixed else (size, *example.shape[1:])
            feeds[name] = rng.normal(0.0, 0.5, shape).astype(np.float32)
            if name == "history_mask":
                feeds[name] = _masks(shape[0], shape[1], seed=size).numpy()
            elif name == "match":
                feeds[name] = (feeds[name] > 0).astype(np.float32)  # flags
        want, got = graph.run(feeds), runner.run(feeds)
        apart = distance([want[name] for name in graph.outputs], [got[name] for name in graph.outputs]).max_abs
        if not apart <= PARITY_MAX_ABS:
            raise VerificationFailed(
                f"{graph.name} in onnxruntime differs from torch",
                where=path,
                got=f"max abs {apart:.3g} at batch {size}",
                allowed=f"{PARITY_MAX_ABS:g}",
            )


def _write_common(checkpoint: Checkpoint, config: dict[str, Any], directory: Path) -> None:
    shutil.copyfile(checkpoint.tables_path, directory / "tables.safetensors")
    (directory / "spec.json").write_text(json.dumps(checkpoint.spec.to_json(), indent=2, sort_keys=True) + "\n")
    config = {"format": FORMAT, **config}
    (directory / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")

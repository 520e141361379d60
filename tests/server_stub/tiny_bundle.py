"""A small, valid server bundle made by hand: real ONNX graphs, a real faiss index, random tables. No torch.

python -m tests.server_stub.tiny_bundle DIR   writes one, for trying `kir serve --bundle DIR`.

Videos belong to TOPICS topics (video number modulo TOPICS) and video rows are topic vectors plus noise, so that
retrieval has something to find: interest 0 is the mean of the history, interest 1 the mean of its last 4.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from contract.catalogue import Catalogue, UserTable, read_catalogue, write_catalogue, write_users
from contract.events import Events
from contract.history import KUAIFORMER_HISTORY, RANKER_HISTORY
from contract.matches import K_MATCHES
from contract.parquet import write_events
from contract.spec import FeatureSpec
from contract.specs import kir_spec, kuaiformer_spec, ranker_spec
from contract.vocabulary import MISSING_KEY, TAGS_MAX, X_PXTR

TOPICS, WIDTH, LAST = 4, 8, 4
N_ITEMS, N_USERS, N_AUTHORS, N_TAGS = 120, 10, 15, 9
FIRST_VIDEO, FIRST_USER, FIRST_AUTHOR = 1000, 1, 500
START_MS = 1_700_000_000_000
HISTORY_LENGTHS = (0, 3, 5, 8, 20, 40, 300, 6, 7, 2)  # of users FIRST_USER …: one without any, one above 256


def video_ids(n: int = N_ITEMS) -> NDArray[np.uint64]:
    return np.arange(FIRST_VIDEO, FIRST_VIDEO + n, dtype=np.uint64)


def topic_of(video_id: Any) -> Any:
    return (np.asarray(video_id, np.int64) - FIRST_VIDEO) % TOPICS


def make_catalogue(n: int = N_ITEMS) -> Catalogue:
    number = np.arange(n)
    tags = np.full((n, TAGS_MAX), MISSING_KEY)
    tags[:, 0] = number % N_TAGS
    tags[number % 4 == 0, 1] = (number[number % 4 == 0] + 1) % N_TAGS
    tags[number % 10 == 9] = MISSING_KEY  # some have none
    return Catalogue(
        video_id=video_ids(n),
        author_id=(FIRST_AUTHOR + number % N_AUTHORS).astype(np.uint64),
        tags=tags,
        duration_ms=(5_000 + 700 * number).astype(np.int32),
        upload_ms=START_MS - 86_400_000 * (1 + number % 30).astype(np.int64),
        music_id=(number % 5).astype(np.uint64),
        kind=(number % 3).astype(np.uint64),
    )


def make_histories(items: Catalogue) -> Events:
    """Users watch one topic each (user number modulo TOPICS), long."""
    users, videos, times = [], [], []
    for number, length in enumerate(HISTORY_LENGTHS):
        own = items.video_id[topic_of(items.video_id) == number % TOPICS]
        for step in range(length):
            users.append(FIRST_USER + number)
            videos.append(own[step % (len(own) // 2)])  # the other half of the topic stays unseen
            times.append(START_MS - 3_600_000 + 1_000 * step)
    rows = items.index_of(np.array(videos, np.uint64))
    return Events(
        {
            "user_id": np.array(users, np.uint64),
            "video_id": items.video_id[rows],
            "time_ms": np.array(times, np.int64),
            "long_view": np.ones(len(users), np.int8),
            "play_time_ms": items.duration_ms[rows],
            "duration_ms": items.duration_ms[rows],
            "author_id": items.author_id[rows],
            "tags": items.tags[rows],
            "music_id": items.music_id[rows],
            "kind": items.kind[rows],
        }
    )


def table_keys(items: Catalogue) -> dict[str, NDArray[np.uint64]]:
    tags = np.unique(items.tags)
    return {
        "video": items.video_id,
        "author": np.unique(items.author_id),
        "tag": tags[tags != MISSING_KEY],
        "user": np.arange(FIRST_USER, FIRST_USER + N_USERS, dtype=np.uint64),
        "music": np.arange(5, dtype=np.uint64),
        "kind": np.arange(3, dtype=np.uint64),
        "duration": np.arange(0, 1000, 25, dtype=np.uint64),
        "gap": np.arange(11, dtype=np.uint64),
        "play_ratio": np.arange(11, dtype=np.uint64),
    }


def topic_vectors(ids: NDArray[np.uint64], width: int, rng: np.random.Generator) -> NDArray[np.float32]:
    vectors = 0.1 * rng.standard_normal((len(ids), width))
    vectors[np.arange(len(ids)), topic_of(ids)] += 1.0
    return vectors.astype(np.float32)


def write_tables(path: Path, spec: FeatureSpec, items: Catalogue, seed: int) -> None:
    """Rows of every table of a spec in the checkpoint's layout."""
    rng = np.random.default_rng(seed)
    keys, arrays = table_keys(items), {}
    for table, width in spec.tables.items():
        known = np.sort(keys[table])
        rows = topic_vectors(known, width, rng) if table == "video" else 0.3 * rng.standard_normal((len(known), width))
        default = 0.05 * rng.standard_normal((1, width))
        arrays[f"{table}.keys"] = np.concatenate([[MISSING_KEY], known]).view(np.int64)
        arrays[f"{table}.rows"] = np.concatenate([default, rows]).astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(arrays, path)


def save_graph(
    path: Path, nodes: list[Any], inputs: dict[str, list[Any]], outputs: dict[str, list[Any]], **constants: Any
):
    def info(shapes: dict[str, list[Any]]) -> list[Any]:
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]

    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, path.stem, info(inputs), info(outputs), initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)


def masked_mean(rows: str, mask: str, out: str) -> list[Any]:
    """Nodes of: mean of rows [b,L,R] where mask [b,L] is 1 -> out [b,R]."""
    node = helper.make_node
    return [
        node("Unsqueeze", [mask, "axis2"], [f"{out}_m"]),
        node("Mul", [rows, f"{out}_m"], [f"{out}_x"]),
        node("ReduceSum", [f"{out}_x", "axis1"], [f"{out}_sum"], keepdims=0),
        node("ReduceSum", [f"{out}_m", "axis1"], [f"{out}_n"], keepdims=0),
        node("Max", [f"{out}_n", "one"], [f"{out}_n1"]),
        node("Div", [f"{out}_sum", f"{out}_n1"], [out]),
    ]


AXES = {"axis1": np.array([1], np.int64), "axis2": np.array([2], np.int64), "one": np.array(1, np.float32)}


def write_encoder(path: Path, spec: FeatureSpec, width: int) -> None:
    node, length, rows = helper.make_node, KUAIFORMER_HISTORY, spec.width("history_rows")
    last = np.zeros((1, length), np.float32)
    last[0, -LAST:] = 1.0
    project = np.eye(rows, width, dtype=np.float32)  # the video columns come first
    nodes = [
        node("Mul", ["history_mask", "last"], ["last_mask"]),
        *masked_mean("history_rows", "history_mask", "all_mean"),
        *masked_mean("history_rows", "last_mask", "last_mean"),
        node("MatMul", ["all_mean", "project"], ["all_i"]),
        node("MatMul", ["last_mean", "project"], ["last_i"]),
        node("Unsqueeze", ["all_i", "axis1"], ["all_k"]),
        node("Unsqueeze", ["last_i", "axis1"], ["last_k"]),
        node("Concat", ["all_k", "last_k"], ["interests"], axis=1),
    ]
    inputs = {"history_rows": ["b", length, rows], "history_mask": ["b", length]}
    save_graph(path, nodes, inputs, {"interests": ["b", 2, width]}, last=last, project=project, **AXES)


def write_ranker(path: Path, spec: FeatureSpec, seed: int) -> None:
    node, rng = helper.make_node, np.random.default_rng(seed)
    width = spec.width

    def weights(*shape: int) -> NDArray[np.float32]:
        return (0.5 * rng.standard_normal(shape)).astype(np.float32)

    nodes = [
        node("Concat", ["history_rows", "history_dense"], ["entries"], axis=2),
        *masked_mean("entries", "history_mask", "history"),
        node("ReduceMean", ["match"], ["matched"], axes=[1], keepdims=0),
        node("Concat", ["user_rows", "user_dense", "history"], ["user"], axis=1),
        node("Concat", ["candidate_rows", "candidate_dense", "matched"], ["candidate"], axis=1),
        node("MatMul", ["user", "w_user"], ["u"]),
        node("MatMul", ["candidate", "w_candidate"], ["c"]),
        node("Add", ["u", "c"], ["logits"]),
        node("Sigmoid", ["logits"], ["pxtr"]),
    ]
    inputs: dict[str, list[Any]] = {name: [1, width(name)] for name in ("user_rows", "user_dense")}
    inputs["history_rows"] = [1, RANKER_HISTORY, width("history_rows")]
    inputs["history_dense"] = [1, RANKER_HISTORY, width("history_dense")]
    inputs["history_mask"] = [1, RANKER_HISTORY]
    inputs["match"] = ["n", RANKER_HISTORY, K_MATCHES]
    inputs |= {name: ["n", width(name)] for name in ("candidate_rows", "candidate_dense")}
    w_user = weights(sum(map(width, ("user_rows", "user_dense", "history_rows", "history_dense"))), X_PXTR)
    w_candidate = weights(width("candidate_rows") + width("candidate_dense") + K_MATCHES, X_PXTR)
    save_graph(path, nodes, inputs, {"pxtr": ["n", X_PXTR]}, w_user=w_user, w_candidate=w_candidate, **AXES)


def write_rows(
    root: Path, dense_version: str, *, spec: FeatureSpec | None = None, revision: int = 1, seed: int = 3
) -> Path:
    """BUNDLE/rows/<dense_version>; call `write_index` afterwards."""
    spec = spec or kir_spec()
    directory = root / "rows" / dense_version
    write_tables(directory / "tables.safetensors", spec, make_catalogue(), seed)
    (directory / "spec.json").write_text(json.dumps(spec.to_json()))
    about = {"dense_version": dense_version, "rows_revision": revision, "spec_fingerprint": spec.fingerprint}
    (directory / "rows.json").write_text(json.dumps(about))
    return directory


def write_item_update(
    root: Path,
    number: int,
    ids: NDArray[np.uint64],
    vectors: NDArray[np.float32],
    *,
    removed: Sequence[int] = (),
    more: Sequence[int] = (),
) -> Path:
    """BUNDLE/retrieval/items/<number>, listed. more: videos that the catalogue gets as well; removed ones leave it."""
    path = root / f"retrieval/items/{number:06d}.safetensors"
    path.parent.mkdir(exist_ok=True)
    gone = np.array(removed, np.uint64)
    save_file({"ids": ids.view(np.int64), "vectors": vectors, "removed": gone.view(np.int64)}, path)
    items = read_catalogue(root / "catalogue.parquet")
    rows = np.flatnonzero(~np.isin(items.video_id, gone))
    rows = np.concatenate([rows, np.zeros(len(more), np.int64)])
    columns = {name: getattr(items, name)[rows] for name in items.__dataclass_fields__}
    columns["video_id"] = np.concatenate([columns["video_id"][: len(rows) - len(more)], np.array(more, np.uint64)])
    write_catalogue(root / "catalogue.parquet", Catalogue(**columns))
    write_index(root)
    return path


def write_index(
    root: Path, retrieval_version: str = "kuaiformer-tiny", ranker_version: str = "ranker-tiny", **more: Any
) -> Path:
    """bundle.json over what is there, written last."""
    paths = sorted(p for p in root.rglob("*") if p.is_file() and p.name != "bundle.json" and not p.name.startswith("."))
    files = {
        p.relative_to(root).as_posix(): {
            "sha256": hashlib.sha256(p.read_bytes()).hexdigest(),
            "bytes": p.stat().st_size,
        }
        for p in paths
    }
    data = {"format": "kir-bundle/1", "retrieval_version": retrieval_version, "ranker_version": ranker_version}
    aside = root / ".bundle.json.part"
    aside.write_text(json.dumps({**data, **more, "files": files}, indent=2))
    return aside.replace(root / "bundle.json")


def write_bundle(
    root: Path, dense_versions: Sequence[str] = ("kir-a",), *, seed: int = 1, n_items: int = N_ITEMS
) -> Path:
    """A whole bundle. The dense versions share one spec and differ in their rows."""
    items, rng = make_catalogue(n_items), np.random.default_rng(seed)
    retrieval, ranker = kuaiformer_spec(video=WIDTH, attribute=4), ranker_spec(width=WIDTH)
    for name, spec, number in (("retrieval", retrieval, seed), ("ranker", ranker, seed + 1)):
        write_tables(root / name / "tables.safetensors", spec, items, number)
        (root / name / "spec.json").write_text(json.dumps(spec.to_json()))
    write_encoder(root / "retrieval" / "encoder.onnx", retrieval, WIDTH)
    project = np.eye(retrieval.width("item_rows"), WIDTH, dtype=np.float32)
    nodes = [helper.make_node("MatMul", ["item_rows", "project"], ["item_vector"])]
    shapes = {"item_rows": ["b", len(project)]}, {"item_vector": ["b", WIDTH]}
    save_graph(root / "retrieval" / "item.onnx", nodes, *shapes, project=project)
    vectors = topic_vectors(items.video_id, WIDTH, rng)
    index = faiss.IndexFlatIP(WIDTH)
    index.add(vectors)
    faiss.write_index(index, str(root / "retrieval" / "items.faiss"))
    np.save(root / "retrieval" / "item_ids.npy", items.video_id)
    np.save(root / "retrieval" / "item_vectors.npy", vectors)
    (root / "retrieval" / "config.json").write_text(json.dumps({"history": KUAIFORMER_HISTORY}))
    write_ranker(root / "ranker" / "ranker.onnx", ranker, seed + 2)
    (root / "ranker" / "config.json").write_text(json.dumps({"fusion": {"long_view": 1.0, "like": 0.5, "hate": -1.0}}))
    for number, version in enumerate(dense_versions):
        write_rows(root, version, seed=seed + 10 + number)
    write_catalogue(root / "catalogue.parquet", items)
    users = np.arange(FIRST_USER, FIRST_USER + N_USERS)
    user_table = UserTable(users.astype(np.uint64), (users % 8).astype(np.int32), (users * 40).astype(np.int32))
    write_users(root / "users.parquet", user_table)
    write_events(root / "histories.parquet", make_histories(items))
    write_index(root)
    return root


if __name__ == "__main__":
    print(write_bundle(Path(sys.argv[1])))

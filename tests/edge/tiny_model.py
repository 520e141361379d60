"""A tiny published model for the edge's tests: a real two-tower causal attention as .tflite, in the CDN layout.

    .venv/bin/python -m tests.edge.tiny_model OUT_DIR        # a few seconds

Tensor names and shapes are those of docs/architecture.md; weights are random and fixed by the seed. The halves (`page`,
`watch`, `swipe`, `place`) and `whole` are written from the same functions, so they are equal by construction in
float32.

Legend: S towers, B blocks, D width, G = 2SB cache planes, N candidates, L1 = L + 1 slots, t new tokens, T tasks.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract import manifest as m
from contract.beam import ListReward
from contract.spec import FeatureSpec
from contract.specs import kir_spec
from contract.vocabulary import MASK_VALUE, TASKS

S, B, D = 2, 2, 8
G = S * B * 2
C, V, K, P, T = 12, 16, 2, 2, len(TASKS)
L, L1 = 6, 7
BUCKETS = (4, 8)
SPEC = kir_spec(video=4, author=4, tag=4, user=4)
FUSION = {"effective_view": 1.0, "like": 0.5, "has_next": 0.25, "watch_time": 2.0}
LIST_REWARD = ListReward({"effective_view": 1.0, "like": 0.5, "watch_time": 2.0})
ROWS_REVISION = 7
Shape = tuple[int, ...]
Shapes = dict[str, Shape]


def graph_shapes(spec: FeatureSpec, name: str, size: int) -> tuple[Shapes, Shapes]:
    """Inputs and outputs of a graph: tensor name -> shape. Blocks of width 0 are no inputs."""
    n = t = size
    page = {
        "user_rows": (1, spec.width("user_rows")),
        "user_dense": (1, spec.width("user_dense")),
        "candidate_rows": (1, n, spec.width("candidate_rows")),
        "candidate_dense": (1, n, spec.width("candidate_dense")),
    }
    now = {
        "swipe_dense": (1, spec.width("swipe_dense")),
        "candidate_swipe": (1, n, spec.width("candidate_swipe")),
    }
    halves = {"query": (1, n, 2 * D), "candidate_pre": (1, n, C)}
    memory = {"memory": (1, L1, 4 * D), "memory_mask": (1, L1), "since": (1, L1), "behind": (1, L1)}
    watched = {name: (1, size, spec.width(name)) for name, size in (("watched_rows", t), ("watched_dense", t))}
    inputs: Shapes
    if name == "page":
        inputs, outputs = page, {**halves, "placed_kv": (1, n, V)}
    elif name == "watch":
        inputs = {**watched, "position": (1, t, L1), "past": (1, G, L1, D), "past_mask": (1, L1)}
        outputs = {"new": (1, G, t, D), "memory_new": (1, t, 4 * D)}
    elif name == "swipe":
        inputs, outputs = {**halves, **memory, **now}, {"scores": (1, n, T)}
    elif name == "place":
        inputs = {**halves, **memory, **now, "placed": (1, K, P, V), "placed_mask": (1, K, P)}
        outputs = {"scores": (1, K, n, T)}
    else:
        whole_watched = {block: (1, L1, spec.width(block)) for block in watched}
        gaps = {"since": (1, L1), "behind": (1, L1)}
        inputs = {**page, **whole_watched, "memory_mask": (1, L1), **gaps, **now}
        outputs = {"scores": (1, n, T)}
    return {k: v for k, v in inputs.items() if v[-1]}, outputs


class Net:
    """The tiny net's arithmetic on TensorFlow tensors. Weights are made on first use, in a fixed order of names."""

    def __init__(self, spec: FeatureSpec, seed: int):
        import tensorflow as tf

        self.tf, self.spec, self.seed = tf, spec, seed

    def weight(self, name: str, rows: int, columns: int) -> Any:
        digest = hashlib.sha256(f"{self.seed} {name}".encode()).digest()
        rng = np.random.default_rng(np.frombuffer(digest, np.uint32))
        return self.tf.constant(rng.normal(0, 0.8 / np.sqrt(max(1, min(rows, 24))), (rows, columns)).astype(np.float32))

    def linear(self, x: Any, name: str, columns: int) -> Any:
        return self.tf.matmul(x, self.weight(name, x.shape[-1], columns))

    def of_blocks(self, x: dict[str, Any], blocks: tuple[str, ...], name: str, columns: int) -> Any:
        terms = [self.linear(x[block], f"{name}.{block}", columns) for block in blocks if block in x]
        return self.tf.add_n(terms)

    def page(self, x: dict[str, Any]) -> dict[str, Any]:
        def part(name: str, columns: int) -> Any:
            user = self.of_blocks(x, ("user_rows", "user_dense"), f"{name}.user", columns)
            candidate = self.of_blocks(x, ("candidate_rows", "candidate_dense"), f"{name}.candidate", columns)
            return candidate + self.tf.reshape(user, [1, 1, columns])

        return {"query": part("query", 2 * D), "candidate_pre": part("pre", C), "placed_kv": part("placed", V)}

    def watch(self, x: dict[str, Any]) -> dict[str, Any]:
        tf = self.tf
        t = x["position"].shape[1]
        causal = np.triu(np.full((t, t), MASK_VALUE, np.float32), 1)[None]
        past_mask = tf.reshape(x["past_mask"], [1, 1, L1]) + tf.zeros([1, t, L1])
        mask = tf.concat([past_mask, causal], axis=-1)
        planes, memory = [], []
        for s in range(S):
            blocks = ("watched_rows", "watched_dense") if s == 0 else ("watched_dense",)
            h = self.of_blocks(x, blocks, f"token{s}", D) + self.linear(x["position"], f"position{s}", D)
            for b in range(B):
                g = (s * B + b) * 2
                q, k, v = (self.linear(h, f"{part}{s}{b}", D) for part in "qkv")
                planes += [k, v]
                keys = tf.concat([x["past"][:, g], k], axis=1)
                values = tf.concat([x["past"][:, g + 1], v], axis=1)
                h = h + self.linear(self.attend(q, keys, values, mask), f"o{s}{b}", D)
                h = h + self.linear(tf.nn.relu(self.linear(h, f"up{s}{b}", 2 * D)), f"down{s}{b}", D)
            memory += [self.linear(h, f"memory_key{s}", D), self.linear(h, f"memory_value{s}", D)]
        return {"new": tf.stack(planes, axis=1), "memory_new": tf.concat(memory, axis=-1)}

    def attend(self, q: Any, k: Any, v: Any, mask: Any) -> Any:
        logits = self.tf.matmul(q, k, transpose_b=True) / np.float32(np.sqrt(D)) + mask
        return self.tf.matmul(self.tf.nn.softmax(logits), v)

    def hidden(self, x: dict[str, Any]) -> Any:
        tf = self.tf
        bias = tf.reshape(x["memory_mask"] - x["since"] + 0.3 * x["behind"], [1, 1, L1])
        attended = []
        for s in range(S):
            q = x["query"][:, :, s * D : (s + 1) * D]
            k, v = (x["memory"][:, :, (2 * s + i) * D : (2 * s + i + 1) * D] for i in (0, 1))
            attended.append(self.attend(q, k, v, bias))
        first = self.linear(tf.concat(attended, axis=-1), "expert", C) + x["candidate_pre"]
        first += tf.reshape(self.linear(x["swipe_dense"], "expert.swipe", C), [1, 1, C])
        return first + self.linear(x["candidate_swipe"], "expert.candidate", C)

    def swipe(self, x: dict[str, Any]) -> dict[str, Any]:
        return {"scores": self.linear(self.tf.nn.relu(self.hidden(x)), "heads", T)}

    def place(self, x: dict[str, Any]) -> dict[str, Any]:
        tf = self.tf
        weight = tf.nn.softmax(x["placed_mask"])[..., None] * tf.cast(x["placed_mask"] > -1.0, tf.float32)[..., None]
        context = self.linear(tf.reduce_sum(x["placed"] * weight, axis=2), "placed.context", C)
        hidden = self.hidden(x)[:, None] + context[:, :, None]
        return {"scores": self.linear(tf.nn.relu(hidden), "heads", T)}

    def whole(self, x: dict[str, Any]) -> dict[str, Any]:
        tf = self.tf
        empty = {
            "position": tf.eye(L1)[None],
            "past": tf.zeros([1, G, L1, D]),
            "past_mask": tf.fill([1, L1], np.float32(MASK_VALUE)),
        }
        watched = {name: x[name] for name in ("watched_rows", "watched_dense") if name in x}
        memory = self.watch({**watched, **empty})["memory_new"]
        return self.swipe({**x, **self.page(x), "memory": memory})


def convert_graph(net: Net, name: str, size: int) -> bytes:
    """One .tflite with the contract's tensor names."""
    tf = net.tf
    inputs, outputs = graph_shapes(net.spec, name, size)
    signature = {k: tf.TensorSpec(shape, tf.float32, name=k) for k, shape in inputs.items()}
    holder = tf.Module()
    holder.run = tf.function(lambda **x: getattr(net, name)(x))
    concrete = holder.run.get_concrete_function(**signature)
    content = tf.lite.TFLiteConverter.from_concrete_functions([concrete], holder).convert()
    return rename_tensors(content, outputs)


def rename_tensors(content: bytes, outputs: Shapes) -> bytes:
    """TensorFlow names tensors as it likes; the signature knows their own names, and the contract wants those."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content, 0)
    graph = model.subgraphs[0]
    for entry in model.signatureDefs[0].outputs:
        tensor = graph.tensors[entry.tensorIndex]
        tensor.name = entry.name.decode()
        assert tuple(tensor.shape) == outputs[tensor.name], (tensor.name, tensor.shape)
    for entry in model.signatureDefs[0].inputs:
        graph.tensors[entry.tensorIndex].name = entry.name.decode()
    builder = flatbuffers.Builder(len(content) + 1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def golden_tensors(content: bytes, inputs: Shapes, seed: int) -> dict[str, NDArray[np.float32]]:
    """Random inputs and the outputs that LiteRT gives for them, by tensor name."""
    from ai_edge_litert.interpreter import Interpreter

    rng = np.random.default_rng(seed)
    runner = Interpreter(model_content=content, num_threads=1)
    runner.allocate_tensors()
    case = {name: rng.normal(0, 1, shape).astype(np.float32) for name, shape in inputs.items()}
    for name in [name for name in case if "mask" in name]:
        case[name] = np.where(case[name] > 1, np.float32(MASK_VALUE), np.float32(0))
    for detail in runner.get_input_details():
        runner.set_tensor(detail["index"], case[detail["name"]])
    runner.invoke()
    return case | {d["name"]: runner.get_tensor(d["index"]) for d in runner.get_output_details()}


class Publisher:
    """Collects files under their hash names and writes a version directory and the pointer."""

    def __init__(self, cdn: Path, version: str):
        self.cdn, self.folder = cdn, cdn / "models" / version
        self.version = version
        self.folder.mkdir(parents=True, exist_ok=True)
        self.files: dict[str, m.FileEntry] = {}

    def add(self, content: bytes, extension: str) -> str:
        sha256 = hashlib.sha256(content).hexdigest()
        name = f"{sha256[:20]}.{extension}"
        (self.folder / name).write_bytes(content)
        self.files[name] = m.FileEntry(sha256, len(content))
        return name

    def finish(self, manifest: m.Manifest) -> m.Pointer:
        raw = replace(manifest, files=self.files).to_bytes()
        (self.folder / m.MANIFEST_NAME).write_bytes(raw)
        return point_at(self.cdn, self.version)


def point_at(cdn: Path, version: str) -> m.Pointer:
    """Move the one pointer to a version that is there."""
    raw = (cdn / "models" / version / m.MANIFEST_NAME).read_bytes()
    path = f"models/{version}/{m.MANIFEST_NAME}"
    pointer = m.Pointer(version, path, hashlib.sha256(raw).hexdigest(), len(raw))
    (cdn / m.POINTER_NAME).write_bytes(pointer.to_bytes())
    return pointer


def graph_entry(spec: FeatureSpec, name: str, bucket: str, file: str) -> m.Graph:
    inputs, outputs = graph_shapes(spec, name, int(bucket[1:]))
    variant = m.Variant("float32", file, tolerance=1e-4)
    sides = [tuple(m.Tensor(k, shape) for k, shape in side.items()) for side in (inputs, outputs)]
    return m.Graph(name, bucket, sides[0], sides[1], (variant,), "float32")


def publish(cdn: Path, version: str, spec: FeatureSpec = SPEC, seed: int = 1) -> None:
    """Write a whole version, golden tensors and golden session included, and point at it."""
    from tests.edge.golden_session import make_session

    net, out = Net(spec, seed), Publisher(cdn, version)
    sizes = [(name, n) for name in ("page", "swipe", "place", "whole") for n in BUCKETS]
    graphs, tensors = [], {}
    for name, size in [*sizes, ("watch", 1), ("watch", L // 2)]:
        bucket = f"{'T' if name == 'watch' else 'N'}{size}"
        content = convert_graph(net, name, size)
        graphs.append(graph_entry(spec, name, bucket, out.add(content, "tflite")))
        with tempfile.TemporaryFile() as file:
            np.savez(file, **golden_tensors(content, graph_shapes(spec, name, size)[0], seed))  # type: ignore[arg-type]
            file.seek(0)
            tensors[f"{name}/{bucket}"] = out.add(file.read(), "npz")
    manifest = m.Manifest(
        dense_version=version,
        created_at="2025-01-01T00:00:00Z",
        spec=spec,
        capacities={"L": L, "P": P, "k": K, "N": list(BUCKETS), "t": [1, L // 2]},
        tasks=TASKS,
        fusion=FUSION,
        graphs=tuple(graphs),
        files=out.files,
        golden=m.Golden(ROWS_REVISION, tensors),
        card=out.add(f"# {version}\n".encode(), "md"),
        min_runtime={"ai-edge-litert": "2.1.0"},
        list_reward=LIST_REWARD,
    )
    out.finish(manifest)
    session = out.add(make_session(out.folder, version, spec).to_bytes(), "json")
    out.finish(replace(manifest, golden=m.Golden(ROWS_REVISION, tensors, session)))


VERSIONS = {"kir-a": (SPEC, 1), "kir-b": (SPEC, 2), "kir-pxtr": (SPEC.without_served(), 3)}


@cache
def shared_cdn() -> Path:
    """A CDN directory with kir-a (current), kir-b and kir-pxtr; made once per content of what makes it. Read only."""
    folder = Path(__file__).parent
    contract = sorted((folder.parents[1] / "contract").glob("*.py"))  # goldens hold what its functions give
    sources = [path.read_bytes() for path in (Path(__file__), folder / "golden_session.py", *contract)]
    digest = hashlib.sha256(b"".join(sources) + SPEC.canonical_bytes).hexdigest()[:16]
    target = Path(tempfile.gettempdir()) / f"kir-tiny-{os.getuid()}-{digest}"
    if not target.exists():
        aside = Path(tempfile.mkdtemp(prefix="kir-tiny-"))
        # In a process of its own: TensorFlow's warnings are no business of the edge's tests.
        command = [sys.executable, "-m", "tests.edge.tiny_model", str(aside)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder.parents[1], check=False)
        if done.returncode:
            raise RuntimeError(done.stderr)
        try:
            aside.rename(target)
        except OSError:  # another worker was first
            shutil.rmtree(aside)
    return target


def copy_cdn(target: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(shared_cdn(), target, dirs_exist_ok=True))


if __name__ == "__main__":
    for _version, (_spec, _seed) in VERSIONS.items():
        publish(Path(sys.argv[1]), _version, _spec, _seed)
    point_at(Path(sys.argv[1]), "kir-a")

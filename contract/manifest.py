"""The published model's manifest, the one pointer that names it, and where signed metadata stand.

A version is an immutable directory. The manifest names every file with its SHA-256 and size; the pointer names the
manifest with its SHA-256. Both are canonical JSON and refused in any other form, so that any flipped byte anywhere is
traced to its file.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from contract.beam import ListReward
from contract.device_class import DeviceClass, check_classes
from contract.errors import InputError, ManifestError
from contract.spec import FeatureSpec
from contract.typed import check_types
from contract.vocabulary import TASKS

MANIFEST_FORMAT = "kir-model/1"
POINTER_FORMAT = "kir-pointer/1"
POINTER_NAME = "current.json"
MANIFEST_NAME = "manifest.json"
METADATA_FOLDER = "metadata"  # of The Update Framework (TUF): N.root.json, N.targets.json, …, timestamp.json
RELEASE_ROLE = "release"  # the delegated role that signs the pointer and the manifests
FILE_BYTES_MAX = 64 * 2**20
OPERATORS_MAX = 100_000  # of a graph
MANIFEST_BYTES_MAX = 4 * 2**20  # a manifest takes some 100 KB; JSON takes twenty times its bytes in memory

_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Tensor:
    """A graph's input or output: name, static shape, dtype ("float32")."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"


@dataclass(frozen=True)
class Variant:
    """One quantised form of a graph. tolerance: max abs difference of outputs to its golden case on another CPU."""

    name: str
    file: str
    tolerance: float
    verification: Mapping[str, Any] = field(default_factory=dict)

    @property
    def left_out(self) -> int | None:
        """Operators that XNNPACK left to plain kernels on the converting machine; None where that is not told."""
        found: int | None = self.verification.get("left_out")
        return found


@dataclass(frozen=True)
class Graph:
    """One graph of one size bucket: its tensor contract, its variants, and the one to ship."""

    name: str
    bucket: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    variants: tuple[Variant, ...]
    ship: str

    def variant(self, name: str = "") -> Variant:
        """The named variant, or the shipped one. Raises ManifestError."""
        for variant in self.variants:
            if variant.name == (name or self.ship):
                return variant
        raise ManifestError(
            f"graph {self.name}/{self.bucket} has no such variant",
            got=name or self.ship,
            allowed=[v.name for v in self.variants],
        )


@dataclass(frozen=True)
class FileEntry:
    """A file of the version directory, beside the manifest."""

    sha256: str
    n_bytes: int


@dataclass(frozen=True)
class Golden:
    """Golden files: tensors per graph/bucket ("swipe/N20" -> .npz of inputs and outputs), and one session."""

    rows_revision: int
    tensors: Mapping[str, str] = field(default_factory=dict)
    session: str = ""


@dataclass(frozen=True)
class Manifest:
    """Everything an edge needs to trust and run a model.

    capacities: {"L": …, "P": …, "k": …, "N": [buckets], "t": [watch buckets]}; fusion: task -> weight.
    list_reward: what a list of videos is worth, for the beam search; None in manifests older than it.
    device_classes: which devices run other variants than those that ship; the first that a device meets counts.
    """

    dense_version: str
    created_at: str
    spec: FeatureSpec
    capacities: Mapping[str, Any]
    tasks: tuple[str, ...]
    fusion: Mapping[str, float]
    graphs: tuple[Graph, ...]
    files: Mapping[str, FileEntry]
    golden: Golden
    card: str
    min_runtime: Mapping[str, str]
    verification: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    list_reward: ListReward | None = None
    device_classes: tuple[DeviceClass, ...] = ()

    def classes_for(self, cpu: Collection[str], memory_mib: int) -> list[str]:
        """Names of the classes that a device meets, the one it takes first, and "" last: what ships."""
        return [*(one.name for one in self.device_classes if one.fits(cpu, memory_mib)), ""]

    def of_class(self, name: str) -> Manifest:
        """As a device of this class sees it: its variants ship, and goldens are theirs. "": as it is.

        Raises ManifestError for a class that is not there.
        """
        if not name:
            return self
        one = next((c for c in self.device_classes if c.name == name), None)
        if one is None:
            have = [c.name for c in self.device_classes]
            raise ManifestError("no such device class", where=self.dense_version, got=name, allowed=have)
        return replace(
            self,
            graphs=tuple(replace(g, ship=one.variants.get(g.name, g.ship)) for g in self.graphs),
            golden=replace(
                self.golden,
                tensors={**self.golden.tensors, **one.golden_tensors},
                session=one.golden_session or self.golden.session,
            ),
            verification={**self.verification, **one.verification},
        )

    def graph(self, name: str, bucket: str) -> Graph:
        for graph in self.graphs:
            if (graph.name, graph.bucket) == (name, bucket):
                return graph
        have = [f"{g.name}/{g.bucket}" for g in self.graphs]
        raise ManifestError("no such graph", where=self.dense_version, got=f"{name}/{bucket}", allowed=have)

    def buckets(self, name: str) -> list[int]:
        """Sizes for which a graph exists, ascending: page/N8, page/N24 -> [8, 24]."""
        return sorted(int(g.bucket[1:]) for g in self.graphs if g.name == name)

    def to_bytes(self) -> bytes:
        data = asdict(self)
        data["spec"] = self.spec.to_json()
        data["spec_fingerprint"] = self.spec.fingerprint
        data["format"] = MANIFEST_FORMAT
        if self.list_reward is None:
            del data["list_reward"]  # a version published before it keeps its bytes
        if not self.device_classes:
            del data["device_classes"]  # likewise; and phones older than classes take a model that has none
        return canonical_json(data)

    @staticmethod
    def from_bytes(raw: bytes, where: str = MANIFEST_NAME) -> Manifest:
        """Parse and check. Raises ManifestError for another format, unknown or missing keys, or dangling names."""
        data = _load(raw, MANIFEST_FORMAT, where)
        try:
            data.pop("format")
            fingerprint = data.pop("spec_fingerprint")
            spec = FeatureSpec.from_json(data.pop("spec"), where)
            graphs = tuple(_graph(g) for g in data.pop("graphs"))
            files = {str(name): FileEntry(**entry) for name, entry in data.pop("files").items()}
            golden = Golden(**data.pop("golden"))
            tasks = tuple(data.pop("tasks"))
            reward = _list_reward(data.pop("list_reward"), tasks, where) if "list_reward" in data else None
            classes = tuple(DeviceClass.from_json(one) for one in data.pop("device_classes", ()))
            manifest = Manifest(
                spec=spec, graphs=graphs, files=files, golden=golden, tasks=tasks, list_reward=reward,
                device_classes=classes, **data,
            )  # fmt: skip
            for part in (manifest, golden, *files.values()):
                check_types(part)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ManifestError("manifest is incomplete or malformed", where=where, got=str(error)) from None
        if fingerprint != spec.fingerprint:
            raise ManifestError(
                "spec does not have its fingerprint", where=where, got=spec.fingerprint, allowed=fingerprint
            )
        _check_manifest(manifest, where)
        return manifest


@dataclass(frozen=True)
class Pointer:
    """What the CDN calls current. `manifest` is a path below the CDN's root."""

    dense_version: str
    manifest: str
    manifest_sha256: str
    manifest_bytes: int

    def to_bytes(self) -> bytes:
        return canonical_json({"format": POINTER_FORMAT, **asdict(self)})

    @staticmethod
    def from_bytes(raw: bytes, where: str = POINTER_NAME) -> Pointer:
        data = _load(raw, POINTER_FORMAT, where)
        data.pop("format")
        try:
            checksum = data.pop("self_sha256")
            pointer = Pointer(**data)
            check_types(pointer)
        except (KeyError, TypeError) as error:
            raise ManifestError("pointer is incomplete", where=where, got=str(error)) from None
        if checksum != _self_checksum({"format": POINTER_FORMAT, **asdict(pointer)}):
            raise ManifestError("pointer does not have its own checksum", where=where, fix="fetch it again")
        good = bool(is_version_name(pointer.dense_version) and _SHA256.fullmatch(pointer.manifest_sha256))
        path = f"models/{pointer.dense_version}/{MANIFEST_NAME}"
        if not good or pointer.manifest != path or not 0 < pointer.manifest_bytes <= MANIFEST_BYTES_MAX:
            got = (pointer.manifest, pointer.manifest_bytes)
            allowed = (path, f"1 … {MANIFEST_BYTES_MAX}")
            raise ManifestError("pointer holds unusable values", where=where, got=got, allowed=allowed)
        return pointer


def is_version_name(name: object) -> bool:
    """Whether this may be a dense version: letters, digits, ".", "-", "_"; its path stays in its folder."""
    return isinstance(name, str) and _SAFE_NAME.fullmatch(name) is not None


def signed_pointer_path(sha256: str) -> str:
    """Where a signed CDN keeps the pointer with this hash: TUF's name for a target in a consistent snapshot.

    `current.json` itself is overwritten at a release; a phone between two metadata would fetch the other one's.
    """
    return f"{sha256}.{POINTER_NAME}"


def canonical_json(data: Mapping[str, Any]) -> bytes:
    """Sorted keys, two-space indent, trailing newline; a pointer also carries the checksum of its own content."""
    body = dict(data)
    if body.get("format") == POINTER_FORMAT:
        body.pop("self_sha256", None)
        body["self_sha256"] = _self_checksum(body)
    return (json.dumps(body, sort_keys=True, indent=2, allow_nan=False) + "\n").encode()


def _self_checksum(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _load(raw: bytes, format_name: str, where: str) -> dict[str, Any]:
    if len(raw) > MANIFEST_BYTES_MAX:
        raise ManifestError("file is too large", where=where, got=len(raw), allowed=MANIFEST_BYTES_MAX)
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as error:  # ValueError: no text, no JSON, or a number of 5,000 digits
        raise ManifestError("not JSON", where=where, got=str(error)) from None
    got = data.get("format") if isinstance(data, dict) else type(data).__name__
    if got != format_name:
        raise ManifestError("another format", where=where, got=got, allowed=format_name)
    try:
        same = canonical_json(data) == raw
    except (TypeError, ValueError, RecursionError) as error:
        raise ManifestError("not canonical JSON", where=where, got=str(error)) from None
    if not same:
        raise ManifestError("not the canonical bytes of its content", where=where, fix="fetch or publish it again")
    return dict(data)


def _graph(data: Mapping[str, Any]) -> Graph:
    body = dict(data)
    for side in ("inputs", "outputs"):
        body[side] = tuple(Tensor(**{**t, "shape": tuple(t["shape"])}) for t in body[side])
    body["variants"] = tuple(Variant(**v) for v in body["variants"])
    graph = Graph(**body)
    for part in (graph, *graph.inputs, *graph.outputs, *graph.variants):
        check_types(part)
    return graph


def _list_reward(data: Any, tasks: tuple[str, ...], where: str) -> ListReward:
    try:
        return ListReward.from_json(data, tasks)
    except InputError as error:
        raise ManifestError(error.what, where=where, got=error.got, allowed=error.allowed) from None


def _check_manifest(manifest: Manifest, where: str) -> None:
    if not is_version_name(manifest.dense_version):
        raise ManifestError("dense_version is not a plain name", where=where, got=manifest.dense_version)
    unknown = [task for task in manifest.tasks if task not in TASKS] + [
        t for t in manifest.fusion if t not in manifest.tasks
    ]
    if unknown:
        raise ManifestError("unknown task", where=where, got=unknown, allowed=TASKS)
    odd = [name for name in manifest.min_runtime if not _SAFE_NAME.fullmatch(name)]
    if odd:
        raise ManifestError("min_runtime names no package", where=where, got=odd)
    for name, entry in manifest.files.items():
        good = _SAFE_NAME.fullmatch(name) and _SHA256.fullmatch(entry.sha256) and 0 <= entry.n_bytes <= FILE_BYTES_MAX
        if not good:
            raise ManifestError("file entry holds unusable values", where=where, got=(name, entry.n_bytes))
    named = [v.file for g in manifest.graphs for v in g.variants] + list(manifest.golden.tensors.values())
    named += [name for name in (manifest.golden.session, manifest.card) if name]
    named += [name for one in manifest.device_classes for name in one.files]
    dangling = sorted(set(named) - set(manifest.files))
    if dangling:
        raise ManifestError("manifest names files it does not list", where=where, got=dangling)
    for graph in manifest.graphs:
        _check_graph(graph, where)
    variants: dict[str, dict[str, set[str]]] = {}
    for graph in manifest.graphs:
        buckets, names = variants.setdefault(graph.name, {}), {v.name for v in graph.variants}
        buckets[graph.bucket] = names & buckets.get(graph.bucket, names)  # a graph listed twice: what both have
    check_classes(manifest.device_classes, variants, where)


def _check_graph(graph: Graph, where: str) -> None:
    graph.variant()
    if not re.fullmatch(r"[NT]\d{1,5}", graph.bucket):
        raise ManifestError("unknown bucket", where=where, got=graph.bucket, allowed="N<number> or T<number>")
    counts = [v.left_out for v in graph.variants if v.left_out is not None]
    if not all(type(count) is int and 0 <= count <= OPERATORS_MAX for count in counts):
        raise ManifestError("left_out is no number of operators", where=where, got=counts)

"""Checkpoint directories: what training hands to conversion and to the next training. No pickle anywhere.

    DIR/config.json          format, kind, version, model, spec, training, SHA-256 of the two files below
    DIR/model.safetensors    the dense net alone
    DIR/tables.safetensors   "<table>.keys" int64 (bits of uint64) [R], "<table>.rows" float32 [R, W]
    DIR/metrics.json  DIR/README.md
    DIR/state/               optimizer.safetensors and state.json, only when training can be resumed

`version` = kind + "-" + first 12 hex digits of the SHA-256 over model.safetensors and, for ranker and baselines, over
tables.safetensors too. KIR's and KuaiFormer's name the dense net: their rows have a revision of their own
(`training.rows_revision`), because rows change while a net stands (training/incremental.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load_file as load_numpy
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from contract.errors import CheckpointError
from contract.files import check_vacant
from contract.spec import FeatureSpec
from training.tables import SparseTables

FORMAT = "kir-checkpoint/1"
KINDS = ("kuaiformer", "ranker", "kir", "baseline")
TABLES_IN_VERSION = ("ranker", "baseline")
MODEL, TABLES, CONFIG, METRICS, CARD = (
    "model.safetensors",
    "tables.safetensors",
    "config.json",
    "metrics.json",
    "README.md",
)
STATE_TENSORS, STATE_JSON = "state/optimizer.safetensors", "state/state.json"


@dataclass(frozen=True)
class TrainingState:
    """What resume needs: every tensor of model, tables and optimisers, and a JSON object for the rest."""

    tensors: Mapping[str, Tensor]
    meta: Mapping[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and checked. `dense` is the state dict of the dense net."""

    path: Path
    kind: str
    version: str
    config: Mapping[str, Any]
    spec: FeatureSpec
    dense: Mapping[str, Tensor]
    tables: SparseTables
    metrics: Mapping[str, Any]

    @property
    def model_path(self) -> Path:
        return self.path / MODEL

    @property
    def tables_path(self) -> Path:
        return self.path / TABLES

    @property
    def card_path(self) -> Path:
        return self.path / CARD

    @property
    def model_config(self) -> Mapping[str, Any]:
        """The preset and dimensions the net was built with."""
        found: Mapping[str, Any] = self.config["model"]
        return found

    @cached_property
    def has_state(self) -> bool:
        return (self.path / STATE_JSON).is_file()

    def load_into(self, net: nn.Module) -> None:
        """Put the dense weights into a net. Raises CheckpointError when names or shapes differ."""
        want = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
        have = {name: tuple(tensor.shape) for name, tensor in self.dense.items()}
        if want != have:
            differing = sorted(n for n in want.keys() | have.keys() if want.get(n) != have.get(n))
            raise CheckpointError(
                "the net's tensors differ from the checkpoint's",
                where=self.model_path,
                got={n: have.get(n) for n in differing[:3]},
                allowed={n: want.get(n) for n in differing[:3]},
                fix="a checkpoint of another version of this project has to be trained again",
            )
        net.load_state_dict(dict(self.dense))

    def state(self) -> TrainingState:
        """Optimiser state for resuming. Raises CheckpointError when it is absent or unreadable."""
        if not self.has_state:
            raise CheckpointError(
                "this checkpoint has no training state", where=self.path / "state", fix="train again with --save-state"
            )
        meta = _read_json(self.path / STATE_JSON)
        if meta.get("tensors_sha256") != _sha256(self.path / STATE_TENSORS):
            raise CheckpointError("training state is damaged", where=self.path / STATE_TENSORS)
        return TrainingState(_read_tensors(self.path / STATE_TENSORS), meta["state"])


def save_checkpoint(
    directory: str | Path,
    *,
    kind: str,
    model: nn.Module,
    tables: SparseTables,
    spec: FeatureSpec,
    model_config: Mapping[str, Any],
    training: Mapping[str, Any],
    metrics: Mapping[str, Any],
    card_text: str,
    state: TrainingState | None = None,
    overwrite: bool = False,
) -> Checkpoint:
    """Write a checkpoint whole or not at all: into a sibling directory, flushed to disk, then renamed.

    model: the dense net alone (its state dict must not hold the tables). Returns what `load_checkpoint` reads back.
    Raises CheckpointError for an unknown kind, tables that do not fit the spec, an existing directory (see overwrite).
    """
    directory = Path(directory)
    if kind not in KINDS:
        raise CheckpointError("unknown kind of checkpoint", where=directory, got=kind, allowed=KINDS)
    _check_tables(spec, tables, directory)
    check_vacant(directory, overwrite, "checkpoint directory", CheckpointError)
    directory.parent.mkdir(parents=True, exist_ok=True)
    aside = directory.with_name(f".{directory.name}.{os.getpid()}.part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        save_file({n: t.detach().cpu().contiguous().clone() for n, t in model.state_dict().items()}, aside / MODEL)
        save_numpy(tables.export(), aside / TABLES)
        config = {
            "format": FORMAT,
            "kind": kind,
            "version": _version(kind, aside),
            "model": dict(model_config),
            "spec": spec.to_json(),
            "training": dict(training),
            "files": {name: _sha256(aside / name) for name in (MODEL, TABLES)},
        }
        _write_json(aside / CONFIG, config)
        _write_json(aside / METRICS, dict(metrics))
        (aside / CARD).write_text(card_text)
        if state is not None:
            (aside / "state").mkdir()
            save_file(
                {n: t.detach().cpu().contiguous().clone() for n, t in state.tensors.items()}, aside / STATE_TENSORS
            )
            _write_json(
                aside / STATE_JSON, {"tensors_sha256": _sha256(aside / STATE_TENSORS), "state": dict(state.meta)}
            )
        flush_directory(aside)
        swap_directory(aside, directory)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return load_checkpoint(directory, kind=kind)


def load_checkpoint(directory: str | Path, kind: str | None = None) -> Checkpoint:
    """Read and check a checkpoint directory.

    kind: refuse any other. Raises CheckpointError for what is missing, truncated, altered, of another kind or shape.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise CheckpointError("no such checkpoint directory", where=directory)
    config = _read_json(directory / CONFIG)
    if config.get("format") != FORMAT:
        raise CheckpointError(
            "not a checkpoint of this format", where=directory / CONFIG, got=config.get("format"), allowed=FORMAT
        )
    absent = [name for name in ("kind", "version", "model", "spec", "training", "files") if name not in config]
    if absent:
        raise CheckpointError("config lacks an entry", where=directory / CONFIG, got=absent)
    if config["kind"] not in KINDS or kind not in (None, config["kind"]):
        raise CheckpointError("checkpoint of another kind", where=directory, got=config["kind"], allowed=kind or KINDS)
    for name, digest in config["files"].items():
        if not (directory / name).is_file():
            raise CheckpointError("a file of the checkpoint is missing", where=directory / name)
        if _sha256(directory / name) != digest:
            raise CheckpointError("file is truncated or altered", where=directory / name, fix="copy or train it again")
    if config["version"] != _version(config["kind"], directory):
        raise CheckpointError("version does not belong to these files", where=directory / CONFIG, got=config["version"])
    spec = FeatureSpec.from_json(config["spec"], where=str(directory / CONFIG))
    tables = SparseTables.from_export(_read_tensors(directory / TABLES, load_numpy), where=directory / TABLES)
    _check_tables(spec, tables, directory)
    return Checkpoint(
        path=directory,
        kind=config["kind"],
        version=config["version"],
        config=config,
        spec=spec,
        dense=_read_tensors(directory / MODEL),
        tables=tables,
        metrics=_read_json(directory / METRICS),
    )


def model_card(title: str, lines: Mapping[str, Any], metrics: Mapping[str, Any], notes: str = "") -> str:
    """A plain Markdown card: what it is, how it was trained, how good it is."""
    rows = [f"# {title}", "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in lines.items())]
    rows += ["", "## Metrics", "", "| metric | value |", "|---|---|"]
    rows += [
        f"| {name} | {value:.4f} |" if isinstance(value, float) else f"| {name} | {value} |"
        for name, value in metrics.items()
    ]
    return "\n".join([*rows, *(["", notes] if notes else [])]) + "\n"


def _check_tables(spec: FeatureSpec, tables: SparseTables, where: Path) -> None:
    if tables.widths != spec.tables:
        raise CheckpointError("tables do not fit the spec", where=where, got=tables.widths, allowed=spec.tables)


def _version(kind: str, directory: Path) -> str:
    digest = hashlib.sha256((directory / MODEL).read_bytes())
    if kind in TABLES_IN_VERSION:
        digest.update((directory / TABLES).read_bytes())
    return f"{kind}-{digest.hexdigest()[:12]}"


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise CheckpointError("a file of the checkpoint is missing", where=path) from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError("a file of the checkpoint is missing", where=path) from None
    except (ValueError, UnicodeDecodeError) as error:
        raise CheckpointError("not readable JSON", where=path, got=str(error)) from None
    if not isinstance(data, dict):
        raise CheckpointError("not a JSON object", where=path, got=type(data).__name__)
    return data


def _read_tensors(path: Path, load: Any = load_file) -> Any:
    try:
        return load(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError("not a readable safetensors file", where=path, got=str(error)) from None


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, sort_keys=True, allow_nan=False) + "\n")


def flush_directory(directory: Path) -> None:
    """fsync every file, then every directory."""
    for path in sorted(directory.rglob("*"), reverse=True):
        _fsync(path)
    _fsync(directory)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def swap_directory(aside: Path, directory: Path) -> None:
    """Put `aside` in the place of `directory`, whole or not at all."""
    old = directory.with_name(f".{directory.name}.{os.getpid()}.old")
    if directory.exists():
        os.replace(directory, old)
    try:
        os.replace(aside, directory)
    except BaseException:  # Ctrl-C between the two, say
        if old.exists() and not directory.exists():
            os.replace(old, directory)
        raise
    _fsync(directory.parent)
    shutil.rmtree(old, ignore_errors=True)

"""Stages of a conversion kept from one run to the next: ONNX, float TFLite, variants, each with what made it beside it.

kir convert model CHECKPOINT --stages work --until onnx           # stops there
kir convert model CHECKPOINT --stages work --out converted        # goes on from there

DIR/<graph>.onnx and .<recipe>.tflite; beside each a .json with stage, model, settings, tools, source code and hashes. A
file is taken as it is when all of that is the same and its bytes are whole; otherwise it is made again.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contract.errors import InputError
from convert.files import sha256_of, write_durably
from convert.metadata import tool_versions
from convert.onnx_export import TorchGraph
from convert.provenance import code_sha256

ONNX, TFLITE, QUANTISE = STAGES = ("onnx", "tflite", "quantise")


@dataclass(frozen=True)
class Stages:
    """directory: where files are kept; None: nowhere, everything is made. model: version of what is converted.

    reused: names of the files that were taken as they are.
    """

    directory: Path | None = None
    model: str = ""
    reused: list[str] = field(default_factory=list)

    @staticmethod
    def at(directory: str | Path | None, model: str) -> Stages:
        """Raises InputError for a path that is no directory."""
        if directory is None:
            return Stages()
        if Path(directory).exists() and not Path(directory).is_dir():
            raise InputError("--stages is a directory", where=directory, got="a file")
        Path(directory).mkdir(parents=True, exist_ok=True)
        return Stages(Path(directory), model)

    def made(self, path: Path, make: Callable[[Path], Any], **facts: Any) -> Path:
        """The file at `path`: `make(path)`, or the kept one that the same facts made. Facts must be JSON."""
        if self.directory is None:
            make(path)
            return path
        about = {"model": self.model, "tools": tool_versions(), "code": code_sha256(), **facts}
        about = json.loads(json.dumps(about))  # as it will be read: tuples are lists
        kept = self.directory / path.name
        record = kept.with_name(f"{kept.name}.json")
        if _holds(kept, record, about):
            shutil.copyfile(kept, path)
            self.reused.append(path.name)
            return path
        make(path)
        kept.unlink(missing_ok=True)
        record.unlink(missing_ok=True)  # a record never stands beside another's file
        write_durably(kept, path.read_bytes())
        write_durably(record, json.dumps({**about, "sha256": sha256_of(path)}, indent=1, sort_keys=True).encode())
        return path

    def drop(self, path: Path) -> None:
        """A file that a check refused: it goes, here and where it was kept."""
        path.unlink()
        if self.directory is not None:
            (self.directory / path.name).unlink(missing_ok=True)
            (self.directory / f"{path.name}.json").unlink(missing_ok=True)


@dataclass(frozen=True)
class StagesResult:
    """Files of the stages up to `until`, and the names of those that were there already."""

    directory: Path
    version: str
    until: str
    files: tuple[Path, ...]
    reused: tuple[str, ...]

    def table(self) -> str:
        done = f"{len(self.files)} files, {len(self.reused)} of them as they were"
        lines = [f"{self.version} up to '{self.until}' -> {self.directory}: {done}"]
        return "\n".join([*lines, "not verified: the same command with --out in place of --until goes on from here"])

    def to_json(self) -> dict[str, Any]:
        return {
            "directory": str(self.directory), "version": self.version, "until": self.until,
            "files": [path.name for path in self.files], "reused": list(self.reused),
        }  # fmt: skip


KEEP_NOTHING = Stages()


def fingerprint(graph: TorchGraph) -> str:
    """Over weights, source files and tensors of a module; a version's name does not tell of one that is not ours."""
    module = graph.module
    digest = hashlib.sha256(repr(graph.contract()).encode())
    for name, tensor in sorted([*module.named_parameters(), *module.named_buffers()]):
        value = tensor.detach().cpu().contiguous().numpy()
        digest.update(f"{name} {value.dtype} {value.shape}\n".encode() + value.tobytes())
    for kind in sorted({type(one) for one in module.modules()}, key=lambda kind: kind.__qualname__):
        digest.update(kind.__qualname__.encode())
        if not kind.__module__.startswith("torch."):
            digest.update(_source_of(kind))
    return digest.hexdigest()


def _source_of(kind: type) -> bytes:
    try:
        return Path(inspect.getfile(kind)).read_bytes()
    except (OSError, TypeError):  # made in a shell: there is no file
        return b""


def _holds(kept: Path, record: Path, about: dict[str, Any]) -> bool:
    try:
        found = json.loads(record.read_text())
        return bool(found == {**about, "sha256": sha256_of(kept)})
    except (OSError, ValueError):
        return False

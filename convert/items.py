"""New and changed videos into a bundle that serves: vectors by its own item graph, no training, no new encoder.

    kir convert items --bundle runs/server --catalogue new/catalogue.parquet

An item that training never saw has no row of its own and is placed by its content (author, tags, duration). What was
written is one more file in retrieval/items/ and the catalogue; a running server applies it at its next look.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from contract.catalogue import Catalogue, read_catalogue
from contract.errors import InputError
from contract.spec import FeatureSpec
from convert.bundle import read_bundle, read_json, write_bundle_index
from convert.files import copy_in, write_durably
from convert.onnx_export import OnnxGraph
from convert.server_models import vectors_of
from training.tables import SparseTables

UPDATES = "retrieval/items"
CONTENT = ("author_id", "tags", "duration_ms")


@dataclass(frozen=True)
class ItemUpdate:
    """How many items an update adds, changes and takes away; file: "" when there was nothing to do."""

    bundle: Path
    added: int
    changed: int
    removed: int
    file: str

    def table(self) -> str:
        done = f"{self.added} items added, {self.changed} changed, {self.removed} removed in {self.bundle}"
        return f"{done} by {self.file}" if self.file else f"nothing to do: {self.bundle} has this catalogue"

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "bundle": str(self.bundle)}


def update_items(bundle: str | Path, catalogue: str | Path) -> ItemUpdate:
    """Bring a bundle's items to those of another catalogue. Raises InputError, EventError, ConversionError."""
    root = Path(bundle)
    held = read_bundle(root)
    if not Path(catalogue).is_file():
        raise InputError("file does not exist", where=catalogue)
    before, after = read_catalogue(root / "catalogue.parquet"), read_catalogue(Path(catalogue))
    if not len(after):
        raise InputError("the catalogue is empty: nothing would be left to find", where=catalogue)
    place = before.index_of(after.video_id)
    new, changed = place < 0, np.zeros(len(after), bool)
    for name in CONTENT:
        was, now = getattr(before, name)[np.maximum(place, 0)], getattr(after, name)
        changed |= (was != now).reshape(len(after), -1).any(axis=1)
    changed &= ~new
    removed = before.video_id[after.index_of(before.video_id) < 0]
    rows = np.flatnonzero(new | changed)
    name = ""
    if len(rows) or len(removed):
        name = f"{UPDATES}/{_next_number(root):06d}.safetensors"
        content = {
            "ids": after.video_id[rows].view(np.int64),
            "vectors": _vectors(root, after, rows),
            "removed": removed.view(np.int64),
        }
        (root / UPDATES).mkdir(exist_ok=True)
        write_durably(root / name, save(content))
    if name or _differ(before, after):
        aside = copy_in(catalogue, root / ".catalogue.part")
        shutil.move(aside, root / "catalogue.parquet")
        write_bundle_index(root, held.retrieval_version, held.ranker_version)
    return ItemUpdate(root, int(new.sum()), int(changed.sum()), len(removed), name)


def _differ(before: Catalogue, after: Catalogue) -> bool:
    names = ("video_id", "upload_ms")
    return any(not np.array_equal(getattr(before, name), getattr(after, name)) for name in names)


def _vectors(root: Path, items: Catalogue, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    spec = FeatureSpec.from_json(read_json(root / "retrieval/spec.json"), str(root / "retrieval/spec.json"))
    path = root / "retrieval/tables.safetensors"
    tables = SparseTables.from_export(load_file(path), path)
    return vectors_of(spec, tables, items, OnnxGraph(root / "retrieval/item.onnx"), rows)


def _next_number(root: Path) -> int:
    found = [int(path.stem) for path in (root / UPDATES).glob("*.safetensors")]
    return max(found, default=0) + 1

"""New, changed and retrained videos into a bundle that serves: no new encoder, no new index, the same version.

    kir convert items --bundle runs/server --catalogue new/catalogue.parquet
    kir convert items --bundle runs/server --retrieval runs/next     # of kir train kuaiformer --items-only

Vectors come from the bundle's own item graph: an item that training never saw has no row of its own and is placed by
its content (author, tags, duration). What was written is one more file in retrieval/items/, the catalogue and, from a
checkpoint, its rows; a running server applies them at its next look.

No file that bundle.json lists is touched: catalogue and rows get names of their own, and the new bundle.json, written
last, makes them count. An interruption leaves the old bundle whole. What a bundle.json superseded stays until the next
update, for a server that has read the old one and opens its files now.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from contract.catalogue import Catalogue, read_catalogue
from contract.errors import InputError, VersionMismatch
from contract.spec import FeatureSpec
from convert.bundle import (
    CATALOGUE,
    ITEM_UPDATES,
    TABLES,
    Bundle,
    read_bundle,
    read_json,
    remove_superseded,
    rows_revision,
    write_bundle_index,
)
from convert.files import copy_in, flush, sha256_of, write_durably
from convert.onnx_export import OnnxGraph
from convert.server_models import vectors_of
from training.checkpoint import Checkpoint, load_checkpoint
from training.tables import SparseTables

SAME = 1e-6  # vectors nearer than this are the same: the last bits depend on who else is in the batch


@dataclass(frozen=True)
class ItemUpdate:
    """How many items an update adds, changes and takes away. file: "" when no vector changed; rows: new ones came."""

    bundle: Path
    added: int
    changed: int
    removed: int
    file: str
    rows: bool

    def table(self) -> str:
        done = f"{self.added} items added, {self.changed} changed, {self.removed} removed in {self.bundle}"
        told = [f"by {self.file}" if self.file else "", "with new rows" if self.rows else ""]
        if not any(told) and not self.added + self.changed + self.removed:
            return f"no vector changes: {self.bundle} has these items"
        return " ".join([done, *(word for word in told if word)])

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "bundle": str(self.bundle)}


def update_items(
    bundle: str | Path, *, catalogue: str | Path | None = None, retrieval: str | Path | None = None
) -> ItemUpdate:
    """Bring a bundle's items to another catalogue, to the rows of a checkpoint with the same dense net, or both.

    Raises InputError, EventError, CheckpointError, ConversionError; VersionMismatch for a checkpoint of another net
    or of rows before the bundle's or other ones of the same revision.
    """
    root = Path(bundle)
    held = read_bundle(root)
    if catalogue is None and retrieval is None:
        raise InputError("nothing to bring", fix="name --catalogue, --retrieval or both")
    if catalogue is not None and not Path(catalogue).is_file():
        raise InputError("file does not exist", where=catalogue)
    before = read_catalogue(root / held.catalogue)
    after = before if catalogue is None else read_catalogue(Path(catalogue))
    if not len(after):
        raise InputError("the catalogue is empty: nothing would be left to find", where=catalogue)
    checkpoint = None if retrieval is None else _of_this_net(held, retrieval)
    tables = SparseTables.from_export(load_file(root / held.tables), root / held.tables)
    vectors = _vectors(root, checkpoint.tables if checkpoint else tables, after)
    place = before.index_of(after.video_id)
    changed = place >= 0
    changed[changed] = _apart(vectors[changed], _vectors(root, tables, before)[place[changed]])
    rows = np.flatnonzero((place < 0) | changed)
    removed = before.video_id[after.index_of(before.video_id) < 0]
    now = read_bundle(root)  # vectors of a large catalogue took their time
    if (now.retrieval_version, now.changing) != (held.retrieval_version, held.changing):
        raise InputError("the bundle's items were changed meanwhile", where=root, fix="run this again")
    name = ""
    if len(rows) or len(removed):
        name = f"{ITEM_UPDATES}{_next_number(held):06d}.safetensors"
        arrays = {
            "ids": after.video_id[rows].view(np.int64),
            "vectors": vectors[rows],
            "removed": removed.view(np.int64),
        }
        (root / ITEM_UPDATES).mkdir(exist_ok=True)
        write_durably(root / name, save(arrays))
    revision, rows_at, items_at = held.retrieval_revision, held.tables, held.catalogue
    if checkpoint is not None:
        revision, rows_at = rows_revision(checkpoint), _placed(checkpoint.tables_path, root, TABLES, held.tables)
    if catalogue is not None:
        items_at = _placed(Path(catalogue), root, CATALOGUE, held.catalogue)
    updates = (*held.items, name) if name else held.items
    write_bundle_index(
        root, held.retrieval_version, now.ranker_version, revision, catalogue=items_at, tables=rows_at, items=updates
    )
    remove_superseded(root, held.changing | {items_at, rows_at, *updates})
    added, new_rows = int((place < 0).sum()), rows_at != held.tables
    return ItemUpdate(root, added, int(changed.sum()), len(removed), name, new_rows)


def _of_this_net(held: Bundle, path: str | Path) -> Checkpoint:
    checkpoint = load_checkpoint(path, kind="kuaiformer")
    if checkpoint.version != held.retrieval_version:
        raise VersionMismatch(
            "this checkpoint has another encoder", where=path, got=checkpoint.version, allowed=held.retrieval_version,
            fix="write the bundle again: a changed encoder is swapped whole",
        )  # fmt: skip
    revision = rows_revision(checkpoint)
    if revision < held.retrieval_revision:
        raise VersionMismatch(
            "the bundle has newer rows of this net", where=path, got=f"revision {revision}",
            allowed=f"from {held.retrieval_revision}", fix="write the bundle again to go back",
        )  # fmt: skip
    if revision == held.retrieval_revision and not _same(checkpoint.tables_path, held.directory / held.tables):
        raise VersionMismatch(
            "the bundle has other rows of this revision", where=path, got=f"revision {revision}",
            allowed=f"these rows, or from {revision + 1}", fix="train on what came since, or write the bundle again",
        )  # fmt: skip
    return checkpoint


def _apart(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.bool_]:
    far: NDArray[np.bool_] = np.abs(a - b).max(axis=1, initial=0.0) > SAME
    return far


def _same(one: Path, other: Path) -> bool:
    return sha256_of(one) == sha256_of(other)


def _placed(source: Path, root: Path, name: str, held: str) -> str:
    """Copy a file into the bundle, named after `name` and its content. `held` itself when it is the same file."""
    if _same(source, root / held):
        return held
    place = root / name
    aside = copy_in(source, place.with_name(f".{place.name}.{os.getpid()}.part"))
    try:
        flush(aside)
        target = place.with_name(f"{place.stem}-{sha256_of(aside)[:12]}{place.suffix}")
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)
    flush(target.parent)
    return target.relative_to(root).as_posix()


def _vectors(root: Path, tables: SparseTables, items: Catalogue) -> NDArray[np.float32]:
    spec = FeatureSpec.from_json(read_json(root / "retrieval/spec.json"), str(root / "retrieval/spec.json"))
    return vectors_of(spec, tables, items, OnnxGraph(root / "retrieval/item.onnx"), np.arange(len(items)))


def _next_number(held: Bundle) -> int:
    """After those that are listed: what else lies there was left by an interruption."""
    return max((int(Path(name).stem) for name in held.items), default=0) + 1

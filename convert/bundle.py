"""The server bundle: everything a page server needs, and no torch.

    from convert.bundle import write_bundle, add_rows
    write_bundle("bundle", retrieval=…, ranker=…, kir=[…], catalogue=…, users=…, histories=…)
    add_rows("bundle", "checkpoints/kir-next")        # before its pointer moves: rows first, then the phones

Layout: docs/architecture.md, "Server bundle". bundle.json is written last, so what it lists is complete.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract.catalogue import read_catalogue, read_users
from contract.errors import InputError, VersionMismatch
from contract.parquet import read_events
from contract.rows import encode_rows
from convert.build import Progress
from convert.files import flush, flush_tree, read_and_copy, sha256_of, write_durably, written_aside
from convert.server_models import RetrievalChoices, export_ranker, export_retrieval
from convert.source import FIRST_ROWS_REVISION
from training.checkpoint import Checkpoint, load_checkpoint

FORMAT = "kir-bundle/1"
INDEX_NAME = "bundle.json"
CATALOGUE, TABLES = "catalogue.parquet", "retrieval/tables.safetensors"
ITEM_UPDATES = "retrieval/items/"
# What `kir convert items` writes anew, the export's own files among it: of these, bundle.json lists the newest alone.
_CHANGING = re.compile(r"catalogue(-[0-9a-f]+)?\.parquet|retrieval/tables(-[0-9a-f]+)?\.safetensors|retrieval/items/.+")


@dataclass(frozen=True)
class Bundle:
    """What a bundle directory holds. retrieval_revision: of the rows beside the encoder of retrieval_version.

    catalogue, tables, items: files of the newest item update; items: all updates since the export, oldest first
    """

    directory: Path
    retrieval_version: str
    retrieval_revision: int
    ranker_version: str
    dense_versions: tuple[str, ...]
    files: int
    n_bytes: int
    catalogue: str = CATALOGUE
    tables: str = TABLES
    items: tuple[str, ...] = ()

    def table(self) -> str:
        lines = [
            f"retrieval {self.retrieval_version}, rows at revision {self.retrieval_revision}",
            f"ranker    {self.ranker_version}",
            *(f"rows      {version}" for version in self.dense_versions),
            f"{self.files} files, {self.n_bytes} bytes in {self.directory}",
        ]
        return "\n".join(lines)

    @property
    def changing(self) -> frozenset[str]:
        """The files that the next item update may supersede."""
        return frozenset((self.catalogue, self.tables, *self.items))

    def to_json(self) -> dict[str, Any]:
        lists = {"dense_versions": list(self.dense_versions), "items": list(self.items)}
        return {**vars(self), "directory": str(self.directory), **lists}


def write_bundle(
    out: str | Path,
    *,
    retrieval: str | Path,
    ranker: str | Path,
    kir: Sequence[str | Path],
    catalogue: str | Path,
    users: str | Path,
    histories: str | Path | None = None,
    choices: RetrievalChoices | None = None,
    overwrite: bool = False,
    progress: Progress = lambda line: None,
) -> Bundle:
    """Write a bundle aside, then rename it. retrieval, ranker, kir: checkpoint directories; the others Parquet files.

    histories: events that users had before the server starts; choices: of encoder and item index. Raises
    CheckpointError, EventError, ConversionError, VerificationFailed when an exported graph differs from torch or the
    int8 encoder that was asked for fails its gate, InputError when OUT exists.
    """
    with written_aside(Path(out), overwrite) as aside:
        items = read_and_copy(catalogue, aside / CATALOGUE, read_catalogue)
        read_and_copy(users, aside / "users.parquet", read_users)
        if histories is not None:
            read_and_copy(histories, aside / "histories.parquet", read_events)
        progress("retrieval")
        encoder = load_checkpoint(retrieval, kind="kuaiformer")
        for line in export_retrieval(encoder, items, aside / "retrieval", choices):
            progress(line)
        progress("ranker")
        scorer = load_checkpoint(ranker, kind="ranker")
        export_ranker(scorer, aside / "ranker")
        for checkpoint in kir:
            progress(f"rows of {checkpoint}")
            _write_rows(aside, load_checkpoint(checkpoint, kind="kir"))
        write_bundle_index(aside, encoder.version, scorer.version, rows_revision(encoder))
    return read_bundle(out)


def add_rows(bundle: str | Path, kir_checkpoint: str | Path) -> Bundle:
    """Add one more dense version's rows to a bundle in use. The same rows again change nothing.

    Raises VersionMismatch when this dense version has other rows here: live rows are updated over gRPC.
    """
    root = Path(bundle)
    held = read_bundle(root)
    found = load_checkpoint(kir_checkpoint, kind="kir")
    place = root / "rows" / found.version
    if place.exists() and found.version not in held.dense_versions:
        shutil.rmtree(place)  # left by an interruption: bundle.json never listed it
    if place.exists():
        if sha256_of(place / "tables.safetensors") != sha256_of(found.tables_path):
            raise VersionMismatch(
                "this dense version has other rows in the bundle",
                where=place,
                fix="update live rows with the server's embedding update, or write the bundle again",
            )
        return held
    aside = root / f".rows.{os.getpid()}.part"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        _write_rows(aside, found)
        flush_tree(aside)
        place.parent.mkdir(exist_ok=True)
        os.replace(aside / "rows" / found.version, place)
        flush(place.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    now = read_bundle(root)  # items may have changed meanwhile
    write_bundle_index(
        root, now.retrieval_version, now.ranker_version, now.retrieval_revision,
        catalogue=now.catalogue, tables=now.tables, items=now.items,
    )  # fmt: skip
    return read_bundle(root)


def read_bundle(root: str | Path) -> Bundle:
    """bundle.json in short. Raises InputError."""
    path = Path(root) / INDEX_NAME
    try:
        data = json.loads(path.read_bytes())
        files = data["files"]
        if data["format"] != FORMAT:
            raise InputError("another bundle format", where=path, got=data["format"], allowed=FORMAT)
    except FileNotFoundError:
        raise InputError("no server bundle here", where=path, fix="write one with: kir convert server") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError("bundle.json is unreadable", where=path, got=str(error)) from None
    dense = sorted({name.split("/")[1] for name in files if name.startswith("rows/")})
    n_bytes = sum(int(entry["bytes"]) for entry in files.values())
    revision = int(data.get("retrieval_revision", FIRST_ROWS_REVISION))
    versions = str(data["retrieval_version"]), revision, str(data["ranker_version"])
    places = str(data.get("catalogue", CATALOGUE)), str(data.get("retrieval_tables", TABLES))
    items = tuple(sorted(name for name in files if name.startswith(ITEM_UPDATES)))
    return Bundle(Path(root), *versions, tuple(dense), len(files), n_bytes, *places, items)


def rows_revision(checkpoint: Checkpoint) -> int:
    """Which rows of its dense net these are: they change while the net stands."""
    return int(checkpoint.config["training"].get("rows_revision", FIRST_ROWS_REVISION))


def _write_rows(root: Path, checkpoint: Checkpoint) -> None:
    """rows/<dense_version>/. Rows that can't be sent (non-finite) are refused here, not on the server."""
    for rows in checkpoint.tables.numpy_rows().values():
        encode_rows(rows)
    place = root / "rows" / checkpoint.version
    place.mkdir(parents=True)
    shutil.copyfile(checkpoint.tables_path, place / "tables.safetensors")
    write_json(place / "spec.json", checkpoint.spec.to_json())
    about = {
        "dense_version": checkpoint.version,
        "rows_revision": rows_revision(checkpoint),
        "spec_fingerprint": checkpoint.spec.fingerprint,
    }
    write_json(place / "rows.json", about)


def read_json(path: Path) -> Any:
    """Raises InputError."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError("not readable JSON", where=path, got=str(error)) from None


def write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=2, sort_keys=True, allow_nan=False) + "\n")


def write_bundle_index(
    root: Path,
    retrieval_version: str,
    ranker_version: str,
    retrieval_revision: int,
    *,
    catalogue: str = CATALOGUE,
    tables: str = TABLES,
    items: Collection[str] = (),
) -> None:
    """bundle.json over every file there is, but hidden ones, itself, and what item updates superseded or left half."""
    files, current = {}, {catalogue, tables, *items}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        hidden = name == INDEX_NAME or any(part.startswith(".") for part in name.split("/"))
        if path.is_file() and not hidden and (name in current or not _CHANGING.fullmatch(name)):
            files[name] = {"sha256": sha256_of(path), "bytes": path.stat().st_size}
    data = {
        "format": FORMAT,
        "retrieval_version": retrieval_version,
        "retrieval_revision": retrieval_revision,
        "ranker_version": ranker_version,
        "catalogue": catalogue,
        "retrieval_tables": tables,
        "files": files,
    }
    write_durably(root / INDEX_NAME, (json.dumps(data, indent=2, sort_keys=True) + "\n").encode())


def remove_superseded(root: Path, keep: Collection[str]) -> None:
    """Remove files of item updates that are not in `keep`."""
    for path in sorted([*root.glob("catalogue*"), *root.glob("retrieval/tables*"), *root.glob(f"{ITEM_UPDATES}[!.]*")]):
        name = path.relative_to(root).as_posix()
        if _CHANGING.fullmatch(name) and name not in keep:
            path.unlink(missing_ok=True)

"""The server bundle on disk: read, every byte checked against bundle.json before anything is built from it.

`read_index` reads bundle.json alone (cheap: the server polls it); `verify` hashes files; `load_models`, `load_rows`
build. Layout: docs/architecture.md, "Server bundle". bundle.json is written last, so what it lists is complete.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.catalogue import Catalogue, UserTable, read_catalogue, read_users
from contract.errors import InputError, IntegrityError, SpecError, VersionMismatch
from contract.events import Events
from contract.parquet import read_events
from contract.spec import FeatureSpec
from server_stub.kept_windows import TAIL, WINDOW
from server_stub.ranker import Ranker
from server_stub.retrieval import NEEDED, Retrieval
from server_stub.store import EmbeddingStore, Tables, read_tables

FORMAT = "kir-bundle/1"
INDEX_NAME = "bundle.json"
ITEM_UPDATES = "retrieval/items/"
CATALOGUE, RETRIEVAL_ROWS = "catalogue.parquet", "retrieval/tables.safetensors"  # unless bundle.json names others
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class BundleIndex:
    """bundle.json. files: path below the root -> (SHA-256, bytes); retrieval_revision: of retrieval's rows.

    catalogue, tables: the newest catalogue and retrieval's rows; item updates bring them under new names
    """

    root: Path
    retrieval_version: str
    ranker_version: str
    files: Mapping[str, tuple[str, int]]
    retrieval_revision: int = 1
    catalogue: str = CATALOGUE
    tables: str = RETRIEVAL_ROWS

    @property
    def dense_versions(self) -> list[str]:
        """Versions whose rows are complete in the bundle, sorted by name."""
        found = {path.split("/")[1] for path in self.files if path.startswith("rows/") and path.count("/") == 2}
        return sorted(name for name in found if f"rows/{name}/rows.json" in self.files)

    def under(self, prefix: str) -> list[str]:
        return sorted(path for path in self.files if path.startswith(prefix))

    def digest(self, paths: Iterable[str]) -> str:
        """One hash over the listed hashes: tells whether these files changed since the last look."""
        return hashlib.sha256(json.dumps([(p, self.files[p]) for p in paths]).encode()).hexdigest()

    @property
    def model_files(self) -> list[str]:
        """Everything but rows and histories: what `load_models` reads."""
        return sorted(p for p in self.files if not p.startswith("rows/") and p != "histories.parquet")

    @property
    def item_files(self) -> list[str]:
        """Item updates since the export, oldest first (`kir convert items` writes them)."""
        return self.under(ITEM_UPDATES)

    @property
    def item_updates(self) -> tuple[tuple[str, str], ...]:
        """`item_files` with their SHA-256: of a bundle written anew, the first update has the old one's name."""
        return tuple((name, self.files[name][0]) for name in self.item_files)

    @property
    def core_files(self) -> list[str]:
        """`model_files` without items, their rows and the catalogue: while these stand, items change in place."""
        changing = (self.catalogue, self.tables)
        return [p for p in self.model_files if not p.startswith(ITEM_UPDATES) and p not in changing]


def read_index(root: str | Path) -> BundleIndex:
    """Read and check BUNDLE/bundle.json. Raises InputError."""
    root = Path(root)
    path = root / INDEX_NAME
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError("no server bundle here", where=path, fix="write one with: kir convert server") from None
    except (OSError, ValueError) as error:
        raise InputError("bundle.json is not readable JSON", where=path, got=str(error)) from None
    got = data.get("format") if isinstance(data, dict) else type(data).__name__
    if got != FORMAT:
        raise InputError("another bundle format", where=path, got=got, allowed=FORMAT)
    try:
        files = {str(name): (str(entry["sha256"]), int(entry["bytes"])) for name, entry in data["files"].items()}
        revision = int(data.get("retrieval_revision", 1))
        newest = str(data.get("catalogue", CATALOGUE)), str(data.get("retrieval_tables", RETRIEVAL_ROWS))
        versions = str(data["retrieval_version"]), str(data["ranker_version"])
        index = BundleIndex(root, *versions, files, revision, *newest)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError("bundle.json is incomplete", where=path, got=str(error)) from None
    for name in files:
        if name.startswith("/") or "\\" in name or any(part in ("", ".", "..") for part in name.split("/")):
            raise InputError("bundle.json names a file outside the bundle", where=path, got=name)
    return index


def verify(index: BundleIndex, paths: Iterable[str]) -> None:
    """Compare sizes and SHA-256.

    Raises InputError for an absent file, IntegrityError for another one than was listed.
    """
    for name in paths:
        path = index.root / name
        sha256, n_bytes = index.files[name]
        try:
            size = path.stat().st_size
            if size != n_bytes:
                raise IntegrityError("bundle file has another size", where=path, got=size, allowed=n_bytes)
            with open(path, "rb") as file:
                got = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise InputError("bundle file is absent or unreadable", where=path, got=str(error)) from None
        if got != sha256:
            raise IntegrityError(
                "bundle file is not the one listed", where=path, got=got[:16], allowed=sha256[:16], fix="copy it again"
            )


@dataclass(frozen=True)
class Models:
    """What recommends: swapped whole when the bundle's retrieval, ranker or catalogue changes.

    digest: of all files it was built from; core: of those that an item update leaves alone; item_updates: those
    applied, name and SHA-256
    """

    retrieval: Retrieval
    ranker: Ranker
    catalogue: Catalogue
    users: UserTable
    digest: str
    core: str = ""
    item_updates: tuple[tuple[str, str], ...] = ()
    retrieval_revision: int = 1


def load_retrieval(index: BundleIndex, *, threads: int = 1) -> tuple[Retrieval, Catalogue]:
    """Verify and load encoder, item index with its updates, and catalogue alone.

    Raises InputError, IntegrityError, VersionMismatch.
    """
    needed = [index.catalogue, index.tables, *(f"retrieval/{name}" for name in (*NEEDED, "spec.json"))]
    _check_listed(index, needed)
    needed += [path for path in (f"retrieval/{name}" for name in (WINDOW, TAIL, "config.json")) if path in index.files]
    verify(index, [*needed, *index.item_files])
    root = index.root / "retrieval"
    catalogue = read_catalogue(index.root / index.catalogue)
    spec, tables = read_spec(root / "spec.json"), index.root / index.tables
    retrieval = Retrieval.load(root, spec, index.retrieval_version, tables=tables, threads=threads)
    _apply_items(index, retrieval, index.item_files, catalogue)
    return retrieval, catalogue


def _check_listed(index: BundleIndex, needed: Iterable[str]) -> None:
    absent = [name for name in needed if name not in index.files]
    if absent:
        raise InputError("bundle lacks files", where=index.root / INDEX_NAME, got=absent, fix="convert again")


def load_models(index: BundleIndex, *, threads: int = 1) -> Models:
    """Verify and load encoder, item index, ranker, catalogue and users.

    Raises InputError, IntegrityError, VersionMismatch.
    """
    _check_listed(
        index, ["users.parquet", *(f"ranker/{n}" for n in ("ranker.onnx", "spec.json", "tables.safetensors"))]
    )
    retrieval, catalogue = load_retrieval(index, threads=threads)
    verify(index, index.model_files)
    root = index.root
    ranker_spec = read_spec(root / "ranker/spec.json")
    config = read_json(root / "ranker/config.json") if "ranker/config.json" in index.files else {}
    ranker = Ranker.load(root / "ranker", ranker_spec, index.ranker_version, config, threads=threads)
    users = read_users(root / "users.parquet")
    digests = index.digest(index.model_files), index.digest(index.core_files)
    return Models(retrieval, ranker, catalogue, users, *digests, index.item_updates, index.retrieval_revision)


def updated_models(models: Models, index: BundleIndex) -> Models | None:
    """`models` with the items, rows and catalogue that the bundle now has; None when more than these changed.

    The encoder and the item index stay as they are in memory, and updates applied before are not read again. Raises
    InputError, IntegrityError, VersionMismatch.
    """
    updates, applied = index.item_updates, len(models.item_updates)
    if models.core != index.digest(index.core_files) or updates[:applied] != models.item_updates:
        return None
    new = index.item_files[applied:]
    _check_listed(index, [index.catalogue, index.tables])
    verify(index, [*new, index.catalogue, index.tables])
    catalogue = read_catalogue(index.root / index.catalogue)
    retrieval = models.retrieval.copy(index.root / index.tables)
    _apply_items(index, retrieval, new, catalogue)
    return replace(
        models,
        retrieval=retrieval,
        catalogue=catalogue,
        digest=index.digest(index.model_files),
        item_updates=updates,
        retrieval_revision=index.retrieval_revision,
    )


def _apply_items(index: BundleIndex, retrieval: Retrieval, names: Iterable[str], catalogue: Catalogue) -> None:
    for name in names:
        retrieval.update_items(*read_item_update(index.root / name))
    unknown = int((catalogue.index_of(retrieval.item_ids) < 0).sum())
    if unknown:
        raise VersionMismatch(
            "the ANN index holds items that the catalogue lacks",
            where=index.root,
            got=f"{unknown} items",
            fix="convert again",
        )


def read_item_update(path: Path) -> tuple[NDArray[np.uint64], NDArray[np.float32], NDArray[np.uint64]]:
    """(ids [N], vectors [N, D], removed ids) of one item update. Raises InputError."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays = load_file(path)
        ids, vectors, removed = arrays["ids"], arrays["vectors"], arrays["removed"]
    except (OSError, SafetensorError, KeyError) as error:
        raise InputError("not an item update", where=path, got=str(error), fix="convert again") from None
    if ids.dtype != np.int64 or removed.dtype != np.int64 or vectors.dtype != np.float32:
        raise InputError("an item update holds other types", where=path, got=(ids.dtype, vectors.dtype, removed.dtype))
    return ids.view(np.uint64), vectors, removed.view(np.uint64)


def load_histories(index: BundleIndex) -> Events | None:
    """What users watched before the server started; None when the bundle has none."""
    if "histories.parquet" not in index.files:
        return None
    verify(index, ["histories.parquet"])
    return read_events(index.root / "histories.parquet")


@dataclass(frozen=True)
class RowsVersion:
    """One BUNDLE/rows/<dense_version>, loaded."""

    dense_version: str
    spec: FeatureSpec
    tables: Tables
    rows_revision: int
    digest: str

    def add_to(self, store: EmbeddingStore) -> None:
        store.add_version(self.dense_version, self.spec, self.tables, self.rows_revision)


def load_rows(index: BundleIndex, dense_version: str, *, dtype: str = "float32") -> RowsVersion:
    """Verify and load the rows of one dense version. Raises InputError, IntegrityError, SpecError."""
    if not _VERSION.fullmatch(dense_version):
        raise InputError("dense version is not a plain name", where=index.root, got=dense_version)
    prefix = f"rows/{dense_version}/"
    files = index.under(prefix)
    absent = [n for n in ("rows.json", "spec.json", "tables.safetensors") if prefix + n not in files]
    if absent:
        raise InputError("rows of a dense version lack files", where=index.root / prefix, got=absent)
    verify(index, files)
    spec = read_spec(index.root / prefix / "spec.json")
    about = read_json(index.root / prefix / "rows.json")
    told = (about.get("dense_version"), about.get("spec_fingerprint"))
    if told != (dense_version, spec.fingerprint):
        expected = (dense_version, spec.fingerprint)
        raise SpecError("rows.json belongs to other rows", where=index.root / prefix, got=told, allowed=expected)
    revision = about.get("rows_revision")
    if not isinstance(revision, int) or revision < 0:
        raise InputError("rows_revision is not a whole number", where=index.root / prefix / "rows.json", got=revision)
    tables = read_tables(index.root / prefix / "tables.safetensors", spec, dtype=dtype)
    return RowsVersion(dense_version, spec, tables, revision, index.digest(files))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises InputError."""
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError("not readable JSON", where=path, got=str(error)) from None
    if not isinstance(data, dict):
        raise InputError("not a JSON object", where=path, got=type(data).__name__)
    return data


def read_spec(path: Path) -> FeatureSpec:
    return FeatureSpec.from_json(read_json(path), str(path))

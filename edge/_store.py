"""ModelStore: the dense net on the device. Download, verify, cache, activate, roll back.

    CACHE/blobs/<sha256>                  every file once, shared between versions, verified before it gets its name
    CACHE/parts/<sha256>.part             a transfer that broke off; the next `update` resumes it
    CACHE/versions/<dense_version>.json   the manifest, written last: a version is there when this file is
    CACHE/active.json                     which version runs, which ran before, which was rolled back
    CACHE/trust/                          signed metadata seen last, with `root`: what an older state is told by

Every change is written aside, synced and renamed, so that a phone that dies between any two steps finds the old model
or the new one. Whatever is refused is named in the error, and the running model stays.
Thread-safe: one lock per store, and a file lock between processes for whatever writes.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from contract.errors import DownloadError, IntegrityError, KirError, ManifestError, ModelStoreError, NoModelError
from contract.manifest import FILE_BYTES_MAX, POINTER_NAME, FileEntry, Manifest, Pointer, is_version_name
from edge._device import Device
from edge._installed import InstalledModel, check_bytes, check_runtime, device_classes, device_files
from edge._source import DirectorySource, Progress, Source, open_source

ACTIVE_FORMAT = "kir-edge-active/1"
NAMES_MAX = 64  # versions of each kind that `active.json` keeps
POINTER_BYTES_MAX = 64 * 1024
FETCH = ("device", "all")


@dataclass(frozen=True)
class Active:
    """The local pointer: the active version, what was active before (newest first), and what was rolled back."""

    version: str = ""
    before: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()

    def to_bytes(self) -> bytes:
        return json.dumps({"format": ACTIVE_FORMAT, **asdict(self)}, sort_keys=True).encode()

    @staticmethod
    def from_bytes(raw: bytes) -> Active:
        """Anything unreadable is "nothing active": the versions themselves are still there."""
        try:
            data = json.loads(raw)
            if data["format"] != ACTIVE_FORMAT:
                return Active()
            found = Active(data["version"], tuple(data["before"])[:NAMES_MAX], tuple(data["refused"])[:NAMES_MAX])
        except (ValueError, KeyError, TypeError, RecursionError):
            return Active()
        names = (*found.before, *found.refused, *filter(None, (found.version,)))
        return found if isinstance(found.version, str) and all(map(is_version_name, names)) else Active()


class ModelStore:
    """The models of one cache directory.

    source    where models come from: an http(s) URL, a CDN directory, or any Source; None = only what is here
    root      root.json that comes with the host app, or its bytes: only a pointer and manifests that it leads to count
    unsigned  take any model from a source that is no directory, without root: for development
    fetch     "device": shipped graphs only; "all": golden cases, whole net and card as well
    keep      versions to keep, the active one included; from 2, or nothing could be rolled back
    device    what the manifest's device classes are chosen for; None = this device
    progress  called as (path, bytes so far, bytes in all) while a file arrives
    """

    def __init__(
        self,
        cache_dir: str | Path,
        source: str | Path | Source | None = None,
        *,
        root: bytes | str | Path | None = None,
        unsigned: bool = False,
        fetch: str = "device",
        keep: int = 3,
        device: Device | None = None,
        progress: Progress = lambda path, have, n_bytes: None,
    ):
        if fetch not in FETCH:
            raise ModelStoreError("unknown fetch", got=fetch, allowed=FETCH)
        if not 2 <= keep <= NAMES_MAX:
            raise ModelStoreError("a store keeps two versions or more", got=keep, allowed=f"2 … {NAMES_MAX}")
        self.cache = Path(cache_dir)
        self._source = open_source(source) if isinstance(source, (str, Path)) else source
        self._root = _root_bytes(root)
        trusted_place = self._source is None or isinstance(self._source, DirectorySource)
        if self._root is None and not (unsigned or trusted_place):
            raise ModelStoreError(
                "models from a CDN are trusted by their signature", where=self._source,
                fix="give root= (the root.json that comes with the app); in development unsigned=True",
            )  # fmt: skip
        if self._root is not None and unsigned:
            raise ModelStoreError("either root= or unsigned=True, not both", where=self._source)
        self._fetch, self._keep, self._device, self._progress = fetch, keep, device, progress
        self._lock = threading.RLock()
        self.refused: list[KirError] = []  # what `active` found unusable, last call

    # -- what is here

    def versions(self) -> list[str]:
        """Complete versions in the cache, by name."""
        return sorted(path.stem for path in (self.cache / "versions").glob("*.json"))

    def active_version(self) -> str:
        """The version that `activate` chose last, unverified; "" when none."""
        return self._read_active().version

    def load(self, version: str) -> InstalledModel:
        """A version with every file verified. Raises NoModelError when absent, IntegrityError naming a bad file."""
        model = self._open(version)
        model.verify()
        return model

    def active(self) -> InstalledModel:
        """The active model, or the last one before it that is whole; what was refused on the way is in `refused`.

        Raises NoModelError, caused by the IntegrityError when a model was there and is corrupt.
        """
        with self._lock:
            self.refused = []
            active = self._read_active()
            for version in filter(None, (active.version, *active.before)):
                try:
                    return self.load(version)
                except KirError as error:
                    self.refused.append(error)
            cause = next((e for e in self.refused if not isinstance(e, NoModelError)), None)
            raise NoModelError(
                "no usable model on this device", where=self.cache, got=cause and str(cause), fix="update and activate"
            ) from cause

    # -- what changes

    def update(self) -> str | None:
        """Fetch what the CDN calls current. Returns the version that is ready to `activate`, None when nothing is new.

        Nothing is new when the active version is the current one and whole, or when the current one was rolled back.
        Raises DownloadError, ManifestError, IntegrityError or VersionMismatch, each naming the file; TrustError for
        metadata that have expired, went back or are not signed by the right keys; ModelStoreError when this device
        can't hold it. The active model stays in every case.
        """
        if self._source is None:
            raise DownloadError("this store has no source", where=self.cache, fix="give a CDN URL or directory")
        with self._writing(POINTER_NAME):
            read = self._reader()
            pointer = Pointer.from_bytes(read(POINTER_NAME, POINTER_BYTES_MAX))
            active = self._read_active()
            if pointer.dense_version in active.refused:
                return None
            raw = read(pointer.manifest, min(pointer.manifest_bytes, FILE_BYTES_MAX))
            check_bytes(raw, FileEntry(pointer.manifest_sha256, pointer.manifest_bytes), pointer.manifest)
            manifest = Manifest.from_bytes(raw, pointer.manifest)
            if manifest.dense_version != pointer.dense_version:
                raise ManifestError(
                    "manifest is of another version", where=pointer.manifest, got=manifest.dense_version
                )
            check_runtime(manifest)
            fetched = [self._fetch_file(manifest, file) for file in self._needed(manifest)]
            self._write(self._record(pointer.dense_version), raw)
            same = pointer.dense_version == active.version and not any(fetched)
            return None if same else pointer.dense_version

    def activate(self, version: str) -> InstalledModel:
        """Verify a version and make it the active one. Raises as `load`; the old one stays active then."""
        with self._writing(version):
            model = self.load(version)
            active = self._read_active()
            if version != active.version:
                before = tuple(v for v in (active.version, *active.before) if v and v != version)
                refused = tuple(v for v in active.refused if v != version)
                self._write_active(Active(version, before[: self._keep - 1], refused))
            self._prune()
            return model

    def rollback(self) -> InstalledModel:
        """Back to the last version before the active one that is whole; the CDN's pointer will not bring it again.

        `activate` by name lifts that. Raises NoModelError when there is none to go back to.
        """
        with self._writing("rollback"):
            active = self._read_active()
            for place, version in enumerate(active.before):
                with contextlib.suppress(KirError):
                    model = self.load(version)
                    refused = tuple(dict.fromkeys((active.version, *active.refused)))[:NAMES_MAX]
                    self._write_active(Active(version, active.before[place + 1 :], refused))
                    return model
            raise NoModelError("no version to go back to", where=self.cache, got=active.before)

    # -- parts

    def _reader(self) -> Callable[[str, int], bytes]:
        """Reads pointer and manifest: as the CDN has them, or with a root as they were signed."""
        assert self._source is not None
        if self._root is None:
            return self._source.read
        from edge._trust import TrustedReader  # tuf is imported by an update, never by a start

        return TrustedReader(self._source, self._root, self.cache / "trust").read

    def _needed(self, manifest: Manifest) -> list[str]:
        if self._fetch == "all":
            return list(manifest.files)
        return device_files(manifest.of_class(device_classes(manifest, self._device)[0]))

    def _open(self, version: str) -> InstalledModel:
        record = self._record(version)
        try:
            raw = record.read_bytes()
        except OSError:
            raise NoModelError("no such version here", where=self.cache, got=version, allowed=self.versions()) from None
        try:
            manifest = Manifest.from_bytes(raw, str(record))
        except KirError as error:
            raise IntegrityError("version record is spoilt", where=record.name, got=str(error)) from None
        paths = {file: self._blob(entry) for file, entry in manifest.files.items()}
        # A device's class may change, as with a new system that tells more flags: until an `update` brings that class's
        # files, the one that it met before goes on.
        seen = [(name, manifest.of_class(name)) for name in device_classes(manifest, self._device)]
        whole = (one for one in seen if all(paths[file].exists() for file in device_files(one[1])))
        name, manifest = next(whole, seen[0])
        device = set(device_files(manifest))
        return InstalledModel(manifest, {f: path for f, path in paths.items() if f in device or path.exists()}, name)

    def _fetch_file(self, manifest: Manifest, file: str) -> bool:
        """Bring one file into the blobs; False when it was there and whole. A spoilt blob is fetched again."""
        assert self._source is not None
        entry, path = manifest.files[file], f"models/{manifest.dense_version}/{file}"
        blob, part = self._blob(entry), self.cache / "parts" / f"{entry.sha256}.part"
        if blob.exists():
            with contextlib.suppress(IntegrityError):
                check_bytes(blob.read_bytes(), entry, path)
                return False
        resumed = part.exists()
        part.parent.mkdir(parents=True, exist_ok=True)
        self._source.download(path, part, entry.n_bytes, self._progress)
        try:
            check_bytes(part.read_bytes(), entry, path)
        except IntegrityError:
            part.unlink()
            if not resumed:
                raise
            return self._fetch_file(manifest, file)  # the old part may have been the bad half: once from the start
        blob.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "rb+") as file_object:
            os.fsync(file_object.fileno())
        os.replace(part, blob)
        _sync_folder(blob.parent)
        return True

    def _prune(self) -> None:
        """Drop versions beyond `keep` and blobs that no kept version names. Never the active one or those before it."""
        active = self._read_active()
        kept = [v for v in (active.version, *active.before) if v][: self._keep]
        for version in self.versions():
            if version not in kept:
                self._record(version).unlink()
        named: set[str] = set()
        for version in self.versions():
            try:
                named |= {entry.sha256 for entry in self._open(version).manifest.files.values()}
            except ModelStoreError:
                return  # a spoilt record: we don't know its files, so nothing is dropped
        for blob in (self.cache / "blobs").iterdir():
            if blob.name not in named:
                blob.unlink()

    def _blob(self, entry: FileEntry) -> Path:
        return self.cache / "blobs" / entry.sha256

    def _record(self, version: str) -> Path:
        return self.cache / "versions" / f"{version}.json"

    def _read_active(self) -> Active:
        try:
            return Active.from_bytes((self.cache / "active.json").read_bytes())
        except OSError:
            return Active()

    def _write_active(self, active: Active) -> None:
        self._write(self.cache / "active.json", replace(active).to_bytes())

    def _write(self, path: Path, content: bytes) -> None:
        """Aside, sync, rename, sync the folder."""
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.new")
        with open(aside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        _sync_folder(path.parent)

    @contextlib.contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        """The store's locks; whatever the device's file system refuses becomes a ModelStoreError that names the
        file.
        """
        with self._lock:
            try:
                self.cache.mkdir(parents=True, exist_ok=True)
                with open(self.cache / "lock", "ab") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX)
                    yield
            except OSError as error:
                raise ModelStoreError(
                    "this device can't store the model",
                    where=error.filename or what,
                    got=error.strerror or str(error),
                    fix="free some space or check the folder's permissions; the running model stays",
                ) from error


def _root_bytes(root: bytes | str | Path | None) -> bytes | None:
    if root is None or isinstance(root, bytes):
        return root
    try:
        return Path(root).read_bytes()
    except OSError as error:
        raise ModelStoreError(
            "root.json can't be read", where=root, got=error.strerror, fix="it comes with the host app"
        ) from None


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

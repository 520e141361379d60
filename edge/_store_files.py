"""The cache directory of a ModelStore: where things lie, who may write when, and what is dropped.

    CACHE/update.lock   held by whoever updates, transfers included: new blobs, parts and records, and their removal
    CACHE/lock          held for the moments in which `active.json` is read and written again; nothing else waits for it

Both are file locks, each taken on an open file of its own, so that they hold between threads as between processes, and
end with their process. Reading takes neither. A version that is loaded is held by a shared lock on its record (`Hold`).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import weakref
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from contract.errors import IntegrityError, KirError, ModelStoreError, NoModelError
from contract.manifest import FileEntry, Manifest, is_version_name
from edge._device import Device
from edge._installed import InstalledModel, device_classes, device_files

ACTIVE_FORMAT = "kir-edge-active/1"
NAMES_MAX = 64  # versions of each kind that `active.json` keeps


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


class Hold:
    """A version's record, open and locked (shared): while this lives, no store of any process drops the version.

    Raises OSError when the record is not there, or is being dropped.
    """

    def __init__(self, record: Path):
        handle = os.open(record, os.O_RDONLY | os.O_CLOEXEC)
        self._close = weakref.finalize(self, os.close, handle)
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileNotFoundError(record) from None
        except OSError:  # a file system without locks: nothing is held, and `update` will say so
            pass
        if not record.exists():  # dropped between the two calls
            raise FileNotFoundError(record)
        self._handle = handle

    def read(self) -> bytes:
        """The record's bytes. Raises OSError."""
        with open(self._handle, "rb", closefd=False) as file:
            file.seek(0)
            return file.read()


class StoreFiles:
    """The files of one cache directory; `keep` and `device` as ModelStore has them.

    Methods raise OSError unless they say otherwise.

    Safe to use from any thread and process.
    """

    def __init__(self, cache: Path, keep: int, device: Device | None = None):
        self.cache, self.keep, self._device = cache, keep, device
        self.trust = cache / "trust"

    # -- who may write

    @contextlib.contextmanager
    def updating(self) -> Iterator[None]:
        """The lock of updates. Waits for another update, transfers and all. Raises ModelStoreError for what the
        device's file system refuses meanwhile.
        """
        with self._device_errors(), self._locked("update.lock"):
            yield

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """The lock of `active.json`. Nobody holds it for longer than a small file takes. Raises as `updating`."""
        with self._device_errors(), self._locked("lock"):
            yield

    @contextlib.contextmanager
    def _locked(self, name: str, how: int = fcntl.LOCK_EX) -> Iterator[None]:
        self.cache.mkdir(parents=True, exist_ok=True)
        with open(self.cache / name, "ab") as lock:
            fcntl.flock(lock, how)
            yield

    @contextlib.contextmanager
    def _device_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ModelStoreError(
                "this device can't store the model",
                where=error.filename or self.cache,
                got=error.strerror or str(error),
                fix="free some space or check the folder's permissions; the running model stays",
            ) from error

    # -- versions

    def versions(self) -> list[str]:
        """Complete versions, by name."""
        return sorted(path.stem for path in (self.cache / "versions").glob("*.json"))

    def open(self, version: str) -> InstalledModel:
        """A version, unverified, and held as long as the result lives. Raises NoModelError and IntegrityError."""
        record = self._record(version)
        try:
            hold = Hold(record)
            raw = hold.read()
        except OSError:
            raise NoModelError("no such version here", where=self.cache, got=version, allowed=self.versions()) from None
        manifest = _manifest(raw, record)
        paths = {file: self.blob(entry) for file, entry in manifest.files.items()}
        # A device's class may change, as with a new system that tells more flags: until an `update` brings that class's
        # files, the one that it met before goes on.
        seen = [(name, manifest.of_class(name)) for name in device_classes(manifest, self._device)]
        whole = (one for one in seen if all(paths[file].exists() for file in device_files(one[1])))
        name, manifest = next(whole, seen[0])
        device = set(device_files(manifest))
        here = {file: path for file, path in paths.items() if file in device or path.exists()}
        return InstalledModel(manifest, here, name, hold)

    def put_version(self, version: str, raw: bytes) -> None:
        """A manifest all of whose files are here: with it the version is there. Under the lock of updates."""
        _sync_folder(self._made("blobs"))  # an update that was killed may have left blobs that no sync followed
        self._put(self._record(version), raw)

    # -- files of a version

    def blob(self, entry: FileEntry) -> Path:
        return self.cache / "blobs" / entry.sha256

    def part(self, entry: FileEntry) -> Path:
        """Where a file arrives; its folder is made. Under the lock of updates."""
        return self._made("parts") / f"{entry.sha256}.part"

    def put_blob(self, entry: FileEntry) -> None:
        """Give a whole and verified part its name. Under the lock of updates."""
        part, blob = self.part(entry), self._made("blobs") / entry.sha256
        with naming(part), open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, blob)
        _sync_folder(blob.parent)

    # -- the two pointers

    def active(self) -> Active:
        """What `active.json` says; nothing active when it can't be read. Never raises."""
        try:
            return Active.from_bytes((self.cache / "active.json").read_bytes())
        except OSError:
            return Active()

    def put_active(self, active: Active) -> None:
        """Under the lock of `active.json`."""
        self._put(self.cache / "active.json", active.to_bytes())

    def put_wanted(self, raw: bytes) -> None:
        """The manifest of what is downloaded now: its blobs and parts stay, also when this process dies."""
        self._put(self.cache / "wanted.json", raw)

    def _wanted(self) -> Manifest | None:
        path = self.cache / "wanted.json"
        try:
            return _manifest(path.read_bytes(), path)
        except (OSError, KirError):  # its transfers start again
            return None

    # -- what goes

    def prune_unless_updating(self) -> None:
        """`prune`, unless an update is under way: it may have files that no record names yet, and prunes at its end.

        Never raises: a cache that is read-only or not there has nothing to drop.
        """
        if not self.cache.is_dir():
            return
        with contextlib.suppress(OSError), self._locked("update.lock", fcntl.LOCK_EX | fcntl.LOCK_NB):
            self.prune()

    def prune(self, wanted: Manifest | None = None) -> None:
        """Drop versions beyond `keep`, then blobs and parts that nothing names. Under the lock of updates.

        Stays: the active version and those before it, `wanted` (default: what the last update wanted), whatever
        is held. What can't be dropped waits for the next time: nothing that could run depends on it.
        """
        with contextlib.suppress(OSError):
            wanted = wanted or self._wanted()
            with self._locked("lock"):  # or a version might become the active one between a look and its removal
                if not self._drop_versions(wanted.dense_version if wanted else ""):
                    return
            wanted_files = {entry.sha256 for entry in wanted.files.values()} if wanted else set()
            named = set(wanted_files)
            try:
                for version in self.versions():
                    record = self._record(version)
                    named |= {entry.sha256 for entry in _manifest(record.read_bytes(), record).files.values()}
            except KirError:
                return  # a spoilt record: we don't know its files, so nothing is dropped
            _drop((self.cache / "blobs").glob("*"), named)
            _drop((self.cache / "parts").glob("*.part"), wanted_files)
            _drop((self.cache / "versions").glob(".*.new"), set())  # an update was killed while writing it

    def _drop_versions(self, wanted: str) -> bool:
        """False when the pointer is spoilt: then we don't know what is kept."""
        active = self.active()
        if not active.version and (self.cache / "active.json").exists():
            return False
        kept = [v for v in (active.version, *active.before) if v][: self.keep]
        for version in self.versions():
            if version not in (*kept, wanted):
                record = self._record(version)
                with open(record, "rb") as file, contextlib.suppress(BlockingIOError):  # somebody holds it
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    record.unlink()
        return True

    # -- parts

    def _record(self, version: str) -> Path:
        return self.cache / "versions" / f"{version}.json"

    def _made(self, folder: str) -> Path:
        path = self.cache / folder
        path.mkdir(parents=True, exist_ok=True)
        return path

    def _put(self, path: Path, content: bytes) -> None:
        """Aside, sync, rename, sync the folder. A file that has this content stays: it may be held."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_bytes() != content:
            aside = path.with_name(f".{path.name}.new")
            with naming(aside), open(aside, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        _sync_folder(path.parent)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Writes and syncs know a handle only: their OSError gets the file's name."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def _manifest(raw: bytes, path: Path) -> Manifest:
    try:
        return Manifest.from_bytes(raw, str(path))
    except KirError as error:
        raise IntegrityError("version record is spoilt", where=path.name, got=str(error)) from None


def _drop(files: Iterator[Path], named: set[str]) -> None:
    for path in files:
        if path.stem not in named:
            path.unlink()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        with naming(folder):
            os.fsync(handle)
    finally:
        os.close(handle)

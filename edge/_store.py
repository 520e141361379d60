"""ModelStore: the dense net on the device. Download, verify, cache, activate, roll back.

    CACHE/blobs/<sha256>                  every file once, shared between versions, verified before it gets its name
    CACHE/parts/<sha256>.part             a transfer that broke off; the next `update` resumes it
    CACHE/versions/<dense_version>.json   the manifest, written last: a version is there when this file is
    CACHE/wanted.json                     the manifest of what the CDN called current last: its blobs and parts stay
    CACHE/active.json                     which version runs, which ran before, which was rolled back
    CACHE/trust/                          signed metadata seen last, with `root`: what an older state is told by

Every change is written aside, synced and renamed, so that a phone that dies between any two steps finds the old model
or the new one. Whatever is refused is named in the error, and the running model stays.
Thread-safe, and safe between processes. Only an update waits for another update and for the CDN (edge/_store_files.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from contract.errors import DownloadError, IntegrityError, KirError, ManifestError, ModelStoreError, NoModelError
from contract.manifest import FILE_BYTES_MAX, POINTER_NAME, FileEntry, Manifest, Pointer
from edge._device import Device
from edge._installed import InstalledModel, check_bytes, check_runtime, device_classes, device_files
from edge._source import DirectorySource, Progress, Source, open_source
from edge._store_files import NAMES_MAX, Active, StoreFiles, naming

POINTER_BYTES_MAX = 64 * 1024
FETCH = ("device", "all")


class ModelStore:
    """The models of one cache directory.

    source    where models come from: an http(s) URL, a CDN directory, or any Source; None = only what is here
    root      root.json that comes with the host app, or its bytes: only a pointer and manifests that it leads to count
    unsigned  take any model from a source that is no directory, without root: for development
    fetch     "device": shipped graphs only; "all": golden cases, whole net and card as well
    keep      versions to keep, the active one included; from 2, or nothing could be rolled back. Beside them stay what
              the CDN called current last, and what some session has loaded
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
        self._files = StoreFiles(self.cache, keep, device)
        self.refused: list[KirError] = []  # what `active` found unusable, last call

    # -- what is here

    def versions(self) -> list[str]:
        """Complete versions in the cache, by name."""
        return self._files.versions()

    def active_version(self) -> str:
        """The version that `activate` chose last, unverified; "" when none."""
        return self._files.active().version

    def load(self, version: str) -> InstalledModel:
        """A version with every file verified. Raises NoModelError when absent, IntegrityError naming a bad file.

        While the result lives, no store drops the version.
        """
        model = self._files.open(version)
        model.verify()
        return model

    def active(self) -> InstalledModel:
        """The active model, or the last one before it that is whole; what was refused on the way is in `refused`.

        Raises NoModelError, caused by the IntegrityError when a model was there and is corrupt.
        """
        active = self._files.active()
        self.refused = refused = list[KirError]()
        for version in filter(None, (active.version, *active.before)):
            try:
                return self.load(version)
            except KirError as error:
                refused.append(error)
        cause = next((e for e in refused if not isinstance(e, NoModelError)), None)
        raise NoModelError(
            "no usable model on this device", where=self.cache, got=cause and str(cause), fix="update and activate"
        ) from cause

    # -- what changes

    def update(self) -> str | None:
        """Fetch what the CDN calls current. Returns the version that is ready to `activate`, None when nothing is new.

        Nothing is new when the active version is the current one and whole, or when the current one was rolled back.
        Raises DownloadError, ManifestError, IntegrityError or VersionMismatch, each naming the file; TrustError for
        metadata that have expired, went back or are not signed by the right keys; ModelStoreError when this device
        can't hold it. The active model stays in every case. Waits for the network, and for an update of another thread
        or process; nothing else here waits for it.
        """
        if self._source is None:
            raise DownloadError("this store has no source", where=self.cache, fix="give a CDN URL or directory")
        files = self._files
        with files.updating():
            read = self._reader()
            pointer = Pointer.from_bytes(read(POINTER_NAME, POINTER_BYTES_MAX))
            version = pointer.dense_version
            if version in files.active().refused:
                files.prune()
                return None
            raw = read(pointer.manifest, min(pointer.manifest_bytes, FILE_BYTES_MAX))
            check_bytes(raw, FileEntry(pointer.manifest_sha256, pointer.manifest_bytes), pointer.manifest)
            manifest = Manifest.from_bytes(raw, pointer.manifest)
            if manifest.dense_version != version:
                raise ManifestError(
                    "manifest is of another version", where=pointer.manifest, got=manifest.dense_version
                )
            check_runtime(manifest)
            needed = {manifest.files[file].sha256: file for file in self._needed(manifest)}
            absent = [file for file in needed.values() if not self._is_whole(manifest, file)]
            if absent:
                files.prune(manifest)  # room first: what was wanted before and never ran goes
            files.put_wanted(raw)
            for file in absent:
                self._fetch_file(manifest, file)
            files.put_version(version, raw)
            files.prune()  # once more: an activation of the meantime left it to us
            active = files.active()
            nothing_new = version in active.refused or (version == active.version and not absent)
            return None if nothing_new else version

    def activate(self, version: str) -> InstalledModel:
        """Verify a version and make it the active one. Raises as `load`; the old one stays active then.

        Raises ModelStoreError when this device can't write it down.
        """
        model = self.load(version)
        with self._files.writing():
            active = self._files.active()
            if version != active.version:
                before = tuple(v for v in (active.version, *active.before) if v and v != version)
                refused = tuple(v for v in active.refused if v != version)
                self._files.put_active(Active(version, before[: self._keep - 1], refused))
        self._files.prune_unless_updating()
        return model

    def rollback(self) -> InstalledModel:
        """Back to the last version before the active one that is whole; the CDN's pointer will not bring it again.

        `activate` by name lifts that. Raises NoModelError when there is none to go back to.
        """
        with self._files.writing():
            active = self._files.active()
            for place, version in enumerate(active.before):
                with contextlib.suppress(KirError):
                    model = self.load(version)
                    refused = tuple(dict.fromkeys((active.version, *active.refused)))[:NAMES_MAX]
                    self._files.put_active(Active(version, active.before[place + 1 :], refused))
                    return model
            raise NoModelError("no version to go back to", where=self.cache, got=active.before)

    def prune(self) -> None:
        """Drop versions beyond `keep`, and files and broken transfers that nothing names.

        Never raises. `update` and `activate` end with it, and a session calls it after its start. While an update is
        under way it does nothing: that one ends with it.
        """
        self._files.prune_unless_updating()

    # -- parts

    def _reader(self) -> Callable[[str, int], bytes]:
        """Reads pointer and manifest: as the CDN has them, or with a root as they were signed."""
        assert self._source is not None
        if self._root is None:
            return self._source.read
        from edge._trust import TrustedReader  # tuf is imported by an update, never by a start

        return TrustedReader(self._source, self._root, self._files.trust).read

    def _needed(self, manifest: Manifest) -> list[str]:
        if self._fetch == "all":
            return list(manifest.files)
        return device_files(manifest.of_class(device_classes(manifest, self._device)[0]))

    def _is_whole(self, manifest: Manifest, file: str) -> bool:
        """Whether a file is in the blobs as published; a spoilt one is fetched again."""
        entry = manifest.files[file]
        blob = self._files.blob(entry)
        if not blob.exists():
            return False
        try:
            check_bytes(blob.read_bytes(), entry, file)
        except IntegrityError:
            return False
        return True

    def _fetch_file(self, manifest: Manifest, file: str) -> None:
        """Bring one file into the blobs."""
        assert self._source is not None
        entry, path = manifest.files[file], f"models/{manifest.dense_version}/{file}"
        part = self._files.part(entry)
        resumed = part.exists()
        with naming(part):
            self._source.download(path, part, entry.n_bytes, self._progress)
        try:
            check_bytes(part.read_bytes(), entry, path)
        except IntegrityError:
            part.unlink()
            if not resumed:
                raise
            self._fetch_file(manifest, file)  # the old part may have been the bad half: once from the start
            return
        self._files.put_blob(entry)


def _root_bytes(root: bytes | str | Path | None) -> bytes | None:
    if root is None or isinstance(root, bytes):
        return root
    try:
        return Path(root).read_bytes()
    except OSError as error:
        raise ModelStoreError(
            "root.json can't be read", where=root, got=error.strerror, fix="it comes with the host app"
        ) from None

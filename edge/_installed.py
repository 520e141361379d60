"""A model that is on this machine: its manifest and where its files lie, each checked when it is read.

Immutable after creation; safe to share between threads.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from contract.errors import IntegrityError, ManifestError, NoModelError, VersionMismatch
from contract.manifest import MANIFEST_NAME, POINTER_NAME, FileEntry, Manifest, Pointer
from edge._device import Device

DEVICE_GRAPHS = ("page", "watch", "swipe", "place")


@dataclass(frozen=True)
class InstalledModel:
    """A model's manifest as this device's class sees it (`Manifest.of_class`), and its files' places: those that are
    here, for a phone does not fetch goldens. device_class: "" when the shipped variants run.

    hold: keeps the files from being dropped while this lives, when a store has them.
    """

    manifest: Manifest
    paths: Mapping[str, Path]
    device_class: str = ""
    hold: object = field(default=None, repr=False, compare=False)

    @property
    def dense_version(self) -> str:
        return self.manifest.dense_version

    @property
    def spec_fingerprint(self) -> str:
        return self.manifest.spec.fingerprint

    def read(self, file: str) -> bytes:
        """A file's bytes after its hash was checked: what runs is what was verified.

        Raises IntegrityError naming the file, also when it was not fetched or is gone.
        """
        where = f"{self.dense_version}/{file}"
        if file not in self.paths or file not in self.manifest.files:
            raise IntegrityError(
                "file of the model is not here", where=where, fix="fetch the version with all its files"
            )
        try:
            content = self.paths[file].read_bytes()
        except OSError as error:
            raise IntegrityError("file of the model can't be read", where=where, got=str(error)) from None
        check_bytes(content, self.manifest.files[file], where)
        return content

    def verify(self) -> None:
        """Read and hash every file that is here. Raises IntegrityError for the first bad one."""
        for file in self.paths:
            self.read(file)

    @staticmethod
    def open_published(
        folder: str | Path, device: Device | None = None, *, device_class: str | None = None
    ) -> InstalledModel:
        """A version directory as published, or a CDN directory: its current version.

        device: what to choose variants for; None = this device. device_class: a class by name, whatever the device;
        "" = what ships.
        Raises NoModelError when there is none, ManifestError when it can't be trusted or has no such class.
        """
        root = Path(folder)
        if (root / POINTER_NAME).is_file():
            root = (root / Pointer.from_bytes((root / POINTER_NAME).read_bytes()).manifest).parent
        if not (root / MANIFEST_NAME).is_file():
            fix = f"give a folder with {MANIFEST_NAME} or {POINTER_NAME}"
            raise NoModelError("no published model here", where=folder, fix=fix)
        manifest = Manifest.from_bytes((root / MANIFEST_NAME).read_bytes(), str(root / MANIFEST_NAME))
        name = device_classes(manifest, device)[0] if device_class is None else device_class
        return InstalledModel(manifest.of_class(name), {file: root / file for file in manifest.files}, name)


def device_classes(manifest: Manifest, device: Device | None = None) -> list[str]:
    """Names of the device classes that a device (None = this one) meets, the best first; "" last: what ships."""
    device = device or Device.this()
    return manifest.classes_for(device.cpu, device.memory_mib)


def device_files(manifest: Manifest) -> list[str]:
    """What a phone loads: the shipped variants of page, watch, swipe and place, in the manifest's order, each once.

    manifest: as the device's class sees it (`Manifest.of_class`).
    """
    files = [graph.variant().file for graph in manifest.graphs if graph.name in DEVICE_GRAPHS]
    if not files:
        raise ManifestError("manifest ships no graph for a device", where=manifest.dense_version, allowed=DEVICE_GRAPHS)
    return list(dict.fromkeys(files))


def check_bytes(content: bytes, entry: FileEntry, where: str) -> None:
    """Raises IntegrityError naming the file when size or hash are not the published ones."""
    if len(content) != entry.n_bytes:
        raise IntegrityError("file has another size", where=where, got=len(content), allowed=entry.n_bytes)
    got = hashlib.sha256(content).hexdigest()
    if got != entry.sha256:
        raise IntegrityError("file is not the one that was published", where=where, got=got, allowed=entry.sha256)


def check_runtime(manifest: Manifest) -> None:
    """Raises VersionMismatch when a package that `min_runtime` names is older here. Names of other platforms pass."""
    for package, minimum in manifest.min_runtime.items():
        try:
            installed = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        if _numbers(installed) < _numbers(minimum):
            raise VersionMismatch(
                f"the model needs a newer {package}",
                where=manifest.dense_version,
                got=installed,
                allowed=f"from {minimum}",
            )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])

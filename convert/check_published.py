"""A CDN directory, checked as it stands: every byte accounted for, and signed metadata that lead to all of it.

from convert.check_published import check_published
print(check_published("cdn").table())
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from contract.errors import InputError, IntegrityError
from contract.golden import GoldenSession
from contract.manifest import MANIFEST_NAME, POINTER_NAME, Manifest, Pointer
from convert.files import sha256_of
from convert.trust_state import check_signed, is_signed

UNSIGNED = "unsigned: fit for a directory and for development; phones take a signed CDN over http (--keys)"


@dataclass(frozen=True)
class Check:
    """A CDN directory in which every byte is accounted for. expires: role -> ISO time, empty for an unsigned CDN."""

    current: str
    versions: tuple[str, ...]
    files: int
    n_bytes: int
    expires: dict[str, str] = field(default_factory=dict)

    def table(self) -> str:
        lines = [f"{'*' if name == self.current else ' '} {name}" for name in self.versions]
        lines.append(f"{self.files} files, {self.n_bytes} bytes, every hash as published (* current)")
        ends = ", ".join(f"{role} until {end[:10]}" for role, end in self.expires.items())
        return "\n".join([*lines, f"signed: {ends}" if ends else UNSIGNED])

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def check_published(cdn_root: str | Path) -> Check:
    """Hash everything again: the pointer, the manifest it names, every file of every version, golden session included.

    On a signed CDN also that its metadata lead from root.json to all of it. Raises InputError when there is no pointer,
    ManifestError for a pointer or manifest that can't be trusted, IntegrityError naming the file that is absent, extra
    or altered, TrustError for metadata that are not what the keys signed, or that have expired.
    """
    root = Path(cdn_root)
    path = root / POINTER_NAME
    if not path.is_file():
        raise InputError("nothing is published here", where=path, fix="publish with: kir publish DIR --cdn ROOT")
    pointer = Pointer.from_bytes(path.read_bytes(), str(path))
    named = root / pointer.manifest
    if not named.is_file():
        raise IntegrityError("the pointer names an absent manifest", where=named)
    raw = named.read_bytes()
    if (hashlib.sha256(raw).hexdigest(), len(raw)) != (pointer.manifest_sha256, pointer.manifest_bytes):
        raise IntegrityError("manifest is not the one the pointer names", where=named)
    directories = sorted(p for p in (root / "models").iterdir() if p.is_dir() and not p.name.startswith("."))
    manifests = [check_version(directory) for directory in directories]
    return Check(
        current=pointer.dense_version,
        versions=tuple(m.dense_version for m in manifests),
        files=sum(len(m.files) + 1 for m in manifests) + 1,
        n_bytes=sum(published_size(m) for m in manifests),
        expires=check_signed(root) if is_signed(root) else {},
    )


def check_version(directory: str | Path) -> Manifest:
    """One version directory: manifest, names, sizes, hashes, nothing more and nothing less; the session parses."""
    directory = Path(directory)
    where = directory / MANIFEST_NAME
    if not where.is_file():
        raise IntegrityError("version without a manifest", where=directory)
    manifest = Manifest.from_bytes(where.read_bytes(), str(where))
    if manifest.dense_version != directory.name:
        raise IntegrityError("manifest of another version", where=where, got=manifest.dense_version)
    have = {p.name for p in directory.iterdir()} - {MANIFEST_NAME}
    if have != set(manifest.files):
        odd = sorted(have ^ set(manifest.files))
        raise IntegrityError("files differ from the manifest's list", where=directory, got=odd)
    for name, entry in manifest.files.items():
        path = directory / name
        if path.stat().st_size != entry.n_bytes or sha256_of(path) != entry.sha256:
            raise IntegrityError("file is not the one that was published", where=path, fix="publish it again")
        if not name.startswith(entry.sha256[:20]):
            raise IntegrityError("file does not have its hash's name", where=path, got=entry.sha256[:20])
    sessions = [manifest.golden.session, *(one.golden_session for one in manifest.device_classes)]
    for name in filter(None, sessions):
        path = directory / name
        session = GoldenSession.from_bytes(path.read_bytes(), str(path))
        if session.dense_version != manifest.dense_version:
            raise IntegrityError("golden session of another version", where=path, got=session.dense_version)
    return manifest


def published_size(manifest: Manifest) -> int:
    """Bytes of all files of a version."""
    return sum(entry.n_bytes for entry in manifest.files.values())

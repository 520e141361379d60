"""What the signed metadata of a CDN directory say now, each file verified from the publisher's own root.json down.

    from convert.trust_state import is_signed, read_state
    state = read_state("cdn", Path("keys/root.json").read_bytes())

    CDN/metadata/<N>.root.json       which keys sign what; each version signed by the keys of the one before as well
    CDN/metadata/<N>.targets.json    which key signs releases
    CDN/metadata/<N>.release.json    the pointer and every manifest: length and SHA-256
    CDN/metadata/<N>.snapshot.json   which versions of targets and release belong together
    CDN/metadata/timestamp.json      which snapshot is current: the only file ever overwritten, and the last one written

A publisher verifies what it signs anew: whoever can write to the CDN must not get a signature for it.
What timestamp.json does not lead to is left over from a publisher that was killed, and counts for nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Targets, Timestamp

from contract.errors import InputError, IntegrityError, TrustError
from contract.manifest import MANIFEST_NAME, METADATA_FOLDER, POINTER_NAME, RELEASE_ROLE, signed_pointer_path

TIMESTAMP = "timestamp.json"


@dataclass(frozen=True)
class State:
    """Verified metadata. roots: those of the chain, the current one last; release is None before the first one.

    Versions are 0 before the first publication.
    """

    roots: tuple[Root, ...]
    targets: Targets
    release: Targets | None = None
    snapshot: Snapshot | None = None
    timestamp: Timestamp | None = None

    @property
    def root(self) -> Root:
        return self.roots[-1]

    def expires(self) -> dict[str, datetime]:
        """Role -> end of its metadata, for the roles that are there."""
        found = {
            "root": self.root,
            "targets": self.targets,
            "release": self.release,
            "snapshot": self.snapshot,
            "timestamp": self.timestamp,
        }
        return {role: signed.expires for role, signed in found.items() if signed is not None}


def metadata_folder(cdn: str | Path) -> Path:
    return Path(cdn) / METADATA_FOLDER


def is_signed(cdn: str | Path) -> bool:
    """Whether phones with a root.json take models from this CDN: a publication was signed to its end."""
    return (metadata_folder(cdn) / TIMESTAMP).is_file()


def read_state(cdn: str | Path, anchor: bytes, *, where: object = "root.json", rotating: bool = False) -> State:
    """What a signed CDN says. anchor: a root.json of this CDN, of any version.

    rotating: a rotation that was killed between root and timestamp left online metadata by the keys before; they are
    taken as well. Raises TrustError naming the file that is not what the keys signed, IntegrityError for an absent one.
    Expiry is not judged here.
    """
    folder = metadata_folder(cdn)
    roots = _root_chain(folder, anchor, where)
    online = roots[-2:] if rotating else roots[-1:]
    timestamp: Metadata[Timestamp] = _load(folder / TIMESTAMP, "timestamp", *online)
    snapshot_meta = timestamp.signed.snapshot_meta
    snapshot: Metadata[Snapshot] = _load(_named(folder, "snapshot", snapshot_meta), "snapshot", *online)
    meta = snapshot.signed.meta
    if not {"targets.json", f"{RELEASE_ROLE}.json"} <= set(meta):
        raise TrustError("snapshot names other roles", where=folder, got=sorted(meta))
    targets: Metadata[Targets] = _load(_named(folder, "targets", meta["targets.json"]), "targets", *online)
    place = _named(folder, RELEASE_ROLE, meta[f"{RELEASE_ROLE}.json"])
    release: Metadata[Targets] = _load(place, RELEASE_ROLE, targets.signed)
    return State(tuple(roots), targets.signed, release.signed, snapshot.signed, timestamp.signed)


def first_state(cdn: str | Path, root: bytes, targets: bytes, where: Path) -> State:
    """What a CDN is about to say for the first time: root.json and targets.json as the keys' folder holds them."""
    roots = _root_chain(metadata_folder(cdn), root, where)
    if [found.version for found in roots] != [1]:
        raise InputError(
            "a new CDN begins with the first root.json", where=where, got=[found.version for found in roots],
            fix="move metadata/ along with the models, or make new keys",
        )  # fmt: skip
    first: Metadata[Targets] = _parse(targets, where, "targets")
    _verify(first, where, "targets", roots[0])
    return State(tuple(roots), first.signed)


def check_signed(cdn: str | Path, now: datetime | None = None) -> dict[str, str]:
    """Whether the metadata lead from the CDN's first root.json to its pointer and manifests; role -> end, ISO.

    Tells damage, not forgery: only a root.json from elsewhere does that. Raises TrustError and IntegrityError.
    """
    cdn, folder = Path(cdn), metadata_folder(cdn)
    oldest = min(folder.glob("[0-9]*.root.json"), key=lambda path: int(path.name.partition(".")[0]), default=None)
    if oldest is None:
        raise IntegrityError("signed metadata without a root.json", where=folder)
    state = read_state(cdn, oldest.read_bytes(), where=oldest)
    assert state.release is not None
    for path, target in state.release.targets.items():
        where = cdn / path
        copies = [where, cdn / signed_pointer_path(target.hashes["sha256"])] if path == POINTER_NAME else [where]
        for copy in copies:
            if not copy.is_file():
                raise IntegrityError("a signed file is absent", where=copy)
            with _explained(copy):
                target.verify_length_and_hashes(copy.read_bytes())
    there = {path.relative_to(cdn).as_posix() for path in cdn.glob(f"models/[!.]*/{MANIFEST_NAME}")}
    if unsigned := there - set(state.release.targets):
        raise TrustError(
            "a version that nobody signed", where=cdn, got=sorted(unsigned), fix="publish it with --keys, or remove it"
        )
    ended = [role for role, end in state.expires().items() if end <= (now or datetime.now(UTC))]
    if ended:
        raise TrustError("signed metadata have expired", where=folder, got=ended, fix="kir publish refresh, or rotate")
    return {role: end.isoformat() for role, end in state.expires().items()}


def _root_chain(folder: Path, anchor: bytes, where: object) -> list[Root]:
    first: Metadata[Root] = _parse(anchor, where, "root")
    _verify(first, where, "root", first.signed)
    same = folder / f"{first.signed.version}.root.json"
    if same.is_file() and same.read_bytes() != anchor:
        raise TrustError(
            "this CDN has another root.json of the same version", where=same, got=str(where),
            fix="use the keys of this CDN, or another CDN directory",
        )  # fmt: skip
    chain = [first.signed]
    while (path := folder / f"{chain[-1].version + 1}.root.json").is_file():
        following: Metadata[Root] = _parse(path.read_bytes(), path, "root")
        _verify(following, path, "root", chain[-1])
        _verify(following, path, "root", following.signed)
        if following.signed.version != chain[-1].version + 1:
            raise TrustError("root.json under another version's name", where=path, got=following.signed.version)
        chain.append(following.signed)
    return chain


def _named(folder: Path, role: str, meta: MetaFile) -> tuple[Path, MetaFile]:
    return folder / f"{meta.version}.{role}.json", meta


def _load(place: Path | tuple[Path, MetaFile], role: str, *delegators: Root | Targets) -> Metadata[Any]:
    """Parsed and verified by one of the delegators; with a MetaFile also the file that it names."""
    path, meta = place if isinstance(place, tuple) else (place, None)
    if not path.is_file():
        raise IntegrityError("signed metadata are not whole: a file is absent", where=path)
    raw = path.read_bytes()
    if meta is not None:
        with _explained(path):
            meta.verify_length_and_hashes(raw)
    found = _parse(raw, path, role)
    for delegator in delegators[:-1]:
        try:
            _verify(found, path, role, delegator)
        except TrustError:
            continue
        return found
    _verify(found, path, role, delegators[-1])
    return found


def _parse(raw: bytes, where: object, role: str) -> Metadata[Any]:
    with _explained(where):
        found: Metadata[Any] = Metadata.from_bytes(raw)
    kind = "targets" if role == RELEASE_ROLE else role
    if found.signed.type != kind:
        raise TrustError("metadata of another role", where=where, got=found.signed.type, allowed=kind)
    return found


def _verify(metadata: Metadata[Any], where: object, role: str, delegator: Root | Targets) -> None:
    with _explained(where):
        delegator.verify_delegate(role, metadata.signed_bytes, metadata.signatures)


@contextmanager
def _explained(where: object) -> Iterator[None]:
    try:
        yield
    except (RepositoryError, ValueError) as error:  # ValueError: no such role is delegated
        raise TrustError("not what the keys of this CDN signed", where=where, got=str(error)) from None

"""The keys that sign a CDN's metadata, in one folder: made once, never overwritten, readable by their owner alone.

    from convert.trust_keys import make_keys
    print(make_keys("keys").table())

    KEYS/root.pem      offline: names the keys of every other role. Lost: phones need a new root.json with the app
    KEYS/targets.pem   offline: delegates releases to the key of `release`
    KEYS/release.pem   where models are published: signs the pointer and the manifests
    KEYS/online.pem    where the CDN is: signs snapshot and timestamp, again and again, by a timer
    KEYS/root.json     signed, public: comes with the host app, and is the publisher's own anchor
    KEYS/targets.json  signed, public: the first publication puts both into the CDN, so that offline keys stay offline

A machine needs the folder with the keys of its own job alone. Ed25519 throughout: the edge verifies it without
`cryptography`.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, Root, Targets

from contract.errors import InputError
from contract.files import flush
from contract.manifest import MANIFEST_NAME, POINTER_NAME, RELEASE_ROLE

# Key -> the roles it signs. Snapshot and timestamp share one: they are renewed together, by the same timer.
KEYS: Mapping[str, tuple[str, ...]] = {
    "root": ("root",),
    "targets": ("targets",),
    "release": (RELEASE_ROLE,),
    "online": ("snapshot", "timestamp"),
}
ROOT_FILE, TARGETS_FILE = "root.json", "targets.json"
RELEASED_PATHS = [POINTER_NAME, f"models/*/{MANIFEST_NAME}"]


@dataclass(frozen=True)
class Lifetimes:
    """For how long each role's metadata hold after signing, in days.

    An attacker who can only replay may hold phones on old metadata for at most as long; a publisher who is away for
    longer stops updates. Neither stops a running model.
    """

    root: float = 365.0  # renewed by hand, offline, once a year
    targets: float = 90.0  # offline as well; a stolen release key is cut off by hand before that
    release: float = 30.0  # a model is published more often than that
    snapshot: float = 7.0  # a timer that fails on Friday is noticed on Monday
    timestamp: float = 1.0  # what bounds a freeze; the timer runs several times a day

    def __post_init__(self) -> None:
        for field in fields(self):
            days = getattr(self, field.name)
            if not 0 < days < 36_500:
                raise InputError("a lifetime is in days, above 0", where=field.name, got=days)

    def changed(self, words: Sequence[str]) -> Lifetimes:
        """With `ROLE=DAYS` words applied. Raises InputError."""
        names, found = [field.name for field in fields(self)], {}
        for word in words:
            role, _, days = word.partition("=")
            if role not in names or not re.fullmatch(r"\d+(\.\d+)?", days):
                raise InputError("not a lifetime", got=word, allowed=f"ROLE=DAYS, ROLE one of {', '.join(names)}")
            found[role] = float(days)
        return replace(self, **found)

    def end(self, role: str, now: datetime) -> datetime:
        """When metadata of a role signed now expire. TUF counts whole seconds."""
        return (now + timedelta(days=getattr(self, role))).replace(microsecond=0)


@dataclass(frozen=True)
class MadeKeys:
    """A folder of keys. new: the keys made, the others were copied."""

    folder: Path
    new: tuple[str, ...]

    def table(self) -> str:
        made = {name: "new" if name in self.new else "copied" for name in KEYS}
        lines = [f"{name + '.pem':<12} {made[name]:<7} signs {', '.join(KEYS[name])}" for name in KEYS]
        return "\n".join([*lines, f"{self.folder / ROOT_FILE}: for the host app; root.pem and targets.pem go offline"])

    def to_json(self) -> dict[str, Any]:
        return {"folder": str(self.folder), "new": list(self.new)}


def make_keys(
    folder: str | Path,
    *,
    copy_from: str | Path | None = None,
    renew: Sequence[str] = (),
    lifetimes: Lifetimes | None = None,
    now: datetime | None = None,
) -> MadeKeys:
    """A folder with one key each, and the signed root.json and targets.json of a new CDN.

    With `copy_from`, a successor for `rotate`: the keys in `renew` are new, the others and root.json are copied.
    Raises InputError when the folder exists, or for a `renew` that names no key.
    """
    folder = Path(folder)
    if folder.exists():
        raise InputError("keys are never overwritten", where=folder, fix="name a folder that does not exist yet")
    new = tuple(renew) if copy_from is not None else tuple(KEYS)
    if not set(new) <= set(KEYS) or not new or (copy_from is None and renew):
        raise InputError("a successor renews some keys of another folder", got=list(renew), allowed=list(KEYS))
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    aside.mkdir(mode=0o700)
    try:
        for name in new:
            _write_secret(aside / f"{name}.pem", CryptoSigner(Ed25519PrivateKey.generate()).private_bytes)
        if copy_from is None:
            _write_first(aside, lifetimes or Lifetimes(), now or datetime.now(UTC))
        else:
            _copy_others(Path(copy_from), aside, new)
        for path in (*aside.iterdir(), aside):
            flush(path)
        os.rename(aside, folder)
        flush(folder.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return MadeKeys(folder, new)


def load_signers(folder: str | Path) -> dict[str, CryptoSigner]:
    """The keys that are there, by name. Raises InputError for a file that holds no such key."""
    if not Path(folder).is_dir():
        raise InputError("no such folder of keys", where=folder, fix="make one with: kir publish keys DIR")
    found = {}
    for name in KEYS:
        path = Path(folder) / f"{name}.pem"
        if path.is_file():
            try:
                found[name] = CryptoSigner(load_pem_private_key(path.read_bytes(), None))
            except (ValueError, TypeError) as error:
                raise InputError("not a private key of kir publish keys", where=path, got=str(error)) from None
    return found


def delegations(release: CryptoSigner) -> Delegations:
    """Pointer and manifests belong to the release key and to no other: the delegation is terminating."""
    key = release.public_key
    role = DelegatedRole(RELEASE_ROLE, [key.keyid], threshold=1, terminating=True, paths=RELEASED_PATHS)
    return Delegations({key.keyid: key}, {RELEASE_ROLE: role})


def _write_first(folder: Path, lifetimes: Lifetimes, now: datetime) -> None:
    signers = load_signers(folder)
    root = Root(expires=lifetimes.end("root", now), consistent_snapshot=True)
    for name, signer in signers.items():
        for role in set(KEYS[name]) & set(root.roles):
            root.add_key(signer.public_key, role)
    targets = Targets(expires=lifetimes.end("targets", now), delegations=delegations(signers["release"]))
    for file, signed, name in ((ROOT_FILE, root, "root"), (TARGETS_FILE, targets, "targets")):
        metadata: Metadata[Any] = Metadata(signed)
        metadata.sign(signers[name])
        (folder / file).write_bytes(metadata.to_bytes())


def _copy_others(source: Path, folder: Path, new: Sequence[str]) -> None:
    for name in set(load_signers(source)) - set(new):
        _write_secret(folder / f"{name}.pem", (source / f"{name}.pem").read_bytes())
    try:
        shutil.copyfile(source / ROOT_FILE, folder / ROOT_FILE)
    except FileNotFoundError:
        raise InputError("folder of keys without a root.json", where=source) from None


def _write_secret(path: Path, content: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(handle, "wb") as file:
        file.write(content)

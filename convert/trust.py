"""Signs what a CDN directory offers, by The Update Framework (TUF): release, renewal, change of keys.

    from convert.trust import Publisher
    Publisher("cdn", "keys").refresh()

Roles, files and keys: docs/delivery.md. Needs tuf and cryptography, and nothing that a conversion needs: a timer's
machine is small. Every file is written aside, synced and renamed, timestamp.json last: a publisher that is killed
before it leaves what was valid before, and running it again does the rest.
"""

from __future__ import annotations

import contextlib
import copy
import fcntl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Role, Root, Snapshot, TargetFile, Targets, Timestamp

from contract.errors import InputError, TrustError
from contract.files import replacing
from contract.manifest import POINTER_NAME, RELEASE_ROLE, signed_pointer_path
from convert.trust_keys import KEYS, ROOT_FILE, TARGETS_FILE, Lifetimes, delegations, load_signers
from convert.trust_state import TIMESTAMP, State, first_state, is_signed, metadata_folder, read_state

KEY_OF_ROLE = {role: key for key, roles in KEYS.items() for role in roles}
HASHES = ["sha256"]
DUE = 0.5  # share of its lifetime after which `refresh` renews a role: a timer then has many tries


@dataclass(frozen=True)
class Renewed:
    """What was signed anew, until when each role's metadata hold, and what only another key can renew."""

    roles: tuple[str, ...]
    expires: dict[str, datetime]
    due: tuple[str, ...] = ()

    def table(self) -> str:
        lines = [
            f"{role:<10} {'renewed' if role in self.roles else 'stands':<8} until {end:%Y-%m-%d %H:%M} UTC"
            f"{'   DUE: its key is not here; run kir publish ' + _verb(role) if role in self.due else ''}"
            for role, end in self.expires.items()
        ]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        ends = {role: end.isoformat() for role, end in self.expires.items()}
        return {"renewed": list(self.roles), "expires": ends, "due": list(self.due)}


class Publisher:
    """One CDN directory and the folder of keys that this machine has.

    now: the time to count lifetimes from (default: the clock). A file lock keeps two publishers apart.
    Methods raise InputError for a key that is not here or not the CDN's, TrustError and IntegrityError (see
    `read_state`) for metadata on the CDN that these keys did not sign.
    """

    def __init__(
        self, cdn: str | Path, keys: str | Path, lifetimes: Lifetimes | None = None, now: datetime | None = None
    ):
        self.cdn, self.keys = Path(cdn), Path(keys)
        self.folder = metadata_folder(cdn)
        self._lifetimes = lifetimes or Lifetimes()
        self._now = now or datetime.now(UTC)
        self._signers = load_signers(self.keys)

    def release(self, pointer: bytes, manifest: str, *, again: bool = False) -> bool:
        """Sign the pointer and the manifest it names (path below the CDN). Returns whether anything had changed.

        Manifests signed before stay signed while their files are there. again: only one of those is taken, since nobody
        but the CDN says what it holds.
        """
        with self._locked():
            state = self._state()
            targets = self._targets(state, pointer, manifest, again)
            if state.release is not None and state.release.targets == targets:
                return False
            for role in ("root", "targets"):
                if state.expires()[role] <= self._now:
                    raise InputError(
                        f"{role} metadata have expired: no phone would take this release", where=self.cdn,
                        fix=f"run kir publish rotate with {role}.pem",
                    )  # fmt: skip
            _put(self.cdn / signed_pointer_path(targets[POINTER_NAME].hashes["sha256"]), pointer)
            if state.timestamp is None:
                for version, file in ((state.root.version, ROOT_FILE), (state.targets.version, TARGETS_FILE)):
                    _put(self.folder / f"{version}.{file}", (self.keys / file).read_bytes())
            release = self._write_release(state, targets, self._role_of_release(state.targets), self._signers)
            self._write_online(state, state.root, state.targets, release, self._signers)
            return True

    def refresh(self) -> Renewed:
        """A new timestamp, and what else has passed half its life and has its key here. For a timer."""
        with self._locked():
            state = self._signed_state()
            assert state.release is not None
            due = [role for role, end in state.expires().items() if self._is_due(role, end)]
            done, targets, release = [], state.targets, state.release
            if "targets" in due and "targets" in self._signers:
                targets = copy.deepcopy(targets)
                self._write_targets(targets, state.root, self._signers)
                done.append("targets")
            if "release" in due and "release" in self._signers:
                role = self._role_of_release(state.targets)
                release = self._write_release(state, release.targets, role, self._signers)
                done.append("release")
            fresh = bool(done) or "snapshot" in due
            timestamp, snapshot = self._write_online(state, state.root, targets, release, self._signers, fresh)
            done += ["snapshot", "timestamp"] if fresh else ["timestamp"]
            after = State(state.roots, targets, release, snapshot, timestamp)
            left = tuple(role for role in due if role not in done)
            return Renewed(tuple(done), after.expires(), left)

    def rotate(self, new_keys: str | Path | None = None) -> Renewed:
        """Sign root, targets and all below them anew, with the keys of `new_keys` where those are others.

        new_keys: made by `make_keys(new, copy_from=old, renew=…)`; without it the same keys sign for another lifetime.
        The new root is signed by the old root key as well, so that a phone with any older root.json follows. A rotation
        that was killed is finished by running it again.
        """
        with self._locked():
            state = self._signed_state(rotating=True)
            assert state.release is not None
            new = load_signers(new_keys) if new_keys is not None else self._signers
            absent = [name for name in KEYS if name not in new]
            if absent:
                raise InputError("a rotation needs every key", where=new_keys or self.keys, got=f"no {absent[0]}.pem")
            if new_keys is not None:
                read_state(self.cdn, _anchor(Path(new_keys)), where=Path(new_keys) / ROOT_FILE, rotating=True)
            root = self._next_root(state.root, new)
            root_signers = self._root_signers(root, state.root, new)
            targets = copy.deepcopy(state.targets)
            targets.delegations = delegations(new["release"])
            self._write_targets(targets, root, new)
            release = self._write_release(state, state.release.targets, self._role_of_release(targets), new)
            snapshot = self._write_snapshot(state, root, targets, release, new)
            # A phone that looks between these two refuses the old timestamp and goes on with its model.
            self._write(f"{root.version}.root.json", root, root_signers)
            timestamp = self._write_timestamp(state, root, snapshot, new)
            after = State((*state.roots, root), targets, release, snapshot, timestamp)
            return Renewed(tuple(after.expires()), after.expires())

    # -- state

    def _state(self) -> State:
        if is_signed(self.cdn):
            return self._signed_state()
        try:
            targets = (self.keys / TARGETS_FILE).read_bytes()
        except FileNotFoundError:
            raise InputError(
                "the first publication takes root.json and targets.json from the keys", where=self.keys,
                got=f"no {TARGETS_FILE}", fix="use the folder that kir publish keys made",
            ) from None  # fmt: skip
        return first_state(self.cdn, _anchor(self.keys), targets, self.keys / ROOT_FILE)

    def _signed_state(self, rotating: bool = False) -> State:
        if not is_signed(self.cdn):
            raise InputError(
                "this CDN is not signed", where=self.cdn, fix="sign with: kir publish DIR --cdn ROOT --keys KEYS"
            )
        return read_state(self.cdn, _anchor(self.keys), where=self.keys / ROOT_FILE, rotating=rotating)

    def _targets(self, state: State, pointer: bytes, manifest: str, again: bool) -> dict[str, TargetFile]:
        known = state.release.targets if state.release is not None else {}
        kept = {path: t for path, t in known.items() if path != POINTER_NAME and (self.cdn / path).is_file()}
        found = TargetFile.from_data(manifest, (self.cdn / manifest).read_bytes(), HASHES)
        if again and manifest not in kept:
            raise InputError(
                "this version was never signed", where=self.cdn / manifest, fix="publish the conversion it came from"
            )
        if kept.setdefault(manifest, found) != found:
            raise TrustError("manifest is not the one that was signed", where=self.cdn / manifest)
        kept[POINTER_NAME] = TargetFile.from_data(POINTER_NAME, pointer, HASHES)
        return kept

    def _is_due(self, role: str, end: datetime) -> bool:
        left_s = (end - self._now).total_seconds()
        return left_s <= DUE * (self._lifetimes.end(role, self._now) - self._now).total_seconds()

    # -- writing, each file whole

    def _next_root(self, old: Root, new: dict[str, CryptoSigner]) -> Root:
        root = copy.deepcopy(old)
        root.version += 1
        root.expires = self._lifetimes.end("root", self._now)
        for role in root.roles:
            for keyid in list(root.roles[role].keyids):
                root.revoke_key(keyid, role)
            root.add_key(new[KEY_OF_ROLE[role]].public_key, role)
        return root

    def _root_signers(self, root: Root, old: Root, new: dict[str, CryptoSigner]) -> list[CryptoSigner]:
        signers = {signer.public_key.keyid: signer for signer in (self._signers.get("root"), new["root"]) if signer}
        wanted = {*old.roles["root"].keyids, *root.roles["root"].keyids}
        if not wanted <= set(signers):
            raise InputError(
                "a new root is signed by the old root key as well", where=self.keys, got="not its root.pem"
            )
        return [signers[keyid] for keyid in sorted(wanted)]

    def _write_targets(self, targets: Targets, root: Root, signers: dict[str, CryptoSigner]) -> None:
        targets.version += 1
        targets.expires = self._lifetimes.end("targets", self._now)
        self._write(
            f"{targets.version}.targets.json", targets, [self._signer("targets", root.roles["targets"], signers)]
        )

    def _write_release(
        self, state: State, listed: dict[str, TargetFile], role: Role, signers: dict[str, CryptoSigner]
    ) -> Targets:
        version = 1 if state.release is None else state.release.version + 1
        release = Targets(version, None, self._lifetimes.end("release", self._now), dict(listed))
        self._write(f"{version}.{RELEASE_ROLE}.json", release, [self._signer(RELEASE_ROLE, role, signers)])
        return release

    def _write_online(
        self,
        state: State,
        root: Root,
        targets: Targets,
        release: Targets,
        signers: dict[str, CryptoSigner],
        fresh_snapshot: bool = True,
    ) -> tuple[Timestamp, Snapshot]:
        snapshot = state.snapshot
        if fresh_snapshot or snapshot is None:
            snapshot = self._write_snapshot(state, root, targets, release, signers)
        return self._write_timestamp(state, root, snapshot, signers), snapshot

    def _write_snapshot(
        self, state: State, root: Root, targets: Targets, release: Targets, signers: dict[str, CryptoSigner]
    ) -> Snapshot:
        signer = self._signer("snapshot", root.roles["snapshot"], signers)
        version = 1 if state.snapshot is None else state.snapshot.version + 1
        meta = {
            f"{role}.json": self._meta_of(f"{signed.version}.{role}.json", signed.version)
            for role, signed in (("targets", targets), (RELEASE_ROLE, release))
        }
        snapshot = Snapshot(version, None, self._lifetimes.end("snapshot", self._now), meta)
        self._write(f"{version}.snapshot.json", snapshot, [signer])
        return snapshot

    def _write_timestamp(
        self, state: State, root: Root, snapshot: Snapshot, signers: dict[str, CryptoSigner]
    ) -> Timestamp:
        signer = self._signer("timestamp", root.roles["timestamp"], signers)
        version = 1 if state.timestamp is None else state.timestamp.version + 1
        meta = self._meta_of(f"{snapshot.version}.snapshot.json", snapshot.version)
        timestamp = Timestamp(version, None, self._lifetimes.end("timestamp", self._now), meta)
        self._write(TIMESTAMP, timestamp, [signer])
        return timestamp

    def _meta_of(self, name: str, version: int) -> MetaFile:
        return MetaFile.from_data(version, (self.folder / name).read_bytes(), HASHES)

    def _role_of_release(self, targets: Targets) -> Role:
        return targets.get_delegated_role(RELEASE_ROLE)

    def _signer(self, role: str, names: Role, signers: dict[str, CryptoSigner]) -> CryptoSigner:
        signer = signers.get(KEY_OF_ROLE[role])
        if signer is None or signer.public_key.keyid not in names.keyids:
            found = "no such key" if signer is None else f"key {signer.public_key.keyid[:12]}…"
            allowed = ", ".join(f"{keyid[:12]}…" for keyid in names.keyids)
            raise InputError(f"{KEY_OF_ROLE[role]}.pem signs {role}", where=self.keys, got=found, allowed=allowed)
        return signer

    def _write(self, name: str, signed: Root | Targets | Snapshot | Timestamp, signers: Sequence[CryptoSigner]) -> None:
        metadata: Metadata[Any] = Metadata(signed)
        for signer in signers:
            metadata.sign(signer, append=True)
        _put(self.folder / name, metadata.to_bytes())

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / ".lock", "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _put(path: Path, content: bytes) -> None:
    with replacing(path) as file:
        file.write(content)


def _anchor(keys: Path) -> bytes:
    try:
        return (keys / ROOT_FILE).read_bytes()
    except FileNotFoundError:
        raise InputError(
            "folder of keys without a root.json", where=keys, fix="copy there the one of the host app"
        ) from None


def _verb(role: str) -> str:
    return "rotate" if role in ("root", "targets") else "refresh"

"""A signed CDN of tiny models, with its keys at hand: what a publisher or a thief can make of it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tuf.api.metadata import Metadata

from contract.manifest import MANIFEST_NAME
from convert.trust import Publisher
from convert.trust_keys import KEYS, Lifetimes, make_keys
from convert.trust_state import State
from tests.edge import tiny_model


class SignedCdn:
    """FOLDER/cdn, FOLDER/keys, made where they are absent.

    `root` is what comes with the app; `keys` moves on with every rotation.
    """

    def __init__(self, folder: Path, version: str = "kir-a"):
        self.folder, self.path, self.keys = folder, folder / "cdn", folder / "keys"
        self.root = self.keys / "root.json"
        if not self.path.exists():
            tiny_model.copy_cdn(self.path)
            make_keys(self.keys)
            self.release(version)
        self.first_root = self.root.read_bytes()

    def publisher(self, lifetimes: Lifetimes | None = None, days_ago: float = 0.0) -> Publisher:
        return Publisher(self.path, self.keys, lifetimes, datetime.now(UTC) - timedelta(days=days_ago))

    def release(self, version: str, lifetimes: Lifetimes | None = None, days_ago: float = 0.0) -> None:
        """Point at a version that is there, signed."""
        pointer = tiny_model.point_at(self.path, version).to_bytes()
        self.publisher(lifetimes, days_ago).release(pointer, f"models/{version}/{MANIFEST_NAME}")

    def rotate(self, renew: Sequence[str] = tuple(KEYS), lifetimes: Lifetimes | None = None) -> None:
        """A new key for each name in `renew`."""
        after = self.folder / f"keys-{len(list(self.folder.glob('keys*')))}"
        make_keys(after, copy_from=self.keys, renew=renew)
        self.publisher(lifetimes).rotate(after)
        self.keys = after

    def list_as_it_is(self) -> None:
        """What the online key signs when a release has been replaced: whatever lies there."""
        publisher = self.publisher()
        release = Metadata.from_bytes(self.newest("release").read_bytes()).signed
        targets = Metadata.from_bytes(self.newest("targets").read_bytes()).signed
        snapshot = Metadata.from_bytes(self.newest("snapshot").read_bytes()).signed
        timestamp = Metadata.from_bytes(self.newest("timestamp").read_bytes()).signed
        root = Metadata.from_bytes(self.newest("root").read_bytes()).signed
        state = State((root,), targets, release, snapshot, timestamp)
        publisher._write_online(state, root, targets, release, publisher._signers)

    def metadata(self, name: str) -> Path:
        return self.path / "metadata" / name

    def newest(self, role: str) -> Path:
        """The metadata file of a role with the highest version."""
        if role == "timestamp":
            return self.metadata("timestamp.json")
        return max(self.path.glob(f"metadata/*.{role}.json"), key=lambda path: int(path.name.partition(".")[0]))

    def keep(self) -> Path:
        """A copy of everything but the models, as somebody may replay it later."""
        kept = self.folder / f"kept-{len(list(self.folder.glob('kept*')))}"
        shutil.copytree(self.path, kept, ignore=shutil.ignore_patterns("models"))
        return kept

    def replay(self, kept: Path, names: str = "*") -> None:
        """Put back what was kept: the files whose names fit, those that came since stay."""
        for path in kept.rglob(names):
            if path.is_file():
                shutil.copyfile(path, self.path / path.relative_to(kept))

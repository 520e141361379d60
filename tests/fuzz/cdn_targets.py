"""What is fuzzed of model delivery: signed metadata as a CDN serves them, and the device's own `active.json`."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path

from tuf.api.metadata import Metadata

from contract.errors import DownloadError, NoModelError, TrustError
from contract.manifest import POINTER_NAME, Pointer
from edge import DirectorySource, ModelStore
from edge._store import POINTER_BYTES_MAX
from edge._trust import TrustedReader
from tests.edge import tiny_model
from tests.edge.signed_cdn import SignedCdn

ROLES = ("root", "timestamp", "snapshot", "targets", "release")
SCRATCH = tempfile.TemporaryDirectory(prefix="kir-fuzz-")


@cache
def _signed() -> SignedCdn:
    return SignedCdn(Path(SCRATCH.name))


@cache
def metadata_seeds() -> list[bytes]:
    """The newest metadata of each role."""
    cdn = _signed()
    return [cdn.newest(role).read_bytes() for role in ROLES]


def seal_metadata(data: bytes) -> bytes:
    """Signed again by every key there is: a thief with all of them may say what he likes, and still breaks nothing."""
    try:
        metadata = Metadata.from_bytes(data)
        for number, signer in enumerate(_signed().publisher()._signers.values()):
            metadata.sign(signer, append=number > 0)
        return metadata.to_bytes()
    except Exception:  # nothing left to seal
        return data


class _OneChanged:
    """The signed CDN with another file in the place of the metadata that the input says it is, or of the timestamp."""

    def __init__(self, data: bytes):
        self._source, self._data = DirectorySource(_signed().path), data
        self._name = "timestamp.json"
        try:
            signed = json.loads(data)["signed"]
            kind, version = signed["_type"], int(signed["version"])
            role = "release" if kind == "targets" and "delegations" not in signed else kind
            if kind in ROLES and kind != "timestamp":
                self._name = f"{version + 1 if kind == 'root' else version}.{role}.json"
        except Exception:  # no metadata at all: the timestamp's place is read first
            pass

    def read(self, path: str, limit_bytes: int) -> bytes:
        if path.endswith(f"/{self._name}"):
            return self._data[: limit_bytes + 1]
        return self._source.read(path, limit_bytes)

    def download(self, path: str, part: Path, n_bytes: int, progress: object) -> None:
        raise DownloadError("nothing is downloaded here", where=path)


def trust(data: bytes) -> None:
    """Whatever a CDN serves as metadata, a phone reads the pointer that was signed, or says why not."""
    with tempfile.TemporaryDirectory(dir=SCRATCH.name) as folder:
        reader = TrustedReader(_OneChanged(data), _signed().first_root, Path(folder))
        assert Pointer.from_bytes(reader.read(POINTER_NAME, POINTER_BYTES_MAX)).dense_version == "kir-a"


@cache
def _cache() -> Path:
    """A device that had one version and then another."""
    folder, cdn = Path(SCRATCH.name) / "cache", Path(SCRATCH.name) / "plain"
    tiny_model.copy_cdn(cdn)
    store = ModelStore(folder, cdn)
    for version in ("kir-a", "kir-b"):
        tiny_model.point_at(cdn, version)
        store.activate(str(store.update()))
    return folder


@cache  # inputs are written over it
def active_seeds() -> list[bytes]:
    return [(_cache() / "active.json").read_bytes()]


def active(data: bytes) -> None:
    """Whatever the local pointer says, the device runs one of its whole versions, or knows that it has none."""
    (_cache() / "active.json").write_bytes(data)
    store = ModelStore(_cache())
    assert store.active().dense_version in ("kir-a", "kir-b")
    assert store.versions() == ["kir-a", "kir-b"]


METADATA_ERRORS, ACTIVE_ERRORS = (TrustError, DownloadError), (NoModelError,)

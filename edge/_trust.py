"""What a CDN may say, held against The Update Framework (TUF) and the root.json that came with the app.

Of python-tuf only the `Updater`'s metadata part is used: which bytes the pointer and a manifest must be. Their download
is ours, as that of the big files, which manifests name by hash. Trusted metadata stay in `folder`: whatever a CDN
offers later is not older. Answers to rollback, freeze, mix-and-match, endless data and lost keys: docs/delivery.md.
One reader is one update; the store's lock of updates is held meanwhile. Signatures are Ed25519, which python-tuf
verifies without further packages.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from tuf.api import exceptions as tuf_errors
from tuf.ngclient import FetcherInterface, TargetFile, Updater, UpdaterConfig

from contract.errors import KirError, TrustError
from contract.manifest import METADATA_FOLDER, POINTER_NAME, signed_pointer_path
from edge._source import AbsentError, Source

# Metadata are some kilobytes: one root a year, one line per manifest. More is an attack, or a mistake.
METADATA_BYTES_MAX = {"root": 64 * 1024, "timestamp": 16 * 1024, "snapshot": 64 * 1024, "targets": 1024 * 1024}
ROOT_ROTATIONS_MAX = 64  # new roots that one update follows
# The first that fits tells what is wrong; the subclasses stand before RepositoryError.
REASONS: tuple[tuple[type[Exception], str, str], ...] = (
    (tuf_errors.ExpiredMetadataError, "signed metadata have expired", "the publisher must renew them"),
    (tuf_errors.UnsignedMetadataError, "not signed by the keys that the app's root.json leads to", ""),
    (tuf_errors.BadVersionNumberError, "older than metadata seen before, or of another release", ""),
    (tuf_errors.LengthOrHashMismatchError, "not the file that was signed", ""),
    (tuf_errors.RepositoryError, "signed metadata can't be used", ""),
)


class TrustedReader:
    """Reads the pointer and manifests of a signed CDN.

    root: the bytes of root.json that came with the app, of any version. folder: where trusted metadata are kept.
    The metadata are fetched at the first read. Raises TrustError naming the file, and what the source raises.
    """

    def __init__(self, source: Source, root: bytes, folder: Path):
        self._source, self._root, self._folder = source, root, folder
        self._fetcher = _Fetcher(source)
        self._updater: Updater | None = None

    def read(self, path: str, limit_bytes: int) -> bytes:
        """The bytes of a signed file. Raises TrustError when it is not signed, or is not what was signed."""
        with self._explained():
            target = self._targets().get_targetinfo(path)
        if target is None:
            raise TrustError("nobody signed this file", where=path)
        if target.length > limit_bytes:
            raise TrustError("signed file is too large", where=path, got=target.length, allowed=limit_bytes)
        self._fetcher.path = _place(path, target)
        content = self._source.read(self._fetcher.path, target.length)
        with self._explained():
            target.verify_length_and_hashes(content)
        return content

    def _targets(self) -> Updater:
        """The metadata as the CDN has them now: verified, kept, and on the disk before anything is done by them."""
        if self._updater is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            for left in self._folder.glob("tmp*"):  # python-tuf writes aside under such names, and may be killed
                left.unlink()
            config = UpdaterConfig(
                max_root_rotations=ROOT_ROTATIONS_MAX,
                max_delegations=4,
                root_max_length=METADATA_BYTES_MAX["root"],
                timestamp_max_length=METADATA_BYTES_MAX["timestamp"],
                snapshot_max_length=METADATA_BYTES_MAX["snapshot"],
                targets_max_length=METADATA_BYTES_MAX["targets"],
            )
            self._fetcher.path = "root.json of the app"
            updater = Updater(
                str(self._folder), METADATA_FOLDER, fetcher=self._fetcher, config=config, bootstrap=self._root
            )
            updater.refresh()
            updater.get_targetinfo(POINTER_NAME)  # fetches the delegated role as well
            _sync(self._folder)  # python-tuf renames without a sync
            self._updater = updater
        return self._updater

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """python-tuf's errors in the house's words; ours pass through it wrapped, and come out again."""
        try:
            yield
        except tuf_errors.DownloadError as error:
            if isinstance(error.__cause__, KirError):
                raise error.__cause__ from None
            raise TrustError("metadata longer than any of ours", where=self._fetcher.path, got=str(error)) from None
        except tuf_errors.RepositoryError as error:
            what, fix = next((what, fix) for kind, what, fix in REASONS if isinstance(error, kind))
            fix = "; ".join(part for part in (fix, "the running model stays") if part)
            raise TrustError(what, where=self._fetcher.path, got=str(error), fix=fix) from None


class _Fetcher(FetcherInterface):
    """Metadata by way of our source, so that directories and HTTP work alike. path: what was asked for last."""

    def __init__(self, source: Source):
        self.path = ""
        self._source = source

    def _fetch(self, url: str) -> Iterator[bytes]:
        self.path = url
        try:
            return iter([self._source.read(url, max(METADATA_BYTES_MAX.values()))])
        except AbsentError as error:  # python-tuf knows by it that there is no newer root
            raise tuf_errors.DownloadHTTPError(str(error), 404) from error


def _place(path: str, target: TargetFile) -> str:
    return signed_pointer_path(target.hashes["sha256"]) if path == POINTER_NAME else path


def _sync(folder: Path) -> None:
    for path in [*folder.rglob("*.json"), folder / "root_history", folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

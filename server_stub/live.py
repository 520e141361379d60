"""What may change while the server runs: rows of a new dense version, items, a retrained retrieval or ranker, the
CDN's pointer.

bundle.json and current.json are looked at every poll; what they name is loaded aside, verified, and swapped in whole.
Item updates within one retrieval_version are applied to the index in memory: the encoder is not read again.
What can't be loaded is logged, and the server goes on with what it has.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from contract.errors import KirError
from contract.manifest import POINTER_NAME, Pointer
from server_stub.bundle import BundleIndex, load_models, load_rows, read_index, updated_models
from server_stub.pages import PageMaker
from server_stub.recommender import Recommender
from server_stub.store import EmbeddingStore

log = logging.getLogger(__name__)


@dataclass
class LiveParts:
    """Applies what changed on disk. Not thread-safe: one caller at a time (`poll` in a worker).

    digests: rows already taken from the bundle, by dense version; a version whose files did not change is left alone,
    so that updates since then stay.
    """

    pages: PageMaker
    store: EmbeddingStore
    bundle: Path | None = None
    cdn: Path | None = None
    threads: int = 1
    digests: dict[str, str] = field(default_factory=dict)
    _complaints: dict[str, str] = field(default_factory=dict)

    def poll(self) -> None:
        """Look once. Never raises KirError."""
        if self.bundle is not None:
            self._guarded("bundle.json", self._poll_bundle)
        if self.cdn is not None:
            self._guarded(POINTER_NAME, self._poll_pointer)

    def load(self) -> None:
        """The first look, at the start. Raises KirError: a server that can't load its bundle does not start."""
        if self.bundle is not None:
            self._poll_bundle(first=True)
        if self.cdn is not None:
            self._guarded(POINTER_NAME, self._poll_pointer)
        self._choose_current()

    def _guarded(self, what: str, work: Callable[[], None]) -> None:
        try:
            work()
            self._complaints.pop(what, None)
        except (KirError, OSError) as error:
            if self._complaints.get(what) != str(error):  # once, not at every poll
                log.warning("%s was not taken over: %s", what, error)
            self._complaints[what] = str(error)

    def _poll_bundle(self, first: bool = False) -> None:
        index = read_index(self.bundle or Path())
        for name in index.dense_versions:
            if first:
                self._take_rows(index, name)
            else:
                self._guarded(f"rows/{name}", partial(self._take_rows, index, name))
        for name in set(self.digests) - set(index.dense_versions):
            self.store.remove_version(name)
            del self.digests[name]
            log.info("dense version %s retired", name)
        recommender = self.pages.recommender
        if isinstance(recommender, Recommender) and recommender.models.digest != index.digest(index.model_files):
            changed = updated_models(recommender.models, index)
            recommender.swap(changed or load_models(index, threads=self.threads))
            what = "items" if changed else f"encoder, items and ranker {index.ranker_version}"
            retrieval = f"{index.retrieval_version}, rows at revision {index.retrieval_revision}"
            log.info("%s taken over: retrieval %s", what, retrieval)
        self._choose_current()

    def _take_rows(self, index: BundleIndex, dense_version: str) -> None:
        digest = index.digest(index.under(f"rows/{dense_version}/"))
        if self.digests.get(dense_version) == digest:
            return
        rows = load_rows(index, dense_version, dtype=self.store.dtype)
        live = {version.dense_version: version.rows_revision for version in self.store.versions()}
        if rows.rows_revision >= live.get(dense_version, -1):
            rows.add_to(self.store)
            log.info("rows of %s at revision %d are live", dense_version, rows.rows_revision)
        else:
            log.warning("rows of %s: revision %d is older than the live one", dense_version, rows.rows_revision)
        self.digests[dense_version] = digest

    def _poll_pointer(self) -> None:
        raw = (self.cdn / POINTER_NAME).read_bytes() if self.cdn else b""
        self.pages.current = Pointer.from_bytes(raw).dense_version

    def _choose_current(self) -> None:
        """Without a CDN, the version that became live last is current."""
        versions = self.store.versions()
        if self.cdn is None and versions:
            self.pages.current = versions[-1].dense_version

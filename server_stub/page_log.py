"""Pages as they were sent: what feedback is joined with, and files for whoever audits or replays them.

In memory the last `pages_max` pages; on disk EVENTS/pages/*.parquet, one row per page with the candidates as lists.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from contract.errors import EventError
from contract.page import NO_ROWS, Candidates, Page
from contract.vocabulary import PXTR_HEADS, TAGS_MAX, X_PXTR

PAGE_LOG_VERSION = "kir-page-log/1"


@dataclass(frozen=True)
class SentPage:
    """One page as sent, rows left out: they are known by (dense_version, rows_revision)."""

    user_id: int
    session_id: int
    page: Page


class PageLog:
    """Bounded by pages and by candidates (about 90 bytes each), and thread-safe.

    `drain` hands over what has not been written yet; when writing fails for long, the oldest of that are dropped too.
    """

    def __init__(self, pages_max: int = 20_000, candidates_max: int = 2_000_000, *, keep_unwritten: bool = False):
        self.candidates_max = candidates_max
        self._candidates = 0
        self._pages: OrderedDict[str, SentPage] = OrderedDict()
        self._unwritten: list[SentPage] = []
        self.pages_max = pages_max
        self._keep = keep_unwritten
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._pages)

    def add(self, user_id: int, session_id: int, page: Page) -> None:
        sent = SentPage(user_id, session_id, replace(page, rows=NO_ROWS))
        with self._lock:
            self._remember(sent)
            if self._keep:
                self._unwritten.append(sent)
                del self._unwritten[: -self.pages_max]

    def restore(self, pages: list[SentPage]) -> None:
        """Remember pages of an earlier run, oldest first."""
        with self._lock:
            for sent in pages:
                self._remember(sent)

    def _remember(self, sent: SentPage) -> None:
        before = self._pages.pop(sent.page.page_id, None)
        self._pages[sent.page.page_id] = sent
        self._candidates += len(sent.page.candidates) - (len(before.page.candidates) if before else 0)
        while len(self._pages) > self.pages_max or (self._candidates > self.candidates_max and len(self._pages) > 1):
            _, oldest = self._pages.popitem(last=False)
            self._candidates -= len(oldest.page.candidates)

    def get(self, page_id: str) -> SentPage | None:
        with self._lock:
            return self._pages.get(page_id)

    def drain(self) -> list[SentPage]:
        with self._lock:
            pages, self._unwritten = self._unwritten, []
            return pages

    def put_back(self, pages: list[SentPage]) -> None:
        """What could not be written goes to the front again."""
        with self._lock:
            self._unwritten = (pages + self._unwritten)[-self.pages_max :]


_TEXT = (
    "page_id",
    "dense_version",
    "spec_fingerprint",
    "rows_status",
    "fetch_version",
    "retrieval_version",
    "ranker_version",
)
_NUMBERS = (
    "server_time_ms",
    "soft_ttl_ms",
    "hard_ttl_ms",
    "rows_revision",
    "user_activity",
    "user_register_days",
    "hour",
)
_LISTS: dict[str, tuple[Any, int]] = {
    "video_id": (np.uint64, 1),
    "author_id": (np.uint64, 1),
    "tags": (np.uint64, TAGS_MAX),
    "duration_ms": (np.int32, 1),
    "upload_age_days": (np.int32, 1),
    "pxtr": (np.float32, X_PXTR),
}


def write_pages(path: Path, pages: list[SentPage]) -> Path:
    """One row per page; candidate columns as flat lists (tags N x TAGS_MAX, pxtr N x X). Write aside, fsync, rename."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {
        "user_id": pa.array([p.user_id for p in pages], pa.uint64()),
        "session_id": pa.array([p.session_id for p in pages], pa.uint64()),
    }
    columns |= {name: pa.array([getattr(p.page, name) for p in pages], pa.string()) for name in _TEXT}
    columns |= {name: pa.array([getattr(p.page, name) for p in pages], pa.int64()) for name in _NUMBERS}
    for name, (dtype, _) in _LISTS.items():
        flat = [getattr(p.page.candidates, name).reshape(-1) for p in pages]
        columns[name] = pa.array(flat, pa.list_(pa.from_numpy_dtype(dtype)))
    metadata = {"schema": PAGE_LOG_VERSION, "pxtr_heads": ",".join(PXTR_HEADS)}
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    with open(aside, "wb") as file:
        pq.write_table(pa.table(columns).replace_schema_metadata(metadata), file, compression="zstd")
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    return path


def read_pages(path: Path) -> list[SentPage]:
    """Read what `write_pages` wrote. Raises EventError for anything else."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise EventError("not a readable page log", where=path, got=str(error)) from None
    got = (table.schema.metadata or {}).get(b"schema", b"").decode(errors="replace")
    if got != PAGE_LOG_VERSION:
        raise EventError("another page log version", where=path, got=got or "none", allowed=PAGE_LOG_VERSION)
    pages = []
    for row in table.to_pylist():
        lists = {}
        for name, (dtype, width) in _LISTS.items():
            flat = np.array([np.nan if v is None else v for v in row[name]], dtype)
            lists[name] = flat if width == 1 else flat.reshape(-1, width)
        page = Page(candidates=Candidates(**lists), **{name: row[name] for name in (*_TEXT, *_NUMBERS)})
        pages.append(SentPage(row["user_id"], row["session_id"], page))
    return pages

"""From a page request to a page: candidates in server order, the version handshake, de-duplicated sparse rows.

`PageMaker.answer` is the whole door: bytes of a GetPageRequest in, bytes of a GetPageResponse out, the same for gRPC
and HTTP.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from contract.errors import InputError
from contract.features import Columns, block_keys
from contract.page import CANDIDATE, NO_ROWS, ROWS_OK, USER, WATCHED, Candidates, Page, Rows, encode_page
from contract.rows import encode_rows
from contract.spec import FeatureSpec
from contract.v1 import page_pb2 as pb
from server_stub.config import ServerConfig
from server_stub.histories import item_columns
from server_stub.page_log import PageLog
from server_stub.page_request import PageRequest, hour_of, parse_request
from server_stub.recommender import Clock, Recommendation, Recommends, wall_clock_ms
from server_stub.store import EmbeddingStore, LiveVersion

ON_PAGES = ("video_id", "author_id", "tags", "duration_ms", "upload_age_days")
BLOCK_OWNERS = {"user_rows": USER, "candidate_rows": CANDIDATE, "watched_rows": WATCHED}
log = logging.getLogger(__name__)


def new_page_id() -> str:
    return uuid.uuid4().hex


@dataclass(frozen=True)
class Handshake:
    """What a request's held models come to. version: whose rows go into the page; None = no rows."""

    rows_status: str
    version: LiveVersion | None = None
    fetch_version: str = ""


def shake_hands(held: tuple[tuple[str, str], ...], live: list[LiveVersion], current: str) -> Handshake:
    """The first held model that is live and has its spec's fingerprint wins.

    `fetch_version` is the current version whenever the phone does not hold it as it should be. A current version
    whose rows are not live yet is not announced (a release puts rows on the server first): the newest live one is, in
    its place.
    """
    by_name = {version.dense_version: version for version in live}
    target = current if current in by_name else (live[-1].dense_version if live else "")
    fits = [name for name, fingerprint in held if name in by_name and by_name[name].spec_fingerprint == fingerprint]
    fetch = "" if target in fits else target
    if fits:
        version = by_name[fits[0]]
        return Handshake(ROWS_OK if version.spec.tables else "not_needed", version, fetch)
    mismatch = any(name in by_name for name, _ in held)
    return Handshake("spec_mismatch" if mismatch else "no_live_version", None, fetch)


@dataclass
class PageStats:
    """Counters since the start; read by /healthz and the tests. Not exact under races."""

    pages: int = 0
    refusals: int = 0
    missing_rows: int = 0
    rows_status: dict[str, int] = field(default_factory=dict)


@dataclass
class PageMaker:
    """Everything a page needs.

    Thread-safe as far as its parts are. `current` is set by the server when the pointer moves.
    """

    recommender: Recommends
    store: EmbeddingStore
    config: ServerConfig = field(default_factory=ServerConfig)
    page_log: PageLog = field(default_factory=PageLog)
    clock: Clock = wall_clock_ms
    page_ids: Callable[[], str] = new_page_id
    current: str = ""
    stats: PageStats = field(default_factory=PageStats)

    def answer(self, data: bytes) -> bytes:
        """Bytes of a GetPageRequest -> bytes of a GetPageResponse.

        Never raises: what goes wrong is a refusal inside.
        """
        try:
            request = parse_request(data, self.config.page_size_max)
            page = self.make(request)
        except InputError as error:
            return self.refusal(pb.REFUSAL_REASON_BAD_REQUEST, str(error))
        except Exception:
            log.exception("a page could not be made")
            return self.refusal(pb.REFUSAL_REASON_INTERNAL, "the server failed; the log has the details", 1_000)
        if page is None:
            return self.refusal(pb.REFUSAL_REASON_NO_CANDIDATES, "nothing is left that was not excluded")
        return pb.GetPageResponse(page=encode_page(page)).SerializeToString(deterministic=True)

    def refusal(self, reason: pb.RefusalReason, message: str, retry_after_ms: int = 0) -> bytes:
        self.stats.refusals += 1
        refusal = pb.PageRefusal(reason=reason, message=message[:500], retry_after_ms=retry_after_ms)
        return pb.GetPageResponse(refusal=refusal).SerializeToString(deterministic=True)

    def make(self, request: PageRequest) -> Page | None:
        """The page, logged as sent; None when no candidate is left. Raises InputError for a request no page answers."""
        now = self.clock()
        client_ms = request.client_time_ms or now
        found = self.recommender.recommend(
            request.user_id,
            request.page_size or self.config.page_size,
            watched=request.watched,
            exclude=request.exclude,
            now_ms=client_ms if self.config.client_clock else now,
            hour=hour_of(client_ms, self.config.utc_offset_min),
        )
        if not len(found):
            return None
        page = self._page(request, found, now)
        self.page_log.add(request.user_id, request.session_id, page)
        self.stats.pages += 1
        self.stats.rows_status[page.rows_status] = self.stats.rows_status.get(page.rows_status, 0) + 1
        return page

    def _page(self, request: PageRequest, found: Recommendation, now: int) -> Page:
        hands = shake_hands(request.held, self.store.versions(), self.current)
        rows, revision = NO_ROWS, hands.version.rows_revision if hands.version else 0
        if hands.version is not None and hands.rows_status == ROWS_OK:
            try:
                rows, revision = self._rows(request, found, hands.version)
            except InputError:  # retired between the handshake and here
                hands = Handshake("no_live_version", None, hands.fetch_version)
                rows, revision = NO_ROWS, 0
        return Page(
            page_id=self.page_ids(),
            candidates=Candidates(pxtr=found.pxtr, **{name: found.items[name] for name in ON_PAGES}),
            server_time_ms=now,
            soft_ttl_ms=self.config.soft_ttl_ms,
            hard_ttl_ms=self.config.hard_ttl_ms,
            dense_version=hands.version.dense_version if hands.version else "",
            rows_revision=revision,
            spec_fingerprint=hands.version.spec_fingerprint if hands.version else "",
            rows_status=hands.rows_status,
            fetch_version=hands.fetch_version,
            retrieval_version=found.retrieval_version,
            ranker_version=found.ranker_version,
            user_activity=found.user_activity,
            user_register_days=found.user_register_days,
            hour=found.hour,
            user_profile=found.user_profile,
            rows=rows,
        )

    def _rows(self, request: PageRequest, found: Recommendation, version: LiveVersion) -> tuple[Rows, int]:
        watched = np.array([w.video_id for w in request.watched], np.uint64)
        columns: dict[str, Columns] = {
            USER: {
                "user_id": np.array([request.user_id], np.uint64),
                "recent_authors": found.recent_authors[None],
            },
            CANDIDATE: found.items,
            WATCHED: item_columns(self.recommender.catalogue, watched),
        }
        rows, revision, missing = rows_of(self.store, version.dense_version, version.spec, columns, request.encoding)
        self.stats.missing_rows += missing
        return rows, revision


def rows_of(
    store: EmbeddingStore, dense_version: str, spec: FeatureSpec, columns: dict[str, Columns], encoding: str
) -> tuple[Rows, int, int]:
    """(rows of all owners in shared tables, rows_revision, how many keys had no row).

    columns: owner -> the raw columns of its entries. A key without a row takes row 0; a null key of a multi-valued
    feature is no entry. Raises InputError when the version is not live any more or the spec has a block that no page
    carries.
    """
    keys: dict[tuple[str, str], NDArray[np.uint64]] = {}
    table_of: dict[tuple[str, str], str] = {}
    for block in spec.blocks:
        served = [column.field for column in spec.columns(block) if column.field.table]
        if not served:
            continue
        if block not in BLOCK_OWNERS:
            raise InputError("no page carries this block", where=dense_version, got=block, allowed=sorted(BLOCK_OWNERS))
        owner = BLOCK_OWNERS[block]
        block_found = block_keys(spec, block, columns[owner])
        for spec_field in served:
            keys[owner, spec_field.name] = block_found[spec_field.name]
            table_of[owner, spec_field.name] = spec_field.table
    asked = {
        table: np.concatenate([keys[key].reshape(-1) for key in keys if table_of[key] == table])
        for table in spec.tables
    }
    gathered = store.gather(dense_version, asked)
    tables = {name: encode_rows(rows, encoding) for name, rows in gathered.rows.items()}
    slots, taken = {}, dict.fromkeys(asked, 0)
    for key, wanted in keys.items():
        table = table_of[key]
        part = gathered.slots[table][taken[table] : taken[table] + wanted.size].reshape(wanted.shape)
        taken[table] += wanted.size
        slots[key] = np.maximum(part, 0) if wanted.shape[1] == 1 else part
    return Rows(tables, slots, table_of), gathered.rows_revision, gathered.missing

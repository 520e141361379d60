"""Pages for the tiny model: deterministic videos, and sparse rows that depend on (dense version, table, key) alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.features import block_keys
from contract.page import CANDIDATE, NO_ROWS, ROWS_OK, USER, WATCHED, Candidates, Page, Rows, encode_page
from contract.rows import INT8, encode_rows
from contract.spec import FeatureSpec
from contract.user_profile import AUTHORS_MAX
from contract.v1 import page_pb2 as pb
from contract.vocabulary import MISSING_KEY, TAGS_MAX, X_PXTR
from tests.edge import tiny_model

USER_ID = 5


def row_of(version: str, table: str, key: int, width: int) -> NDArray[np.float32]:
    digest = hashlib.sha256(f"{version} {table} {key}".encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, np.uint32)).normal(0, 0.7, width).astype(np.float32)


def candidates_of(video_ids: Sequence[int]) -> Candidates:
    """Columns of videos; every seventh has no pXTR, every third no tag, every fifth no known age."""
    ids = np.array(video_ids, np.uint64)
    n = len(ids)
    tags = np.full((n, TAGS_MAX), MISSING_KEY)
    tags[ids % 3 != 0, 0] = ids[ids % 3 != 0] % 5 + 1
    tags[ids % 4 == 0, 1] = ids[ids % 4 == 0] % 11 + 20
    pxtr = (
        ((ids[:, None] * np.uint64(31) + np.arange(X_PXTR, dtype=np.uint64) * np.uint64(17)) % 97 + 1) / 100
    ).astype(np.float32)
    pxtr[ids % 7 == 0] = np.nan
    return Candidates(
        video_id=ids,
        author_id=ids // np.uint64(3) + np.uint64(1000),
        tags=tags,
        duration_ms=(ids * np.uint64(7919) % 60_000 + 5_000).astype(np.int32),
        upload_age_days=np.where(ids % 5 == 0, -1, ids % 40).astype(np.int32),
        pxtr=pxtr,
    )


# Three authors the user liked of late, and room for more.
RECENT_AUTHORS = np.array([[1000, 1003, 1001, *[MISSING_KEY] * (AUTHORS_MAX - 3)]], np.uint64)


class RowTables:
    """Collects the rows that a page needs: key -> row number per table, row 0 the default row."""

    def __init__(self) -> None:
        self.numbers: dict[str, dict[int, int]] = {}

    def slots(self, table: str, keys_nM: NDArray[np.uint64]) -> NDArray[np.int64]:
        numbers = self.numbers.setdefault(table, {int(MISSING_KEY): 0})
        found = np.array([[numbers.setdefault(int(k), len(numbers)) for k in keys] for keys in keys_nM], np.int64)
        return np.where(found == 0, -1, found).reshape(keys_nM.shape)


def rows_of(
    version: str, spec: FeatureSpec, user_id: int, candidates: Candidates, watched: Sequence[int], encoding: str
) -> Rows:
    old = candidates_of(watched)
    owners: list[tuple[str, str, dict[str, NDArray[Any]]]] = [
        (USER, "user_rows", {"user_id": np.array([user_id], np.uint64), "recent_authors": RECENT_AUTHORS}),
        (CANDIDATE, "candidate_rows", vars(candidates)),
        (WATCHED, "watched_rows", vars(old)),
    ]
    tables, slots, feature_table = RowTables(), {}, {}
    for owner, block, columns in owners:
        for name, keys in block_keys(spec, block, columns).items():
            table = next(field.table for field in spec.fields if field.name == name)
            slots[owner, name] = tables.slots(table, keys)
            feature_table[owner, name] = table
    encoded = {
        name: encode_rows(np.stack([row_of(version, name, key, spec.tables[name]) for key in numbers]), encoding)
        for name, numbers in tables.numbers.items()
    }
    return Rows(encoded, slots, feature_table)


def make_page(
    video_ids: Sequence[int],
    version: str = "kir-a",
    watched: Sequence[int] = (),
    *,
    page_id: str = "page-1",
    status: str = ROWS_OK,
    spec: FeatureSpec = tiny_model.SPEC,
    encoding: str = INT8,
    user_id: int = USER_ID,
    **overrides: Any,
) -> Page:
    """A page as a server would send it; `watched` are the ids of the request, in its order."""
    candidates = candidates_of(video_ids)
    rows = rows_of(version, spec, user_id, candidates, watched, encoding) if status == ROWS_OK else NO_ROWS
    values: dict[str, Any] = {
        "dense_version": version,
        "rows_revision": tiny_model.ROWS_REVISION,
        "spec_fingerprint": spec.fingerprint,
        "user_activity": 3,
        "user_register_days": 40,
        "hour": 13,
        "user_profile": np.array([0.4, np.nan, 0.25, 0.5], np.float32),
    }
    return Page(page_id=page_id, candidates=candidates, rows=rows, rows_status=status, **values | overrides)


def page_bytes(video_ids: Sequence[int], *args: Any, **kwargs: Any) -> bytes:
    return encode_page(make_page(video_ids, *args, **kwargs)).SerializeToString()


def page_of_many(n: int) -> pb.Page:
    """A page of n candidates, all but the first eight on the tables' default rows."""
    message, more = encode_page(make_page(range(1_000, 1_008))), n - 8
    columns = message.candidates
    columns.video_ids.extend(range(1_008, 1_000 + n))
    for name in ("author_ids", "duration_ms", "upload_age_days", "tag_counts"):
        getattr(columns, name).extend([0] * more)
    columns.pxtr += bytes(len(columns.pxtr) // 8 * more)
    columns.pxtr_present += bytes(len(columns.pxtr_present) // 8 * more)
    for index in message.row_indexes:
        if index.owner == pb.ROW_OWNER_CANDIDATE:
            (index.counts or index.rows).extend([0] * more)
    return message

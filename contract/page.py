"""A candidate page as numpy columns, and its bytes.

`Page` is what server and edge work with; `encode_page` / `decode_page` go to and from `kir.v1.Page`. Decoding checks
every length, index, range and number before anything is built, so that a page from a hostile or broken server ends in
one PageError and never in a wrong ranking: a swipe then shows server order, or goes on with the pool it has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from contract.errors import PageError
from contract.rows import FLOAT16, FLOAT32, INT8, EncodedRows
from contract.spec import ENTRIES_MAX, FIELDS_MAX
from contract.user_profile import PROFILE, unknown_profile
from contract.v1 import page_pb2 as pb
from contract.vocabulary import MISSING_KEY, NULL_INT, PXTR_HEADS, TAGS_MAX, X_PXTR

CANDIDATES_MAX = 10_000
ROWS_MAX = 200_000
# 10,000 candidates of KIR's spec take 1.3 MB. protobuf takes up to 40 times a hostile message's bytes, and no other
# thread of the phone runs while it parses.
PAGE_BYTES_MAX = 4 * 2**20
WATCHED_MAX = 512  # entries of a request's watched list
# Far above any trained row, and far below what overflows inside a net: one such row would spoil a page's scores, and
# the watched list from its video on.
ROW_ABS_MAX = 2.0**16
CELLS_MAX = 1_000_000  # entries times places over all row indexes: an empty entry is one byte on the wire
NAME_MAX = 128
TTL_MAX_MS = 7 * 24 * 3600 * 1000

USER, CANDIDATE, WATCHED = "user", "candidate", "watched"
OWNERS = {USER: pb.ROW_OWNER_USER, CANDIDATE: pb.ROW_OWNER_CANDIDATE, WATCHED: pb.ROW_OWNER_WATCHED}
_OWNER_NAMES = {value: name for name, value in OWNERS.items()}
ENCODINGS = {INT8: pb.ROW_ENCODING_INT8, FLOAT16: pb.ROW_ENCODING_FLOAT16, FLOAT32: pb.ROW_ENCODING_FLOAT32}
_ENCODING_NAMES = {value: name for name, value in ENCODINGS.items()}

ROWS_OK = "ok"
ROWS_STATUS = {
    ROWS_OK: pb.ROWS_STATUS_OK,
    "no_live_version": pb.ROWS_STATUS_NO_LIVE_VERSION,
    "spec_mismatch": pb.ROWS_STATUS_SPEC_MISMATCH,
    "not_needed": pb.ROWS_STATUS_NOT_NEEDED,
}
_ROWS_STATUS_NAMES = {value: name for name, value in ROWS_STATUS.items()}
_MISSING = int(MISSING_KEY)
_NAMES = ("dense_version", "spec_fingerprint", "fetch_version", "retrieval_version", "ranker_version")


@dataclass(frozen=True)
class Candidates:
    """N candidates in server order.

    video_id, author_id  uint64 [N]; tags uint64 [N, TAGS_MAX]; duration_ms, upload_age_days int32 [N] (-1 null)
    pxtr                 float32 [N, X], NaN where the ranker gave none
    """

    video_id: NDArray[np.uint64]
    author_id: NDArray[np.uint64]
    tags: NDArray[np.uint64]
    duration_ms: NDArray[np.int32]
    upload_age_days: NDArray[np.int32]
    pxtr: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.video_id)


@dataclass(frozen=True)
class Rows:
    """Sparse rows of one page: encoded tables, and per (owner, feature) which rows its entries take.

    slots: int64 [entries, max_len], -1 = no entry; row 0 of every table is its default row.
    """

    tables: Mapping[str, EncodedRows]
    slots: Mapping[tuple[str, str], NDArray[np.int64]]
    feature_table: Mapping[tuple[str, str], str]

    @property
    def n_bytes(self) -> int:
        return sum(table.n_bytes for table in self.tables.values())

    def decoded(self) -> dict[str, NDArray[np.float32]]:
        """Table name -> float32 [R, width]; of a page that was decoded they stand there already. Not to be written."""
        return {name: table.decoded for name, table in self.tables.items()}


NO_ROWS = Rows({}, {}, {})


@dataclass(frozen=True)
class Page:
    """One page. TTLs: milliseconds from arrival; `rows_status` "ok" means the rows fit dense_version; user_profile
    float32 [P] (`contract.user_profile`).
    """

    page_id: str
    candidates: Candidates
    server_time_ms: int = 0
    soft_ttl_ms: int = 600_000
    hard_ttl_ms: int = 1_800_000
    dense_version: str = ""
    rows_revision: int = 0
    spec_fingerprint: str = ""
    rows_status: str = "no_live_version"
    fetch_version: str = ""
    retrieval_version: str = ""
    ranker_version: str = ""
    user_activity: int = -1
    user_register_days: int = -1
    hour: int = -1
    user_profile: NDArray[np.float32] = field(default_factory=unknown_profile)
    rows: Rows = field(default_factory=lambda: NO_ROWS)

    @property
    def server_position(self) -> NDArray[np.int32]:
        return np.arange(len(self.candidates), dtype=np.int32)


def encode_page(page: Page) -> pb.Page:
    """numpy -> message. The page is trusted (the server made it)."""
    c = page.candidates
    present_NM = c.tags != MISSING_KEY
    present_NX = ~np.isnan(c.pxtr)
    message = pb.Page(
        page_id=page.page_id,
        server_time_ms=page.server_time_ms,
        soft_ttl_ms=page.soft_ttl_ms,
        hard_ttl_ms=page.hard_ttl_ms,
        dense_version=page.dense_version,
        rows_revision=page.rows_revision,
        spec_fingerprint=page.spec_fingerprint,
        rows_status=ROWS_STATUS[page.rows_status],
        fetch_version=page.fetch_version,
        retrieval_version=page.retrieval_version,
        ranker_version=page.ranker_version,
        candidates=pb.CandidateColumns(
            video_ids=c.video_id.tolist(),
            author_ids=c.author_id.tolist(),
            duration_ms=np.maximum(c.duration_ms, 0).tolist(),
            upload_age_days=c.upload_age_days.tolist(),
            tag_counts=present_NM.sum(axis=1).tolist(),
            tags=c.tags[present_NM].tolist(),
            pxtr_heads=PXTR_HEADS,
            pxtr=np.where(present_NX, c.pxtr, 0).astype("<f4").tobytes(),
            pxtr_present=present_NX.astype(np.uint8).tobytes(),
        ),
        user=pb.UserColumns(
            activity=page.user_activity,
            register_days=page.user_register_days,
            hour=page.hour,
            profile=page.user_profile.tolist(),
        ),
    )
    for name, table in page.rows.tables.items():
        message.row_tables.add(
            name=name,
            width=table.width,
            encoding=ENCODINGS[table.encoding],
            values=table.values,
            scales=table.scales,
        )
    for (owner, feature), slots in page.rows.slots.items():
        index = message.row_indexes.add(
            owner=OWNERS[owner], feature=feature, table=page.rows.feature_table[owner, feature]
        )
        if slots.shape[1] == 1:
            index.rows.extend(np.maximum(slots[:, 0], 0).tolist())
        else:
            present = slots >= 0
            index.counts.extend(present.sum(axis=1).tolist())
            index.rows.extend(slots[present].tolist())
    return message


def parse_page(data: bytes) -> Page:
    """Bytes of a `kir.v1.Page` -> Page. Raises PageError."""
    if len(data) > PAGE_BYTES_MAX:
        raise PageError("page is too large", got=f"{len(data)} bytes", allowed=f"up to {PAGE_BYTES_MAX}")
    message = pb.Page()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise PageError("bytes are not a kir.v1.Page", got=str(error)) from None
    return decode_page(message)


def decode_page(message: pb.Page) -> Page:
    """Message -> numpy, everything checked. Raises PageError with the page id as `where`."""
    page_id = message.page_id[:NAME_MAX]  # an error may be kept for long: it holds no megabytes of theirs
    where = f"page {page_id or '?'}"
    try:
        status = _ROWS_STATUS_NAMES[message.rows_status]
    except KeyError:
        raise PageError("unknown rows_status", where=where, got=message.rows_status) from None
    _check(0 < len(message.page_id) <= NAME_MAX, "page_id is empty or long", where, page_id)
    for name in _NAMES:
        length = len(getattr(message, name))
        _check(length <= NAME_MAX, f"{name} is long", where, f"{length} characters", f"up to {NAME_MAX}")
    _check(message.rows_revision < 2**63, "rows_revision out of range", where, message.rows_revision, "below 2**63")
    for name in ("soft_ttl_ms", "hard_ttl_ms"):
        _check(getattr(message, name) <= TTL_MAX_MS, f"{name} out of range", where, getattr(message, name))
    candidates = _decode_candidates(message.candidates, where)
    return Page(
        page_id=message.page_id,
        candidates=candidates,
        server_time_ms=message.server_time_ms,
        soft_ttl_ms=message.soft_ttl_ms,
        hard_ttl_ms=max(message.hard_ttl_ms, message.soft_ttl_ms),
        dense_version=message.dense_version,
        rows_revision=message.rows_revision,
        spec_fingerprint=message.spec_fingerprint,
        rows_status=status,
        fetch_version=message.fetch_version,
        retrieval_version=message.retrieval_version,
        ranker_version=message.ranker_version,
        user_activity=message.user.activity,
        user_register_days=message.user.register_days,
        hour=message.user.hour,
        user_profile=_decode_profile(message.user.profile, where),
        rows=_decode_rows(message, len(candidates), where),
    )


def _check(good: bool, what: str, where: str, got: Any = None, allowed: Any = None) -> None:
    if not good:
        raise PageError(what, where=where, got=got, allowed=allowed)


def _decode_candidates(c: pb.CandidateColumns, where: str) -> Candidates:
    n = len(c.video_ids)
    _check(0 < n <= CANDIDATES_MAX, "number of candidates out of range", where, n, f"1 … {CANDIDATES_MAX}")
    for name in ("author_ids", "duration_ms", "upload_age_days", "tag_counts"):
        _check(
            len(getattr(c, name)) == n, f"candidate column '{name}' has another length", where, len(getattr(c, name)), n
        )
    heads = tuple(c.pxtr_heads[: X_PXTR + 1])
    _check(heads == PXTR_HEADS, "pXTR columns of other heads", where, heads, PXTR_HEADS)
    _check(len(c.pxtr) == 4 * n * X_PXTR, "pxtr bytes do not fit", where, len(c.pxtr), 4 * n * X_PXTR)
    _check(len(c.pxtr_present) == n * X_PXTR, "pxtr_present bytes do not fit", where, len(c.pxtr_present), n * X_PXTR)
    # Small columns are checked as lists: numpy takes microseconds a call, however few the numbers.
    ids, durations, ages = c.video_ids[:], c.duration_ms[:], c.upload_age_days[:]
    _check(len(set(ids)) == n, "duplicate candidate ids", where)
    _check(_MISSING not in ids, "a candidate has the reserved missing id", where)
    _check(max(durations) < 2**31, "duration_ms out of range", where)
    _check(min(ages) >= -1, "upload_age_days below -1", where)
    _check(not c.pxtr_present.strip(b"\0\1"), "pxtr_present must be 0 or 1", where)
    pxtr = np.frombuffer(c.pxtr, "<f4").reshape(n, X_PXTR).astype(np.float32)
    absent = np.frombuffer(c.pxtr_present, np.uint8).reshape(n, X_PXTR) == 0
    pxtr[absent] = 0.0
    _check(bool(pxtr.min() >= 0 and pxtr.max() <= 1), "pXTR are not probabilities", where)  # nor is NaN
    pxtr[absent] = np.nan
    places = _ragged(c.tag_counts[:], len(c.tags), TAGS_MAX, "tags", where)
    tags = np.full((n, TAGS_MAX), MISSING_KEY)
    tags[places] = np.array(c.tags[:], np.uint64)
    return Candidates(
        video_id=np.array(ids, np.uint64),
        author_id=np.array(c.author_ids[:], np.uint64),
        tags=tags,
        duration_ms=np.array([duration or NULL_INT for duration in durations], np.int32),  # 0 = unknown
        upload_age_days=np.array(ages, np.int32),
        pxtr=pxtr,
    )


def _decode_profile(values: Any, where: str) -> NDArray[np.float32]:
    if not len(values):
        return unknown_profile()
    _check(len(values) == len(PROFILE), "user profile has another length", where, len(values), len(PROFILE))
    told = [value for value in values if value == value]  # no NaN
    good = not told or (min(told) >= 0 and max(told) <= 1)
    _check(good, "user profile out of range", where, told, "0 … 1 or NaN")
    return np.array(values[:], np.float32)


def _ragged(counts: Sequence[int], n_values: int, width: int, what: str, where: str) -> NDArray[np.bool_]:
    """Where ragged values stand in a padded [entries, width] array, in order."""
    total = sum(counts)
    if total != n_values or max(counts, default=0) > width:
        raise PageError(
            f"counts of '{what}' do not fit", where=where, got=total, allowed=f"{n_values}, at most {width} each"
        )
    places: NDArray[np.bool_] = np.arange(width) < np.array(counts, np.int64)[:, None]
    return places


def _decode_rows(message: pb.Page, n: int, where: str) -> Rows:
    for name in ("row_tables", "row_indexes"):
        count = len(getattr(message, name))
        _check(count <= FIELDS_MAX, f"too many {name}", where, count, FIELDS_MAX)
    tables: dict[str, EncodedRows] = {}
    n_rows: dict[str, int] = {}
    for table in message.row_tables:
        name = table.name
        _check(len(name) <= NAME_MAX, "a row table's name is long", where, name[:NAME_MAX])
        _check(name not in tables, "a row table comes twice", where, name)
        tables[name] = _decode_table(table, name, where)
        n_rows[name] = len(tables[name].decoded)
    slots: dict[tuple[str, str], NDArray[np.int64]] = {}
    feature_table: dict[tuple[str, str], str] = {}
    cells = 0
    for index in message.row_indexes:
        feature, table_name = index.feature, index.table
        _check(len(feature) <= NAME_MAX, "a feature's name is long", where, feature[:NAME_MAX])
        owner = _OWNER_NAMES.get(index.owner)
        if owner is None:
            raise _wrong(index, "unknown owner", where, index.owner)
        key = (owner, feature)
        _check(key not in slots, "a row index comes twice", where, key)
        if table_name not in tables:
            raise _wrong(index, "an absent table", where, table_name[:NAME_MAX])
        slots[key] = _decode_index(index, owner, n, n_rows[table_name], where)
        cells += slots[key].size
        _check(cells <= CELLS_MAX, "row indexes are too large", where, cells, CELLS_MAX)
        feature_table[key] = table_name
    return Rows(tables, slots, feature_table)


def _decode_table(table: pb.RowTable, name: str, where: str) -> EncodedRows:
    encoding = _ENCODING_NAMES.get(table.encoding)
    if encoding is None:
        raise PageError(f"table '{name}': unknown row encoding", where=where, got=table.encoding)
    encoded = EncodedRows(encoding, table.width, table.values, table.scales)
    rows = encoded.decoded
    if not 0 < len(rows) <= ROWS_MAX:
        what = "is too large" if len(rows) else "lacks its default row"
        raise PageError(f"table '{name}' {what}", where=where, got=len(rows), allowed=ROWS_MAX)
    largest = np.abs(rows).max().item()
    if largest > ROW_ABS_MAX:
        raise PageError(f"table '{name}': values too large", where=where, got=largest, allowed=ROW_ABS_MAX)
    return encoded


def _decode_index(index: pb.RowIndex, owner: str, n: int, n_rows: int, where: str) -> NDArray[np.int64]:
    """Slots of one feature, [entries, places]: every length is checked before an array of it is made."""
    rows, counts = index.rows, index.counts
    entries, n_values = len(counts) or len(rows), len(rows)
    low, high = {USER: (1, 1), CANDIDATE: (n, n)}.get(owner, (0, WATCHED_MAX))
    if not (low <= entries <= high and n_values <= entries * ENTRIES_MAX):
        raise _wrong(index, "wrong number of entries", where, (entries, n_values), f"{low} … {high}")
    values = rows[:]
    if max(values, default=0) >= n_rows:
        raise _wrong(index, "row out of range", where)
    if not counts:
        return np.array(values, np.int64)[:, None]
    width = max(1, max(counts))
    if width > ENTRIES_MAX:
        raise _wrong(index, "too many values", where, width, ENTRIES_MAX)
    places = _ragged(counts[:], n_values, width, index.feature, where)
    slots = np.full(places.shape, -1, np.int64)
    slots[places] = values
    return slots


def _wrong(index: pb.RowIndex, what: str, where: str, got: Any = None, allowed: Any = None) -> PageError:
    return PageError(f"feature '{index.feature}': {what}", where=where, got=got, allowed=allowed)

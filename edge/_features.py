"""Feature assembly on the phone: page blocks when a page arrives, the watched token when feedback does, device state at
the swipe. All through `contract.features`, so that a swipe sees what training saw.

Legend: n candidates, Rw width of watched_rows, L1 = L + 1 slots, Fs and Fcs widths of swipe_dense and candidate_swipe.
Not thread-safe (buffers are reused).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.buckets import INDEX_BOUNDS
from contract.features import dense_block, pool_column, pool_rows
from contract.one_video import TokenRows
from contract.page import CANDIDATE, ROWS_OK, USER, WATCHED, Page
from contract.spec import FeatureSpec
from contract.vocabulary import NULL_INT
from edge._types import DeviceState, Reason

Floats = NDArray[np.float32]
_OWNER_OF_BLOCK = {"user_rows": USER, "candidate_rows": CANDIDATE, "watched_rows": WATCHED}
_INDEX_BOUNDS = INDEX_BOUNDS.tolist()
_SHARED = ("duration", "pxtr")  # features that a candidate and a watched video have alike
_ITEM_COLUMNS = ("video_id", "author_id", "tags", "duration_ms", "pxtr")


def unfit_reason(spec: FeatureSpec, dense_version: str, page: Page) -> str:
    """Why a model with this spec can't score the page; "" when it can."""
    if page.rows_status != ROWS_OK and (spec.tables or page.rows_status != "not_needed"):
        return f"{Reason.ROWS_STATUS}:{page.rows_status}"
    if page.dense_version != dense_version:
        return str(Reason.VERSION_MISMATCH)
    if page.spec_fingerprint != spec.fingerprint:
        return str(Reason.SPEC_MISMATCH)
    tables, feature_table = page.rows.tables, page.rows.feature_table
    for field in spec.fields:
        if not field.table:
            continue
        if field.table not in tables:
            return str(Reason.NO_ROWS)
        named = feature_table.get((_OWNER_OF_BLOCK.get(field.block, ""), field.name), field.table)
        if named != field.table or tables[field.table].width != field.width:
            return str(Reason.SPEC_MISMATCH)
    return ""


@dataclass(frozen=True, eq=False)
class PageFeatures:
    """What a fitting page holds for the model, decoded once.

    blocks          user_rows [1, Ru], user_dense [1, Fu], candidate_rows [n, Rc], candidate_dense [n, Fc]
    watched_rows_nR each candidate's row as a watched video, [n, Rw]
    tokens_nF       each candidate's watched_dense before any feedback, [n, Fw]; None for a spec without row forms
    start_R         row of the start token: every table's default row, [Rw]
    request_rows    video id -> row [Rw], for the watched videos that the request listed
    default_rows    entries for which the server had no row of its own
    """

    blocks: Mapping[str, Floats]
    watched_rows_nR: Floats
    tokens_nF: Floats | None
    start_R: Floats
    request_rows: Mapping[int, Floats]
    default_rows: int


def page_features(
    spec: FeatureSpec, page: Page, n: int, request_ids: Sequence[int], tokens: TokenRows | None = None
) -> PageFeatures:
    """Features of the first n candidates of a page that fits; request_ids: the request's watched list."""
    tokens = tokens or TokenRows(spec)
    rows = _RowReader(spec, page)
    user = {
        "user_activity": np.array([page.user_activity]),
        "user_register_days": np.array([page.user_register_days]),
        "user_profile": page.user_profile[None],
        "hour": np.array([page.hour]),
    }
    c = page.candidates
    candidate: dict[str, NDArray[Any]] = {name: getattr(c, name)[:n] for name in (*_ITEM_COLUMNS, "upload_age_days")}
    candidate["server_position"] = page.server_position[:n]
    blocks: dict[str, Floats] = {
        "user_rows": rows.block("user_rows", 1),
        "user_dense": _dense(spec, "user_dense", user, 1),
        "candidate_rows": rows.block("candidate_rows", n),
        "candidate_dense": _dense(spec, "candidate_dense", candidate, n),
    }
    listed = rows.block("watched_rows", len(request_ids))
    dense = blocks["candidate_dense"]
    known = {c.field.feature: dense[:, c.slice] for c in spec.columns("candidate_dense") if c.field.feature in _SHARED}
    start_R = np.zeros(spec.width("watched_rows"), np.float32)
    for column in spec.columns("watched_rows"):
        start_R[column.slice] = rows.tables[column.field.table][0]
    return PageFeatures(
        blocks={name: block for name, block in blocks.items() if block.shape[1]},
        watched_rows_nR=rows.as_watched(blocks["candidate_rows"]),
        tokens_nF=tokens.of_candidates(candidate, n, known) if tokens.possible else None,
        start_R=start_R,
        request_rows={int(v): row for v, row in zip(request_ids, listed, strict=True)},
        default_rows=rows.default_rows,
    )


class _RowReader:
    """Decodes a page's tables once and fills served blocks; counts entries that fall back on the default row."""

    def __init__(self, spec: FeatureSpec, page: Page):
        self.tables = page.rows.decoded()
        self.default_rows = 0
        self._spec, self._slots = spec, page.rows.slots

    def block(self, block: str, n: int) -> Floats:
        """[n, width] of a served block; an index that is absent or of another length gives default rows."""
        owner, out = _OWNER_OF_BLOCK[block], np.zeros((n, self._spec.width(block)), np.float32)
        if not n:
            return out
        slots = {}
        for column in self._spec.columns(block):
            field = column.field
            slots[field.name] = found = self._entries(owner, field.name, n, field.max_len)
            if field.max_len == 1:  # a video may well have no tag; it has one id
                self.default_rows += int(np.count_nonzero(found[:, 0] <= 0))
        return pool_rows(self._spec, block, self.tables, slots, out)

    def as_watched(self, candidate_rows_nR: Floats) -> Floats:
        """The rows that the candidates will have once watched: the same feature of the same table, another field."""
        n = len(candidate_rows_nR)
        twins = {(c.field.feature, c.field.table): c for c in self._spec.columns("candidate_rows")}
        out = np.zeros((n, self._spec.width("watched_rows")), np.float32)
        for column in self._spec.columns("watched_rows"):
            field, twin = column.field, twins.get((column.field.feature, column.field.table))
            if twin is not None and twin.field.max_len == field.max_len:
                out[:, column.slice] = candidate_rows_nR[:, twin.slice]
            else:
                slots = self._entries(CANDIDATE, twin.field.name if twin else "", n, field.max_len)
                pool_column(self.tables[field.table], slots, out[:, column.slice])
        return out

    def _entries(self, owner: str, feature: str, n: int, max_len: int) -> NDArray[np.int64]:
        slots = self._slots.get((owner, feature))
        if slots is None or len(slots) < n or (owner == WATCHED and len(slots) != n):
            return np.full((n, max_len), -1, np.int64)
        return slots[:n, :max_len]


def _dense(spec: FeatureSpec, block: str, columns: Mapping[str, NDArray[Any]], n: int) -> Floats:
    return dense_block(spec, block, columns, np.zeros((n, spec.width(block)), np.float32))


def watched_item(page: Page, index: int, number: int, device: DeviceState) -> dict[str, Any]:
    """The columns that a candidate brings into the watched list, pXTR as sent with its page, and how it was shown:
    Python numbers and lists.

    number: the user's running number of the impression.
    """
    item = {name: getattr(page.candidates, name)[index].tolist() for name in _ITEM_COLUMNS}
    item["number"] = number
    item["volume"] = np.nan if device.volume is None else device.volume
    item["landscape"] = NULL_INT if device.landscape is None else int(device.landscape)
    return item


class WatchedRows:
    """Sparse rows of the watched list, slot by slot: [L1, Rw], and of which rows_revision each is (-1: default row)."""

    def __init__(self, capacity: int, width: int):
        self.rows: Floats = np.zeros((capacity + 1, width), np.float32)
        self.revision = np.full(capacity + 1, -1, np.int64)

    def put(self, slot: int, row_R: Floats | None, revision: int) -> None:
        """None: no row of this model's version is known yet, the start token's default rows stand in."""
        self.rows[slot] = self.rows[0] if row_R is None else row_R
        self.revision[slot] = -1 if row_R is None else revision

    def evict(self, dropped: int) -> None:
        """Slots 1 … dropped go, the rest move down."""
        for array in (self.rows, self.revision):
            array[1:-dropped] = array[1 + dropped :].copy()

    def adopt(self, features: PageFeatures, video_ids: Sequence[int], revision: int) -> int:
        """Take a page's rows for slots that have none yet. video_ids: of slots 1 … Returns the first changed slot.

        A slot that has its row keeps it: a token is frozen when appended. The start token takes the first
        page's default.
        """
        first = len(self.rows)
        if self.revision[: len(video_ids) + 1].min() >= 0:  # every slot has its row
            return first
        if self.revision[0] < 0:
            self.rows[0], self.revision[0], first = features.start_R, revision, 0
        for slot, video_id in enumerate(video_ids, start=1):
            row = features.request_rows.get(int(video_id))
            if self.revision[slot] < 0 and (row is not None or first == 0):
                self.put(slot, row, revision)
                first = min(first, slot)
        return first


class SwipeFeatures:
    """What is known at the swipe alone: swipe_dense [1, Fs], candidate_swipe [1, N, Fcs] per bucket.

    Another state is another array: what was returned is never written again, so that a graph may keep it.
    """

    def __init__(self, spec: FeatureSpec, buckets: Sequence[int]):
        self._spec = spec
        self.swipe_dense: Floats = np.zeros((1, spec.width("swipe_dense")), np.float32)
        width = spec.width("candidate_swipe")
        self._untold: dict[int, Floats] = {n: np.zeros((1, n, width), np.float32) for n in buckets}
        for bucket, block in self._untold.items():
            self._fill(np.full(bucket, NULL_INT, np.int64), block)
        self._filled: tuple[int, int, int] | None = None  # what swipe_dense stands for

    def device(self, device: DeviceState, swipe_index: int) -> Floats:
        """swipe_dense of now."""
        now = (device.network, device.decoder, bisect_right(_INDEX_BOUNDS, swipe_index))
        if now == self._filled:
            return self.swipe_dense
        values = {"network": device.network, "decoder": device.decoder, "swipe_index": swipe_index}
        columns = {name: np.array([value]) for name, value in values.items()}
        self.swipe_dense = dense_block(self._spec, "swipe_dense", columns, np.zeros_like(self.swipe_dense))
        self._filled = now
        return self.swipe_dense

    def candidates(self, device: DeviceState, video_ids: Sequence[int], bucket: int) -> Floats:
        """candidate_swipe of a bucket; zeros behind the page's candidates."""
        told = device.buffered_ms
        if not told:
            return self._untold[bucket]
        buffered = np.full(bucket, NULL_INT, np.int64)
        buffered[: len(video_ids)] = [max(NULL_INT, told.get(v, NULL_INT)) for v in video_ids]
        return self._fill(buffered, np.zeros_like(self._untold[bucket]))

    def _fill(self, buffered_ms: NDArray[np.int64], out: Floats) -> Floats:
        dense_block(self._spec, "candidate_swipe", {"buffered_ms": buffered_ms}, out[0])
        return out

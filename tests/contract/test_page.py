"""The page codec: what a server encodes a phone decodes; whatever else arrives ends in one PageError."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.errors import PageError
from contract.page import (
    CANDIDATE,
    CANDIDATES_MAX,
    PAGE_BYTES_MAX,
    TTL_MAX_MS,
    USER,
    WATCHED,
    WATCHED_MAX,
    Candidates,
    Page,
    Rows,
    decode_page,
    encode_page,
    parse_page,
)
from contract.rows import FLOAT16, FLOAT32, INT8, decode_rows, encode_rows
from contract.user_profile import PROFILE
from contract.v1 import page_pb2 as pb
from contract.vocabulary import MISSING_KEY, TAGS_MAX, X_PXTR

ids = st.integers(0, 2**64 - 2)


@st.composite
def candidate_columns(draw: Any, n: int) -> Candidates:
    """Columns as a server makes them: tags packed to the left, pXTR probabilities or NaN."""
    counts = draw(st.lists(st.integers(0, TAGS_MAX), min_size=n, max_size=n))
    tags = np.full((n, TAGS_MAX), MISSING_KEY)
    for row, count in zip(tags, counts, strict=True):
        row[:count] = draw(st.lists(ids, min_size=count, max_size=count))
    pxtr = st.one_of(st.floats(0, 1, width=32), st.just(float("nan")))
    durations = st.one_of(st.just(-1), st.integers(1, 2**31 - 1))  # null comes back as null; 0 on the wire is null
    return Candidates(
        video_id=np.array(draw(st.lists(ids, min_size=n, max_size=n, unique=True)), np.uint64),
        author_id=np.array(draw(st.lists(ids, min_size=n, max_size=n)), np.uint64),
        tags=tags,
        duration_ms=np.array(draw(st.lists(durations, min_size=n, max_size=n)), np.int32),
        upload_age_days=np.array(draw(st.lists(st.integers(-1, 10_000), min_size=n, max_size=n)), np.int32),
        pxtr=np.array(draw(st.lists(pxtr, min_size=n * X_PXTR, max_size=n * X_PXTR)), np.float32).reshape(n, X_PXTR),
    )


@st.composite
def row_tables(draw: Any, n: int) -> Rows:
    """Two tables in any encoding; a single-valued and a multi-valued feature of the candidates, one of the user."""
    tables = {}
    for name in ("video", "tag"):
        n_rows, width = draw(st.integers(1, 6)), draw(st.integers(1, 5))
        values = draw(st.lists(st.floats(-4, 4, width=32), min_size=n_rows * width, max_size=n_rows * width))
        encoding = draw(st.sampled_from((INT8, FLOAT16, FLOAT32)))
        tables[name] = encode_rows(np.array(values, np.float32).reshape(n_rows, width), encoding)
    n_rows = {name: len(decode_rows(table)) for name, table in tables.items()}
    one = st.integers(0, n_rows["video"] - 1)
    multi = np.full((n, TAGS_MAX), -1, np.int64)
    for row in multi:
        filled = draw(st.lists(st.integers(0, n_rows["tag"] - 1), max_size=TAGS_MAX))
        row[: len(filled)] = filled
    slots = {
        (USER, "user_id"): np.array([[draw(one)]], np.int64),
        (CANDIDATE, "video_id"): np.array(draw(st.lists(one, min_size=n, max_size=n)), np.int64)[:, None],
        (CANDIDATE, "tags"): multi,
    }
    of = {(USER, "user_id"): "video", (CANDIDATE, "video_id"): "video", (CANDIDATE, "tags"): "tag"}
    return Rows(tables, slots, of)


PROFILE_VALUES = st.one_of(st.just(float("nan")), st.floats(0, 1, width=32))


@st.composite
def pages(draw: Any) -> Page:
    n = draw(st.integers(1, 5))
    soft = draw(st.integers(0, TTL_MAX_MS))
    return Page(
        page_id=draw(st.text(min_size=1, max_size=20)),
        candidates=draw(candidate_columns(n)),
        server_time_ms=draw(st.integers(0, 2**53)),
        soft_ttl_ms=soft,
        hard_ttl_ms=draw(st.integers(soft, TTL_MAX_MS)),
        dense_version=draw(st.sampled_from(("", "kir-1f3a"))),
        rows_revision=draw(st.integers(0, 2**63 - 1)),
        spec_fingerprint="ab12",
        rows_status=draw(st.sampled_from(("ok", "no_live_version", "spec_mismatch", "not_needed"))),
        user_activity=draw(st.integers(-1, 7)),
        user_register_days=draw(st.integers(-1, 5000)),
        hour=draw(st.integers(-1, 23)),
        user_profile=np.array(draw(st.lists(PROFILE_VALUES, min_size=len(PROFILE), max_size=len(PROFILE))), np.float32),
        rows=draw(row_tables(n)),
    )


def small_page(n: int = 3) -> Page:
    """One fixed page with rows, to spoil."""
    candidates = Candidates(
        video_id=np.arange(10, 10 + n, dtype=np.uint64),
        author_id=np.full(n, 7, np.uint64),
        tags=np.array([[1, 2, MISSING_KEY]] * n, np.uint64),
        duration_ms=np.full(n, 9000, np.int32),
        upload_age_days=np.zeros(n, np.int32),
        pxtr=np.full((n, X_PXTR), 0.25, np.float32),
    )
    rows = Rows(
        {"video": encode_rows(np.ones((4, 2), np.float32)), "tag": encode_rows(np.ones((3, 2), np.float32))},
        {
            (CANDIDATE, "video_id"): np.array([[i % 4] for i in range(n)], np.int64),
            (CANDIDATE, "tags"): np.array([[1, 2, -1]] * n, np.int64),
            (WATCHED, "video_id"): np.array([[3], [0]], np.int64),
        },
        {(CANDIDATE, "video_id"): "video", (CANDIDATE, "tags"): "tag", (WATCHED, "video_id"): "video"},
    )
    return Page("p1", candidates, rows_status="ok", dense_version="kir-1", rows=rows)


def same_columns(a: Candidates, b: Candidates) -> None:
    for name, column in vars(a).items():
        np.testing.assert_array_equal(column, getattr(b, name), err_msg=name)


class TestRoundTrip:
    @given(pages())
    def test_a_page_comes_back_as_it_went(self, page: Page) -> None:
        back = parse_page(encode_page(page).SerializeToString())
        same_columns(page.candidates, back.candidates)
        scalars = [name for name in vars(page) if name not in ("candidates", "rows", "user_profile")]
        assert {n: getattr(page, n) for n in scalars} == {n: getattr(back, n) for n in scalars}
        np.testing.assert_array_equal(back.user_profile, page.user_profile)
        assert back.rows.tables == page.rows.tables
        assert back.rows.feature_table == page.rows.feature_table

    @given(pages())
    def test_every_entry_points_at_the_row_it_pointed_at(self, page: Page) -> None:
        back = parse_page(encode_page(page).SerializeToString())
        for key, slots in page.rows.slots.items():
            got = back.rows.slots[key]
            width = got.shape[1]
            np.testing.assert_array_equal(got, slots[:, :width])
            assert (slots[:, width:] == -1).all()

    def test_a_page_without_rows_is_whole(self) -> None:
        back = parse_page(encode_page(replace(small_page(), rows=Rows({}, {}, {}))).SerializeToString())
        assert back.rows.n_bytes == 0
        assert back.rows.decoded() == {}

    def test_server_position_counts_candidates(self) -> None:
        assert small_page(4).server_position.tolist() == [0, 1, 2, 3]

    def test_a_hard_ttl_below_the_soft_one_is_lifted(self) -> None:
        page = replace(small_page(), soft_ttl_ms=500, hard_ttl_ms=100)
        assert decode_page(encode_page(page)).hard_ttl_ms == 500


def test_a_server_that_tells_no_profile_leaves_it_unknown() -> None:
    message = encode_page(small_page())
    message.user.ClearField("profile")
    assert np.isnan(decode_page(message).user_profile).all()


class TestDamagedBytes:
    RAW = encode_page(small_page()).SerializeToString()

    @given(st.integers(0, len(RAW) - 1))
    def test_truncation_is_refused_or_a_smaller_page(self, end: int) -> None:
        try:
            page = parse_page(self.RAW[:end])
        except PageError:
            return
        assert len(page.candidates) >= 1  # cut between fields: what is there is checked

    @given(st.integers(0, len(RAW) - 1), st.integers(1, 255))
    @settings(max_examples=300)
    def test_a_flipped_byte_never_raises_anything_but_page_error(self, at: int, flip: int) -> None:
        raw = bytearray(self.RAW)
        raw[at] ^= flip
        try:
            page = parse_page(bytes(raw))
        except PageError:
            return
        given_pxtr = page.candidates.pxtr[~np.isnan(page.candidates.pxtr)]
        assert ((given_pxtr >= 0) & (given_pxtr <= 1)).all()
        for table in page.rows.decoded().values():
            assert np.isfinite(table).all()
        for (_, _), slots in page.rows.slots.items():
            assert (slots >= -1).all()

    @given(st.binary(max_size=300))
    def test_noise_is_refused(self, raw: bytes) -> None:
        with pytest.raises(PageError):
            parse_page(raw)

    def test_too_many_bytes_are_refused_before_parsing(self) -> None:
        with pytest.raises(PageError, match="too large"):
            parse_page(bytes(PAGE_BYTES_MAX + 1))


def spoiled(change: Any) -> pb.Page:
    message = encode_page(small_page())
    change(message)
    return message


def _set(path: str, value: Any) -> Any:
    def change(message: pb.Page) -> None:
        owner: Any = message
        *parts, last = path.split(".")
        for part in parts:
            owner = owner[int(part)] if part.isdigit() else getattr(owner, part)
        setattr(owner, last, value)

    return change


HOSTILE = {
    "a version of a megabyte": _set("dense_version", "v" * 2**20),
    "a page id of a megabyte": _set("page_id", "p" * 2**20),
    "a revision past int64": _set("rows_revision", 2**63),
    "a million pXTR heads": lambda m: m.candidates.pxtr_heads.extend([""] * 1_000_000),
    "a table's name of a megabyte": _set("row_tables.0.name", "t" * 2**20),
    "a feature's name of a megabyte": _set("row_indexes.0.feature", "f" * 2**20),
    "rows beyond all reason": lambda m: (
        setattr(m.row_tables[0], "encoding", pb.ROW_ENCODING_FLOAT32),
        setattr(m.row_tables[0], "values", np.float32([1, 3e38]).tobytes()),
    ),
    "an infinite scale above a row of zeros": lambda m: (
        setattr(m.row_tables[0], "values", bytes(len(m.row_tables[0].values))),
        setattr(m.row_tables[0], "scales", b"\x00\x7c" * 4),
    ),
    "more watched rows than a request lists": lambda m: m.row_indexes[2].rows.extend([0] * WATCHED_MAX),
    "a value of 65 places": lambda m: (
        m.row_indexes[2].rows.extend([0] * 65),
        m.row_indexes[2].counts.extend([65, 2]),
    ),
    "a user profile of another length": lambda m: m.user.profile.pop(),
    "a user profile out of range": lambda m: m.user.profile.__setitem__(0, 1.5),
    "an infinite user profile": lambda m: m.user.profile.__setitem__(1, float("inf")),
    "an unknown rows_status": _set("rows_status", 77),
    "an empty page id": _set("page_id", ""),
    "a long page id": _set("page_id", "x" * 129),
    "a TTL of a year": _set("soft_ttl_ms", 2**32 - 1),
    "one author too few": lambda m: m.candidates.author_ids.pop(),
    "one tag count too many": lambda m: m.candidates.tag_counts.append(1),
    "a tag count past the maximum": lambda m: m.candidates.tag_counts.__setitem__(0, TAGS_MAX + 1),
    "tag counts that do not sum up": lambda m: m.candidates.tags.append(5),
    "no candidates": lambda m: m.candidates.Clear(),
    "an id twice": lambda m: m.candidates.video_ids.__setitem__(1, m.candidates.video_ids[0]),
    "the missing id": lambda m: m.candidates.video_ids.__setitem__(0, int(MISSING_KEY)),
    "a duration past int32": lambda m: m.candidates.duration_ms.__setitem__(0, 2**31),
    "an age below -1": lambda m: m.candidates.upload_age_days.__setitem__(0, -2),
    "other pXTR heads": lambda m: m.candidates.pxtr_heads.__setitem__(0, "swipe"),
    "short pXTR bytes": lambda m: setattr(m.candidates, "pxtr", m.candidates.pxtr[:-4]),
    "NaN as a given pXTR": lambda m: setattr(m.candidates, "pxtr", b"\x00\x00\xc0\x7f" + m.candidates.pxtr[4:]),
    "a pXTR above 1": lambda m: setattr(m.candidates, "pxtr", np.float32(1.5).tobytes() + m.candidates.pxtr[4:]),
    "a presence byte of 2": lambda m: setattr(m.candidates, "pxtr_present", b"\x02" + m.candidates.pxtr_present[1:]),
    "a table twice": lambda m: m.row_tables.append(m.row_tables[0]),
    "an unknown encoding": _set("row_tables.0.encoding", 9),
    "a width of 0": _set("row_tables.0.width", 0),
    "a width past the limit": _set("row_tables.0.width", 5000),
    "a width that does not divide": _set("row_tables.0.width", 3),
    "a table without rows": lambda m: (
        setattr(m.row_tables[0], "values", b""),
        setattr(m.row_tables[0], "scales", b""),
    ),
    "a scale short": lambda m: setattr(m.row_tables[0], "scales", m.row_tables[0].scales[:-2]),
    "an infinite scale": lambda m: setattr(m.row_tables[0], "scales", b"\x00\x7c" + m.row_tables[0].scales[2:]),
    "an unknown owner": _set("row_indexes.0.owner", 9),
    "an index twice": lambda m: m.row_indexes.append(m.row_indexes[0]),
    "an index into an absent table": _set("row_indexes.0.table", "nowhere"),
    "a row past the table": lambda m: m.row_indexes[0].rows.__setitem__(0, 4),
    "a row of 2**32 - 1": lambda m: m.row_indexes[0].rows.__setitem__(0, 2**32 - 1),
    "an entry missing": lambda m: m.row_indexes[0].rows.pop(),
    "counts that do not sum up": lambda m: m.row_indexes[1].counts.__setitem__(0, 3),
    "a count of 2**32 - 1": lambda m: m.row_indexes[1].counts.__setitem__(0, 2**32 - 1),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_page_is_one_page_error(what: str) -> None:
    with pytest.raises(PageError) as raised:
        parse_page(spoiled(HOSTILE[what]).SerializeToString())
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 700


def test_more_candidates_than_any_page_holds_are_refused_quickly() -> None:
    message = pb.Page(page_id="p", rows_status=pb.ROWS_STATUS_OK)
    message.candidates.video_ids.extend(range(CANDIDATES_MAX + 1))
    with pytest.raises(PageError, match="out of range"):
        decode_page(message)

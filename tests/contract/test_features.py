"""Feature functions: a batch equals its rows, nulls are zero, and buckets agree with plain Python."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract import buckets
from contract.errors import SpecError
from contract.features import (
    BEHIND_CAP,
    DENSE_FEATURES,
    DENSE_WIDTHS,
    KEY_FEATURES,
    block_keys,
    dense_block,
    pool_rows,
    posture,
    pxtr_surprise,
    since_watched,
    stays,
    videos_behind,
)
from contract.specs import kir_spec, kuaiformer_spec, ranker_spec
from contract.user_profile import AUTHORS_MAX, PROFILE
from contract.vocabulary import DECODERS, MISSING_KEY, NETWORKS, PXTR_HEADS, SIGNALS, TAGS_MAX, X_PXTR

INTS = {
    "duration_ms": 700_000,
    "play_time_ms": 2_000_000,
    "gap_ms": 10**12,
    "upload_age_days": 2_000,
    "server_position": 500,
    "user_activity": 7,
    "user_register_days": 5_000,
    "hour": 23,
    "tab": 20,
    "network": len(NETWORKS) - 1,
    "decoder": len(DECODERS) - 1,
    "swipe_index": 300,
    "buffered_ms": 60_000,
    "profile_stay_ms": 200_000,
    "comment_stay_ms": 200_000,
    "landscape": 1,
}
IDS = ("video_id", "author_id", "user_id", "music_id", "kind")
SPEC = kir_spec()
DENSE_BLOCKS = [b for b in SPEC.blocks if SPEC.columns(b)[0].field.encoding == "dense"]


def make_columns(seed: int, n: int, null_rate: float) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)

    def holed(values, null):
        return np.where(rng.random(values.shape) < null_rate, np.array(null, values.dtype), values)

    columns = {name: holed(rng.integers(0, high + 1, n), -1) for name, high in INTS.items()}
    columns |= {name: holed(rng.integers(0, 2**64 - 1, n, dtype=np.uint64), MISSING_KEY) for name in IDS}
    tags = rng.integers(0, 60, (n, TAGS_MAX)).astype(np.uint64)
    columns["tags"] = np.where(np.arange(TAGS_MAX) < rng.integers(0, TAGS_MAX + 1, (n, 1)), tags, MISSING_KEY)
    columns["pxtr"] = holed(rng.random((n, X_PXTR)).astype(np.float32), np.nan)
    columns["signals"] = holed(rng.integers(0, 2, (n, len(SIGNALS))).astype(np.int8), -1)
    columns["user_profile"] = holed(rng.random((n, len(PROFILE))).astype(np.float32), np.nan)
    authors = rng.integers(0, 60, (n, AUTHORS_MAX)).astype(np.uint64)
    columns["recent_authors"] = np.where(rng.random(authors.shape) < null_rate, MISSING_KEY, authors)
    columns["volume"] = holed(rng.random(n).astype(np.float32), np.nan)
    columns["start"] = rng.random(n) < 0.1
    return columns


columns_of = st.builds(make_columns, st.integers(0, 10**6), st.integers(0, 7), st.sampled_from([0.0, 0.3, 1.0]))


def dense(block: str, columns: dict[str, np.ndarray], fill: float = 0.0) -> np.ndarray:
    return dense_block(SPEC, block, columns, np.full((len(columns["hour"]), SPEC.width(block)), fill, np.float32))


@given(columns_of, st.sampled_from(DENSE_BLOCKS))
def test_a_batch_equals_its_rows_one_by_one(columns, block) -> None:
    batch = dense(block, columns)
    assert np.isfinite(batch).all()
    for i in range(len(batch)):
        one = {name: values[i : i + 1] for name, values in columns.items()}
        np.testing.assert_array_equal(dense(block, one)[0], batch[i])


@given(columns_of, st.sampled_from(DENSE_BLOCKS))
def test_what_stood_in_out_before_does_not_matter(columns, block) -> None:
    np.testing.assert_array_equal(dense(block, columns, fill=7.0), dense(block, columns))


@given(columns_of, st.randoms())
def test_order_of_rows_does_not_matter(columns, random) -> None:
    order = list(range(len(columns["hour"])))
    random.shuffle(order)
    shuffled = {name: values[order] for name, values in columns.items()}
    for block in DENSE_BLOCKS:
        np.testing.assert_array_equal(dense(block, shuffled), dense(block, columns)[order])


@pytest.mark.parametrize("name", sorted(DENSE_FEATURES))
def test_null_leaves_all_columns_zero(name) -> None:
    columns = make_columns(0, 3, 1.0) | {"start": np.zeros(3, bool)}
    out = np.zeros((3, DENSE_WIDTHS[name]), np.float32)
    DENSE_FEATURES[name](columns, out)
    assert (out == 0).all()


@given(columns_of.filter(lambda c: len(c["hour"]) > 0))
def test_one_hots_have_one_one_where_known(columns) -> None:
    for name in (
        "duration",
        "gap",
        "upload_age",
        "user_activity",
        "user_register",
        "hour",
        "tab",
        "network",
        "decoder",
    ):
        raw = {"duration": "duration_ms", "gap": "gap_ms", "upload_age": "upload_age_days"}.get(name, name)
        raw = {"user_register": "user_register_days"}.get(raw, raw)
        out = np.zeros((len(columns["hour"]), DENSE_WIDTHS[name]), np.float32)
        DENSE_FEATURES[name](columns, out)
        least = 1 if name in ("network", "decoder") else 0  # 0 = unknown
        np.testing.assert_array_equal(out.sum(axis=1), columns[raw] >= least, err_msg=name)
        assert set(np.unique(out)) <= {0.0, 1.0}


def test_an_index_past_the_end_is_the_last_bucket() -> None:
    out = np.zeros((2, DENSE_WIDTHS["user_activity"]), np.float32)
    DENSE_FEATURES["user_activity"]({"user_activity": np.array([99, 7])}, out)
    assert out.argmax(axis=1).tolist() == [7, 7]


def test_pxtr_become_clipped_logits_and_presence() -> None:
    p = np.array([[0.5, 0.0, 1.0, np.nan, 0.25, 1e-9, 0.9]], np.float32)
    out = np.zeros((1, 2 * X_PXTR), np.float32)
    DENSE_FEATURES["pxtr"]({"pxtr": p}, out)
    expected = [0, -8, 8, 0, np.log(1 / 3), -8, np.log(9)]
    np.testing.assert_allclose(out[0, :X_PXTR], expected, atol=1e-5)
    assert out[0, X_PXTR:].tolist() == [1, 1, 1, 0, 1, 1, 1]


def test_signals_tell_no_from_not_observed() -> None:
    signals = np.full((1, len(SIGNALS)), -1, np.int8)
    signals[0, 0], signals[0, 2] = 0, 1
    out = np.zeros((1, 2 * len(SIGNALS)), np.float32)
    DENSE_FEATURES["signals"]({"signals": signals}, out)
    assert np.flatnonzero(out[0]).tolist() == [2, len(SIGNALS), len(SIGNALS) + 2]


def test_capped_shares_stay_within_one() -> None:
    out = np.zeros((4, 2), np.float32)
    DENSE_FEATURES["buffered"]({"buffered_ms": np.array([0, 5_000, 99_999, -1])}, out)
    assert out.tolist() == [[0, 1], [0.5, 1], [1, 1], [0, 0]]


def test_a_wrong_width_is_refused() -> None:
    with pytest.raises(SpecError, match="width"):
        dense_block(SPEC, "user_dense", make_columns(0, 1, 0), np.zeros((1, 3), np.float32))


class TestBuckets:
    @given(st.integers(-5, 2**31 - 1))
    def test_duration(self, ms) -> None:
        expected = -1 if ms < 0 else min(ms, 299_999) * 1000 // 300_000
        for dtype in (np.int32, np.int64):
            assert buckets.duration_bucket_1000(np.array([ms], dtype))[0] == expected
        assert -1 <= expected <= 999

    @given(st.integers(-1, 2**31 - 1), st.integers(-1, 2**31 - 1))
    def test_play_ratio(self, play, duration) -> None:
        expected = min(play * 10 // duration, 10) if play >= 0 and duration > 0 else -1
        got = buckets.play_ratio_bucket(np.array([play], np.int32), np.array([duration], np.int32))
        assert got[0] == expected

    @given(st.integers(-1, 10**13))
    def test_bounds(self, value) -> None:
        for bounds in (buckets.GAP_BOUNDS_MS, buckets.AGE_BOUNDS_DAYS, buckets.INDEX_BOUNDS):
            expected = -1 if value < 0 else sum(value >= b for b in bounds.tolist())
            assert buckets.bounded_bucket(np.array([value]), bounds)[0] == expected

    def test_bounds_rise(self) -> None:
        for name, bounds in vars(buckets).items():
            if name.endswith(("_MS", "_DAYS", "INDEX_BOUNDS")) and isinstance(bounds, np.ndarray):
                assert (np.diff(bounds) > 0).all(), name


@given(columns_of)
def test_keys_have_the_specs_shape_and_nulls_are_the_missing_key(columns) -> None:
    n = len(columns["hour"])
    for spec in (SPEC, ranker_spec(), kuaiformer_spec()):
        for block in spec.blocks:
            if spec.columns(block)[0].field.encoding == "dense":
                continue
            found = block_keys(spec, block, columns)
            for column in spec.columns(block):
                keys = found[column.field.name]
                assert keys.shape == (n, column.field.max_len)
                assert keys.dtype == np.uint64
    for name, raw in (("duration_1000", "duration_ms"), ("gap_bucket", "gap_ms"), ("video_id", "video_id")):
        null = columns[raw] == (MISSING_KEY if raw == "video_id" else -1)
        np.testing.assert_array_equal(KEY_FEATURES[name](columns)[:, 0] == MISSING_KEY, null)


@given(st.integers(0, 10**6), st.integers(0, 6))
def test_pooling_equals_the_slow_way(seed, n) -> None:
    rng = np.random.default_rng(seed)
    block = "candidate_rows"
    tables = {c.field.table: rng.standard_normal((9, c.field.width)).astype(np.float32) for c in SPEC.columns(block)}
    slots = {c.field.name: rng.integers(-1, 9, (n, c.field.max_len)) for c in SPEC.columns(block)}
    out = pool_rows(SPEC, block, tables, slots, np.full((n, SPEC.width(block)), 5, np.float32))
    for i in range(n):
        for column in SPEC.columns(block):
            table, entries = tables[column.field.table], slots[column.field.name][i]
            used = [table[e] for e in entries if e >= 0] or [table[0]]
            np.testing.assert_allclose(out[i, column.slice], np.mean(used, axis=0), rtol=1e-5, atol=1e-6)


def test_time_since_is_zero_for_null_and_the_start_token() -> None:
    out = np.empty(4, np.float32)
    since_watched(10_000, np.array([-1, 10_000, 20_000, 9_000]), out)
    np.testing.assert_allclose(out, [0, 0, 0, np.log(2) / 8], rtol=1e-6)
    since_watched(2**60, np.array([0, 0, 0, 0]), out)
    assert (out <= 2).all(), "a clock gone wrong stays bounded"


@pytest.mark.parametrize("name", ["network", "decoder"])
def test_an_unknown_device_state_feeds_no_weight(name: str) -> None:
    out = np.zeros((3, DENSE_WIDTHS[name]), np.float32)
    DENSE_FEATURES[name]({name: np.array([0, 1, -1])}, out)
    assert out.sum(axis=1).tolist() == [0.0, 1.0, 0.0]
    assert out[1, 1] == 1.0


def test_surprise_is_signal_minus_prediction_where_both_are_known():
    pxtr = np.full((3, X_PXTR), np.nan, np.float32)
    signals = np.full((3, len(SIGNALS)), -1, np.int8)
    like, head = SIGNALS.index("like"), PXTR_HEADS.index("like")
    pxtr[:2, head], signals[[0, 2], like] = 0.25, [1, 1]
    pxtr[0, PXTR_HEADS.index("click")], signals[0, SIGNALS.index("click")] = 0.5, 0
    out = np.zeros((3, DENSE_WIDTHS["surprise"]), np.float32)
    pxtr_surprise({"pxtr": pxtr, "signals": signals}, out)
    expected = np.zeros((3, X_PXTR), np.float32)
    expected[0, head], expected[0, PXTR_HEADS.index("click")] = 0.75, -0.5
    np.testing.assert_array_equal(out, expected)


def test_stays_and_posture_keep_null_apart_from_zero():
    columns = {
        "profile_stay_ms": np.array([0, -1, 90_000], np.int32),
        "comment_stay_ms": np.array([-1, 30_000, -1], np.int32),
        "volume": np.array([0.0, np.nan, 0.4], np.float32),
        "landscape": np.array([-1, 0, 1], np.int8),
    }
    stay_n4, posture_n4 = np.zeros((3, 4), np.float32), np.zeros((3, 4), np.float32)
    stays(columns, stay_n4)
    posture(columns, posture_n4)
    np.testing.assert_allclose(stay_n4, [[0, 1, 0, 0], [0, 0, 0.5, 1], [1, 1, 0, 0]])
    np.testing.assert_allclose(posture_n4, [[0, 1, 0, 0], [0, 0, 0, 1], [0.4, 1, 1, 1]])


def test_watch_time_buckets_tell_a_short_play():
    play_ms = np.array([-1, 0, 2_999, 3_000, 17_999, 18_000, 500_000], np.int32)
    out = np.zeros((7, DENSE_WIDTHS["watch_time"]), np.float32)
    DENSE_FEATURES["watch_time"]({"play_time_ms": play_ms}, out)
    assert out[0].tolist() == [0.0] * 9, "not observed is no bucket"
    assert out[1:].argmax(axis=1).tolist() == [0, 1, 2, 4, 5, 8]


def test_videos_behind_counts_impressions_since():
    out = np.full(5, 9.0, np.float32)
    videos_behind(10, np.array([-1, 9, 7, 0, 12]), out)
    np.testing.assert_allclose(out, [0, np.log1p(1) / 4, np.log1p(3) / 4, np.log1p(10) / 4, 0], rtol=1e-6)
    videos_behind(10_000_000, np.array([0]), out[:1])
    assert out[0] == pytest.approx(np.log1p(BEHIND_CAP) / 4), "a long history stays in range"

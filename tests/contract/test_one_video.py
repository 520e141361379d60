"""One video's token equals the batch's row, for every value that a column can hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract import buckets
from contract.features import DENSE_FEATURES, DENSE_WIDTHS, dense_block
from contract.one_video import BLOCK, OF_THE_CANDIDATE, READ, ROW_FEATURES, TokenRows
from contract.spec import FeatureSpec, Field
from contract.specs import kir_spec
from contract.vocabulary import SIGNALS, X_PXTR
from contract.watched import WATCHED_COLUMNS

# Every feature that a watched token may have, whatever a spec picks.
SPEC = FeatureSpec(
    "all",
    tuple(
        Field(name, name, BLOCK, "feedback", "watch", "dense", DENSE_WIDTHS[name])
        for name in (*OF_THE_CANDIDATE, *ROW_FEATURES)
    ),
)


def around(bounds: np.ndarray, most: int) -> st.SearchStrategy[int]:
    """Null, zero, each bound and its neighbours, and anything up to `most`."""
    edges = sorted({-1, 0, most, *(int(b) + d for b in bounds for d in (-1, 0, 1))})
    return st.sampled_from([e for e in edges if e <= most]) | st.integers(-1, most)


volumes = st.just(math.nan) | st.floats(-1, 2, width=32)
chances = st.just(math.nan) | st.floats(0, 1, width=32)
videos = st.fixed_dictionaries(
    {
        "duration_ms": around(buckets.DURATION_BOUNDS_MS, 2**31 - 1),
        "play_time_ms": around(buckets.WATCH_BOUNDS_MS, 2**31 - 1),
        "gap_ms": around(buckets.GAP_BOUNDS_MS, 2**50),
        "signals": st.lists(st.integers(-1, 1), min_size=len(SIGNALS), max_size=len(SIGNALS)),
        "pxtr": st.lists(chances, min_size=X_PXTR, max_size=X_PXTR),
        "profile_stay_ms": around(np.array([60_000]), 2**31 - 1),
        "comment_stay_ms": around(np.array([60_000]), 2**31 - 1),
        "volume": volumes,
        "landscape": st.integers(-1, 1),
    }
)


def columns_of(video: dict) -> dict[str, np.ndarray]:
    """The same video as a batch of one."""
    given = {name: np.array([value], WATCHED_COLUMNS[name][0]) for name, value in video.items()}
    nulls = {name: np.full((1, *shape), null, dtype) for name, (dtype, shape, null) in WATCHED_COLUMNS.items()}
    return nulls | given


def token(spec: FeatureSpec, video: dict) -> np.ndarray:
    rows = TokenRows(spec)
    columns = columns_of(video)
    before = rows.of_candidates({name: columns[name] for name in ("duration_ms", "pxtr")}, 1)
    out = np.full(spec.width(BLOCK), 7.0, np.float32)
    rows.write({name: columns[name][0].tolist() for name in READ}, before[0], out)
    return out


@given(videos)
def test_a_token_is_the_batchs_row(video: dict) -> None:
    want = dense_block(SPEC, BLOCK, columns_of(video), np.zeros((1, SPEC.width(BLOCK)), np.float32))
    np.testing.assert_array_equal(token(SPEC, video), want[0])


@given(videos)
def test_and_in_the_specs_order(video: dict) -> None:
    spec = kir_spec()
    want = dense_block(spec, BLOCK, columns_of(video), np.zeros((1, spec.width(BLOCK)), np.float32))
    np.testing.assert_array_equal(token(spec, video), want[0])


def test_every_row_feature_has_its_batch_form() -> None:
    assert set(ROW_FEATURES) | set(OF_THE_CANDIDATE) <= set(DENSE_FEATURES)


def test_a_spec_with_another_feature_is_built_by_the_batch() -> None:
    assert TokenRows(kir_spec()).possible
    hour = Field("hour", "hour", BLOCK, "user", "watch", "dense", DENSE_WIDTHS["hour"])
    assert not TokenRows(FeatureSpec("odd", (*SPEC.fields, hour))).possible


@pytest.mark.parametrize("feature", sorted(ROW_FEATURES))
def test_before_feedback_a_row_feature_is_zero(feature: str) -> None:
    """What `of_candidates` leaves for `write` to add to."""
    spec = FeatureSpec("one", tuple(f for f in SPEC.fields if f.feature == feature))
    assert not TokenRows(spec).of_candidates({"duration_ms": np.array([9_000], np.int32)}, 1).any()

"""Sparse rows on the wire: the error of each encoding is bounded, and hostile bytes give one clear error."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from contract.errors import PageError
from contract.rows import ENCODINGS, FLOAT16, FLOAT32, INT8, SCALE_FLOOR, EncodedRows, decode_rows, encode_rows

shapes = st.tuples(st.integers(0, 6), st.integers(1, 9))
ordinary = hnp.arrays(np.float32, shapes, elements=st.floats(-8, 8, width=32))
any_finite = hnp.arrays(np.float32, shapes, elements=st.floats(width=32, allow_nan=False, allow_infinity=False))


@given(any_finite)
def test_float32_is_exact(rows) -> None:
    np.testing.assert_array_equal(decode_rows(encode_rows(rows, FLOAT32)), rows)


@given(any_finite)
def test_float16_is_the_nearest_half(rows) -> None:
    limit = float(np.finfo(np.float16).max)
    expected = np.clip(rows, -limit, limit).astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(decode_rows(encode_rows(rows, FLOAT16)), expected)


@given(ordinary)
def test_int8_errs_by_half_a_step_at_most(rows) -> None:
    encoded = encode_rows(rows)
    scales = np.frombuffer(encoded.scales, "<f2").astype(np.float32)
    error = np.abs(decode_rows(encoded) - rows)
    assert (error <= scales[:, None] * 0.5 * (1 + 1e-5)).all()


@given(any_finite)
def test_int8_scales_are_rounded_up_and_not_below_the_floor(rows) -> None:
    scales = np.frombuffer(encode_rows(rows).scales, "<f2").astype(np.float64)
    peak = np.abs(rows).max(axis=1, initial=0.0).astype(np.float64)
    exact = np.maximum(peak.astype(np.float32) / np.float32(127), SCALE_FLOOR)
    assert np.isfinite(scales).all()
    assert (scales >= np.minimum(exact, np.finfo(np.float16).max)).all()
    in_range = exact < 60_000
    assert (scales[in_range] <= exact[in_range] * (1 + 2**-9)).all(), "no more than one half-precision step"


@given(ordinary)
def test_decoded_rows_encode_to_themselves(rows) -> None:
    """Rows that went through the wire once lose nothing more than a step the second time."""
    once = decode_rows(encode_rows(rows))
    twice = decode_rows(encode_rows(once))
    scales = np.frombuffer(encode_rows(once).scales, "<f2").astype(np.float32)
    assert (np.abs(twice - once) <= scales[:, None] * 0.5 * (1 + 1e-5)).all()


@given(ordinary, st.sampled_from(ENCODINGS))
def test_rows_do_not_depend_on_their_neighbours(rows, encoding) -> None:
    together = decode_rows(encode_rows(rows, encoding))
    for i in range(len(rows)):
        np.testing.assert_array_equal(decode_rows(encode_rows(rows[i : i + 1], encoding))[0], together[i])


@given(st.binary(max_size=64), st.binary(max_size=16), st.integers(-3, 5000), st.sampled_from([*ENCODINGS, "bf16", ""]))
def test_hostile_bytes_give_rows_or_a_page_error(values, scales, width, encoding) -> None:
    try:
        rows = decode_rows(EncodedRows(encoding, width, values, scales))
    except PageError:
        return
    assert rows.shape == (len(rows), width)
    assert np.isfinite(rows).all()


@given(ordinary.filter(lambda r: r.size > 0), st.sampled_from(ENCODINGS), st.data())
def test_truncated_rows_are_refused(rows, encoding, data) -> None:
    whole = encode_rows(rows, encoding)
    step = len(whole.values) // len(rows)
    cut = data.draw(st.integers(0, len(whole.values) - 1).filter(lambda n: n % step or encoding == INT8))
    with pytest.raises(PageError):
        decode_rows(EncodedRows(encoding, whole.width, whole.values[:cut], whole.scales))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_non_finite_values_are_refused_at_export(bad, encoding) -> None:
    rows = np.zeros((3, 4), np.float32)
    rows[1, 2] = bad
    with pytest.raises(PageError, match=r"rows \[1\]"):
        encode_rows(rows, encoding)


@pytest.mark.parametrize("encoding", [FLOAT16, FLOAT32])
def test_non_finite_values_are_refused_on_arrival(encoding) -> None:
    kind = "<f2" if encoding == FLOAT16 else "<f4"
    with pytest.raises(PageError, match="finite"):
        decode_rows(EncodedRows(encoding, 1, np.array([np.inf], kind).tobytes()))
    with pytest.raises(PageError, match="finite"):
        decode_rows(EncodedRows(INT8, 1, b"\x01", np.array([np.nan], "<f2").tobytes()))


def test_too_many_rows_are_refused_before_they_are_made() -> None:
    encoded = encode_rows(np.zeros((11, 2), np.float32))
    with pytest.raises(PageError):
        decode_rows(encoded, max_rows=10)
    assert decode_rows(encoded, max_rows=11).shape == (11, 2)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(PageError, match="encoding"):
        encode_rows(np.zeros((1, 1)), "int4")
    with pytest.raises(PageError, match="width"):
        encode_rows(np.zeros(3))


def test_bytes_are_counted() -> None:
    rows = np.ones((5, 16), np.float32)
    assert [encode_rows(rows, e).n_bytes for e in (INT8, FLOAT16, FLOAT32)] == [5 * 18, 5 * 32, 5 * 64]


def test_a_row_of_zeros_stays_zero() -> None:
    assert (decode_rows(encode_rows(np.zeros((2, 3), np.float32))) == 0).all()

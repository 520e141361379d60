"""Noise:signal is what it says, pooled over samples, and infinite where nothing agrees."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from convert.noise import Noise, for_json, told


def of(want: object, got: object) -> Noise:
    noise = Noise()
    noise.add(np.asarray(want, np.float32), np.asarray(got, np.float32))
    return noise


def test_a_tenth_of_the_amplitude_is_a_hundredth() -> None:
    assert of([1, -2, 3], [1.1, -2.2, 3.3]).ratio == pytest.approx(1e-2, rel=1e-5)
    assert of([1, -2, 3], [1.1, -2.2, 3.3]).max_abs == pytest.approx(0.3, rel=1e-5)


def test_equal_is_nothing_and_opposite_is_four() -> None:
    assert of([1, 2], [1, 2]).ratio == 0.0
    assert of([1, 2], [-1, -2]).ratio == 4.0


def test_samples_are_pooled_so_that_a_silent_one_does_not_count_as_much() -> None:
    noise = Noise()
    noise.add(np.array([10.0]), np.array([11.0]))
    noise.add(np.array([0.0]), np.array([0.0]))
    noise.add(np.array([0.1]), np.array([0.2]))
    assert noise.ratio == pytest.approx((1 + 0.01) / (100 + 0.01))
    assert noise.max_abs == 1.0


def test_it_is_the_inverse_of_the_quantizers_signal_to_noise() -> None:
    from ai_edge_quantizer.utils.validation_utils import signal_to_noise_ratio

    rng = np.random.default_rng(0)
    want = rng.normal(size=50)
    got = want + 0.05 * rng.normal(size=50)
    assert of(want, got).ratio == pytest.approx(1 / signal_to_noise_ratio(got, want), rel=1e-4)


@pytest.mark.parametrize(
    ("want", "got"),
    [([1.0], [np.nan]), ([1.0], [np.inf]), ([np.inf], [-np.inf]), ([0.0], [1.0]), ([1.0, 2.0], [[1.0, 2.0]])],
)
def test_what_agrees_with_nothing_is_infinite(want: object, got: object) -> None:
    assert math.isinf(of(want, got).ratio)


def test_infinities_in_the_same_places_agree() -> None:
    assert of([np.inf, np.nan, 1.0], [np.inf, np.nan, 1.0]).ratio == 0.0


def test_one_bad_sample_is_not_forgotten() -> None:
    noise = of([1.0], [np.nan])
    noise.add(np.array([1.0]), np.array([1.0]))
    assert math.isinf(noise.ratio)


def test_empty_tensors_agree() -> None:
    assert of([], []).ratio == 0.0


@pytest.mark.parametrize(
    ("ratio", "text", "value"),
    [(None, "-", None), (0.0, "0", 0.0), (1.26e-4, "1.3e-04", 1.26e-4), (math.inf, "inf", "inf")],
)
def test_in_words_and_in_json(ratio: float | None, text: str, value: object) -> None:
    assert told(ratio) == text
    assert json.loads(json.dumps(for_json(ratio), allow_nan=False)) == value

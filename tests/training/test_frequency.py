"""The frequency estimator against the simulation of Yi et al. 2019."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from contract.errors import InputError
from training.frequency import FrequencyEstimator


def run_stream(estimator: FrequencyEstimator, q: np.ndarray, steps: int, batch: int, seed: int = 0) -> None:
    random = np.random.default_rng(seed)
    for _ in range(steps):
        estimator.update(torch.from_numpy(random.choice(len(q), size=batch, p=q)))


def presence(q: np.ndarray, batch: int) -> np.ndarray:
    return 1 - (1 - q) ** batch


def error(estimator: FrequencyEstimator, q: np.ndarray, batch: int) -> float:
    guess = estimator.probability(torch.arange(len(q))).numpy()
    return float(np.abs(guess - presence(q, batch)).mean())


@pytest.mark.parametrize("hashes", [1, 3])
def test_the_estimate_finds_the_sampling_probability(hashes):
    """The setting of the paper's simulation, smaller: it converges, and again after the distribution flips."""
    n, batch = 100, 16
    q = np.arange(1, n + 1) ** 1.0
    q /= q.sum()
    estimator = FrequencyEstimator(1000, hashes=hashes, rate=0.02)
    start = error(estimator, q, batch)
    run_stream(estimator, q, 800, batch)
    settled = error(estimator, q, batch)
    assert settled < 0.6 * start
    flipped = q[::-1].copy()
    before = error(estimator, flipped, batch)
    run_stream(estimator, flipped, 1000, batch, seed=1)
    assert error(estimator, flipped, batch) < 0.6 * before


def test_more_hashes_undo_collisions():
    n, batch = 200, 16
    q = np.full(n, 1 / n)
    errors = []
    for hashes in (1, 4):
        estimator = FrequencyEstimator(150, hashes=hashes, rate=0.02, initial_gap=10)
        run_stream(estimator, q, 600, batch)
        errors.append(error(estimator, q, batch))
    assert errors[1] < errors[0]


def test_one_update_is_algorithm_2():
    estimator = FrequencyEstimator(10, rate=0.1, initial_gap=100)
    estimator.update(torch.tensor([3, 3, 7]))
    estimator.update(torch.tensor([7]))
    gaps = estimator.gap[0]
    assert float(gaps[3]) == pytest.approx(0.9 * 100 + 0.1 * 1)
    assert float(gaps[7]) == pytest.approx(0.9 * (0.9 * 100 + 0.1 * 1) + 0.1 * 1)
    assert float(gaps[0]) == 100
    assert float(estimator.log_q(torch.tensor([0]))) == pytest.approx(-math.log(100))
    assert int(estimator.step) == 2


def test_counts_start_it_where_a_long_stream_would_end():
    counts = torch.tensor([0.0, 10, 30, 60, 400])
    estimator = FrequencyEstimator.from_counts(counts, batch=8)
    expected = presence(np.array([0.5, 10, 30, 60, 400]) / 500, 8)
    np.testing.assert_allclose(estimator.probability(torch.arange(5)).numpy(), expected, rtol=1e-3)
    q = counts.numpy() / counts.sum().item()
    run_stream(estimator, q, 300, 8)
    np.testing.assert_allclose(estimator.probability(torch.arange(1, 5)).numpy(), presence(q, 8)[1:], rtol=0.5)


def test_the_estimators_state_travels():
    one, other = FrequencyEstimator(20), FrequencyEstimator(20, seed=5)
    one.update(torch.tensor([1, 2]))
    other.load_state_dict(one.state_dict())
    for estimator in (one, other):
        estimator.update(torch.tensor([2, 9]))
    assert torch.equal(one.gap, other.gap)


def test_bad_sizes_are_refused():
    for options in (
        {"buckets": 0},
        {"buckets": 5, "hashes": 0},
        {"buckets": 5, "rate": 0},
        {"buckets": 5, "initial_gap": 0},
    ):
        with pytest.raises(InputError, match="estimator"):
            FrequencyEstimator(**options)

"""The frequency estimator against the simulation of Yi et al. 2019."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from contract.errors import InputError
from training.frequency import FrequencyEstimator


def popularity(n: int, power: float = 1.0) -> np.ndarray:
    q = np.arange(1, n + 1) ** power
    return q / q.sum()


def presence(q: np.ndarray, batch: int) -> np.ndarray:
    """Probability that a batch holds an item."""
    return 1 - (1 - q) ** batch


def error(estimator: FrequencyEstimator, q: np.ndarray, batch: int) -> float:
    """The paper's measure: 1 / (2 |B|) of the sum of |p^ - p|."""
    guess = estimator.probability(torch.arange(len(q))).numpy()
    return float(np.abs(guess - presence(q, batch)).sum() / (2 * batch))


def run_stream(
    estimator: FrequencyEstimator, q: np.ndarray, steps: int, batch: int, seed: int = 0, measure_every: int = 0
) -> list[float]:
    """Feed batches drawn from q; returns the error after every so many steps."""
    drawn = np.random.default_rng(seed).random((steps, batch))
    items = torch.from_numpy(np.searchsorted(np.cumsum(q)[:-1], drawn))
    errors = []
    for step in range(steps):
        estimator.update(items[step])
        if measure_every and (step + 1) % measure_every == 0:
            errors.append(error(estimator, q, batch))
    return errors


def test_the_simulation_of_the_paper():
    """1,000 items, batches of 128, H = 5,000, A = 0, B = 100, rate 0.01, distribution flipped at step 10,000."""
    q = popularity(1000, 2.0)
    estimator = FrequencyEstimator(5000, rate=0.01, initial_gap=100)
    assert estimator.last_step.abs().max() == 0
    start = error(estimator, q, 128)
    before = run_stream(estimator, q, 10_000, 128, measure_every=1000)
    flipped = q[::-1].copy()
    jump = error(estimator, flipped, 128)
    after = run_stream(estimator, flipped, 10_000, 128, seed=1, measure_every=1000)
    assert before[-1] < 0.04 < 0.4 < start
    assert before[:5] == sorted(before[:5], reverse=True)
    assert jump > 10 * before[-1]
    assert after[-1] < 0.06
    assert after[:5] == sorted(after[:5], reverse=True)


def test_a_higher_rate_adapts_faster_and_is_noisier():
    q, errors = popularity(1000, 2.0), {}
    for rate in (0.1, 0.02):
        estimator = FrequencyEstimator(1000, rate=rate)
        errors[rate] = run_stream(estimator, q, 2500, 128, measure_every=250)
    assert errors[0.1][0] < 0.5 * errors[0.02][0]
    assert errors[0.1][-1] > 1.3 * errors[0.02][-1]


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.5])
def test_the_bias_after_n_appearances_is_what_the_start_leaves(rate):
    """E[B] - d = (1 - rate)^n (B0 - d) with d the true gap: 4,000 items that appear independently, each at its n-th."""
    items, p, n, start = 4000, 0.3, 4, 20.0
    random = np.random.default_rng(0)
    estimator = FrequencyEstimator(items, rate=rate, initial_gap=start)
    times, found = np.zeros(items, int), np.full(items, np.nan)
    while np.isnan(found).any():
        present = np.flatnonzero(random.random(items) < p)
        estimator.update(torch.from_numpy(present))
        times[present] += 1
        reached = present[times[present] == n]
        found[reached] = estimator.gap[0, torch.from_numpy(reached)].numpy()
    expected = 1 / p + (1 - rate) ** n * (start - 1 / p)
    assert found.mean() == pytest.approx(expected, abs=4 * found.std() / items**0.5)


@pytest.mark.parametrize("hashes", [1, 3])
def test_the_estimate_finds_the_sampling_probability(hashes):
    n, batch = 100, 16
    q = popularity(n)
    estimator = FrequencyEstimator(1000, hashes=hashes, rate=0.02)
    start = error(estimator, q, batch)
    run_stream(estimator, q, 800, batch)
    assert error(estimator, q, batch) < 0.6 * start


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


def test_a_start_from_counts_has_no_bias():
    """Each item's first appearance leaves its gap, on average, where the counts put it."""
    items, batch = 300, 8
    estimator = FrequencyEstimator.from_counts(torch.ones(items), batch, rate=0.5)
    before = float(estimator.gap.mean())
    random, seen, found = np.random.default_rng(0), np.zeros(items, bool), np.zeros(items)
    while not seen.all():
        present = np.flatnonzero(random.random(items) < 1 / before)
        estimator.update(torch.from_numpy(present))
        new = present[~seen[present]]
        found[new] = estimator.gap[0, torch.from_numpy(new)].numpy()
        seen[present] = True
    assert found.mean() == pytest.approx(before, abs=4 * found.std() / items**0.5)


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

"""Intervals against a bootstrap written out, and what they must not depend on."""

from __future__ import annotations

import math

import numpy as np
import pytest

import contract.stats as stats
from contract.stats import Interval, cluster_bootstrap, cluster_bootstrap_mean


def written_out(values, clusters, seed, draws):
    """Draw users one by one, gather all of their values, take the mean."""
    random = np.random.default_rng(seed)
    users = np.unique(clusters)
    means = []
    for _ in range(draws):
        drawn = users[random.integers(0, len(users), len(users))]
        means.append(np.concatenate([values[clusters == user] for user in drawn]).mean(axis=0))
    return np.percentile(means, [2.5, 97.5], axis=0)


@pytest.fixture
def data():
    random = np.random.default_rng(5)
    clusters = np.array(["a", "b", "c", "d", "e", "f"])[random.integers(0, 6, 50)]
    return random.normal(size=(50, 3)), clusters


def test_it_is_the_bootstrap_by_definition(data):
    values, clusters = data
    found = cluster_bootstrap(values, clusters, seed=3, draws=200)
    low, high = written_out(values, clusters, 3, 200)
    np.testing.assert_allclose([one.mean for one in found], values.mean(axis=0))
    np.testing.assert_allclose([one.low for one in found], low)
    np.testing.assert_allclose([one.high for one in found], high)


def test_drawing_in_parts_changes_nothing(data, monkeypatch):
    whole = cluster_bootstrap(*data, draws=100)
    monkeypatch.setattr(stats, "_COUNTS_AT_ONCE", 13)
    parts = cluster_bootstrap(*data, draws=100)
    for one, other in zip(whole, parts, strict=True):
        assert (one.low, one.high) == pytest.approx((other.low, other.high))


def test_one_figure_is_a_column_of_many(data):
    values, clusters = data
    alone = cluster_bootstrap_mean(values[:, 1], clusters, seed=2, draws=64)
    assert alone.to_json() == pytest.approx(cluster_bootstrap(values, clusters, seed=2, draws=64)[1].to_json())


def test_seeds_repeat_and_differ(data):
    first, again, other = (cluster_bootstrap(*data, seed=seed, draws=50)[0] for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_it_covers_what_it_says():
    """The true mean of users with many alike values lies within in about 95 of 100 samples."""
    random = np.random.default_rng(0)
    inside = 0
    for trial in range(200):
        user = np.repeat(np.arange(60), 5)
        values = random.normal(size=60)[user] + 0.1 * random.normal(size=300)
        one = cluster_bootstrap_mean(values, user, seed=trial, draws=300)
        inside += one.low <= 0.0 <= one.high
    assert 0.89 <= inside / 200 <= 0.99


def test_no_draws_no_bounds_and_no_values_no_mean(data):
    values, clusters = data
    (first, *_) = cluster_bootstrap(values, clusters, draws=0)
    assert first.mean == pytest.approx(values[:, 0].mean())
    assert math.isnan(first.low)
    assert not first.excludes_zero
    assert all(math.isnan(one.mean) for one in cluster_bootstrap(np.zeros((0, 2)), np.zeros(0)))


@pytest.mark.parametrize(("low", "high", "claim"), [(0.1, 0.5, True), (-0.5, -0.1, True), (-0.1, 0.1, False)])
def test_an_interval_says_whether_it_holds_zero(low, high, claim):
    assert Interval(0.0, low, high).excludes_zero is claim
    assert str(Interval(1.0, low, high)).startswith("+1.000 [")

"""Intervals that cover what they should, and percentiles of known samples."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.stats import Interval, bootstrap_mean, cluster_bootstrap_mean, machine, percentiles, t_interval


def test_bootstrap_covers_the_mean_and_shrinks_with_data() -> None:
    rng = np.random.default_rng(0)
    small, large = (bootstrap_mean(rng.normal(2.0, 1.0, n)) for n in (30, 3000))
    for interval in (small, large):
        assert interval.low < 2.0 < interval.high
    assert large.high - large.low < (small.high - small.low) / 5


def test_clusters_that_agree_widen_the_interval() -> None:
    """Ten sessions of a user that are all alike count as one, not as ten."""
    rng = np.random.default_rng(1)
    per_user = rng.normal(0.0, 1.0, 40)
    values, users = np.repeat(per_user, 10), np.repeat(np.arange(40), 10)
    naive, honest = bootstrap_mean(values), cluster_bootstrap_mean(values, users)
    assert honest.mean == pytest.approx(naive.mean)
    assert (honest.high - honest.low) > 2 * (naive.high - naive.low)


def test_singleton_clusters_are_the_plain_bootstrap() -> None:
    values = np.random.default_rng(2).normal(size=200)
    plain, single = bootstrap_mean(values), cluster_bootstrap_mean(values, np.arange(200))
    assert single.low == pytest.approx(plain.low, abs=0.05)
    assert single.high == pytest.approx(plain.high, abs=0.05)


def test_an_empty_sample_has_no_mean() -> None:
    assert math.isnan(bootstrap_mean([]).mean)
    assert percentiles([]) == {"count": 0}


@pytest.mark.parametrize(("low", "high", "claim"), [(0.1, 0.5, True), (-0.5, -0.1, True), (-0.1, 0.1, False)])
def test_a_claim_needs_an_interval_without_zero(low: float, high: float, claim: bool) -> None:
    assert Interval(0.0, low, high).excludes_zero is claim


def test_percentiles() -> None:
    found = percentiles(np.arange(1, 102))
    assert (found["p50"], found["p99"], found["max"], found["count"]) == (51, 100, 101, 101)


def test_machine_names_what_figures_depend_on() -> None:
    found = machine()
    assert found["cores"] >= 1
    assert found["packages"]["numpy"] == np.__version__


def test_students_interval_covers_what_it_says_for_few_units() -> None:
    rng = np.random.default_rng(3)
    found = [t_interval(rng.normal(1.0, 2.0, 5)) for _ in range(2000)]
    assert np.mean([one.low <= 1.0 <= one.high for one in found]) == pytest.approx(0.95, abs=0.02)
    assert math.isnan(t_interval([1.0, 2.0]).low)

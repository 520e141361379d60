"""Distances and rankings against slow, obvious ones."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convert.measure import SNR_MAX, OutcomeGap, Ranking, distance, kendall_tau, outcome_gap, ranking

values = st.lists(st.integers(-5, 5).map(float), min_size=2, max_size=9).map(lambda v: np.array(v, np.float32))


def slow_tau(want: np.ndarray, got: np.ndarray) -> float:
    pairs = [(i, j) for i, j in itertools.combinations(range(len(want)), 2) if want[i] != want[j]]
    if not pairs:
        return 1.0
    return float(np.mean([np.sign(want[i] - want[j]) * np.sign(got[i] - got[j]) for i, j in pairs]))


class TestDistance:
    def test_nothing_is_apart_from_itself(self) -> None:
        x = np.arange(6, dtype=np.float32).reshape(2, 3)
        found = distance([x], [x])
        assert (found.max_abs, found.mean_abs) == (0.0, 0.0)
        assert found.cosine == pytest.approx(1.0)

    def test_it_pools_all_outputs(self) -> None:
        a, b = np.zeros(3, np.float32), np.zeros((1, 1), np.float32)
        found = distance([a, b], [a, b + 4.0])
        assert found.max_abs == 4.0
        assert found.mean_abs == 1.0

    def test_the_cosine_sees_direction_only(self) -> None:
        x = np.array([3.0, 4.0], np.float32)
        assert distance([x], [2 * x]).cosine == pytest.approx(1.0)
        assert distance([x], [-x]).cosine == pytest.approx(-1.0)

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_what_is_not_finite_agrees_with_nothing(self, bad: float) -> None:
        x = np.array([1.0, bad], np.float32)
        assert distance([x], [x]).max_abs == float("inf")

    def test_another_shape_agrees_with_nothing(self) -> None:
        assert distance([np.zeros(3)], [np.zeros(4)]).max_abs == float("inf")

    def test_zero_vectors_are_alike(self) -> None:
        assert distance([np.zeros(3)], [np.zeros(3)]).cosine == 1.0


class TestRanking:
    @given(values, st.integers(0, 2**32 - 1))
    def test_tau_is_the_slow_tau(self, want: np.ndarray, seed: int) -> None:
        got = np.random.default_rng(seed).permutation(want)
        assert kendall_tau(want, got) == pytest.approx(slow_tau(want, got))

    @given(values)
    def test_the_same_and_the_reverse(self, want: np.ndarray) -> None:
        assert kendall_tau(want, want) == 1.0
        if len(np.unique(want)) > 1:
            assert kendall_tau(want, -want) == -1.0

    def test_means_over_slates(self) -> None:
        a = np.arange(8, dtype=np.float32)
        found = ranking([a, a], [a, -a])
        assert found.tau == 0.0
        assert found.top1 == 0.5
        assert found.top6 == pytest.approx((1.0 + 4 / 6) / 2)

    def test_ties_go_to_the_earlier_candidate_on_both_sides(self) -> None:
        tied = np.array([1.0, 1.0, 0.0], np.float32)
        assert ranking([tied], [tied]).top1 == 1.0
        assert ranking([tied], [np.array([1.0, 2.0, 0.0], np.float32)]).top1 == 0.0

    def test_short_slates_have_a_short_top(self) -> None:
        a = np.array([2.0, 1.0], np.float32)
        assert ranking([a], [-a]) == Ranking(-1.0, 0.0, 1.0)

    def test_nan_ranks_last_of_all(self) -> None:
        assert ranking([np.arange(3.0)], [np.array([0.0, np.nan, 1.0])]) == Ranking(-1.0, 0.0, 0.0)


class TestSignalToNoise:
    def test_a_tenth_of_the_amplitude_is_twenty_decibels(self) -> None:
        x = np.array([3.0, -4.0, 5.0], np.float32)
        assert distance([x], [1.1 * x]).snr_db == pytest.approx(20.0, abs=1e-4)

    def test_its_ends(self) -> None:
        x, zero = np.ones(3, np.float32), np.zeros(3, np.float32)
        assert distance([x], [x]).snr_db == SNR_MAX
        assert distance([zero], [x]).snr_db == -SNR_MAX
        assert distance([x], [x * np.float32(np.nan)]).snr_db == -SNR_MAX


class TestOutcomes:
    def slates(self, n: int = 40) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Labels that float's values order rightly; two of six candidates unknown."""
        rng = np.random.default_rng(0)
        values = [rng.normal(size=6).astype(np.float32) for _ in range(n)]
        labels = [(value > np.median(value)).astype(np.float32) for value in values]
        for label in labels:
            label[:2] = np.nan
        return labels, values

    def test_a_variant_that_turns_the_order_round_loses_all_of_gauc(self) -> None:
        labels, values = self.slates()
        found = outcome_gap(labels, values, [-value for value in values])
        assert found is not None
        assert found.gauc.mean == pytest.approx(-1.0)
        assert found.gauc.excludes_zero
        assert found.ndcg5.mean < 0

    def test_an_equal_one_loses_nothing(self) -> None:
        labels, values = self.slates()
        found = outcome_gap(labels, values, [value.copy() for value in values])
        assert found is not None
        assert (found.gauc.mean, found.gauc.low, found.gauc.high) == (0.0, 0.0, 0.0)

    def test_unknown_outcomes_count_for_nothing(self) -> None:
        labels, values = self.slates()
        other = [value.copy() for value in values]
        for value in other:
            value[:2] *= -50.0
        found = outcome_gap(labels, values, other)
        assert found is not None
        assert found.gauc.mean == 0.0

    def test_slates_of_one_class_say_nothing(self) -> None:
        one = [np.ones(3, np.float32), np.full(3, np.nan, np.float32)]
        assert outcome_gap(one, one, one) is None
        labels, values = self.slates(3)
        assert outcome_gap(labels, values, [value * np.float32(np.nan) for value in values]) is None

    def test_it_comes_back_from_json(self) -> None:
        labels, values = self.slates()
        found = outcome_gap(labels, values, values[::-1])
        assert found is not None
        assert OutcomeGap.from_json(json.loads(json.dumps(asdict(found)))) == found
        assert OutcomeGap.from_json(None) is None
        assert f"over {found.slates} slates" in str(found)


def test_what_ranks_nothing_differs_in_nothing() -> None:
    nothing = [np.zeros(0, np.float32)] * 3
    assert ranking(nothing, nothing) == Ranking(1.0, 1.0, 1.0)

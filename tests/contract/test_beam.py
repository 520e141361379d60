"""Adaptive beam search: the paper's worked example, brute force on small pools, and every way to end."""

from __future__ import annotations

from dataclasses import asdict
from itertools import permutations
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.beam import BeamPlan, ListReward, beam_search, list_reward, stability_of
from contract.errors import InputError
from contract.golden import fused_values
from contract.vocabulary import TASKS

A, B, C, D = range(4)
# Figure 4 of the paper: contributions of a video after what is placed.
FIGURE = {
    (): [0.7, 0.4, 0.8, 0.5],
    (A,): [0, 0.3, 0.5, 0.6],
    (C,): [0.4, 0.6, 0, 0.3],
    (A, D): [0, 0.45, 0.3, 0],
    (C, B): [0.4, 0, 0, 0.2],
}


def figure(lists):
    return np.array([FIGURE[items] for items in lists]), np.ones((len(lists), 4))


class Pool:
    """Random values that depend on the set placed before, and survivals that depend on the last one placed."""

    def __init__(self, seed: int, m: int):
        self.m, self.rng = m, np.random.default_rng(seed)
        self.base, self.pair = self.rng.random(m), self.rng.random((m, m)) * 0.5
        self.stay = self.rng.uniform(0.3, 1.0, m)

    def at(self, items: tuple[int, ...], candidate: int) -> tuple[float, float]:
        return self.base[candidate] - sum(self.pair[i, candidate] for i in items) / (1 + len(items)), self.stay[
            candidate
        ]

    def __call__(self, lists):
        both = np.array([[self.at(items, c) for c in range(self.m)] for items in lists])
        return both[..., 0], both[..., 1]

    def reward(self, items: tuple[int, ...]) -> float:
        parts = [self.at(items[:place], item) for place, item in enumerate(items)]
        return list_reward([r for r, _ in parts], [h for _, h in parts])


def test_the_papers_example():
    found = beam_search(figure, 4, BeamPlan(beams=2, depth=4, stability=0.95))
    assert found.items == (C, B, A)
    assert found.reward == pytest.approx(1.8)
    assert found.stability == pytest.approx(1.75 / 1.8)
    assert (found.steps, found.ended) == (3, "stable")
    for depth, stability in ((1, 0.875), (2, 1.3 / 1.4)):
        short = beam_search(figure, 4, BeamPlan(beams=2, depth=depth, stability=0.95))
        assert short.stability == pytest.approx(stability)
        assert (short.items, short.ended) == ((C, B, A)[:depth], "depth")


def test_list_reward_discounts_by_survival():
    assert list_reward([1.0, 2.0, 4.0], [0.5, 0.1, 0.9]) == pytest.approx(1 + 0.5 * 2 + 0.05 * 4)
    assert list_reward([], []) == 0.0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 5))
def test_a_beam_that_keeps_everything_is_brute_force(seed, m, depth):
    pool, places = Pool(seed, m), min(m, depth)
    best = max(permutations(range(m), places), key=pool.reward)
    found = beam_search(pool, m, BeamPlan(beams=200, depth=depth, stability=1.0))
    assert found.reward == pytest.approx(pool.reward(best))
    assert found.reward == pytest.approx(pool.reward(found.items))
    assert len(found.items) == len(set(found.items)) == places


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 6), st.integers(1, 4))
def test_every_kept_list_is_told_by_its_reward(seed, m, beams):
    pool = Pool(seed, m)
    found = beam_search(pool, m, BeamPlan(beams=beams, depth=3, stability=1.0))
    assert found.reward == pytest.approx(pool.reward(found.items))


def test_one_beam_is_greedy():
    found = beam_search(figure, 4, BeamPlan(beams=1, depth=4))
    assert (found.items, found.ended, found.stability) == ((C,), "stable", 1.0)
    two = beam_search(figure, 4, BeamPlan(beams=1, depth=4, shown=2))
    assert two.items == (C, B)


def test_looking_ahead_can_beat_greedy():
    """Showing 0 first is worth more by itself, and then nobody watches on."""

    def expand(lists):
        value = np.array([[1.0, 0.9, 0.8]] * len(lists))
        return value, np.array([[0.0, 1.0, 1.0]] * len(lists))

    assert beam_search(expand, 3, BeamPlan(beams=1)).items == (0,)
    assert beam_search(expand, 3, BeamPlan(beams=3, depth=3, stability=1.0)).items[0] != 0


def test_fewer_candidates_than_beams_or_places():
    found = beam_search(Pool(0, 2), 2, BeamPlan(beams=5, depth=9, stability=1.0))
    assert (len(found.items), found.ended) == (2, "exhausted")
    assert beam_search(Pool(0, 1), 1, BeamPlan()).items == (0,)


def test_ties_go_to_the_servers_order():
    def flat(lists):
        return np.ones((len(lists), 5)), np.ones((len(lists), 5))

    found = beam_search(flat, 5, BeamPlan(beams=3))
    assert (found.items, found.stability, found.ended) == ((0,), 1.0, "stable")


def test_zero_and_negative_rewards():
    assert stability_of(np.zeros(3)) == 1.0
    assert stability_of(np.array([0.0, 2.0])) == 0.0
    assert stability_of(np.array([-1.0, 2.0])) == 0.0
    assert stability_of(np.array([-2.0, -2.0])) == 1.0

    def losses(lists):
        return -np.ones((len(lists), 3)) * [3, 1, 2], np.ones((len(lists), 3))

    assert beam_search(losses, 3, BeamPlan(beams=2, depth=2)).items[0] == 1


def test_only_allowed_candidates_stand_first():
    allowed = np.array([False, True, False, True])
    assert beam_search(figure_of_any, 4, BeamPlan(beams=2, depth=2), allowed=allowed).items[0] == 3
    with pytest.raises(InputError, match="no candidate"):
        beam_search(figure_of_any, 4, BeamPlan(), allowed=np.zeros(4, bool))
    with pytest.raises(InputError, match="no candidate"):
        beam_search(figure_of_any, 0, BeamPlan())


def figure_of_any(lists):
    return np.array([FIGURE[()]] * len(lists)), np.ones((len(lists), 4))


def test_a_time_budget_gives_the_best_so_far():
    asked = []

    def late() -> bool:
        asked.append(1)
        return len(asked) > 1

    found = beam_search(figure, 4, BeamPlan(beams=2, depth=4, stability=1.0), out_of_time=late)
    assert (found.items, found.ended, found.steps) == ((C, B), "time", 2)


def test_values_that_are_no_numbers():
    def broken(lists):
        return np.full((len(lists), 3), np.nan), np.ones((len(lists), 3))

    with pytest.raises(InputError, match="not finite"):
        beam_search(broken, 3, BeamPlan())


@pytest.mark.parametrize("wrong", [{"beams": 0}, {"depth": 0}, {"shown": 3, "depth": 2}, {"stability": 1.5}])
def test_plans_out_of_range(wrong):
    with pytest.raises(InputError):
        BeamPlan(**wrong)


class TestListRewardOfAModel:
    DATA: ClassVar = {"value": {"effective_view": 1.0, "like": 2.0}, "survival": "has_next"}

    def test_json_and_back(self):
        reward = ListReward.from_json(self.DATA, TASKS)
        assert reward == ListReward({"effective_view": 1.0, "like": 2.0})
        assert ListReward.from_json(asdict(reward), TASKS) == reward

    def test_places_are_alpha_p_view_plus_beta_p_like_and_p_next(self):
        scores_kmT = np.random.default_rng(3).normal(0, 2, (2, 5, len(TASKS))).astype(np.float32)
        value_km, survive_km = ListReward.from_json(self.DATA, TASKS).places(scores_kmT, TASKS)
        for k in range(2):
            for m in range(5):
                p = {task: 1 / (1 + np.exp(-float(scores_kmT[k, m, i]))) for i, task in enumerate(TASKS)}
                assert value_km[k, m] == pytest.approx(p["effective_view"] + 2 * p["like"], rel=1e-5)
                assert survive_km[k, m] == pytest.approx(p["has_next"], rel=1e-5)

    def test_one_place_has_the_fused_value_of_the_same_weights(self):
        """Ties fall alike in NextOne and in a search's first step."""
        scores_mT = np.random.default_rng(4).normal(0, 2, (9, len(TASKS))).astype(np.float32)
        weights_T = np.array([self.DATA["value"].get(task, 0.0) for task in TASKS], np.float32)
        value_km, _ = ListReward.from_json(self.DATA, TASKS).places(scores_mT[None], TASKS)
        np.testing.assert_array_equal(value_km[0], fused_values(scores_mT, weights_T))

    @pytest.mark.parametrize(
        "wrong",
        [
            None, [], {}, {"value": {"like": 1.0}}, {"value": [], "survival": "has_next"},
            {"value": {}, "survival": "has_next"}, {"value": {"joy": 1.0}, "survival": "has_next"},
            {"value": {"like": float("nan")}, "survival": "has_next"}, {"value": {"like": "1"}, "survival": "has_next"},
            {"value": {"like": float("inf")}, "survival": "has_next"}, {"value": {"like": True}, "survival": "like"},
            {"value": {"like": 1.0}, "survival": "joy"}, {"value": {"like": 1.0}, "survival": None},
            {"value": {"like": 1.0}, "survival": "like", "discount": 0.9},
        ],
    )  # fmt: skip
    def test_one_clear_error_for_what_does_not_hold_together(self, wrong):
        with pytest.raises(InputError, match="list_reward is") as raised:
            ListReward.from_json(wrong, TASKS)
        assert raised.value.allowed == TASKS

"""Item-CF: its similarities against loops over users, its scores against sums by hand, its settings."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.baselines import BASELINES
from benchmarks.baselines.item_cf import ItemCF, make_item_cf, similarities, user_items
from benchmarks.baselines.recipe import Recipe
from contract.errors import InputError
from tests.benchmarks.baseline_toys import groups, sequences
from training.retrieval_eval import Popularity, evaluate

# Item 6 is in no training history; user 2 likes item 3 twice.
HISTORIES = [[0, 1, 2], [1, 2, 5], [3, 3, 4], [0, 1, 5], [2, 4]]
VAL = [5, 0, 1, 2, 6]


@pytest.fixture
def split():
    return sequences(HISTORIES, VAL)


def likers(item):
    return {user for user, items in enumerate(HISTORIES) if item in items}


def cosine(i, j):
    both = likers(i) & likers(j)
    return len(both) / math.sqrt(len(likers(i)) * len(likers(j))) if both else 0.0


def tfidf(i, j):
    """Cosine where user u weighs log N - log(1 + |u|)."""
    weight = {user: math.log(7) - math.log1p(len(set(items))) for user, items in enumerate(HISTORIES)}
    norm = [math.sqrt(sum(weight[u] ** 2 for u in likers(k))) for k in (i, j)]
    return sum(weight[u] ** 2 for u in likers(i) & likers(j)) / (norm[0] * norm[1]) if all(norm) else 0.0


def bm25(i, j, k1=1.2, b=0.75):
    sizes = [len(likers(k)) for k in range(7)]
    idf = {user: math.log(7) - math.log1p(len(set(items))) for user, items in enumerate(HISTORIES)}

    def weight(user, item):
        length = (1 - b) + b * sizes[item] / np.mean(sizes)
        return (k1 + 1) / (k1 * length + 1) * idf[user]

    return sum(weight(u, i) * weight(u, j) for u in likers(i) & likers(j))


@pytest.mark.parametrize("slow", [cosine, tfidf, bm25])
def test_similarities_are_those_of_the_formulas(split, slow):
    found = similarities(user_items(split), slow.__name__, 7).toarray()
    expected = [[0.0 if i == j else slow(i, j) for j in range(7)] for i in range(7)]
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert np.count_nonzero(found), "some pair shares a user"


def test_only_the_nearest_neighbours_are_kept(split):
    liked = user_items(split)
    assert liked.toarray().max() == 1, "liked twice is liked"
    whole, two = similarities(liked, "cosine", 7).toarray(), similarities(liked, "cosine", 2).toarray()
    for item in range(7):
        kept = sorted(two[item][two[item] > 0], reverse=True)
        nearest = sorted(whole[item][whole[item] > 0], reverse=True)[:2]
        assert kept == nearest


def test_scores_add_up_the_history_newer_items_counting_more(split):
    model = ItemCF(split, neighbours=7, half_life=2.0, length=2)
    users = np.array([0, 2])
    ends = split.train_end[users]
    scores = model.scores(split, users, ends)
    for row, history in enumerate(([1, 2], [3, 4])):
        for item in range(7):
            parts = [0.5 ** (age / 2) * (cosine(k, item) if k != item else 0.0) for age, k in enumerate(history[::-1])]
            if sum(parts) > 0:
                assert scores[row, item] == pytest.approx(sum(parts), rel=1e-6)


def test_items_that_are_no_neighbours_follow_by_popularity(split):
    model = ItemCF(split, neighbours=7)
    scores = model.scores(split, np.array([2, -1]), np.array([split.train_end[2], 0]))
    neighbours = [item for item in range(7) if item not in (3, 4) and (cosine(3, item) or cosine(4, item))]
    others = [item for item in range(7) if item not in neighbours and item not in (3, 4)]
    assert neighbours == [2]
    assert scores[0, others].max() < scores[0, neighbours].min()
    order = split.counts()
    for row, items in ((0, others), (1, range(7))):
        ranked = sorted(items, key=lambda item: -scores[row, item])
        assert [order[item] for item in ranked] == sorted((order[item] for item in items), reverse=True)


def test_a_batch_is_its_rows(split):
    model = ItemCF(split, neighbours=3, half_life=1.0)
    users = np.arange(5)
    whole = model.scores(split, users, split.train_end)
    order = np.array([4, 2, 0, 1, 3])
    np.testing.assert_array_equal(model.scores(split, order, split.train_end[order]), whole[order])
    np.testing.assert_array_equal(model.scores(split, users[1:2], split.train_end[1:2]), whole[1:2])


def test_it_finds_the_group_and_popularity_does_not():
    split = groups()
    found = evaluate(split, "val", BASELINES["item-cf"](split), quick=True).values
    floor = evaluate(split, "val", BASELINES["popularity"](split), quick=True).values
    assert found["mrr"] > 0.9, "one item of the group is left"
    assert floor["mrr"] < 0.4
    assert isinstance(BASELINES["popularity"](split), Popularity)


def test_settings_are_checked(split):
    with pytest.raises(InputError, match="unknown similarity"):
        ItemCF(split, similarity="swing")
    with pytest.raises(InputError, match="sizes start at 1"):
        ItemCF(split, half_life=0)
    with pytest.raises(InputError, match="not settings of item-cf"):
        make_item_cf(split, Recipe("item-cf", {"width": 3}))

"""Candidate sets: what stands in them, with which probability, and who owns what."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from contract.errors import InputError
from training.candidates import OwnedItems, in_batch_candidates, shared_negatives


def test_a_batch_offers_its_unique_items():
    item_T = torch.tensor([7, 3, 7, 11, 3])
    rows_C, target_T = in_batch_candidates(item_T)
    assert rows_C.tolist() == [3, 7, 11]
    assert torch.equal(rows_C[target_T], item_T)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_shared_set_holds_positives_and_negatives_once(weighted):
    item_T = torch.tensor([7, 3, 7, 11, 3])
    q_N = torch.arange(50).float() if weighted else None
    generator = torch.Generator().manual_seed(0)
    rows_C, target_T, log_q_C = shared_negatives(item_T, 20, 50, probability_N=q_N, generator=generator)
    assert torch.equal(rows_C[target_T], item_T)
    assert len(rows_C) == len(set(rows_C.tolist())) == len(log_q_C)
    assert len(rows_C) > 5
    assert set(rows_C[log_q_C == 0].tolist()) == {3, 7, 11}
    assert 0 not in rows_C or not weighted  # weight 0 is never drawn


@pytest.mark.parametrize("weighted", [False, True])
def test_log_q_is_how_often_the_set_holds_an_item(weighted):
    n_items, n, repeats = 12, 5, 4000
    item_T = torch.tensor([2, 2, 9])
    q_N = torch.arange(1, n_items + 1).float() if weighted else None
    generator = torch.Generator().manual_seed(0)
    held, said = torch.zeros(n_items), torch.zeros(n_items)
    for _ in range(repeats):
        rows_C, _, log_q_C = shared_negatives(item_T, n, n_items, probability_N=q_N, generator=generator)
        held[rows_C] += 1
        said[rows_C] = log_q_C.exp()
    np.testing.assert_allclose(held / repeats, said, atol=4 * 0.5 / repeats**0.5)
    assert said[2] == said[9] == 1
    if weighted:
        assert float(said[0]) == pytest.approx(1 - (1 - 1 / 78) ** n, rel=1e-5)


def test_the_corrected_sum_over_the_set_estimates_the_sum_over_the_catalogue():
    n_items, repeats = 40, 3000
    generator = torch.Generator().manual_seed(0)
    scores_N = torch.randn(n_items, generator=generator)
    q_N = torch.rand(n_items, generator=generator) + 0.05
    sums = []
    for _ in range(repeats):
        rows_C, _, log_q_C = shared_negatives(torch.tensor([4]), 8, n_items, probability_N=q_N, generator=generator)
        sums.append(float((scores_N[rows_C] - log_q_C).exp().sum()))
    error = np.std(sums) / repeats**0.5
    assert float(scores_N.exp().sum()) == pytest.approx(np.mean(sums), abs=4 * error)
    assert error < 0.02 * np.mean(sums)


@pytest.mark.parametrize("n", [0, 11])
def test_impossible_numbers_of_negatives_are_refused(n):
    with pytest.raises(InputError, match="negatives"):
        shared_negatives(torch.tensor([1]), n, 10)


def test_one_probability_per_item_is_needed():
    with pytest.raises(InputError, match="probability"):
        shared_negatives(torch.tensor([1]), 3, 10, probability_N=torch.ones(9))


def matrix(owned, rows: int, columns: int) -> np.ndarray:
    """bool [rows, columns] of an Owned, read in two parts."""
    out = np.zeros((rows, columns), bool)
    for first, last in ((0, rows // 2), (rows // 2, rows)):
        row, column = owned.pairs(first, last)
        out[(row + first).numpy(), column.numpy()] = True
    return out


def test_owned_pairs_are_those_of_the_rows_owner():
    generator = torch.Generator().manual_seed(0)
    liked_UN = torch.rand(5, 30, generator=generator) < 0.3
    liked_UN[3] = False
    pairs = liked_UN.nonzero()[torch.randperm(int(liked_UN.sum()), generator=generator)]
    items = OwnedItems.from_pairs(pairs[:, 0], pairs[:, 1], 5)
    owner_T = torch.tensor([4, 0, 3, 0, 1, 1, 4])
    np.testing.assert_array_equal(matrix(items.of(owner_T), 7, 30), liked_UN[owner_T].numpy())
    rows_C = torch.tensor([2, 3, 5, 17, 29])
    np.testing.assert_array_equal(matrix(items.of(owner_T, rows_C, 30), 7, 5), liked_UN[owner_T][:, rows_C].numpy())


def test_owners_without_pairs_own_nothing():
    nothing = torch.zeros(0, dtype=torch.int64)
    items = OwnedItems.from_pairs(nothing, nothing, 3)
    assert matrix(items.of(torch.tensor([0, 2])), 2, 4).sum() == 0
    assert matrix(items.of(torch.tensor([0, 2]), torch.tensor([1, 5]), 9), 2, 2).sum() == 0

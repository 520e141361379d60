"""Table optimisers against loops over rows; sparse and dense gradients give the same rows where they should."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from contract.errors import InputError
from training.table_optimizers import (
    ADAM_BETAS,
    ROWWISE_EPS,
    TABLE_OPTIMIZERS,
    RowwiseAdagrad,
    decay_rows,
    make_optimizers,
)

R, W, STEPS, RATE = 9, 4, 6, 0.1
START = torch.randn(R, W, generator=torch.Generator().manual_seed(1))


def draws() -> list[tuple[Tensor, Tensor]]:
    """Rows read at each step (with repeats, never row 8) and the gradient that each reading gets."""
    generator = torch.Generator().manual_seed(2)
    return [
        (torch.randint(0, R - 1, (5,), generator=generator), torch.randn(5, W, generator=generator))
        for _ in range(STEPS)
    ]


def trained(kind: str, *, sparse: bool) -> NDArray[np.float32]:
    weight = nn.Parameter(START.clone())
    (optimizer,) = make_optimizers([] if sparse else [weight], [weight] if sparse else [], RATE, kind)
    for rows, gradient in draws():
        found = torch.sparse_coo_tensor(rows[None], gradient, (R, W))
        weight.grad = found if sparse else found.to_dense()
        optimizer.step()
    return weight.detach().numpy()


def summed(rows: Tensor, gradient: Tensor) -> dict[int, NDArray[np.float64]]:
    found: dict[int, NDArray[np.float64]] = {}
    for row, values in zip(rows.tolist(), gradient.double().numpy(), strict=True):
        found[row] = found.get(row, 0.0) + values
    return found


def slow(kind: str) -> NDArray[np.float64]:
    """One row at a time, in float64; a row without a gradient rests."""
    weight = START.double().numpy().copy()
    first, second = np.zeros((R, W)), np.zeros((R, W))
    for step, (rows, gradient) in enumerate(draws(), start=1):
        for row, g in summed(rows, gradient).items():
            if kind == "adam":
                first[row] = ADAM_BETAS[0] * first[row] + (1 - ADAM_BETAS[0]) * g
                second[row] = ADAM_BETAS[1] * second[row] + (1 - ADAM_BETAS[1]) * g**2
                rate = RATE * math.sqrt(1 - ADAM_BETAS[1] ** step) / (1 - ADAM_BETAS[0] ** step)
                weight[row] -= rate * first[row] / (np.sqrt(second[row]) + 1e-8)
            elif kind == "adagrad":
                second[row] += g**2
                weight[row] -= RATE * g / (np.sqrt(second[row]) + 1e-10)
            else:
                second[row] += (g**2).mean()
                weight[row] -= RATE * g / (np.sqrt(second[row]) + ROWWISE_EPS)
    return weight


@pytest.mark.parametrize("kind", TABLE_OPTIMIZERS)
def test_sparse_gradients_give_what_a_loop_over_rows_gives(kind):
    np.testing.assert_allclose(trained(kind, sparse=True), slow(kind), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("kind", ["adagrad", "rowwise_adagrad"])
def test_dense_gradients_give_the_same_rows(kind):
    np.testing.assert_allclose(trained(kind, sparse=False), slow(kind), rtol=2e-5, atol=2e-6)


def test_dense_adam_moves_rows_that_rest_under_the_sparse_one():
    """So the two differ, as the docstring says; where every row has a gradient at each step they agree."""
    assert np.abs(trained("adam", sparse=False) - trained("adam", sparse=True)).max() > 1e-3
    weights = [nn.Parameter(START.clone()) for _ in range(2)]
    (dense,) = make_optimizers(weights[:1], [], RATE, "adam")
    (sparse,) = make_optimizers([], weights[1:], RATE, "adam")
    generator = torch.Generator().manual_seed(3)
    for _ in range(STEPS):
        weights[0].grad = torch.randn(R, W, generator=generator)
        weights[1].grad = weights[0].grad.to_sparse(1)
        dense.step()
        sparse.step()
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-5, atol=1e-6)


def test_a_row_without_gradient_stays():
    for kind in TABLE_OPTIMIZERS:
        assert np.array_equal(trained(kind, sparse=True)[8], START[8].numpy())


def test_row_wise_keeps_one_number_a_row():
    weight = nn.Parameter(START.clone())
    optimizer = RowwiseAdagrad([weight], RATE)
    assert optimizer.state[weight]["sum"].shape == (R,)
    optimizer.step()  # without a gradient nothing happens
    assert torch.equal(weight, START)
    with pytest.raises(InputError, match="closure"):
        optimizer.step(lambda: 0.0)


def test_small_and_large_tables_have_an_optimizer_each():
    small, large = nn.Parameter(START.clone()), nn.Parameter(START.clone())
    for kind in TABLE_OPTIMIZERS:
        assert [group.param_groups[0]["params"] for group in make_optimizers([small], [large], RATE, kind)] == [
            [small],
            [large],
        ]
        assert make_optimizers([], [], RATE, kind) == []
    with pytest.raises(InputError, match="unknown table optimiser"):
        make_optimizers([small], [], RATE, "sgd")


def test_rows_decay_apart_from_their_gradient_and_sparse_ones_without_a_gradient_rest():
    before = torch.randn(6, 3)
    dense, sparse, still = (nn.Parameter(before.clone()) for _ in range(3))
    dense.grad = torch.zeros(6, 3)
    sparse.grad = torch.sparse_coo_tensor([[4, 1, 4]], torch.ones(3, 3), (6, 3))
    decay_rows([dense, sparse, still], 0.25)
    torch.testing.assert_close(dense.detach(), before * 0.75)
    torch.testing.assert_close(sparse.detach()[[1, 4]], before[[1, 4]] * 0.75)
    torch.testing.assert_close(sparse.detach()[[0, 2, 3, 5]], before[[0, 2, 3, 5]])
    assert torch.equal(still.detach(), before)

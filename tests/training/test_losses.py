"""candidate_softmax against log_softmax and autograd over the whole score matrix; the corrections against the sums."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from contract.errors import InputError
from training.candidates import OwnedItems
from training.losses import CORRECTIONS, SMOOTHINGS, candidate_softmax

T, K, C, D = 23, 3, 37, 5


def obvious_loss(users, candidates, target, *, scale, log_q, correction, owned_TC, smoothing, alpha) -> Tensor:
    """The docstring's formulas on the whole [T, C] matrix, differentiated by autograd."""
    rows = torch.arange(len(target))
    z = scale * torch.einsum("tkd,cd->tkc", users, candidates).amax(dim=1)
    positive = torch.zeros_like(z, dtype=torch.bool)
    positive[rows, target] = True
    if correction == "logq":
        z = z - log_q
    if correction == "corrected":
        z = torch.where(positive, z, z - log_q)
    absent = torch.zeros_like(positive) if owned_TC is None else owned_TC & ~positive
    log_p = torch.log_softmax(z.masked_fill(absent, float("-inf")), dim=1)
    loss = -log_p[rows, target]
    if smoothing != "none":
        negative = ~positive & ~absent
        values = log_p if smoothing == "standard" else torch.log1p(-log_p.exp())
        others = -torch.where(negative, values, 0.0).sum(dim=1)
        loss = (1 - alpha) * loss + alpha / len(candidates) * others
    return loss.mean()


def problem(seed: int = 0, *, rows: int = T, queries: int = K, dtype: torch.dtype = torch.float64) -> dict:
    generator = torch.Generator().manual_seed(seed)
    users = torch.randn(rows, queries, D, generator=generator, dtype=dtype).requires_grad_()
    candidates = torch.randn(C, D, generator=generator, dtype=dtype).requires_grad_()
    owner = torch.randint(6, (rows,), generator=generator)
    liked = torch.rand(6, C, generator=generator) < 0.2
    liked[0] = False  # one who owns nothing
    pairs = liked.nonzero()
    return {
        "users": users,
        "candidates": candidates,
        "target": torch.randint(C, (rows,), generator=generator),
        "log_q": torch.rand(C, generator=generator, dtype=dtype).log(),
        "owned": OwnedItems.from_pairs(pairs[:, 0], pairs[:, 1], 6).of(owner),
        "owned_TC": liked[owner],
    }


def both(p: dict, *, use_owned: bool, chunk: int | None = 7, precision: str = "float32", **options) -> list:
    """(loss, gradient of users, gradient of candidates) of candidate_softmax, then of the reference."""
    fast = candidate_softmax(
        p["users"],
        p["candidates"],
        p["target"],
        log_q_C=p["log_q"],
        owned=p["owned"] if use_owned else None,
        chunk=chunk,
        precision=precision,
        **options,
    )
    slow = obvious_loss(
        p["users"],
        p["candidates"],
        p["target"],
        log_q=p["log_q"],
        owned_TC=p["owned_TC"] if use_owned else None,
        **options,
    )
    return [(loss, *torch.autograd.grad(loss, [p["users"], p["candidates"]])) for loss in (fast, slow)]


@pytest.mark.parametrize("queries", [1, 2, 4])
@pytest.mark.parametrize("use_owned", [False, True])
@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@pytest.mark.parametrize("correction", CORRECTIONS)
def test_loss_and_gradients_are_those_of_the_formula(correction, smoothing, use_owned, queries):
    options = {"correction": correction, "smoothing": smoothing, "alpha": 0.3, "scale": 1.7}
    fast, slow = both(problem(queries=queries), use_owned=use_owned, **options)
    for one, other in zip(fast, slow, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 2, 22, 23, 24, 1000, None])
def test_the_size_of_a_chunk_changes_nothing(chunk):
    options = {"correction": "corrected", "smoothing": "paper", "alpha": 0.3, "scale": 2.0}
    fast, slow = both(problem(), use_owned=True, chunk=chunk, **options)
    for one, other in zip(fast, slow, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("correction", "smoothing"), list(itertools.product(CORRECTIONS, SMOOTHINGS)))
def test_numeric_gradients_agree(correction, smoothing):
    p = problem(rows=5, queries=2)

    def loss(users: Tensor, candidates: Tensor) -> Tensor:
        return candidate_softmax(
            users, candidates, p["target"], log_q_C=p["log_q"], correction=correction, smoothing=smoothing, chunk=2
        )

    assert torch.autograd.gradcheck(loss, (p["users"], p["candidates"]))


def test_without_gradients_the_loss_is_the_same():
    p = problem()
    with_graph = candidate_softmax(p["users"], p["candidates"], p["target"], chunk=7)
    with torch.no_grad():
        without = candidate_softmax(p["users"], p["candidates"], p["target"], chunk=7)
    detached = candidate_softmax(p["users"].detach(), p["candidates"].detach(), p["target"], chunk=7)
    assert not without.requires_grad
    assert not detached.requires_grad
    assert float(without) == float(detached) == float(with_graph.detach())


def test_uniform_scores_lose_the_log_of_the_number_of_candidates():
    loss = candidate_softmax(torch.zeros(4, 2, D), torch.zeros(C, D), torch.arange(4))
    assert float(loss) == pytest.approx(math.log(C))


def test_of_equal_queries_the_first_gets_the_gradient():
    users = torch.randn(3, 1, D).repeat(1, 3, 1).requires_grad_()
    candidates = torch.randn(C, D)
    candidate_softmax(users, candidates, torch.arange(3)).backward()
    one = users.detach()[:, :1].clone().requires_grad_()
    candidate_softmax(one, candidates, torch.arange(3)).backward()
    torch.testing.assert_close(users.grad[:, :1], one.grad)
    assert not users.grad[:, 1:].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"correction": "some"}, "correction"),
        ({"smoothing": "some"}, "smoothing"),
        ({"precision": "some"}, "precision"),
        ({"correction": "logq"}, "log_q_C"),
        ({"correction": "corrected", "log_q_C": torch.zeros(C + 1)}, "log_q_C"),
        ({"target_T": torch.zeros(3, dtype=torch.int64)}, "target"),
        ({"candidates_CD": torch.zeros(C, D + 1)}, "fit"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    arguments = {
        "users_TKD": torch.zeros(4, 1, D),
        "candidates_CD": torch.zeros(C, D),
        "target_T": torch.zeros(4, dtype=torch.int64),
    }
    with pytest.raises(InputError, match=message):
        candidate_softmax(**{**arguments, **changes})

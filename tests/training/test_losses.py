"""candidate_softmax against log_softmax and autograd over the whole score matrix; the corrections against the sums."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from contract.errors import InputError
from training import softmax_chunks
from training.candidates import OwnedItems
from training.losses import CORRECTIONS, SMOOTHINGS, candidate_softmax

T, K, C, D = 23, 3, 37, 5


def obvious_loss(
    users, candidates, target, *, scale, log_q, correction, owned_TC, smoothing, alpha, weight_T=None
) -> Tensor:
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
    return (loss if weight_T is None else loss * weight_T).mean()


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


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@pytest.mark.parametrize("correction", CORRECTIONS)
def test_weights_multiply_each_rows_loss(correction, smoothing):
    options = {"correction": correction, "smoothing": smoothing, "alpha": 0.3, "scale": 1.7}
    weight_T = torch.linspace(0.0, 3.0, T, dtype=torch.float64)
    fast, slow = both(problem(), use_owned=True, weight_T=weight_T, **options)
    for one, other in zip(fast, slow, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_there_is_a_weight_for_every_row():
    p = problem()
    with pytest.raises(InputError, match="one weight per row"):
        candidate_softmax(p["users"], p["candidates"], p["target"], weight_T=torch.ones(T - 1))


@pytest.mark.parametrize("chunk", [1, 2, 22, 23, 24, 1000, None])
def test_the_size_of_a_chunk_changes_nothing(chunk):
    options = {"correction": "corrected", "smoothing": "paper", "alpha": 0.3, "scale": 2.0}
    fast, slow = both(problem(), use_owned=True, chunk=chunk, **options)
    for one, other in zip(fast, slow, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("queries", [1, 2, 3])
@pytest.mark.parametrize("block", [1, 5, 36])
@pytest.mark.parametrize("correction", CORRECTIONS)
def test_blocks_of_candidates_change_nothing(monkeypatch, correction, block, queries, scale):
    """Scale 1 stays within BOUND, 30 goes beyond."""
    monkeypatch.setattr(softmax_chunks, "BLOCK_BYTES", block * 8 * queries * 7)
    p = problem(queries=queries)
    largest = scale * float((p["users"].norm(dim=2).max() * p["candidates"].norm(dim=1).max()).detach())
    assert (largest < softmax_chunks.BOUND) == (scale == 1.0)
    fast, slow = both(p, use_owned=True, correction=correction, smoothing="none", alpha=0.1, scale=scale)
    for one, other in zip(fast, slow, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_scores_far_apart_lose_no_row():
    """The positive far above the others, far below, and all others owned: finite, and exact where it counts."""
    users = torch.tensor([[[200.0]], [[-200.0]], [[3.0]]], requires_grad=True)
    candidates = torch.tensor([[1.0], [-1.0], [0.5]], requires_grad=True)
    owned = OwnedItems.from_pairs(torch.tensor([1, 1]), torch.tensor([1, 2])).of(torch.tensor([0, 0, 1]))
    loss = candidate_softmax(users, candidates, torch.tensor([0, 0, 0]), owned=owned)
    loss.backward()
    assert float(loss.detach()) == pytest.approx((0 + 400 + 0) / 3)
    torch.testing.assert_close(users.grad.flatten(), torch.tensor([0.0, -2 / 3, 0.0]), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(candidates.grad.flatten(), torch.tensor([200 / 3, -200 / 3, 0.0]), atol=1e-4, rtol=1e-6)


@pytest.mark.parametrize(("correction", "smoothing"), list(itertools.product(CORRECTIONS, SMOOTHINGS)))
def test_numeric_gradients_agree(correction, smoothing):
    p = problem(rows=5, queries=2)

    def loss(users: Tensor, candidates: Tensor) -> Tensor:
        return candidate_softmax(
            users, candidates, p["target"], log_q_C=p["log_q"], correction=correction, smoothing=smoothing, chunk=2
        )

    assert torch.autograd.gradcheck(loss, (p["users"], p["candidates"]), fast_mode=True)


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
    # Whole numbers: a product of matrices may add up equal rows in different orders, and rounding would part them.
    users = torch.randint(-2, 3, (3, 1, D)).float().repeat(1, 3, 1).requires_grad_()
    candidates = torch.randint(-2, 3, (C, D)).float()
    candidate_softmax(users, candidates, torch.arange(3)).backward()
    one = users.detach()[:, :1].clone().requires_grad_()
    candidate_softmax(one, candidates, torch.arange(3)).backward()
    torch.testing.assert_close(users.grad[:, :1], one.grad)
    assert not users.grad[:, 1:].any()


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_what_the_owner_liked_gets_no_gradient(smoothing):
    p = problem(queries=1)
    p["owned"] = OwnedItems.from_pairs(torch.zeros(2, dtype=torch.int64), torch.tensor([5, 9])).of(
        torch.zeros(T, dtype=torch.int64)
    )
    p["target"].fill_(5)  # owned as well: stays the positive
    loss = candidate_softmax(
        p["users"], p["candidates"], p["target"], owned=p["owned"], smoothing=smoothing, scale=20.0
    )
    (gradient,) = torch.autograd.grad(loss, p["candidates"])
    assert (gradient.norm(dim=1) > 1e-20).nonzero().flatten().tolist() == [c for c in range(C) if c != 9]


@pytest.mark.parametrize("scale", [1.0, 40.0])
@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_bfloat16_products_stay_close(smoothing, scale):
    """Inputs of products keep 8 bits of mantissa (relative 1/256), and errors of many terms don't add up."""
    p = problem(dtype=torch.float32, queries=2)
    p["users"] = torch.nn.functional.normalize(p["users"].detach(), dim=2).requires_grad_()
    p["candidates"] = torch.nn.functional.normalize(p["candidates"].detach(), dim=1).requires_grad_()
    fast, slow = both(
        p, use_owned=True, precision="bfloat16", correction="corrected", smoothing=smoothing, alpha=0.1, scale=scale
    )
    assert float((fast[0] - slow[0]).detach().abs()) < 2e-3 * scale**0.5
    for one, other in zip(fast[1:], slow[1:], strict=True):
        assert float((one - other).norm() / other.norm()) < 5e-3 * scale**0.5
    assert torch.backends.mkldnn.matmul.fp32_precision == "none"


def torch_rounds(users_TD: torch.Tensor, candidates_CD: torch.Tensor) -> bool:
    """Whether torch's own product of this size rounds once it may: with avx512_bf16 alone the library does not."""
    plain = users_TD @ candidates_CD.T
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        return not torch.equal(users_TD @ candidates_CD.T, plain)
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before


def test_bfloat16_products_are_taken_where_the_machine_has_them():
    """Large enough for the library to choose them; the float32 of before is there again afterwards."""
    generator = torch.Generator().manual_seed(0)
    users = torch.nn.functional.normalize(torch.randn(600, 2, 64, generator=generator), dim=2).requires_grad_()
    candidates = torch.nn.functional.normalize(torch.randn(1000, 64, generator=generator), dim=1).requires_grad_()
    target = torch.randint(1000, (600,), generator=generator)
    answers = {}
    for precision in ("float32", "bfloat16", "float32 again"):
        loss = candidate_softmax(users, candidates, target, scale=20.0, precision=precision.split()[0])
        answers[precision] = (loss.detach(), *torch.autograd.grad(loss, [users, candidates]))
    errors = [
        float((one - other).norm() / other.norm())
        for one, other in zip(answers["bfloat16"], answers["float32"], strict=True)
    ]
    assert max(errors) < 5e-3
    assert errors[0] < 1e-4
    if torch_rounds(users.detach().flatten(0, 1), candidates.detach()):
        assert max(errors) > 1e-5
    for one, other in zip(answers["float32 again"], answers["float32"], strict=True):
        assert torch.equal(one, other)


def test_float32_comes_close_to_float64():
    for seed in range(5):
        exact, single = problem(seed), problem(seed)
        single = {
            **single,
            **{name: single[name].detach().float().requires_grad_() for name in ("users", "candidates")},
        }
        options = {"use_owned": True, "correction": "logq", "smoothing": "none", "alpha": 0.1, "scale": 3.0}
        (fast, _), (_, slow) = both(single | {"log_q": single["log_q"].float()}, **options), both(exact, **options)
        for one, other in zip(fast, slow, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-6)


def test_lower_types_and_autocast_give_float32_losses():
    p = problem(dtype=torch.float32)
    plain = candidate_softmax(p["users"], p["candidates"], p["target"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = candidate_softmax(p["users"], p["candidates"], p["target"])
    assert float(inside.detach()) == float(plain.detach())
    low = p["users"].detach().bfloat16().requires_grad_()
    loss = candidate_softmax(low, p["candidates"], p["target"])
    loss.backward()
    assert loss.dtype == torch.float32
    assert low.grad.dtype == torch.bfloat16
    rounded = low.detach().float().requires_grad_()
    candidate_softmax(rounded, p["candidates"], p["target"]).backward()
    torch.testing.assert_close(low.grad, rounded.grad.bfloat16())


def test_gradients_scale_with_what_comes_after():
    p = problem()
    loss = candidate_softmax(p["users"], p["candidates"], p["target"])
    once = torch.autograd.grad(loss, [p["users"], p["candidates"]], retain_graph=True)
    thrice = torch.autograd.grad(3 * loss, [p["users"], p["candidates"]])
    for one, three in zip(once, thrice, strict=True):
        torch.testing.assert_close(3 * one, three)


def test_only_one_side_may_want_gradients():
    p = problem()
    (both_ways,) = torch.autograd.grad(candidate_softmax(p["users"], p["candidates"], p["target"]), p["users"])
    loss = candidate_softmax(p["users"], p["candidates"].detach(), p["target"])
    torch.testing.assert_close(torch.autograd.grad(loss, p["users"])[0], both_ways)


@pytest.mark.parametrize("rows", [1, 255, 256, 4096])
@pytest.mark.parametrize("candidates", [1, 100, 3416, 57289, 10_000_000])
@pytest.mark.parametrize("smoothing", ["none", "paper"])
@pytest.mark.parametrize("cuda", [False, True])
def test_chunks_fit_their_bounds(rows, candidates, smoothing, cuda):
    options = softmax_chunks.SoftmaxOptions(1.0, False, smoothing, 0.1, None, "float32", True)
    R, n = softmax_chunks.plan(rows, 4, candidates, options, cuda=cuda)
    assert 1 <= R <= rows
    assert 1 <= n <= candidates
    assert n == candidates or not cuda
    if R > 16:
        assert R * 4 * candidates * 4 <= (softmax_chunks.CUDA_BYTES if cuda else softmax_chunks.LARGE_BYTES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"correction": "some"}, "correction"),
        ({"smoothing": "some"}, "smoothing"),
        ({"precision": "some"}, "precision"),
        ({"correction": "logq"}, "log_q_C"),
        ({"correction": "corrected", "log_q_C": torch.zeros(C + 1)}, "log_q_C"),
        ({"target_T": torch.zeros(3, dtype=torch.int64)}, "target"),
        ({"target_T": torch.tensor([0, 1, -1, 2])}, "columns"),
        ({"target_T": torch.tensor([0, 1, C, 2])}, "columns"),
        ({"alpha": 1.0}, "alpha"),
        ({"chunk": 0}, "row"),
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

"""logQ and its correction: what they equal, and what they come close to."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from training.candidates import OwnedItems, in_batch_candidates
from training.losses import candidate_softmax

T, C, D = 11, 29, 4


def problem(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    users = torch.randn(T, 1, D, generator=generator, dtype=torch.float64).requires_grad_()
    candidates = torch.randn(C, D, generator=generator, dtype=torch.float64).requires_grad_()
    log_q = torch.rand(C, generator=generator, dtype=torch.float64).log()
    return users, candidates, torch.randint(C, (T,), generator=generator), log_q


def paper_loss(
    users: Tensor, candidates: Tensor, target: Tensor, log_q: Tensor, absent: Tensor | None = None
) -> Tensor:
    """arXiv 2507.09331, section 3.3, to the letter: weight sg(1 - P(+)), and a denominator without the positive."""
    scores = users[:, 0] @ candidates.t()
    rows = torch.arange(T)
    others = torch.ones_like(scores, dtype=torch.bool)
    others[rows, target] = False
    if absent is not None:
        others &= ~absent
    corrected = (scores - log_q).masked_fill(~others, float("-inf"))
    log_negatives = torch.logsumexp(corrected, dim=1)
    positive = scores[rows, target]
    weight = 1 - torch.exp(positive - torch.logaddexp(positive, log_negatives))
    return (weight.detach() * (log_negatives - positive)).mean()


def test_the_correction_has_the_gradient_of_the_papers_weighted_loss():
    users, candidates, target, log_q = problem()
    ours = candidate_softmax(users, candidates, target, log_q_C=log_q, correction="corrected", chunk=4)
    theirs = paper_loss(users, candidates, target, log_q)
    for one, other in zip(
        torch.autograd.grad(ours, [users, candidates]), torch.autograd.grad(theirs, [users, candidates]), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-13)
    assert abs(float((ours - theirs).detach())) > 0.05  # the values differ: ours is that of the full softmax


def test_it_has_it_with_owned_items_left_out_too():
    users, candidates, target, log_q = problem()
    absent = torch.rand(T, C, generator=torch.Generator().manual_seed(1)) < 0.3
    pairs = absent.nonzero()
    owned = OwnedItems.from_pairs(pairs[:, 0], pairs[:, 1], T).of(torch.arange(T))
    ours = candidate_softmax(users, candidates, target, log_q_C=log_q, correction="corrected", owned=owned)
    theirs = paper_loss(users, candidates, target, log_q, absent)
    for one, other in zip(
        torch.autograd.grad(ours, [users, candidates]), torch.autograd.grad(theirs, [users, candidates]), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-13)


def test_over_the_whole_catalogue_the_correction_is_the_full_softmax():
    """Every item there for certain, log Q = 0: the same value, and the same gradient, as plain softmax."""
    users, candidates, target, _ = problem()
    losses = [
        candidate_softmax(users, candidates, target, log_q_C=torch.zeros(C), correction=correction)
        for correction in ("none", "logq", "corrected")
    ]
    assert float(losses[0].detach()) == float(losses[1].detach()) == float(losses[2].detach())
    literal = paper_loss(users, candidates, target, torch.zeros(C, dtype=torch.float64))
    first, *others = [torch.autograd.grad(loss, [users, candidates]) for loss in (*losses, literal)]
    for other in others:
        for one, two in zip(first, other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-13)


def test_a_constant_log_q_shifts_logq_by_nothing_and_the_correction_by_the_positive():
    users, candidates, target, _ = problem()
    shift = torch.full((C,), -3.0, dtype=torch.float64)
    plain, logq, corrected = (
        float(candidate_softmax(users, candidates, target, log_q_C=shift, correction=correction).detach())
        for correction in ("none", "logq", "corrected")
    )
    assert abs(logq - plain) < 1e-12
    assert corrected > plain + 1


def test_logq_recovers_what_sampling_hides():
    """Positives follow q, and so do the in-batch negatives: only with logQ is s = log q + c, else all look alike."""
    n, batch = 40, 64
    q = torch.arange(1, n + 1).float()
    q /= q.sum()
    log_q = torch.log(-torch.expm1(batch * torch.log1p(-q)))  # of the batch holding an item
    slopes = {}
    for correction in ("logq", "none"):
        generator = torch.Generator().manual_seed(0)
        appeal = torch.zeros(n, 1, requires_grad=True)
        optimizer = torch.optim.Adam([appeal], lr=0.05)
        for _ in range(300):
            rows, target = in_batch_candidates(torch.multinomial(q, batch, replacement=True, generator=generator))
            optimizer.zero_grad()
            candidate_softmax(
                torch.ones(batch, 1, 1), appeal[rows], target, log_q_C=log_q[rows], correction=correction
            ).backward()
            optimizer.step()
        slopes[correction] = np.polyfit(q.log().numpy(), appeal.detach().numpy()[:, 0], 1)[0]
    assert slopes["logq"] > 0.7
    assert slopes["none"] < 0.5 * slopes["logq"]


def sampled_gradients(correction: str, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Gradients of 64 users [samples, 64 D] over sampled negatives of 60 items, and [64 D] over all: the full softmax.

    Positives are drawn from the model's own p, so that it is neither sure nor lost. Negatives are 12 draws by
    popularity q with replacement: a set holds an item with probability 1 - (1 - q)^12. What is not drawn is owned.
    """
    items, draws, rows = 60, 12, 64
    generator = torch.Generator().manual_seed(3)
    users = torch.randn(rows, 1, D, generator=generator, dtype=torch.float64)
    vectors = torch.randn(items, D, generator=generator, dtype=torch.float64)
    q = 1.0 / torch.arange(1, items + 1).double()
    q /= q.sum()
    log_q = torch.log(-torch.expm1(draws * torch.log1p(-q)))
    target = torch.multinomial(torch.softmax(users[:, 0] @ vectors.t(), 1), 1, generator=generator)[:, 0]

    def gradients(drawn: Tensor, name: str) -> np.ndarray:
        sets = len(drawn)
        absent = torch.ones(sets, items, dtype=torch.bool).scatter_(1, drawn, False).nonzero()
        owner = torch.arange(sets).repeat_interleave(rows)
        owned = OwnedItems.from_pairs(absent[:, 0], absent[:, 1], sets).of(owner)
        all_users = users.repeat(sets, 1, 1).requires_grad_()
        loss = candidate_softmax(
            all_users, vectors, target.repeat(sets), log_q_C=log_q, correction=name, owned=owned, chunk=4096
        )
        (gradient,) = torch.autograd.grad(loss * sets, all_users)
        return gradient.view(sets, rows * D).numpy()

    draw = torch.multinomial(q.expand(samples, -1), draws, replacement=True, generator=generator)
    return gradients(draw, correction), gradients(torch.arange(items)[None], "none")[0]


def test_in_expectation_the_correction_comes_closer_to_the_full_softmax_than_logq():
    """The same 500 samples for both; the difference is far beyond what chance explains."""
    bias, chance = {}, {}
    for correction in ("logq", "corrected"):
        samples, full = sampled_gradients(correction, 500)
        bias[correction] = np.linalg.norm(samples.mean(axis=0) - full) / np.linalg.norm(full)
        chance[correction] = np.linalg.norm(samples.std(axis=0) / len(samples) ** 0.5) / np.linalg.norm(full)
    assert bias["corrected"] + 4 * chance["corrected"] < bias["logq"] - 4 * chance["logq"]

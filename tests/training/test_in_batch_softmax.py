"""The older in-batch loss against plain sums, one query at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from contract.errors import InputError
from training.losses import in_batch_softmax


def slow_loss(scores, items, log_q, owner, smoothing, alpha) -> float:
    """Eq. 10–11 and the smoothed loss, one query at a time."""
    n, total = len(items), 0.0
    for i in range(n):
        columns = [j for j in range(n) if j == i or (items[j] != items[i] and owner[j] != owner[i])]
        exps = {j: math.exp(scores[i][j] - log_q[j]) for j in columns}
        p = {j: e / sum(exps.values()) for j, e in exps.items()}
        loss = -math.log(p[i])
        if smoothing != "none":
            kind = (lambda x: math.log(x)) if smoothing == "standard" else (lambda x: math.log(1 - x))
            loss = (1 - alpha) * loss - alpha / n * sum(kind(p[j]) for j in columns if j != i)
        total += loss
    return total / n


@pytest.mark.parametrize("smoothing", ["none", "standard", "paper"])
@pytest.mark.parametrize("corrected", [True, False])
def test_the_loss_is_the_formula(smoothing, corrected):
    torch.manual_seed(0)
    scores = torch.randn(7, 7)
    items = torch.tensor([3, 1, 3, 5, 6, 1, 9])
    owner = torch.tensor([0, 0, 1, 2, 3, 4, 4])
    log_q = torch.rand(7).log()
    fast = in_batch_softmax(scores, items, log_q if corrected else None, owner_B=owner, smoothing=smoothing, alpha=0.2)
    slow = slow_loss(
        scores.tolist(), items.tolist(), log_q.tolist() if corrected else [0.0] * 7, owner.tolist(), smoothing, 0.2
    )
    assert float(fast) == pytest.approx(slow, rel=1e-4)


def test_copies_of_the_positive_are_no_negatives():
    scores = torch.zeros(3, 3)
    same = in_batch_softmax(scores, torch.tensor([4, 4, 4]))
    assert float(same) == pytest.approx(0.0, abs=1e-6)
    assert float(in_batch_softmax(scores, torch.tensor([1, 2, 3]))) == pytest.approx(math.log(3))


def test_a_correction_that_is_equal_for_all_changes_nothing():
    scores, items = torch.randn(5, 5), torch.arange(5)
    plain, shifted = in_batch_softmax(scores, items), in_batch_softmax(scores, items, torch.full((5,), -3.0))
    torch.testing.assert_close(plain, shifted)


def test_the_correction_recovers_what_sampling_hides():
    """Positives follow q, and so do the in-batch negatives: only with logQ is s = log q + c, else all look alike."""
    n, batch = 40, 64
    q = torch.arange(1, n + 1).float()
    q /= q.sum()
    slopes = {}
    for corrected in (True, False):
        generator = torch.Generator().manual_seed(0)
        appeal = torch.zeros(n, requires_grad=True)
        optimizer = torch.optim.Adam([appeal], lr=0.05)
        for _ in range(300):
            items = torch.multinomial(q, batch, replacement=True, generator=generator)
            optimizer.zero_grad()
            loss = in_batch_softmax(appeal[items].expand(batch, batch), items, q[items].log() if corrected else None)
            loss.backward()
            optimizer.step()
        slopes[corrected] = np.polyfit(q.log().numpy(), appeal.detach().numpy(), 1)[0]
    assert slopes[True] == pytest.approx(1.0, abs=0.3)
    assert slopes[False] == pytest.approx(0.0, abs=0.3)


def test_smoothings_pull_negatives_in_opposite_directions():
    scores = torch.zeros(3, 3, requires_grad=True)
    gradients = {}
    for smoothing in ("none", "standard", "paper"):
        (gradients[smoothing],) = torch.autograd.grad(
            in_batch_softmax(scores, torch.arange(3), smoothing=smoothing, alpha=0.3), scores
        )
    negative = {name: float(g[0, 1]) / float(-g[0, 0]) for name, g in gradients.items()}
    assert float(gradients["standard"][0, 1]) < float(gradients["none"][0, 1])
    assert negative["none"] == pytest.approx(0.5)


def test_smoothing_is_one_of_three():
    with pytest.raises(InputError, match="smoothing"):
        in_batch_softmax(torch.zeros(2, 2), torch.arange(2), smoothing="some")

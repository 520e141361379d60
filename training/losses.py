"""Retrieval losses: in-batch softmax with the logQ correction, and a streaming estimate of item frequency.

KuaiFormer, arXiv 2411.10057, Eq. 10–11 and the smoothed loss after it; Yi et al., RecSys 2019, Algorithms 2 and 3.

Shapes: B batch (one positive item each), H buckets of the estimator, m hashes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from contract.errors import InputError

SMOOTHINGS = ("none", "standard", "paper")
ABSENT = -1e4  # of an item that must not serve as a negative; exp of it is 0 in float32, and it stays finite
_PRIME = (1 << 31) - 1


class FrequencyEstimator(nn.Module):
    """Probability that a batch holds an item, from the steps between its appearances (Yi et al. 2019, Alg. 2 and 3).

    Per hash and bucket: A = step at which an item was last seen, B = running mean of the gap between appearances,
    `B <- (1 - rate) B + rate (t - A)`, `A <- t`; p = 1 / max over hashes of B. With one hash and at least as many
    buckets as item numbers nothing collides. All state is in buffers, so that training resumes exactly.
    """

    def __init__(self, buckets: int, hashes: int = 1, rate: float = 0.01, initial_gap: float = 100.0, seed: int = 0):
        super().__init__()
        if buckets < 1 or hashes < 1 or not 0 < rate <= 1 or initial_gap < 1:
            raise InputError("estimator out of range", got=(buckets, hashes, rate, initial_gap))
        self.rate = rate
        generator = torch.Generator().manual_seed(seed)
        factors = torch.randint(1, _PRIME, (hashes, 2), generator=generator)
        factors[0] = torch.tensor([1, 0])  # the first hash is the number itself
        self.register_buffer("factors", factors)
        self.register_buffer("last_step", torch.zeros(hashes, buckets))
        self.register_buffer("gap", torch.full((hashes, buckets), float(initial_gap)))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    @staticmethod
    def from_counts(counts: Tensor, batch: int, rate: float = 0.01) -> FrequencyEstimator:
        """Start from known counts per item number [H]: gap = 1 / (1 - (1 - q)^batch), as if the stream had run for
        long.

        With a rate of 0.01 a cold start needs hundreds of steps before the estimate tells items apart; short trainings
        would run without correction. An item without a count is taken as seen half a time.
        """
        estimator = FrequencyEstimator(len(counts), rate=rate)
        q = counts.clamp(min=0.5).double() / max(float(counts.sum()), 1.0)
        estimator.gap[0] = (1.0 / (-torch.expm1(batch * torch.log1p(-q.clamp(max=1 - 1e-12))))).float()
        # Mean time since the last appearance is the gap itself; the first real gap must not count from step 0.
        estimator.last_step[0] = -estimator.gap[0]
        return estimator

    def _buckets(self, items: Tensor) -> Tensor:
        hashed = (items * self.factors[:, :1] + self.factors[:, 1:]) % _PRIME
        hashed[0] = items
        return hashed % self.gap.shape[1]

    @torch.no_grad()
    def update(self, items: Tensor) -> None:
        """Count one batch. items: int64 [B] numbers (not keys); an item that stands twice counts once."""
        self.step += 1
        places = self._buckets(torch.unique(items))
        now = self.step.to(self.gap.dtype)
        gap = self.gap.gather(1, places)
        seen = self.last_step.gather(1, places)
        self.gap.scatter_(1, places, (1 - self.rate) * gap + self.rate * (now - seen))
        self.last_step.scatter_(1, places, torch.ones_like(seen) * now)

    @torch.no_grad()
    def probability(self, items: Tensor) -> Tensor:
        """p of each item number: float32 [B] in (0, 1]."""
        gap = self.gap.gather(1, self._buckets(items)).amax(dim=0)
        return 1.0 / gap.clamp(min=1.0)

    def log_q(self, items: Tensor) -> Tensor:
        """log p, what the loss subtracts from the scores: float32 [B]."""
        return self.probability(items).log()


def in_batch_softmax(
    scores_BB: Tensor,
    items_B: Tensor,
    log_q_B: Tensor | None = None,
    *,
    owner_B: Tensor | None = None,
    smoothing: str = "none",
    alpha: float = 0.1,
) -> Tensor:
    """Mean loss of B queries whose positive stands on the diagonal; the other items of the batch are the negatives.

    scores_BB  score of query i and item j
    items_B    item numbers: a column with the query's own item is no negative and is left out
    log_q_B    subtracted from the scores of positive and negatives alike (Eq. 11); None = no correction
    owner_B    whose positive an item is: what the query's owner liked as well is no negative and is left out
    smoothing  none:     -log p(x+)
               standard: -(1-α) log p(x+) - α/B Σ log p(x~)
               paper:    -(1-α) log p(x+) - α/B Σ log(1 - p(x~)), as the copy of the paper at hand prints it; on
                         negatives the two act in opposite directions
    """
    if smoothing not in SMOOTHINGS:
        raise InputError("unknown smoothing", got=smoothing, allowed=SMOOTHINGS)
    if log_q_B is not None:
        scores_BB = scores_BB - log_q_B
    no_negative = items_B[:, None] == items_B[None, :]
    if owner_B is not None:
        no_negative = no_negative | (owner_B[:, None] == owner_B[None, :])
    diagonal = torch.eye(len(items_B), dtype=torch.bool, device=scores_BB.device)
    log_p_BB = torch.log_softmax(scores_BB.masked_fill(no_negative & ~diagonal, ABSENT), dim=1)
    positive_B = -log_p_BB.diagonal()
    if smoothing == "none":
        return positive_B.mean()
    others_BB = log_p_BB if smoothing == "standard" else torch.log1p(-log_p_BB.exp().clamp(max=1 - 1e-6))
    others_B = -torch.where(no_negative | diagonal, 0.0, others_BB).sum(dim=1) / len(items_B)
    return ((1 - alpha) * positive_B + alpha * others_B).mean()

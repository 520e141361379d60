"""A streaming estimate of how often a batch holds an item: the Q of the logQ correction.

Yi et al., "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations", RecSys 2019, Algorithms 2
and 3. A batch counts an item once however often it stands in it, so the estimate is the probability that a set of
unique candidates holds the item (`training/candidates.py` builds such sets).

Shapes: B items of a batch, H buckets of the estimator, m hashes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from contract.errors import InputError

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
        """Start from known counts per item number [H]: gap = 1 / (1 - (1 - q)^batch), where a long stream would end.

        With a rate of 0.01 a cold start needs hundreds of steps before the estimate tells items apart; short trainings
        would run without correction. An item without a count is taken as seen half a time.
        """
        estimator = FrequencyEstimator(len(counts), rate=rate)
        q = counts.clamp(min=0.5).double() / max(float(counts.sum()), 1.0)
        # A = 0 stays: appearances have no memory, so the steps from 0 to the first one average the gap itself.
        estimator.gap[0] = (1.0 / (-torch.expm1(batch * torch.log1p(-q.clamp(max=1 - 1e-12))))).float()
        return estimator

    def _buckets(self, items: Tensor) -> Tensor:
        if len(self.gap) == 1:
            return items[None] % self.gap.shape[1]
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
        self.last_step.scatter_(1, places, now.expand_as(seen))

    @torch.no_grad()
    def probability(self, items: Tensor) -> Tensor:
        """p of each item number: float32 [B] in (0, 1]."""
        gap = self.gap.gather(1, self._buckets(items)).amax(dim=0)
        return 1.0 / gap.clamp(min=1.0)

    def log_q(self, items: Tensor) -> Tensor:
        """log p, what the loss subtracts from the scores: float32 [B]."""
        return self.probability(items).log()

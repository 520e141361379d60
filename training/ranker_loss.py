"""What the ranker is trained by: cross-entropy of each observed signal, and the order of a user's impressions.

The second term is the logistic loss of pairs (Burges et al. 2005; BPR, Rendle et al. 2009) over a user's long views and
the impressions they did not watch long. It asks for what GAUC measures; the first keeps the outputs probabilities.

Shapes: B histories, M targets, X pXTR heads, Q pairs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from contract.vocabulary import PXTR_HEADS, X_PXTR
from training.ranker_data import RANKED, RankerBatch

# Rare signals would drown the ranking of what is watched: their losses weigh less.
HEAD_WEIGHTS = {"long_view": 1.0, "click": 0.3}
OTHER_WEIGHT, WATCHED_WEIGHT, PAIR_WEIGHT = 0.1, 0.3, 1.0


def masked_bce(logits_nX: Tensor, labels_nX: Tensor) -> Tensor:
    """Mean cross-entropy of each head's observed labels, [X] (labels 0 … 1; below 0 = not observed, ignored)."""
    seen_nX = (labels_nX >= 0).to(logits_nX.dtype)
    loss_nX = F.binary_cross_entropy_with_logits(
        logits_nX, labels_nX.clamp(min=0).to(logits_nX.dtype), reduction="none"
    )
    return (loss_nX * seen_nX).sum(dim=0) / seen_nX.sum(dim=0).clamp(min=1.0)


def pair_loss(scores_n: Tensor, pairs_Q2: Tensor, weight_Q: Tensor) -> Tensor:
    """Weighted mean of −log σ(score of the positive − score of the negative); 0 without pairs."""
    apart_Q = scores_n[pairs_Q2[:, 0]] - scores_n[pairs_Q2[:, 1]]
    return (F.softplus(-apart_Q) * weight_Q).sum() / weight_Q.sum().clamp(min=1.0)


def ranker_loss(logits_BMX: Tensor, batch: RankerBatch) -> tuple[Tensor, dict[str, float]]:
    """The loss of a batch, and its parts."""
    logits_nX = logits_BMX.flatten(0, 1)
    watched_n = torch.nan_to_num(batch.watched.flatten(), nan=-1.0)
    labels_nX = torch.cat([batch.labels.flatten(0, 1).to(watched_n.dtype), watched_n[:, None]], dim=1)
    weights = [*(HEAD_WEIGHTS.get(head, OTHER_WEIGHT) for head in PXTR_HEADS), WATCHED_WEIGHT]
    losses_X = masked_bce(logits_nX, labels_nX)
    pairs = pair_loss(logits_nX[:, RANKED], batch.pairs, batch.pair_weight)
    loss = (losses_X * losses_X.new_tensor(weights)).sum() + PAIR_WEIGHT * pairs
    assert len(weights) == X_PXTR + 1
    return loss, {"long_view": float(losses_X[RANKED].detach()), "pairs": float(pairs.detach())}

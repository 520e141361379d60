"""Retrieval losses: softmax over a set of candidates, with the logQ correction, its correction, and smoothing.

KuaiFormer, arXiv 2411.10057, Eq. 9-11 and the smoothed loss after it; Yi et al., RecSys 2019; Khrylchenko et al.,
"Correcting the LogQ Correction", RecSys 2025, arXiv 2507.09331, section 3.3.

    loss = candidate_softmax(users_TKD, items_ND, item_T, scale=20.0)                                  # full
    rows_C, target_T = in_batch_candidates(item_T)                                                     # in-batch
    loss = candidate_softmax(users_TKD, items_CD, target_T, scale=20.0, log_q_C=log_q_C, correction="corrected")

The scores of all rows never exist at once: loss and gradients come from chunks of rows, forward, in buffers that stay
in the cache. Plain cross entropy spends most of its time on page faults of [T, C] tensors.

Shapes: T target rows, R rows of a chunk, K queries of a row, C candidates (unique items), D width, B batch of the older
in_batch_softmax (one positive item each).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from contract.errors import InputError
from training.candidates import Owned
from training.frequency import FrequencyEstimator
from training.softmax_chunks import SoftmaxOptions, loss_and_gradients

__all__ = ["CORRECTIONS", "PRECISIONS", "SMOOTHINGS", "FrequencyEstimator", "candidate_softmax", "in_batch_softmax"]

SMOOTHINGS = ("none", "standard", "paper")
CORRECTIONS = ("none", "logq", "corrected")
PRECISIONS = ("float32", "bfloat16")
ABSENT = -1e4  # of an item that must not serve as a negative; exp of it is 0 in float32, and it stays finite


def candidate_softmax(
    users_TKD: Tensor,
    candidates_CD: Tensor,
    target_T: Tensor,
    *,
    scale: float = 1.0,
    log_q_C: Tensor | None = None,
    correction: str = "none",
    owned: Owned | None = None,
    smoothing: str = "none",
    alpha: float = 0.1,
    chunk: int | None = None,
    precision: str = "float32",
) -> Tensor:
    """Mean loss of T rows, each with its positive among the same C candidates: a scalar.

    Score (Eq. 9): s = scale · max_k <u_k, v>. The gradient goes to the winning query alone, to the first of equals.
    With z the scores after correction and p = softmax(z) over the candidates that the row does not own:

    correction none       z = s
               logq       z = s - log Q for all, the positive included (Eq. 11)
               corrected  z = s - log Q for the negatives, z = s for the positive, which is there with probability 1.
        Full softmax:  -∇ log p = -(1 - p) (∇s - Σ_{j ≠ +} p_j / (1 - p) ∇s_j), and the last sum is a softmax over the
        negatives alone, which a sample with -log Q estimates. Hence (arXiv 2507.09331, section 3.3)
        L = sg(1 - p) (log Σ_{j ≠ +} e^{s_j - log Q_j} - s), with p from the same sample. Its gradient is, term by term,
        that of -log softmax(z) at the positive: this is what is computed, and its value estimates the full loss.
    smoothing  none       -log p(x+)
               standard   -(1 - α) log p(x+) - α/C Σ log p(x~)
               paper      -(1 - α) log p(x+) - α/C Σ log(1 - p(x~)), as the copy of the paper at hand prints it;
                          Σ over the row's negatives; on them the two act in opposite directions

    users_TKD, candidates_CD  float32 (float64 stays; lower ones are raised)
    target_T   int64 [T] column of each row's positive
    log_q_C    log of the probability that the set holds the candidate; read only with a correction
    owned      (row, candidate) pairs that are no negatives; the positive stays whatever it says
    chunk      rows at a time; None = as many as suit the cache
    precision  of the matrix products: bfloat16 rounds their inputs, the sums and the softmax stay in float32

    Raises InputError for unknown names and for shapes that don't fit.
    """
    _check(users_TKD, candidates_CD, target_T, log_q_C, correction, smoothing, precision)
    if users_TKD.dtype in (torch.float16, torch.bfloat16):
        users_TKD = users_TKD.float()
    candidates_CD = candidates_CD.to(users_TKD.dtype)
    graph = torch.is_grad_enabled() and (users_TKD.requires_grad or candidates_CD.requires_grad)
    log_q_C = None if correction == "none" or log_q_C is None else log_q_C.detach().to(users_TKD.dtype)
    options = SoftmaxOptions(scale, correction == "corrected", smoothing, alpha, chunk, precision, graph)
    loss: Tensor = _CandidateSoftmax.apply(users_TKD, candidates_CD, target_T, log_q_C, owned, options)
    return loss


def _check(
    users_TKD: Tensor,
    candidates_CD: Tensor,
    target_T: Tensor,
    log_q_C: Tensor | None,
    correction: str,
    smoothing: str,
    precision: str,
) -> None:
    for name, value, allowed in (
        ("correction", correction, CORRECTIONS),
        ("smoothing", smoothing, SMOOTHINGS),
        ("precision", precision, PRECISIONS),
    ):
        if value not in allowed:
            raise InputError(f"unknown {name}", got=value, allowed=allowed)
    if users_TKD.ndim != 3 or candidates_CD.ndim != 2 or users_TKD.shape[2] != candidates_CD.shape[1]:
        shapes = tuple(users_TKD.shape), tuple(candidates_CD.shape)
        raise InputError("users and candidates don't fit", got=shapes, allowed="[T, K, D] and [C, D]")
    if target_T.shape != users_TKD.shape[:1] or not len(target_T):
        raise InputError("one target per row is needed", got=tuple(target_T.shape), allowed=(users_TKD.shape[0],))
    if correction != "none" and (log_q_C is None or log_q_C.shape != candidates_CD.shape[:1]):
        got = None if log_q_C is None else tuple(log_q_C.shape)
        raise InputError("a correction needs log_q_C", got=got or "none", allowed=(candidates_CD.shape[0],))


class _CandidateSoftmax(torch.autograd.Function):
    """Works out loss and gradients in the forward pass; backward only hands them over."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        users_TKD: Tensor,
        candidates_CD: Tensor,
        target_T: Tensor,
        log_q_C: Tensor | None,
        owned: Owned | None,
        options: SoftmaxOptions,
    ) -> Tensor:
        with torch.autocast(users_TKD.device.type, enabled=False):
            loss, *gradients = loss_and_gradients(users_TKD, candidates_CD, target_T, log_q_C, owned, options)
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: FunctionCtx, d_loss: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        d_users_TKD, d_candidates_CD = ctx.saved_tensors  # type: ignore[attr-defined]
        return d_users_TKD * d_loss, d_candidates_CD * d_loss, None, None, None, None


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

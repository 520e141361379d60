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

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from contract.errors import InputError
from training.candidates import Owned
from training.frequency import FrequencyEstimator

__all__ = ["CORRECTIONS", "PRECISIONS", "SMOOTHINGS", "FrequencyEstimator", "candidate_softmax", "in_batch_softmax"]

SMOOTHINGS = ("none", "standard", "paper")
CORRECTIONS = ("none", "logq", "corrected")
PRECISIONS = ("float32", "bfloat16")
ABSENT = -1e4  # of an item that must not serve as a negative; exp of it is 0 in float32, and it stays finite
SURE = 1e-6  # `paper` smoothing takes log(1 - p) no further than log of this, and has no gradient beyond
CHUNK_BYTES = 4 << 20  # of a chunk's scores


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
    options = _Options(scale, correction == "corrected", smoothing, alpha, chunk, precision, graph)
    loss: Tensor = _CandidateSoftmax.apply(users_TKD, candidates_CD, target_T, log_q_C, owned, options)
    return loss


@dataclass(frozen=True)
class _Options:
    scale: float
    positive_uncorrected: bool
    smoothing: str
    alpha: float
    chunk: int | None
    precision: str
    gradients: bool


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
    """Works out loss and gradients in the forward pass, chunk by chunk; backward only hands them over."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        users_TKD: Tensor,
        candidates_CD: Tensor,
        target_T: Tensor,
        log_q_C: Tensor | None,
        owned: Owned | None,
        options: _Options,
    ) -> Tensor:
        with torch.autocast(users_TKD.device.type, enabled=False):
            loss, d_users_TKD, d_candidates_CD = _loss_and_gradients(
                users_TKD, candidates_CD, target_T, log_q_C, owned, options
            )
        if options.gradients:
            ctx.save_for_backward(d_users_TKD, d_candidates_CD)
        return loss

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: FunctionCtx, d_loss: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        d_users_TKD, d_candidates_CD = ctx.saved_tensors  # type: ignore[attr-defined]
        return d_users_TKD * d_loss, d_candidates_CD * d_loss, None, None, None, None


def _loss_and_gradients(
    users_TKD: Tensor,
    candidates_CD: Tensor,
    target_T: Tensor,
    log_q_C: Tensor | None,
    owned: Owned | None,
    options: _Options,
) -> tuple[Tensor, Tensor, Tensor]:
    T, K, D = users_TKD.shape
    C = len(candidates_CD)
    rows = options.chunk or max(1, min(T, CHUNK_BYTES // (4 * K * C)))
    buffer = users_TKD.new_empty(K * rows * C)
    total = users_TKD.new_zeros((), dtype=torch.float64)
    d_users_TKD = torch.empty_like(users_TKD, memory_format=torch.contiguous_format) if options.gradients else buffer
    d_candidates_CD = torch.zeros_like(candidates_CD) if options.gradients else buffer
    for first in range(0, T, rows):
        last = min(first + rows, T)
        R = last - first
        users_KRD = users_TKD[first:last].transpose(0, 1) * options.scale
        scores_KRC = buffer[: K * R * C].view(K, R, C)
        torch.mm(users_KRD.reshape(K * R, D), candidates_CD.t(), out=scores_KRC.view(K * R, C))
        won_KRC = _maximum(scores_KRC)
        z_RC = scores_KRC[0]
        pairs = owned.pairs(first, last) if owned is not None else None
        total += _softmax_gradient(z_RC, target_T[first:last, None], log_q_C, pairs, options)
        if options.gradients:
            _to_winners(scores_KRC, won_KRC)
            d_KRC = scores_KRC.view(K * R, C)
            d_users_TKD[first:last] = (d_KRC @ candidates_CD).view(K, R, D).transpose(0, 1)
            d_candidates_CD.addmm_(d_KRC.t(), users_KRD.reshape(K * R, D))
    if options.gradients:
        d_users_TKD.mul_(options.scale / T)
        d_candidates_CD.div_(T)
    return (total / T).to(users_TKD.dtype), d_users_TKD, d_candidates_CD


def _maximum(scores_KRC: Tensor) -> Tensor:
    """Put the maximum over K into scores_KRC[0]; returns bool [K - 1, R, C]: query k + 1 beat all before it."""
    best_RC = scores_KRC[0]
    won_KRC = torch.empty_like(scores_KRC[1:], dtype=torch.bool)
    for score_RC, won_RC in zip(scores_KRC[1:], won_KRC, strict=True):
        torch.gt(score_RC, best_RC, out=won_RC)
        torch.maximum(score_RC, best_RC, out=best_RC)
    return won_KRC


def _to_winners(d_KRC: Tensor, won_KRC: Tensor) -> None:
    """d_KRC[0] is the gradient of the maximum; give each entry to the query that won, 0 to the others."""
    rest_RC = d_KRC[0]
    for k in range(len(won_KRC), 0, -1):  # the last that beat all before it is the winner
        torch.mul(rest_RC, won_KRC[k - 1], out=d_KRC[k])
        rest_RC.sub_(d_KRC[k])


def _softmax_gradient(
    z_RC: Tensor,
    target_R1: Tensor,
    log_q_C: Tensor | None,
    pairs: tuple[Tensor, Tensor] | None,
    options: _Options,
) -> Tensor:
    """Sum of the rows' losses; z_RC (scores) is overwritten by the gradient of that sum with respect to the scores."""
    C, alpha = z_RC.shape[1], options.alpha
    target_z_R1 = z_RC.gather(1, target_R1)
    if log_q_C is not None:
        z_RC.sub_(log_q_C)
        if options.positive_uncorrected:
            z_RC.scatter_(1, target_R1, target_z_R1)
        else:
            target_z_R1 = z_RC.gather(1, target_R1)
    others_R1: Tensor | None = None
    negative_RC = None
    if options.smoothing != "none":
        negative_RC = torch.ones_like(z_RC, dtype=torch.bool).scatter_(1, target_R1, False)
        if pairs is not None:
            negative_RC[pairs] = False
        others_R1 = torch.where(negative_RC, z_RC, 0.0).sum(1, keepdim=True)
    if pairs is not None:
        z_RC[pairs] = float("-inf")
        z_RC.scatter_(1, target_R1, target_z_R1)
    lse_R1 = torch.logsumexp(z_RC, dim=1, keepdim=True)
    loss_R1 = lse_R1 - target_z_R1
    p_RC = z_RC.sub_(lse_R1).exp_()
    if negative_RC is None or others_R1 is None:
        p_RC.scatter_add_(1, target_R1, torch.full_like(target_z_R1, -1.0))
        return loss_R1.sum(dtype=torch.float64)
    if options.smoothing == "standard":
        n_R1 = negative_RC.sum(1, keepdim=True).to(z_RC.dtype)
        smooth_R1 = n_R1 * lse_R1 - others_R1
        p_RC.mul_(1 - alpha + alpha / C * n_R1).add_(negative_RC, alpha=-alpha / C)
    else:
        left_RC = 1.0 - p_RC
        counts_RC = negative_RC & (left_RC > SURE)
        smooth_R1 = -torch.where(negative_RC, left_RC.clamp(min=SURE).log(), 0.0).sum(1, keepdim=True)
        h_RC = torch.where(counts_RC, p_RC / left_RC.clamp(min=SURE), 0.0)
        h_R1 = h_RC.sum(1, keepdim=True)
        p_RC.mul_(1 - alpha - alpha / C * h_R1).add_(h_RC, alpha=alpha / C)
    p_RC.scatter_add_(1, target_R1, torch.full_like(target_z_R1, alpha - 1.0))
    return ((1 - alpha) * loss_R1 + alpha / C * smooth_R1).sum(dtype=torch.float64)


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

"""Retrieval losses: softmax over a set of candidates, with the logQ correction, its correction, and smoothing.

KuaiFormer, arXiv 2411.10057, Eq. 9-11 and the smoothed loss after it; Yi et al., RecSys 2019; Khrylchenko et al.,
"Correcting the LogQ Correction", RecSys 2025, arXiv 2507.09331, section 3.3.

    loss = candidate_softmax(users_TKD, items_ND, item_T, scale=20.0)                                  # full
    rows_C, target_T = in_batch_candidates(item_T)                                                     # in-batch
    loss = candidate_softmax(users_TKD, items_CD, target_T, scale=20.0, log_q_C=log_q_C, correction="corrected")

The scores of all rows never exist at once: loss and gradients come from chunks of rows, forward, in buffers that stay
in the cache. Plain cross entropy spends most of its time on page faults of [T, C] tensors.

Shapes: T target rows, K queries of a row, C candidates (unique items), D width.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from contract.errors import InputError
from training.candidates import Owned, Seen
from training.softmax_chunks import SoftmaxOptions, loss_and_gradients

SMOOTHINGS = ("none", "standard", "paper")
CORRECTIONS = ("none", "logq", "corrected")
PRECISIONS = ("float32", "bfloat16")


def candidate_softmax(
    users_TKD: Tensor,
    candidates_CD: Tensor,
    target_T: Tensor,
    *,
    scale: float = 1.0,
    log_q_C: Tensor | None = None,
    correction: str = "none",
    owned: Owned | Seen | None = None,
    weight_T: Tensor | None = None,
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
    weight_T   [T] what each row's loss is multiplied by before the mean over T; None = 1
    chunk      rows at a time; None = as many as suit the cache
    precision  of the matrix products: bfloat16 rounds their inputs, the sums and the softmax stay in float32

    Raises InputError for unknown names, for shapes that don't fit and, on a CPU, for targets that are no candidates.
    """
    options = SoftmaxOptions(scale, correction == "corrected", smoothing, alpha, chunk, precision, False)
    _check(users_TKD, candidates_CD, target_T, log_q_C, correction, options)
    if weight_T is not None and weight_T.shape != target_T.shape:
        raise InputError("one weight per row", got=tuple(weight_T.shape), allowed=tuple(target_T.shape))
    if users_TKD.dtype in (torch.float16, torch.bfloat16):
        users_TKD = users_TKD.float()
    candidates_CD = candidates_CD.to(users_TKD.dtype)
    if torch.is_grad_enabled() and (users_TKD.requires_grad or candidates_CD.requires_grad):
        options = replace(options, gradients=True)
    log_q_C = None if correction == "none" or log_q_C is None else log_q_C.detach().to(users_TKD.dtype)
    loss: Tensor = _CandidateSoftmax.apply(users_TKD, candidates_CD, target_T, log_q_C, owned, weight_T, options)
    return loss


def _check(
    users_TKD: Tensor,
    candidates_CD: Tensor,
    target_T: Tensor,
    log_q_C: Tensor | None,
    correction: str,
    options: SoftmaxOptions,
) -> None:
    for name, value, allowed in (
        ("correction", correction, CORRECTIONS),
        ("smoothing", options.smoothing, SMOOTHINGS),
        ("precision", options.precision, PRECISIONS),
    ):
        if value not in allowed:
            raise InputError(f"unknown {name}", got=value, allowed=allowed)
    if not 0 <= options.alpha < 1:
        raise InputError("smoothing's alpha out of range", got=options.alpha, allowed="[0, 1)")
    if options.chunk is not None and options.chunk < 1:
        raise InputError("a chunk has a row at least", got=options.chunk)
    if users_TKD.ndim != 3 or candidates_CD.ndim != 2 or users_TKD.shape[2] != candidates_CD.shape[1]:
        shapes = tuple(users_TKD.shape), tuple(candidates_CD.shape)
        raise InputError("users and candidates don't fit", got=shapes, allowed="[T, K, D] and [C, D]")
    C = len(candidates_CD)
    if target_T.shape != users_TKD.shape[:1] or not len(target_T):
        raise InputError("one target per row is needed", got=tuple(target_T.shape), allowed=(users_TKD.shape[0],))
    if target_T.device.type == "cpu":  # elsewhere the host would have to wait, and indexing asserts on the device
        lowest, highest = map(int, target_T.aminmax())
        if lowest < 0 or highest >= C:
            raise InputError("targets are columns of the candidates", got=(lowest, highest), allowed=f"0 .. {C - 1}")
    if correction != "none" and (log_q_C is None or log_q_C.shape != (C,)):
        got = "none" if log_q_C is None else tuple(log_q_C.shape)
        raise InputError("a correction needs log_q_C", got=got, allowed=(C,))


class _CandidateSoftmax(torch.autograd.Function):
    """Works out loss and gradients in the forward pass; backward only hands them over."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        users_TKD: Tensor,
        candidates_CD: Tensor,
        target_T: Tensor,
        log_q_C: Tensor | None,
        owned: Owned | Seen | None,
        weight_T: Tensor | None,
        options: SoftmaxOptions,
    ) -> Tensor:
        with torch.autocast(users_TKD.device.type, enabled=False):
            loss, *gradients = loss_and_gradients(users_TKD, candidates_CD, target_T, log_q_C, owned, weight_T, options)
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: FunctionCtx, d_loss: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        d_users_TKD, d_candidates_CD = ctx.saved_tensors  # type: ignore[attr-defined]
        return d_users_TKD * d_loss, d_candidates_CD * d_loss, None, None, None, None, None

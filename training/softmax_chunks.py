"""The work behind `candidate_softmax`: loss and gradients of a softmax over candidates, a chunk of rows at a time.

Nothing of size [T, C] is made. For a chunk of rows: multiply scores out, find the best query, take exponentials in
place, multiply on; the row sums divide afterwards. What this avoids, as measured on one core (`kir bench loss` shows
the whole):

- page faults: one buffer is reused, where plain cross entropy takes fresh [T, C] tensors at every step;
- `exp` of what is below -87, 20 to 100 times as slow as of the rest (results are denormal): exponents end at FLOOR;
- masks of type bool, `where` and mixed types, which run unvectorised: winners are marked in float32, in place;
- a row's maximum, unless scores may be too large for exp as they are: norms tell that beforehand;
- the slower memory: products take a chunk at once, what goes entry by entry takes blocks that stay in the cache.

The positive gets an exact score of its own, and its gradient -(1 - p) comes without cancellation.

Shapes: T target rows, R rows of a chunk, K queries of a row, C candidates, n candidates of a block, D width, P pairs.
Scores lie with the candidates first, [C, K, R]: both products of the gradients then run along memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from training.candidates import Owned, Seen

BOUND = 40.0  # scores within ±BOUND go to exp as they are: e^40 and e^-40 are far from float32's ends, sums too
ABSENT = -80.0  # then the score of what is no negative: e^-80 is 2e-35, nothing beside e^-40, and not denormal
FLOOR = -60.0  # elsewhere exponents, below the largest, end here: e^-60 is 9e-27
LOW = -1e30  # and this is the score of what is no negative
SURE = 1e-6  # `paper` smoothing takes log(1 - p) no further than the log of this, and has no gradient beyond

CHUNK_ROWS = (128, 256)  # 256 while their scores fit SMALL_BYTES
SMALL_BYTES = 16 << 20
LARGE_BYTES = 64 << 20  # of a chunk's scores at most
BLOCK_BYTES = 1 << 20  # of a block's scores: half of a core's second-level cache
CUDA_BYTES = 256 << 20


@dataclass(frozen=True)
class SoftmaxOptions:
    """As of `candidate_softmax`; gradients: whether they are wanted."""

    scale: float
    positive_uncorrected: bool
    smoothing: str
    alpha: float
    chunk: int | None
    precision: str
    gradients: bool


@dataclass(frozen=True, eq=False)
class _Work:
    """What all chunks share. rows of a chunk, candidates of a block; bounded: all scores are within ±BOUND."""

    options: SoftmaxOptions
    candidates_CD: Tensor
    candidates_DC: Tensor  # the same, laid out for the users' gradient
    log_q_C: Tensor | None
    rows: int
    block: int
    bounded: bool
    scores: Tensor  # buffer of a chunk
    spare: Tensor  # buffer of a block
    d_candidates_CD: Tensor | None


@dataclass(frozen=True, eq=False)
class _Rows:
    """A chunk. users are scaled; score_R: of the positive, corrected; row_P, column_P: what is no negative; weight_R:
    what the gradients are multiplied by, None = 1."""

    users_KRD: Tensor
    score_R: Tensor
    row_P: Tensor
    column_P: Tensor
    weight_R: Tensor | None


def loss_and_gradients(
    users_TKD: Tensor,
    candidates_CD: Tensor,
    target_T: Tensor,
    log_q_C: Tensor | None,
    owned: Owned | Seen | None,
    weight_T: Tensor | None,
    options: SoftmaxOptions,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Mean loss, and its gradients with respect to users and candidates (None without `options.gradients`)."""
    T = len(users_TKD)
    row_T = torch.arange(T, device=target_T.device)
    users_KTD = (users_TKD.transpose(0, 1) * options.scale).contiguous()
    positive_TD = candidates_CD[target_T]
    score_T, winner_T = (users_KTD * positive_TD).sum(-1).max(dim=0)
    if log_q_C is not None and not options.positive_uncorrected:
        score_T = score_T - log_q_C[target_T]

    work = _prepare(users_TKD, candidates_CD, log_q_C, options)
    loss_T, d_score_T = torch.empty_like(score_T), torch.empty_like(score_T)
    d_users_KTD = torch.empty_like(users_KTD) if options.gradients else None
    one_chunk = _softmax if options.smoothing == "none" else _smoothed
    with _products(options.precision, users_TKD.device.type):
        for first in range(0, T, work.rows):
            last = min(first + work.rows, T)
            row_P, column_P = row_T[: last - first], target_T[first:last]
            if owned is not None:
                row, column = owned.pairs(first, last)
                row_P, column_P = torch.cat([row_P, row]), torch.cat([column_P, column])
            weight_R = None if weight_T is None else weight_T[first:last].to(score_T.dtype)
            rows = _Rows(users_KTD[:, first:last].contiguous(), score_T[first:last], row_P, column_P, weight_R)
            loss_T[first:last], d_score_T[first:last], d_users_KRD = one_chunk(work, rows)
            if d_users_KTD is not None and d_users_KRD is not None:
                d_users_KTD[:, first:last] = d_users_KRD
    if weight_T is not None:
        loss_T, d_score_T = loss_T * weight_T, d_score_T * weight_T
    loss = loss_T.mean(dtype=torch.float64).to(users_TKD.dtype)
    if d_users_KTD is None or work.d_candidates_CD is None:
        return loss, None, None
    d_score_T1 = d_score_T[:, None]
    d_users_KTD[winner_T, row_T] += d_score_T1 * positive_TD
    work.d_candidates_CD.index_add_(0, target_T, d_score_T1 * users_KTD[winner_T, row_T])
    return loss, d_users_KTD.transpose(0, 1) * (options.scale / T), work.d_candidates_CD.div_(T)


@contextmanager
def _products(precision: str, device: str) -> Iterator[None]:
    """bfloat16: products of float32 with inputs rounded to it (on a GPU to TF32) and sums in float32, until the end."""
    if precision == "float32":  # as the process has it
        yield
        return
    backend = torch.backends.cuda.matmul if device == "cuda" else torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = backend.fp32_precision
    backend.fp32_precision = "tf32" if device == "cuda" else "bf16"
    try:
        yield
    finally:
        backend.fp32_precision = before


def plan(
    T: int, K: int, C: int, options: SoftmaxOptions, *, item_bytes: int = 4, cuda: bool = False
) -> tuple[int, int]:
    """Rows of a chunk, and candidates of a block. Smoothing, and a GPU, take all candidates at once."""
    row_bytes = item_bytes * K * C
    rows = CHUNK_ROWS[1] if CHUNK_ROWS[1] * row_bytes <= SMALL_BYTES else min(CHUNK_ROWS[0], LARGE_BYTES // row_bytes)
    if cuda:
        rows = CUDA_BYTES // row_bytes
    rows = min(T, options.chunk or max(16, rows))
    block = C if cuda or options.smoothing != "none" else max(1, BLOCK_BYTES // (item_bytes * K * rows))
    return rows, min(block, C)


def _prepare(users_TKD: Tensor, candidates_CD: Tensor, log_q_C: Tensor | None, options: SoftmaxOptions) -> _Work:
    T, K, _ = users_TKD.shape
    C, cuda = len(candidates_CD), users_TKD.device.type == "cuda"
    rows, block = plan(T, K, C, options, item_bytes=users_TKD.element_size(), cuda=cuda)
    bounded = False  # to know it on a GPU the host would have to wait
    if not cuda:
        bound = abs(options.scale) * users_TKD.norm(dim=2).amax() * candidates_CD.norm(dim=1).amax()
        bounded = bool(bound + (0 if log_q_C is None else log_q_C.abs().amax()) <= BOUND)
    return _Work(
        options,
        candidates_CD,
        candidates_CD.t().contiguous(),
        log_q_C,
        rows,
        block,
        bounded,
        users_TKD.new_empty(rows * K * C),
        users_TKD.new_empty(rows * block if K > 1 else 0),
        torch.zeros_like(candidates_CD) if options.gradients else None,
    )


def _scores(work: _Work, rows: _Rows, absent: float) -> Tensor:
    """Scores [C, K, R] with log Q taken off; `absent` where there is no negative."""
    K, R, D = rows.users_KRD.shape
    scores_CKR = work.scores[: len(work.candidates_CD) * K * R].view(-1, K, R)
    scores_CM, users_DM = scores_CKR.view(-1, K * R), rows.users_KRD.view(K * R, D).t()
    if work.log_q_C is None:
        torch.mm(work.candidates_CD, users_DM, out=scores_CM)
    else:
        torch.addmm(work.log_q_C[:, None], work.candidates_CD, users_DM, beta=-1, out=scores_CM)
    scores_CKR[rows.column_P, :, rows.row_P] = absent
    return scores_CKR


def _best(scores_nKR: Tensor, spare: Tensor) -> Tensor:
    """Maximum over K [n, R]. Of the scores only "better than all queries before it" is left, as 0 and 1; k = 0 is free.

    With one query the scores are the maximum.
    """
    n, K, R = scores_nKR.shape
    best_nR, spare_nR = scores_nKR[:, 0], spare[: n * R].view(-1, R)
    for k in range(1, K):
        torch.maximum(scores_nKR[:, k], best_nR, out=spare_nR)
        scores_nKR[:, k].gt_(best_nR)  # in place, so float32: see above
        best_nR, spare_nR = spare_nR, best_nR
    return best_nR


def _to_winners(scores_nKR: Tensor, d_best_nR: Tensor) -> None:
    """Give each entry to the query that won: the last that was better than all before it, so the first of equals."""
    for k in range(scores_nKR.shape[1] - 1, 0, -1):
        scores_nKR[:, k].mul_(d_best_nR)
        torch.sub(d_best_nR, scores_nKR[:, k], out=d_best_nR if k > 1 else scores_nKR[:, 0])


def _products_back(work: _Work, rows: _Rows, d_scores_CKR: Tensor, weight_R: Tensor | None) -> Tensor:
    """Users' gradient [K, R, D]; adds the candidates'. weight_R: what the rows of d_scores are yet to be scaled by."""
    C, K, R = d_scores_CKR.shape
    d_scores_CM = d_scores_CKR.view(C, K * R)
    d_users_KRD = torch.mm(work.candidates_DC, d_scores_CM).view(-1, K, R).permute(1, 2, 0).contiguous()
    users_KRD = rows.users_KRD
    if weight_R is not None:
        d_users_KRD.mul_(weight_R[:, None])
        users_KRD = users_KRD * weight_R[:, None]
    assert work.d_candidates_CD is not None
    work.d_candidates_CD.addmm_(d_scores_CM, users_KRD.view(K * R, -1))
    return d_users_KRD


def _softmax(work: _Work, rows: _Rows) -> tuple[Tensor, Tensor, Tensor | None]:
    """Losses [R], their gradient with respect to the positives' scores [R], the users' [K, R, D] through negatives."""
    scores_CKR = _scores(work, rows, ABSENT if work.bounded else LOW)
    score_R, top_R = rows.score_R, None
    if not work.bounded:
        top_R = torch.maximum(scores_CKR.amax(dim=(0, 1)), score_R)
        score_R = score_R - top_R
    negatives_R = torch.zeros_like(score_R)
    for block_nKR in scores_CKR.split(work.block):
        z_nR = _best(block_nKR, work.spare)
        if top_R is not None:
            z_nR.sub_(top_R).clamp_(min=FLOOR)
        negatives_R += z_nR.exp_().sum(dim=0)
        if work.options.gradients:
            _to_winners(block_nKR, z_nR)
    whole_R = negatives_R + score_R.exp()
    d_users_KRD = None
    if work.options.gradients:
        share_R = 1 / whole_R if rows.weight_R is None else rows.weight_R / whole_R
        d_users_KRD = _products_back(work, rows, scores_CKR, share_R)
    return whole_R.log() - score_R, -negatives_R / whole_R, d_users_KRD


def _smoothed(work: _Work, rows: _Rows) -> tuple[Tensor, Tensor, Tensor | None]:
    """As `_softmax`, with smoothing: Σ is over the row's negatives, see `candidate_softmax`."""
    C, alpha = len(work.candidates_CD), work.options.alpha
    absent = rows.column_P, rows.row_P
    scores_CKR = _scores(work, rows, LOW)
    z_CR = _best(scores_CKR, work.spare)
    top_R = torch.maximum(z_CR.amax(dim=0), rows.score_R)
    z_CR[absent] = 0.0
    z_R = z_CR.sum(dim=0)
    p_CR = z_CR.sub_(top_R).clamp_(min=FLOOR).exp_()
    p_CR[absent] = 0.0
    positive_R = (rows.score_R - top_R).exp_()
    whole_R = p_CR.sum(dim=0) + positive_R
    log_whole_R = whole_R.log() + top_R
    p_CR.div_(whole_R)
    if work.options.smoothing == "standard":
        negative_CR = torch.ones_like(p_CR)
        negative_CR[absent] = 0.0
        count_R = negative_CR.sum(dim=0)
        smooth_R = count_R * log_whole_R - z_R
        share_R = 1 - alpha + alpha / C * count_R
        p_CR.mul_(share_R).sub_(negative_CR, alpha=alpha / C)
    else:
        rest_CR = (1.0 - p_CR).clamp_(min=SURE)  # 1 where absent, so that nothing is added below
        smooth_R = -rest_CR.log().sum(dim=0)
        odds_CR = (p_CR / rest_CR).masked_fill_(rest_CR <= SURE, 0.0)
        share_R = 1 - alpha - alpha / C * odds_CR.sum(dim=0)
        p_CR.mul_(share_R).add_(odds_CR, alpha=alpha / C)
    loss_R = (1 - alpha) * (log_whole_R - rows.score_R) + alpha / C * smooth_R
    d_users_KRD = None
    if work.options.gradients:
        _to_winners(scores_CKR, p_CR)
        d_users_KRD = _products_back(work, rows, scores_CKR, rows.weight_R)
    return loss_R, positive_R / whole_R * share_R - (1 - alpha), d_users_KRD

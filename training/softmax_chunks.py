"""The work behind `candidate_softmax`: loss and gradients of a softmax over candidates, a chunk of rows at a time.

Nothing of size [T, C] is made. For a chunk of rows and a tile of candidates that fits the cache: multiply scores out,
find the best query, take exponentials in place, multiply on; the row sums divide afterwards. What this avoids, as
measured on one core (`kir bench loss` shows the whole):

- page faults: buffers are reused, where plain cross entropy takes fresh [T, C] tensors at every step;
- `exp` of what is below -87, 20 to 100 times as slow as of the rest (the results are denormal): exponents end at FLOOR;
- masks of type bool, `where` and mixed types, which run unvectorised: winners are marked in float32, in place;
- a row's maximum, unless scores may be too large for exp as they are: norms tell that beforehand.

The positive gets an exact score of its own, and its gradient -(1 - p) comes without cancellation.

Shapes: T target rows, R rows of a chunk, K queries of a row, C candidates, n candidates of a tile, D width, P pairs.
Scores lie with the candidates first, [n, K, R]: both products of the gradients then run along memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from training.candidates import Owned

BOUND = (
    40.0  # scores within ±BOUND go to exp as they are: e^40 and e^-40, and sums of them, are far from float32's ends
)
FLOOR = -60.0  # elsewhere exponents, below the largest, stop here: e^-60 is 9e-27
LOW = -1e30  # score of what must not be the largest
SURE = 1e-6  # `paper` smoothing takes log(1 - p) no further than the log of this, and has no gradient beyond

CHUNK_ROWS = 256
TILE_BYTES = 1 << 20  # of a tile's scores: they stay in a core's second-level cache
CHUNK_BYTES = 64 << 20  # of a chunk's scores, kept until the row sums are known
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
    """What all chunks share. rows, columns: of a chunk, of a tile."""

    options: SoftmaxOptions
    candidates_CD: Tensor
    candidates_DC: Tensor  # the same, laid out for the users' gradient
    log_q_C: Tensor | None
    rows: int
    columns: int
    bounded: bool
    scores: Tensor  # buffer
    spare: Tensor  # buffer
    d_candidates_CD: Tensor | None

    def tiles(self) -> list[tuple[int, int]]:
        C = len(self.candidates_CD)
        return [(first, min(first + self.columns, C)) for first in range(0, C, self.columns)]


@dataclass(frozen=True, eq=False)
class _Rows:
    """A chunk. users are scaled; row_P, column_P: what is no negative, the positives among them."""

    users_KRD: Tensor
    target_R: Tensor
    vector_RD: Tensor  # the positive's
    score_R: Tensor  # the positive's, corrected
    winner_R: Tensor  # its query
    row_P: Tensor
    column_P: Tensor


def loss_and_gradients(
    users_TKD: Tensor,
    candidates_CD: Tensor,
    target_T: Tensor,
    log_q_C: Tensor | None,
    owned: Owned | None,
    options: SoftmaxOptions,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Mean loss, and its gradients with respect to users and candidates (None without `options.gradients`)."""
    T = len(users_TKD)
    work = _prepare(users_TKD, candidates_CD, log_q_C, options)
    d_candidates_CD = work.d_candidates_CD
    d_users_TKD = torch.empty_like(users_TKD, memory_format=torch.contiguous_format) if options.gradients else None
    total = users_TKD.new_zeros((), dtype=torch.float64)
    with _products(options.precision, users_TKD.device.type):
        for first in range(0, T, work.rows):
            last = min(first + work.rows, T)
            pairs = owned.pairs(first, last) if owned is not None else None
            rows = _chunk(work, users_TKD[first:last], target_T[first:last], pairs)
            loss_R, d_score_R, d_users_KRD = (_softmax if options.smoothing == "none" else _smoothed)(work, rows)
            total += loss_R.sum(dtype=torch.float64)
            if d_users_TKD is not None and d_candidates_CD is not None:
                won = rows.winner_R, torch.arange(last - first, device=target_T.device)
                d_users_KRD[won] += d_score_R[:, None] * rows.vector_RD
                d_users_TKD[first:last] = d_users_KRD.transpose(0, 1)
                d_candidates_CD.index_add_(0, rows.target_R, d_score_R[:, None] * rows.users_KRD[won])
    if d_users_TKD is not None and d_candidates_CD is not None:
        d_users_TKD.mul_(options.scale / T)
        d_candidates_CD.div_(T)
    return (total / T).to(users_TKD.dtype), d_users_TKD, d_candidates_CD


@contextmanager
def _products(precision: str, device: str) -> Iterator[None]:
    """Products of float32 with inputs rounded to bfloat16 (on a GPU to TF32) and sums in float32, until the end."""
    backend = torch.backends.cuda.matmul if device == "cuda" else torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = backend.fp32_precision
    if precision == "bfloat16":
        backend.fp32_precision = "tf32" if device == "cuda" else "bf16"
    try:
        yield
    finally:
        backend.fp32_precision = before


def plan(
    T: int, K: int, C: int, options: SoftmaxOptions, *, item_bytes: int = 4, cuda: bool = False
) -> tuple[int, int]:
    """Rows of a chunk and columns of a tile. Smoothing, and a GPU, take all columns at once."""
    whole = cuda or options.smoothing != "none"
    most = CUDA_BYTES if cuda else 4 * TILE_BYTES if whole else CHUNK_BYTES
    rows = options.chunk or max(16, min(T if cuda else CHUNK_ROWS, most // (item_bytes * K * C)))
    rows = min(rows, T)
    columns = C if whole else max(1, TILE_BYTES // (item_bytes * K * rows))
    return rows, min(columns, C)


def _prepare(users_TKD: Tensor, candidates_CD: Tensor, log_q_C: Tensor | None, options: SoftmaxOptions) -> _Work:
    T, K, _ = users_TKD.shape
    C, cuda = len(candidates_CD), users_TKD.device.type == "cuda"
    rows, columns = plan(T, K, C, options, item_bytes=users_TKD.element_size(), cuda=cuda)
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
        columns,
        bounded,
        users_TKD.new_empty(rows * K * (C if options.gradients else columns)),
        users_TKD.new_empty(rows * columns if K > 1 else 0),
        torch.zeros_like(candidates_CD) if options.gradients else None,
    )


def _chunk(work: _Work, users_RKD: Tensor, target_R: Tensor, pairs: tuple[Tensor, Tensor] | None) -> _Rows:
    users_KRD = (users_RKD.transpose(0, 1) * work.options.scale).contiguous()
    vector_RD = work.candidates_CD[target_R]
    score_R, winner_R = (users_KRD * vector_RD).sum(-1).max(dim=0)
    if work.log_q_C is not None and not work.options.positive_uncorrected:
        score_R = score_R - work.log_q_C[target_R]
    row_P, column_P = torch.arange(len(target_R), device=target_R.device), target_R
    if pairs is not None:
        row_P, column_P = torch.cat([row_P, pairs[0]]), torch.cat([column_P, pairs[1]])
    return _Rows(users_KRD, target_R, vector_RD, score_R, winner_R, row_P, column_P)


def _scores(work: _Work, rows: _Rows, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Scores [n, K, R] of candidates first .. last - 1, and [n, R] their maximum over K with log Q taken off.

    Of the scores only "better than all queries before it" is left, as 0 and 1; with one query they are the maximum.
    """
    K, R, D = rows.users_KRD.shape
    n = last - first
    place = K * R * first if work.options.gradients else 0
    scores_nKR = work.scores[place : place + n * K * R].view(n, K, R)
    torch.mm(work.candidates_CD[first:last], rows.users_KRD.view(K * R, D).t(), out=scores_nKR.view(n, K * R))
    best_nR, spare_nR = scores_nKR[:, 0], work.spare[: n * R].view(-1, R)
    for k in range(1, K):
        torch.maximum(scores_nKR[:, k], best_nR, out=spare_nR)
        scores_nKR[:, k].gt_(best_nR)  # float32 0 and 1
        best_nR, spare_nR = spare_nR, best_nR
    if work.log_q_C is not None:
        best_nR.sub_(work.log_q_C[first:last, None])
    return scores_nKR, best_nR


def _to_winners(scores_nKR: Tensor, d_best_nR: Tensor) -> None:
    """Give each entry to the query that won: the last that was better than all before it, so the first of equals."""
    for k in range(scores_nKR.shape[1] - 1, 0, -1):
        scores_nKR[:, k].mul_(d_best_nR)
        torch.sub(d_best_nR, scores_nKR[:, k], out=d_best_nR if k > 1 else scores_nKR[:, 0])


def _softmax(work: _Work, rows: _Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Losses [R], their gradient with respect to the positives' scores [R], and the users' [K, R, D] through negatives.

    Exponents are relative to the largest so far (0 where scores are bounded), as in online softmax: what was summed
    before is scaled when a larger one comes. The candidates' gradient waits for the row sums.
    """
    K, R, D = rows.users_KRD.shape
    sum_R = torch.zeros_like(rows.score_R)
    top_R = torch.full_like(rows.score_R, 0.0 if work.bounded else LOW)
    product_DKR = sum_R.new_zeros(D, K, R)
    tiles = []
    for first, last in work.tiles():
        scores_nKR, z_nR = _scores(work, rows, first, last)
        n = last - first
        absent = rows.column_P, rows.row_P
        if n < len(work.candidates_CD):
            here_P = (rows.column_P >= first) & (rows.column_P < last)
            absent = rows.column_P[here_P] - first, rows.row_P[here_P]
        tile_top_R = top_R
        if not work.bounded:
            z_nR[absent] = LOW
            tile_top_R = z_nR.amax(dim=0)
            z_nR.sub_(tile_top_R).clamp_(min=FLOOR)
        z_nR.exp_()[absent] = 0.0
        before_R, top_R = top_R, torch.maximum(top_R, tile_top_R)
        before_R, now_R = (before_R - top_R).exp_(), (tile_top_R - top_R).exp_()
        sum_R = sum_R * before_R + z_nR.sum(dim=0) * now_R
        if work.options.gradients:
            _to_winners(scores_nKR, z_nR)
            product_KR = torch.mm(work.candidates_DC[:, first:last], scores_nKR.view(n, K * R)).view(D, K, R)
            product_DKR.mul_(before_R).addcmul_(product_KR, now_R)
            tiles.append((first, last, scores_nKR.view(n, K * R), tile_top_R))
    before_R, top_R = top_R, torch.maximum(top_R, rows.score_R)
    negatives_R = sum_R * (before_R - top_R).exp_()
    whole_R = negatives_R + (rows.score_R - top_R).exp_()
    loss_R = whole_R.log() + top_R - rows.score_R
    if work.d_candidates_CD is not None:
        for first, last, exponentials, tile_top_R in tiles:
            weight_R1 = ((tile_top_R - top_R).exp_() / whole_R)[:, None]
            work.d_candidates_CD[first:last].addmm_(exponentials, (rows.users_KRD * weight_R1).view(K * R, D))
    factor_R = (before_R - top_R).exp_() / whole_R
    return loss_R, -negatives_R / whole_R, (product_DKR * factor_R).permute(1, 2, 0).contiguous()


def _smoothed(work: _Work, rows: _Rows) -> tuple[Tensor, Tensor, Tensor]:
    """As `_softmax`, with smoothing: all candidates in one tile."""
    K, R, D = rows.users_KRD.shape
    C, alpha = len(work.candidates_CD), work.options.alpha
    scores_CKR, z_CR = _scores(work, rows, 0, C)
    absent = rows.column_P, rows.row_P
    z_CR[absent] = 0.0
    z_R = z_CR.sum(dim=0)
    z_CR[absent] = LOW
    top_R = torch.maximum(z_CR.amax(dim=0), rows.score_R)
    p_CR = z_CR.sub_(top_R).clamp_(min=FLOOR).exp_()
    p_CR[absent] = 0.0
    positive_R = (rows.score_R - top_R).exp_()
    whole_R = p_CR.sum(dim=0) + positive_R
    log_whole_R = whole_R.log() + top_R
    loss_R = log_whole_R - rows.score_R
    p_CR.div_(whole_R)
    positive_R = positive_R / whole_R
    if work.options.smoothing == "standard":
        negative_CR = torch.ones_like(p_CR)
        negative_CR[absent] = 0.0
        negatives_R = negative_CR.sum(dim=0)
        smooth_R = negatives_R * log_whole_R - z_R
        share_R = 1 - alpha + alpha / C * negatives_R
        p_CR.mul_(share_R).sub_(negative_CR, alpha=alpha / C)
    else:
        rest_CR = (1.0 - p_CR).clamp_(min=SURE)  # absent: 1, so they add nothing below
        smooth_R = -rest_CR.log().sum(dim=0)
        odds_CR = p_CR / rest_CR
        odds_CR.masked_fill_(rest_CR <= SURE, 0.0)
        share_R = 1 - alpha - alpha / C * odds_CR.sum(dim=0)
        p_CR.mul_(share_R).add_(odds_CR, alpha=alpha / C)
    loss_R = (1 - alpha) * loss_R + alpha / C * smooth_R
    d_users_KRD = rows.users_KRD
    if work.d_candidates_CD is not None:
        _to_winners(scores_CKR, p_CR)
        d_scores = scores_CKR.view(C, K * R)
        work.d_candidates_CD.addmm_(d_scores, rows.users_KRD.view(K * R, D))
        d_users_KRD = torch.mm(work.candidates_DC, d_scores).view(D, K, R).permute(1, 2, 0).contiguous()
    return loss_R, positive_R * share_R - (1 - alpha), d_users_KRD

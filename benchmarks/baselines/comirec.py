"""ComiRec (Cen et al., KDD 2020, arXiv 2005.09347), both extractors of interests.

Every cut is an example of its own, as in the paper: the last `length` items before it, their places counted from the
window's first item. Unlike there, all cuts of a history are examples in every epoch, not one drawn at random; what does
not depend on a window's place (a linear map of an item) is worked out once. As there: hard attention by the target in
training, the best of the interests in ranking. What else differs: softmax over the catalogue instead of 10 sampled
items a target, and the last stage's diversity term is off, since accuracy is what is compared.

Shapes: B histories, L slots, P cuts, W items of a window, K interests, D width, H hidden.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.baselines.sequences import MASK
from contract.errors import InputError

ROUNDS = 3  # of routing, as in the paper
TRANSFORMS = ("place", "shared")


def windows(mask_BL: Tensor, n_cuts: int, length: int) -> tuple[Tensor, Tensor]:
    """The last `length` items before each of the last cuts, oldest first, padding last.

    Returns their rows in a flattened [B * L, …] tensor, int64 [B, P, W], and whether there is one, float [B, P, W].
    """
    slots = mask_BL.shape[1]
    padding_B11 = slots - mask_BL.long().sum(dim=1)[:, None, None]
    last_P1 = torch.arange(slots - n_cuts, slots, device=mask_BL.device)[:, None]
    width = min(length, slots)
    slot_BPW = torch.maximum(padding_B11, last_P1 - length + 1) + torch.arange(width, device=mask_BL.device)
    row_B11 = torch.arange(len(mask_BL), device=mask_BL.device)[:, None, None] * slots
    return row_B11 + slot_BPW.clamp(max=slots - 1), (slot_BPW <= last_P1).to(mask_BL.dtype)


class ComiRecSA(nn.Module):
    """Self-attentive: softmax(w2 · tanh(W1 (h + p))) over the window, times h: [B, P, K, D]."""

    def __init__(self, width: int, length: int, interests: int = 4, dropout: float = 0.0):
        from training.blocks import Dropout

        super().__init__()
        self.length = length
        self.position = nn.Parameter(torch.empty(length, width))
        self.inner = nn.Linear(width, 4 * width)
        self.outer = nn.Linear(4 * width, interests, bias=False)  # a bias would not move a softmax over items
        self.dropout = Dropout(dropout)
        for matrix in (self.position, self.inner.weight, self.outer.weight):
            nn.init.xavier_uniform_(matrix)
        nn.init.zeros_(self.inner.bias)

    def forward(self, tokens_BLD: Tensor, mask_BL: Tensor, n_cuts: int) -> Tensor:
        row_BPW, there_BPW = windows(mask_BL, n_cuts, self.length)
        tokens_XD = self.dropout(tokens_BLD).flatten(0, 1)
        # W1 (h + p) = W1 h + W1 p: one product for an item, whichever windows it stands in.
        placed_WH = self.position[: row_BPW.shape[2]] @ self.inner.weight.T + self.inner.bias
        hidden_BPWH = torch.tanh(F.embedding(row_BPW, tokens_XD @ self.inner.weight.T) + placed_WH)
        logits_BPWK = self.outer(hidden_BPWH) + ((1.0 - there_BPW) * MASK)[..., None]
        weights_BPKW = torch.softmax(logits_BPWK, dim=2).transpose(2, 3) * there_BPW[:, :, None]
        return weights_BPKW @ F.embedding(row_BPW, tokens_XD)


class ComiRecDR(nn.Module):
    """Dynamic routing: K capsules, ROUNDS rounds, the last alone with a gradient: [B, P, K, D].

    transform  place: votes by a matrix of each place and interest, as the paper has it; shared: of each interest alone,
               the public code's other kind
    The matrices start near the identity, so that a vote begins as the item's own vector: Recall@10 on ML-1M's `val`
    after 120 steps .105, from random matrices as in the public code .040 (docs/baselines.md).
    """

    def __init__(self, width: int, length: int, interests: int = 4, dropout: float = 0.0, transform: str = "place"):
        from training.blocks import Dropout

        super().__init__()
        if transform not in TRANSFORMS:
            raise InputError("unknown transform of ComiRec-DR", got=transform, allowed=TRANSFORMS)
        self.length, self.interests = length, interests
        places = length if transform == "place" else 1
        noise = torch.randn(places, width, interests * width) * (0.5 * width**-0.5)
        self.votes = nn.Parameter(torch.eye(width).repeat(1, interests) + noise)
        self.dropout = Dropout(dropout)

    def forward(self, tokens_BLD: Tensor, mask_BL: Tensor, n_cuts: int) -> Tensor:
        row_BPW, there_BPW = windows(mask_BL, n_cuts, self.length)
        row_WX = row_BPW.flatten(0, 1).T
        items_XD = self.dropout(tokens_BLD).flatten(0, 1)
        if len(self.votes) == 1:
            votes_WXV = F.embedding(row_WX, items_XD @ self.votes[0])
        else:
            votes_WXV = torch.bmm(F.embedding(row_WX, items_XD), self.votes[: len(row_WX)])
        votes_XKWD = votes_WXV.unflatten(2, (self.interests, -1)).permute(1, 2, 0, 3)
        return route(votes_XKWD, there_BPW.flatten(0, 1)).unflatten(0, there_BPW.shape[:2])


def route(votes_XKWD: Tensor, there_XW: Tensor) -> Tensor:
    """Capsules [X, K, D] of X windows. there_XW: 1 = there is an item.

    w = softmax over interests of b, 0 without item; capsule = squash(Σ w · vote); b += vote · capsule; b starts at 0.
    """
    fixed_XKWD = votes_XKWD.detach()
    logits_XKW = torch.zeros_like(fixed_XKWD[..., 0])
    for _ in range(ROUNDS - 1):
        weights_XKW = torch.softmax(logits_XKW, dim=1) * there_XW[:, None]
        capsules_XKD = squash((weights_XKW[:, :, None] @ fixed_XKWD)[:, :, 0])
        logits_XKW = logits_XKW + (fixed_XKWD @ capsules_XKD[..., None])[..., 0]
    weights_XKW = torch.softmax(logits_XKW, dim=1) * there_XW[:, None]
    return squash((weights_XKW[:, :, None] @ votes_XKWD)[:, :, 0])


def squash(x: Tensor) -> Tensor:
    """x / |x| times |x|² / (1 + |x|²), over the last axis (Sabour et al. 2017)."""
    square = (x * x).sum(dim=-1, keepdim=True)
    return x * (square / (1.0 + square) * torch.rsqrt(square + 1e-9))

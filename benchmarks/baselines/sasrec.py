"""SASRec (Kang & McAuley, ICDM 2018, arXiv 1808.09781), as the authors' public code has it.

Item vectors times sqrt(D) plus learned positions; blocks whose queries and residuals are the layer-normed input while
keys and values are the input itself, attention without an output projection, a point-wise ReLU net of the same width;
a last layer norm; inner products with the table that the history was read from. What differs: the loss (softmax over
the catalogue, see `sequences`).

Shapes: B histories, L slots, P cuts, D width, H heads, E width of a head.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.baselines.sequences import MASK
from contract.errors import InputError

EPS = 1e-8  # of the layer norms, as there


class SASRec(nn.Module):
    """tokens [B, L, D], mask [B, L] -> [B, P, 1, D]. length: the most slots it takes, positions count from the last."""

    def __init__(self, width: int, length: int, layers: int = 2, heads: int = 1, dropout: float = 0.2):
        from training.blocks import Dropout

        super().__init__()
        if width % heads:
            raise InputError("SASRec's width must be a multiple of its heads", got=(width, heads))
        self.position = nn.Parameter(torch.empty(length, width))
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps=EPS)
        nn.init.xavier_uniform_(self.position)  # TensorFlow 1's default for every matrix
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, tokens_BLD: Tensor, mask_BL: Tensor, n_cuts: int) -> Tensor:
        length, width = tokens_BLD.shape[1:]
        present_BL1 = mask_BL[..., None]
        x_BLD = tokens_BLD * math.sqrt(width) + self.position[len(self.position) - length :]
        x_BLD = self.dropout(x_BLD) * present_BL1
        earlier_LL = torch.ones(length, length, dtype=torch.bool, device=mask_BL.device).tril()
        mask_B1LL = torch.where(earlier_LL & (mask_BL > 0)[:, None], 0.0, MASK)[:, None]
        for block in self.blocks:
            x_BLD = block(x_BLD, mask_B1LL) * present_BL1
        return self.norm(x_BLD[:, -n_cuts:]).unsqueeze(2)


class Block(nn.Module):
    """q = LN(x); y = LN(q + attention(q, x, x)); y + FFN(y)."""

    def __init__(self, width: int, heads: int, dropout: float):
        from training.blocks import Dropout

        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width, eps=EPS)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.feed_forward_norm = nn.LayerNorm(width, eps=EPS)
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)
        self.dropout = Dropout(dropout)

    def forward(self, x_BLD: Tensor, mask_B1LL: Tensor) -> Tensor:
        query_BLD = self.attention_norm(x_BLD)
        query_BHLE = self._split(self.query(query_BLD))
        key_BHLE, value_BHLE = self._split(self.key(x_BLD)), self._split(self.value(x_BLD))
        logits_BHLL = query_BHLE @ key_BHLE.transpose(-1, -2) / math.sqrt(query_BHLE.shape[-1]) + mask_B1LL
        attended_BHLE = self.dropout(torch.softmax(logits_BHLL, dim=-1)) @ value_BHLE
        x_BLD = query_BLD + attended_BHLE.transpose(1, 2).flatten(2)
        x_BLD = self.feed_forward_norm(x_BLD)
        return x_BLD + self.dropout(self.outer(self.dropout(F.relu(self.inner(x_BLD)))))

    def _split(self, x_BLD: Tensor) -> Tensor:
        return x_BLD.unflatten(-1, (self.heads, -1)).transpose(1, 2)

"""Which items a softmax is taken over, how likely each is to stand there, and which are no negatives of whom.

    rows_C, target_T = in_batch_candidates(item_T)                                   # the batch's own items
    rows_C, target_T, log_q_C = shared_negatives(item_T, 512, n_items)               # and 512 drawn for all rows
    owned = OwnedItems.from_pairs(user, row).of(owner_T, rows_C, n_items)            # liked by a row's own user

A candidate stands in the set once, however often the batch holds it, and log Q is the logarithm of the probability
that the set holds it at all (not of the expected count). With that the sum of exp(s - log Q) over the set has the sum
of exp(s) over the catalogue as its expected value (Horvitz and Thompson 1952), which is what logQ is after.

Shapes: T target rows, C candidates (unique items), N items of the catalogue, U owners.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from contract.errors import InputError


def in_batch_candidates(item_T: Tensor) -> tuple[Tensor, Tensor]:
    """The unique items of a batch: catalogue rows int64 [C], ascending, and the column of each target int64 [T]."""
    rows_C, target_T = torch.unique(item_T, return_inverse=True)
    return rows_C, target_T


def shared_negatives(
    item_T: Tensor,
    n: int,
    n_items: int,
    *,
    probability_N: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The batch's items and negatives drawn once for all rows: rows int64 [C], target_T int64 [T], log_q_C float32 [C].

    Without `probability_N` n different items are drawn, each with the same chance; with it n draws with replacement.
    log Q is exact, given the batch: 0 for the batch's items, which are there for certain, and for the others log(n / N)
    or log(1 - (1 - q)^n). So a positive's own correction is 0, and "logq" and "corrected" are one loss here.
    Raises InputError for n outside 1 .. N, or probabilities of another length.
    """
    if not 1 <= n <= n_items:
        raise InputError("number of negatives out of range", got=n, allowed=f"1 .. {n_items} items")
    device = item_T.device
    if probability_N is None:
        drawn = torch.randperm(n_items, generator=generator, device=device)[:n]
        log_q_N = torch.full((n_items,), n / n_items, device=device).log()
    else:
        if probability_N.shape != (n_items,):
            raise InputError("one probability per item is needed", got=tuple(probability_N.shape), allowed=(n_items,))
        q_N = (probability_N.double() / probability_N.double().sum()).to(device)
        drawn = torch.multinomial(q_N, n, replacement=True, generator=generator)
        # 1 - (1 - q)^n without losing the small ones
        log_q_N = torch.log(-torch.expm1(n * torch.log1p(-q_N))).float()
    rows_C, column = torch.unique(torch.cat([item_T, drawn]), return_inverse=True)
    target_T = column[: len(item_T)]
    log_q_C = log_q_N[rows_C].index_fill(0, target_T, 0.0)
    return rows_C, target_T, log_q_C


@dataclass(frozen=True, eq=False)
class Owned:
    """Candidates that are no negatives of a row: those that the row's owner liked. Kept per owner, not per row.

    owner_T    int64 [T] whose row it is
    offsets_U  int64 [U + 1]
    columns    int64, columns of the candidates: owner u's are columns[offsets_U[u] : offsets_U[u + 1]]
    """

    owner_T: Tensor
    offsets_U: Tensor
    columns: Tensor

    def pairs(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """(row - first, column) of all pairs of rows first .. last - 1; two int64 tensors, rows ascending."""
        owner = self.owner_T[first:last]
        start, count = self.offsets_U[owner], self.offsets_U[owner + 1] - self.offsets_U[owner]
        row = torch.repeat_interleave(torch.arange(len(owner), device=owner.device), count)
        before = torch.cumsum(count, 0) - count
        place = torch.arange(len(row), device=owner.device) + (start - before)[row]
        return row, self.columns[place]


@dataclass(frozen=True, eq=False)
class Seen:
    """Candidates that are no negatives of a row: those in the history that the row sees.

    columns_BL  int64 [B, L] column of each slot's item, -1 = no candidate
    history_T   int64 [T] which history a row sees; end_T: up to which slot
    """

    columns_BL: Tensor
    history_T: Tensor
    end_T: Tensor

    def pairs(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """As Owned.pairs; an item that stands twice in a history comes twice."""
        columns_RL = self.columns_BL[self.history_T[first:last]]
        before_RL = torch.arange(columns_RL.shape[1], device=columns_RL.device) < self.end_T[first:last, None]
        row, slot = ((columns_RL >= 0) & before_RL).nonzero(as_tuple=True)
        return row, columns_RL[row, slot]

    @classmethod
    def of(cls, held_BL: Tensor, slot_N: Tensor, cell_T: Tensor, n_cuts: int, rows_C: Tensor | None = None) -> Seen:
        """What the cells of a batch see.

        held_BL  int64 [B, L] slots of the video table in the histories; slot_N: those of the catalogue's items
        cell_T   int64 [T] history * n_cuts + cut, as in training/segments.py
        rows_C   catalogue row of each candidate; None = all, in order
        """
        column_N = torch.arange(len(slot_N), device=slot_N.device)
        if rows_C is not None:
            column_N = torch.full_like(column_N, -1).index_copy_(0, rows_C, column_N[: len(rows_C)])
        column_S = torch.full((int(torch.maximum(slot_N.max(), held_BL.max())) + 2,), -1, device=slot_N.device)
        column_S[slot_N] = column_N
        # Slot 0 is every item's that training does not know, -1 padding: no item's.
        column_S[0] = column_S[-1] = -1
        return cls(column_S[held_BL], cell_T // n_cuts, held_BL.shape[1] - n_cuts + cell_T % n_cuts + 1)


@dataclass(frozen=True, eq=False)
class OwnedItems:
    """What each owner liked: items[offsets_U[u] : offsets_U[u + 1]] are catalogue rows. Made once for a training."""

    offsets_U: Tensor
    items: Tensor

    @classmethod
    def from_pairs(cls, owner: Tensor, item: Tensor, owners: int | None = None) -> OwnedItems:
        """From (owner, item) pairs in any order, int64 [P] each; `owners` = U when the last ones may own nothing."""
        owners = int(owner.max()) + 1 if owners is None and len(owner) else owners or 0
        order = torch.argsort(owner, stable=True)
        counts = torch.bincount(owner, minlength=owners)
        return cls(torch.cat([counts.new_zeros(1), counts.cumsum(0)]), item[order])

    def of(self, owner_T: Tensor, rows_C: Tensor | None = None, n_items: int = 0) -> Owned:
        """For a batch whose rows belong to `owner_T`. rows_C: catalogue row of each candidate; None = all, in order.

        n_items is only read with rows_C: the length of the catalogue.
        """
        if rows_C is None:
            return Owned(owner_T, self.offsets_U, self.items)
        owners, owner_T = torch.unique(owner_T, return_inverse=True)
        row, item = Owned(owners, self.offsets_U, self.items).pairs(0, len(owners))
        column_N = torch.full((n_items,), -1, dtype=torch.int64, device=rows_C.device)
        column_N[rows_C] = torch.arange(len(rows_C), device=rows_C.device)
        column = column_N[item]
        kept = OwnedItems.from_pairs(row[column >= 0], column[column >= 0], len(owners))
        return Owned(owner_T, kept.offsets_U, kept.items)

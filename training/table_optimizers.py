"""Optimisers of the sparse tables, by name.

adagrad           Yi et al. 2019; one accumulator per weight. Small and large tables get the same rows
rowwise_adagrad   one accumulator per row, as fbgemm's EXACT_ROWWISE_ADAGRAD: 1/W of the optimiser's memory
adam              small tables: Adam, every row at every step; large: SparseAdam, where a row without a gradient rests

"Small" tables have dense gradients, "large" ones sparse (tables.SPARSE_FROM_ROWS).
Shapes: R rows, W width, U rows touched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from contract.errors import InputError

TABLE_OPTIMIZERS = ("adagrad", "rowwise_adagrad", "adam")
ADAM_BETAS = (0.9, 0.98)
ROWWISE_EPS = 1e-8  # fbgemm's default


class RowwiseAdagrad(torch.optim.Optimizer):
    """s_r ← s_r + mean_w(g_rw²);  w_r ← w_r - lr·g_r / (√s_r + eps), for every row r with a gradient.

    Duplicates of a row in a sparse gradient are summed first ("exact"). Dense gradients give the same rows.
    """

    def __init__(self, params: Sequence[nn.Parameter], lr: float, eps: float = ROWWISE_EPS):
        super().__init__(params, {"lr": lr, "eps": eps})
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["sum"] = torch.zeros(len(parameter), device=parameter.device)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        if closure is not None:
            raise InputError("row-wise Adagrad takes no closure")
        for group in self.param_groups:
            for weight_RW in group["params"]:
                if weight_RW.grad is None:
                    continue
                sum_R = self.state[weight_RW]["sum"]
                if weight_RW.grad.is_sparse:
                    grad = weight_RW.grad.coalesce()
                    rows_U, grad_UW = grad.indices()[0], grad.values()
                    sum_U = sum_R[rows_U] + _mean_square(grad_UW)
                    sum_R[rows_U] = sum_U
                    factor_U = group["lr"] / (sum_U.sqrt() + group["eps"])
                    weight_RW.index_add_(0, rows_U, grad_UW * factor_U.unsqueeze(1), alpha=-1)
                else:
                    sum_R += _mean_square(weight_RW.grad)
                    factor_R = group["lr"] / (sum_R.sqrt() + group["eps"])
                    weight_RW.addcmul_(weight_RW.grad, factor_R.unsqueeze(1), value=-1)


@torch.no_grad()
def decay_rows(tables: Sequence[nn.Parameter], share: float) -> None:
    """w ← (1 - share)·w, before the optimiser's step and apart from its gradient (Loshchilov and Hutter, ICLR 2019).

    Rows of tables with sparse gradients that have none rest.
    """
    if not share:
        return
    for weight_RW in tables:
        if weight_RW.grad is None:
            continue
        if weight_RW.grad.is_sparse:
            rows_U = weight_RW.grad.coalesce().indices()[0]
            weight_RW[rows_U] *= 1.0 - share
        else:
            weight_RW.mul_(1.0 - share)


def _mean_square(grad_UW: Tensor) -> Tensor:
    return torch.linalg.vecdot(grad_UW, grad_UW) / grad_UW.shape[1]


def make_optimizers(
    small: Sequence[nn.Parameter], large: Sequence[nn.Parameter], learning_rate: float, kind: str
) -> list[torch.optim.Optimizer]:
    """One optimiser for the small tables, one for the large; none for none. Raises InputError for an unknown kind."""
    if kind not in TABLE_OPTIMIZERS:
        raise InputError("unknown table optimiser", got=kind, allowed=TABLE_OPTIMIZERS)
    if large:
        torch.sparse.check_sparse_tensor_invariants.disable()  # said aloud, or torch warns at each step
    # torch 2.11 has the fused Adagrad on CPU alone; elsewhere its default is one call for all tables ("foreach").
    fused = True if small and small[0].device.type == "cpu" else None
    found: list[torch.optim.Optimizer] = []
    if kind == "rowwise_adagrad":
        return [RowwiseAdagrad(tables, learning_rate) for tables in (small, large) if tables]
    if kind == "adagrad":
        if small:
            found.append(torch.optim.Adagrad(small, lr=learning_rate, fused=fused))
        if large:
            found.append(torch.optim.Adagrad(large, lr=learning_rate))
        return found
    if small:
        found.append(torch.optim.Adam(small, lr=learning_rate, betas=ADAM_BETAS, fused=True))
    if large:
        found.append(torch.optim.SparseAdam(large, lr=learning_rate, betas=ADAM_BETAS))
    return found

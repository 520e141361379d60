"""Data parallel training under torchrun: every rank takes its rows of each batch, and all ranks hold the same weights.

torchrun --standalone --nproc-per-node 2 -m kir train kuaiformer --data events:EVENTS --out runs/kuaiformer

Every rank builds the same batches and computes the loss of its own rows, weighted by its share of the targets; the sum
of the ranks' gradients is then the gradient of the whole batch's mean loss. What the rows share (in-batch candidates,
the frequency estimator, negatives drawn) a task takes from the whole batch, `loss(batch, whole)`, so that a part is
judged against the same candidates as the whole would be; each rank computes all candidates, which is the price. What a
task draws for the whole batch must come from a generator that all ranks seed alike (by the step), since torch's own
differs between ranks: dropout does.

Rank 0 alone validates, logs and saves. The ranks stop, go on and cool by rank 0's clock.
Shapes: B rows, P cuts, T targets, U rows of a table with a gradient, W its width.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from contract.errors import InputError

ROW_FIELDS, TARGET_FIELDS = ("history", "mask"), ("item", "owner", "weight")
BUCKET_BYTES = 32 << 20  # of dense gradients that travel in one call
WAIT = timedelta(hours=2)  # of the other ranks for rank 0's validation


@dataclass(frozen=True)
class DataParallel:
    """This process's place among `world` ranks. Made by `from_environment`, None where there is one process alone."""

    rank: int
    world: int

    @staticmethod
    def from_environment(device: str = "cpu") -> DataParallel | None:
        """What torchrun's variables say; joins the process group (gloo on the CPU, NCCL on CUDA) at the first call."""
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            return None
        if not dist.is_initialized():
            on_cuda = device != "cpu" and torch.cuda.is_available()
            if on_cuda:
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            dist.init_process_group("nccl" if on_cuda else "gloo", timeout=WAIT)
        return DataParallel(dist.get_rank(), dist.get_world_size())

    def leave(self) -> None:
        """Leave the process group once all ranks are done. A rank that ended with the group's threads at work, or whose
        neighbour left first, was seen to abort as Python ended."""
        dist.barrier()
        dist.destroy_process_group()

    @property
    def leads(self) -> bool:
        """Rank 0: the one that logs, validates and writes."""
        return self.rank == 0

    def start_alike(self, module: nn.Module) -> None:
        """Give all ranks the weights and buffers of rank 0."""
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, 0)

    def seed_step(self, seed: int, step: int) -> None:
        """Torch's generators for one step, different on each rank; so a resumed run needs no generator's state."""
        torch.manual_seed((seed * 1_000_003 + step) * 4099 + self.rank)

    def from_leader(self, value: Any) -> Any:
        """Rank 0's value (anything that pickles), on all ranks."""
        box = [value]
        dist.broadcast_object_list(box, 0)
        return box[0]

    def sum_gradients(self, parameters: Sequence[nn.Parameter], numbers: Sequence[float]) -> list[float]:
        """Replace every gradient by its sum over the ranks; returns the sums of `numbers`.

        A parameter without a gradient on any rank keeps None, so that optimisers leave it alone as in one process.
        """
        has = [(p.grad is not None, p.grad is not None and p.grad.is_sparse) for p in parameters]
        flat = [*numbers, *(float(any_) for any_, _ in has), *(float(sparse) for _, sparse in has)]
        sums = torch.tensor(flat, dtype=torch.float64, device=parameters[0].device if parameters else "cpu")
        dist.all_reduce(sums)
        n, m = len(numbers), len(parameters)
        found = sums.tolist()
        dense = [
            p for p, some, sparse in zip(parameters, found[n : n + m], found[n + m :], strict=True) if some > sparse
        ]
        for p, sparse in zip(parameters, found[n + m :], strict=True):
            if sparse:
                p.grad = self._sum_sparse(p)
        for bucket in _buckets(dense):
            _sum_dense(bucket)
        return found[:n]

    def _sum_sparse(self, parameter: nn.Parameter) -> Tensor:
        """All ranks' rows and values, in the order of the ranks, coalesced: the same bits on each."""
        if parameter.grad is None:
            rows_U = torch.zeros(0, dtype=torch.int64, device=parameter.device)
            values_UW = parameter.new_zeros(0, parameter.shape[1])
        else:
            gradient = parameter.grad.coalesce()
            rows_U, values_UW = gradient.indices()[0], gradient.values()
        counts = [torch.zeros(1, dtype=torch.int64, device=rows_U.device) for _ in range(self.world)]
        dist.all_gather(counts, torch.tensor([len(rows_U)], device=rows_U.device))
        most = int(max(counts))
        rows = [rows_U.new_zeros(most) for _ in range(self.world)]
        values = [values_UW.new_zeros(most, values_UW.shape[1]) for _ in range(self.world)]
        dist.all_gather(rows, torch.cat([rows_U, rows_U.new_zeros(most - len(rows_U))]))
        dist.all_gather(values, torch.cat([values_UW, values_UW.new_zeros(most - len(rows_U), values_UW.shape[1])]))
        all_rows = torch.cat([r[: int(c)] for r, c in zip(rows, counts, strict=True)])
        all_values = torch.cat([v[: int(c)] for v, c in zip(values, counts, strict=True)])
        return torch.sparse_coo_tensor(all_rows[None], all_values, parameter.shape).coalesce()


def _buckets(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Neighbours together up to BUCKET_BYTES; a larger parameter goes alone."""
    found: list[list[nn.Parameter]] = []
    room = 0
    for parameter in parameters:
        size = parameter.numel() * parameter.element_size()
        if not found or size > room:
            found.append([])
            room = BUCKET_BYTES
        found[-1].append(parameter)
        room -= size
    return found


def _sum_dense(parameters: Sequence[nn.Parameter]) -> None:
    """One all-reduce for the gradients of some parameters; None counts as zero."""
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    flat = torch.cat([g.reshape(-1) for g in gradients])
    dist.all_reduce(flat)
    parts = flat.split([p.numel() for p in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter)


def split_batch(batch: Any, rank: int, world: int) -> tuple[Any, float]:
    """One rank's rows of a batch, cells renumbered, and its share of the targets.

    batch  a dataclass with history {field: [B, L, M]}, mask [B, L], n_cuts P, cell [T] (row * P + cut), item,
           owner and weight [T], perhaps day [T]. Rows without a target are left out; the rest are dealt in runs whose
           sizes differ by one at most.
    With fewer rows than ranks, a rank without any gets the first row and a share of 0, so that all ranks do the same
    steps. Raises InputError for a batch with other fields, or without targets.
    """
    tensors = {f.name: getattr(batch, f.name) for f in fields(batch)} if is_dataclass(batch) else {}
    known = {*ROW_FIELDS, *TARGET_FIELDS, "cell", "n_cuts"}
    day_T = tensors.pop("day", None)
    if set(tensors) != known:
        raise InputError("a batch that can't be cut for ranks", got=sorted(tensors), allowed=sorted(known))
    cell_T, n_cuts = batch.cell, batch.n_cuts
    if not len(cell_T):
        raise InputError("a batch without targets can't be cut for ranks", got=type(batch).__name__)
    row_T = cell_T // n_cuts
    with_targets = torch.unique(row_T)
    mine = torch.tensor_split(with_targets, world)[rank]
    share = 1.0
    if not len(mine):
        mine, share = with_targets[:1], 0.0
    place_B = torch.full((len(batch.mask),), -1, dtype=torch.int64, device=cell_T.device)
    place_B[mine] = torch.arange(len(mine), device=cell_T.device)
    own_T = place_B[row_T] >= 0
    cell = place_B[row_T[own_T]] * n_cuts + cell_T[own_T] % n_cuts
    part = replace(
        batch,
        history={name: slots[mine] for name, slots in batch.history.items()},
        mask=batch.mask[mine],
        cell=cell,
        item=batch.item[own_T],
        owner=batch.owner[own_T],
        weight=batch.weight[own_T],
        **({} if day_T is None else {"day": day_T[own_T]}),
    )
    return part, share * len(cell) / len(cell_T)

"""What the tables' optimiser remembers of every row: saved with a checkpoint, taken up by incremental training.

Adagrad moves a row by rate · g / √(Σ g²): a row seen often moves little, a new one far. Forgotten, every known row
would move like a new one, and what old days taught with it (an arm of `kir bench incremental --ablate`). One number a
row is kept, the mean of its sums, as row-wise Adagrad has it: 1/W of the memory. Adam's is not kept: it fades within 50
steps.

Shapes: R rows of a table, W its width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contract.errors import CheckpointError
from training.checkpoint import Checkpoint, TrainingState
from training.tables import SparseTables

SUM = "sum"  # of torch's Adagrad and of RowwiseAdagrad
PREFIX = "row_memory."


def row_memory(optimizers: Sequence[torch.optim.Optimizer], tables: SparseTables) -> TrainingState | None:
    """Mean squared-gradient sum of each row, float32 [R] per table, as a checkpoint's state; None for Adam."""
    found = {
        f"{PREFIX}{table}": sums if sums.dim() == 1 else sums.mean(dim=1)
        for table, sums in _sums(optimizers, tables).items()
    }
    return TrainingState(found, {"row_memory": sorted(found)}) if found else None


def read_row_memory(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Table -> float32 [R]. Raises CheckpointError for a checkpoint that has none, or one of other tables."""
    tensors = checkpoint.state().tensors
    found = {name.removeprefix(PREFIX): sums for name, sums in tensors.items() if name.startswith(PREFIX)}
    have, want = {table: len(sums) for table, sums in found.items()}, checkpoint.tables.n_rows
    if have != want:
        raise CheckpointError(
            "the checkpoint's row memory is of other tables", where=checkpoint.path, got=have, allowed=want
        )
    return found


@torch.no_grad()
def take_up(
    optimizers: Sequence[torch.optim.Optimizer],
    tables: SparseTables,
    memory: Mapping[str, Tensor],
    origins: Mapping[str, NDArray[np.int64]],
) -> None:
    """Let fresh optimisers go on from `memory`; origins as `SparseTables.grow` gives them. New rows start at 0."""
    for table, sums in _sums(optimizers, tables).items():
        known = memory[table]
        origin = torch.from_numpy(origins.get(table, np.arange(len(known))))
        of_row = torch.where(origin >= 0, known[origin.clamp(min=0)], torch.zeros(()))
        sums.copy_(of_row if sums.dim() == 1 else of_row[:, None].expand_as(sums))


def _sums(optimizers: Sequence[torch.optim.Optimizer], tables: SparseTables) -> dict[str, Tensor]:
    """Table -> the optimiser's own tensor, [R, W] or [R]."""
    return {
        table: optimizer.state[weight][SUM]
        for table, weight in tables.weights.items()
        for optimizer in optimizers
        if SUM in optimizer.state.get(weight, {})
    }

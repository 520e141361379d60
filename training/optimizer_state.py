"""Optimiser states as flat names: tensors for safetensors ("optimizer.1.0.sum"), plain numbers for JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def pack_optimizers(optimizers: Sequence[torch.optim.Optimizer]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """optimizer.<which>.<parameter>.<name> of every state entry: (tensors, numbers). The tensors are live."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for i, optimizer in enumerate(optimizers):
        for j, state in optimizer.state_dict()["state"].items():
            for name, value in state.items():
                kept: dict[str, Any] = tensors if torch.is_tensor(value) else numbers
                kept[f"optimizer.{i}.{j}.{name}"] = value
    return tensors, numbers


def unpack_optimizers(
    optimizers: Sequence[torch.optim.Optimizer], tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]
) -> None:
    """The inverse of `pack_optimizers`, into optimisers of the same parameters; rates stay theirs."""
    for i, optimizer in enumerate(optimizers):
        found: dict[int, dict[str, Any]] = {}
        entries = {**under(tensors, f"optimizer.{i}."), **under(numbers, f"optimizer.{i}.")}
        for key, value in entries.items():
            index, name = key.split(".", 1)
            found.setdefault(int(index), {})[name] = value.clone() if torch.is_tensor(value) else value
        optimizer.load_state_dict({"state": found, "param_groups": optimizer.state_dict()["param_groups"]})


def under(entries: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The entries whose names begin with `prefix`, without it."""
    return {name[len(prefix) :]: value for name, value in entries.items() if name.startswith(prefix)}

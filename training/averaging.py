"""The exponential moving average of the weights: a_t = d_t·a_(t-1) + (1 - d_t)·w_t, d_t = min(decay, (1 + t)/(10 + t)).

The decay rises, so that an early validation does not see the random start. A dense parameter costs one pass over it a
step. A table with sparse gradients costs only the rows touched: a row that stood still for k steps is brought up to
date by a ← w + (d_(t-k+1)·…·d_t)·(a - w), which is the same sum.

Shapes: R rows of a table, W its width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from contract.errors import CheckpointError


class WeightAverage:
    """Averages of named parameters. `before_step` and `after_step` stand around the optimisers' steps.

    parameters  name -> parameter, names as in the task's state dict
    tensors     name -> its average; of the tables with sparse gradients only after `settle`
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float):
        self.parameters, self.decay = dict(parameters), decay
        self.tensors = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.steps = 0
        # Σ log d so far, and for each row of a sparse table the sum up to which its average is settled.
        self.log_sum = 0.0
        self.settled: dict[str, Tensor] = {}

    @torch.no_grad()
    def before_step(self) -> None:
        """Settle the rows that this step's sparse gradients are about to change."""
        for name, parameter in self.parameters.items():
            if parameter.grad is not None and parameter.grad.is_sparse:
                # Coalesced once for all: the optimiser finds it so.
                parameter.grad = parameter.grad.coalesce()
                if name not in self.settled:
                    self.settled[name] = torch.zeros(len(parameter), dtype=torch.float64, device=parameter.device)
                self._settle_rows(name, parameter.grad.indices()[0])

    @torch.no_grad()
    def after_step(self) -> None:
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        self.log_sum += math.log(decay)
        dense = [name for name in self.parameters if name not in self.settled]
        if dense:
            torch._foreach_lerp_(
                [self.tensors[name] for name in dense], [self.parameters[name] for name in dense], 1 - decay
            )

    @torch.no_grad()
    def settle(self) -> None:
        """Bring every row of the sparse tables up to date: one pass over them, before the average is read."""
        for name in self.settled:
            self._settle_rows(name, torch.arange(len(self.parameters[name]), device=self.parameters[name].device))

    def _settle_rows(self, name: str, rows: Tensor) -> None:
        average_RW, settled_R = self.tensors[name], self.settled[name]
        kept_R1 = torch.exp(self.log_sum - settled_R[rows]).to(average_RW.dtype).unsqueeze(1)
        weight_RW = self.parameters[name].detach()[rows]
        average_RW[rows] = weight_RW + kept_R1 * (average_RW[rows] - weight_RW)
        settled_R[rows] = self.log_sum

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors ("settled.<name>" beside the averages' "<name>") and numbers, for `load_state`."""
        tensors = {**self.tensors, **{f"settled.{name}": tensor for name, tensor in self.settled.items()}}
        return tensors, {"steps": self.steps, "log_sum": self.log_sum}

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Go on from `state`. Raises CheckpointError when it belongs to other parameters."""
        settled = {name.removeprefix("settled."): t for name, t in tensors.items() if name.startswith("settled.")}
        averages = {name: t for name, t in tensors.items() if not name.startswith("settled.")}
        if averages.keys() != self.tensors.keys():
            raise CheckpointError(
                "weight averages of another model", got=sorted(averages)[:5], allowed=sorted(self.tensors)[:5]
            )
        for name, tensor in averages.items():
            self.tensors[name].copy_(tensor)
        self.settled = {name: tensor.clone().to(self.tensors[name].device) for name, tensor in settled.items()}
        self.steps, self.log_sum = int(numbers["steps"]), float(numbers["log_sum"])


@torch.no_grad()
def exchange(module: nn.Module, held: Mapping[str, Tensor]) -> None:
    """Swap the values of `held` with the module's tensors of the same names, one tensor's copy at a time."""
    mine = module.state_dict()
    for name, tensor in held.items():
        before = mine[name].clone()
        mine[name].copy_(tensor)
        tensor.copy_(before)

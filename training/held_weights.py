"""Weights that training must leave in a form: zeros that stay zero, or values that stay on a few centroids.

    hold(net, {"blocks.0.up": HeldZeros(mask_OI), "page_out": HeldCentroids.of(weight_OI, shared_OI)})
    Trainer(task, …).run()
    release(net)                    # plain weights again, in that form exactly

A parametrisation of `weight`: the loop, the optimiser and the loss stay as they are. What was pruned has no gradient
(Zhu and Gupta 2017); a centroid moves by the mean gradient of the weights that share it (Han et al., ICLR 2016,
section 3.3, there the sum: AdamW takes either, clipping and epsilon keep their meaning by the mean).

Shapes: O outputs, I inputs of a matrix, K centroids.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from contract.errors import InputError


class HeldZeros(nn.Module):
    """weight · mask. mask [O, I] of 0 and 1: 0 where the weight is zero for good."""

    mask: Tensor

    def __init__(self, mask_OI: Tensor):
        super().__init__()
        self.register_buffer("mask", mask_OI.to(torch.float32), persistent=False)

    def forward(self, weight_OI: Tensor) -> Tensor:
        return weight_OI * self.mask

    def right_inverse(self, weight_OI: Tensor) -> Tensor:
        return weight_OI * self.mask


class HeldCentroids(nn.Module):
    """centroids[index]. index [O, I]: each weight's centroid, -1 for a weight of its own.

    What is trained is the centroids, float32 [K], and the weights of their own, in a matrix [O, I].
    """

    index: Tensor
    members: Tensor

    def __init__(self, index_OI: Tensor, n_centroids: int):
        super().__init__()
        self.register_buffer("index", index_OI, persistent=False)
        members_K = torch.bincount(index_OI[index_OI >= 0], minlength=n_centroids)
        if not (members_K > 0).all():
            raise InputError("centroids without weights", got=(members_K == 0).sum().item(), allowed=0)
        self.register_buffer("members", members_K.to(torch.float32), persistent=False)

    @staticmethod
    def of(weight_OI: Tensor, shared_OI: Tensor) -> HeldCentroids:
        """The distinct values of a clustered matrix where shared_OI is not 0."""
        values_K, place_n = torch.unique(weight_OI[shared_OI != 0], return_inverse=True)
        index_OI = torch.full(weight_OI.shape, -1, dtype=torch.int64)
        index_OI[shared_OI != 0] = place_n
        return HeldCentroids(index_OI, len(values_K))

    def forward(self, centroids_K: Tensor, own_OI: Tensor) -> Tensor:
        shared_K = _MeanGradient.apply(centroids_K, self.members)
        return torch.where(self.index >= 0, shared_K[self.index.clamp(min=0)], own_OI)

    def right_inverse(self, weight_OI: Tensor) -> tuple[Tensor, Tensor]:
        centroids_K = weight_OI.new_zeros(len(self.members))
        return centroids_K.index_put((self.index[self.index >= 0],), weight_OI[self.index >= 0]), weight_OI.clone()


class _MeanGradient(torch.autograd.Function):
    """Centroids as they are; their gradient, a sum over members, becomes the members' mean."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, centroids_K: Tensor, members_K: Tensor) -> Tensor:
        ctx.save_for_backward(members_K)
        return centroids_K.clone()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None]:
        (members_K,) = ctx.saved_tensors  # type: ignore[attr-defined]  # FunctionCtx is typed without it
        return gradients[0] / members_K, None


def hold(net: nn.Module, held: Mapping[str, nn.Module]) -> None:
    """Put `weight` of the named layers into their form, until `release`. Raises InputError for an unknown layer."""
    layers = dict(net.named_modules())
    for name, form in held.items():
        if not isinstance(getattr(layers.get(name), "weight", None), nn.Parameter):
            raise InputError("no layer with a weight to hold", got=name)
        parametrize.register_parametrization(layers[name], "weight", form)


def release(net: nn.Module) -> None:
    """Plain parameters again, with the values that the forms gave."""
    for layer in list(net.modules()):
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)

"""Zeros that stay zero and values that stay on their centroids, through training's own loop."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from contract.errors import InputError
from training.held_weights import HeldCentroids, HeldZeros, hold, release
from training.kir_layers import MaskedLinear, dense_layer, tower_mask
from training.tables import SparseTables
from training.train_config import TrainConfig
from training.trainer import Trainer


class Regression(nn.Module):
    """A task of `training.trainer`: two layers of the reranker, and no tables."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.ModuleDict({"up": MaskedLinear(tower_mask(4, 6, 2)), "out": dense_layer(12, 1)})
        self.tables = SparseTables({}, {})

    def loss(self, batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        found = self.net["out"](torch.relu(self.net["up"](batch[0])))
        loss = (found - batch[1]).square().mean()
        return loss, {"loss": float(loss.detach())}


def batches(epoch: int, seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    random = torch.Generator().manual_seed(100 * seed + epoch)
    inputs = [torch.randn(16, 8, generator=random) for _ in range(5)]
    return [(x, x.sum(1, keepdim=True)) for x in inputs]


def train(task: Regression, epochs: int = 4) -> list[float]:
    return list(Trainer(task, batches, 5, TrainConfig(epochs=epochs, learning_rate=0.05)).run().losses)


@pytest.fixture
def task() -> Regression:
    return Regression()


def three_values(layer: MaskedLinear) -> None:
    with torch.no_grad():
        layer.weight.copy_(torch.sign(layer.weight) * (layer.weight.abs() > 0.2))


def test_pruned_weights_stay_exactly_zero_while_the_others_learn(task: Regression) -> None:
    weight = task.net["up"].weight
    mask = (weight.abs() > weight.abs().median()).float()
    before = (weight * mask).detach().clone()
    hold(task.net, {"up": HeldZeros(mask)})
    losses = train(task)
    release(task.net)
    after = task.net["up"].weight
    assert losses[-1] < losses[0]
    assert (after[mask == 0] == 0).all()
    alive = (mask * task.net["up"].mask) == 1
    assert (after[alive] != before[alive]).all()


def test_weights_stay_on_shared_centroids_that_move(task: Regression) -> None:
    layer = task.net["up"]
    three_values(layer)
    before = layer.weight.detach().clone()
    hold(task.net, {"up": HeldCentroids.of(before, layer.mask)})
    assert torch.equal(layer.weight, before), "the function is as it was"
    losses = train(task)
    release(task.net)
    after = layer.weight.detach()
    assert losses[-1] < losses[0]
    for value in (-1.0, 0.0, 1.0):
        together = after[(before == value) & layer.mask.bool()].unique()
        assert len(together) == 1, "who shared a centroid shares it still"
        assert together.item() != value


def test_a_centroid_gets_the_mean_gradient_of_its_members() -> None:
    layer = dense_layer(3, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 1.0, 2.0], [2.0, 1.0, 1.0]]))
    hold(layer, {"": HeldCentroids.of(layer.weight.detach(), layer.mask)})
    slope_OI = torch.tensor([[1.0, 2.0, 30.0], [10.0, 3.0, 6.0]])
    (layer.weight * slope_OI).sum().backward()
    assert layer.parametrizations.weight.original0.grad.tolist() == [3.0, 20.0]


def test_weights_of_their_own_learn_beside_shared_ones(task: Regression) -> None:
    layer = task.net["up"]
    three_values(layer)
    shared = layer.mask.clone()
    shared[:, 0] = 0.0
    before = layer.weight.detach().clone()
    hold(task.net, {"up": HeldCentroids.of(before, shared)})
    assert len(layer.parametrizations.weight.original0) == 3
    train(task)
    release(task.net)
    own = layer.mask[:, 0] == 1
    assert len(layer.weight[shared == 1].unique()) == 3
    assert len(layer.weight[own, 0].unique()) == own.sum()


def test_release_gives_plain_parameters_under_their_names(task: Regression) -> None:
    names = list(task.net.state_dict())
    hold(task.net, {"out": HeldZeros(torch.ones(1, 12))})
    assert "out.weight" not in task.net.state_dict()
    release(task.net)
    assert sorted(task.net.state_dict()) == sorted(names)
    assert isinstance(task.net["out"].weight, nn.Parameter)


def test_release_without_hold_changes_nothing(task: Regression) -> None:
    before = {name: tensor.clone() for name, tensor in task.net.state_dict().items()}
    release(task.net)
    assert all(torch.equal(tensor, before[name]) for name, tensor in task.net.state_dict().items())


def test_a_layer_that_is_not_there_is_named(task: Regression) -> None:
    with pytest.raises(InputError, match="no layer with a weight to hold; got down"):
        hold(task.net, {"down": HeldZeros(torch.ones(1))})


def test_a_centroid_needs_members() -> None:
    with pytest.raises(InputError, match="centroids without weights"):
        HeldCentroids(torch.tensor([[0, 2, -1]]), 3)

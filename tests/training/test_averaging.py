"""The averaged weights are what a copy at every step would give, for sparse tables too."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from contract.errors import CheckpointError, InputError
from tests.training.toy_training import STEPS_PER_EPOCH, Toy, trainer_of
from training import tables as tables_module
from training.averaging import WeightAverage, exchange
from training.trainer import TrainConfig

DECAY = 0.9


def slow_average(task: Toy, steps: int, **options) -> dict[str, Tensor]:
    """The recurrence on copies of all weights, one step of `run` at a time."""
    average = {name: p.detach().double() for name, p in task.named_parameters()}
    trainer = trainer_of(task, ema_decay=None, **options)
    trainer.validate = None
    for step in range(steps):
        trainer.run(until_step=step + 1)
        decay = min(DECAY, (1 + step) / (10 + step))
        for name, parameter in task.named_parameters():
            average[name] = decay * average[name] + (1 - decay) * parameter.detach().double()
    return average


@pytest.mark.parametrize("sparse_from", [1, 10**9])
@pytest.mark.parametrize("kind", ["adagrad", "rowwise_adagrad", "adam"])
def test_average_equals_a_copy_at_every_step(monkeypatch, sparse_from, kind):
    monkeypatch.setattr(tables_module, "SPARSE_FROM_ROWS", sparse_from)
    options = {"epochs": 2, "table_optimizer": kind}
    slow = slow_average(Toy(), 2 * STEPS_PER_EPOCH, **options)
    task = Toy()
    trainer = trainer_of(task, **options)
    trainer.validate = None
    trainer.run()
    assert bool(trainer.average.settled) == (sparse_from == 1)
    for name, parameter in task.named_parameters():
        torch.testing.assert_close(parameter.detach().double(), slow[name], rtol=1e-5, atol=1e-6)
        assert not torch.equal(parameter, trainer.state().tensors[f"task.{name}"])


def test_validation_sees_the_average_and_training_does_not():
    task = Toy()
    seen = []
    trainer = trainer_of(task, epochs=3)
    trainer.metric = ""
    trainer.validate = lambda: seen.append([p.detach().clone() for p in task.parameters()]) or {"score": 1.0}
    trainer.run(until_step=STEPS_PER_EPOCH)
    plain = Toy()
    trainer_of(plain, epochs=3, ema_decay=None).run(until_step=STEPS_PER_EPOCH)
    for averaged, now, without in zip(seen[0], task.parameters(), plain.parameters(), strict=True):
        assert torch.equal(now, without)
        assert not torch.equal(averaged, now)


@pytest.mark.parametrize("sparse_from", [1, 10**9])
def test_resume_with_averages_is_exact_to_the_bit(monkeypatch, sparse_from):
    monkeypatch.setattr(tables_module, "SPARSE_FROM_ROWS", sparse_from)
    whole, first, second = Toy(), Toy(), Toy(seed=9)
    trainer_of(whole, epochs=3).run()
    trainer = trainer_of(first, epochs=3)
    trainer.run(until_step=STEPS_PER_EPOCH + 7)
    again = trainer_of(second, epochs=3)
    again.load_state(trainer.state())
    again.run()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


def test_lazy_rows_are_settled_with_the_decays_they_missed():
    weight = torch.nn.Parameter(torch.ones(3, 2))
    average = WeightAverage({"w": weight}, DECAY)
    for step in range(30):
        row = 0 if step == 0 else 1
        weight.grad = torch.sparse_coo_tensor([[row]], torch.ones(1, 2), (3, 2))
        average.before_step()
        with torch.no_grad():
            weight[row] += 1.0
        average.after_step()
    assert average.tensors["w"][0].tolist() == [1.0, 1.0]  # touched at step 0 alone: not settled since
    average.settle()
    kept = math.prod(min(DECAY, (1 + step) / (10 + step)) for step in range(30))
    assert average.tensors["w"][0].tolist() == pytest.approx([2 - kept] * 2)
    assert average.tensors["w"][2].tolist() == [1.0, 1.0]
    settled = average.tensors["w"].clone()
    average.settle()
    assert torch.equal(average.tensors["w"], settled)


def test_exchange_swaps_and_swaps_back():
    one, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    before = {name: t.clone() for name, t in one.state_dict().items()}
    held = {name: t.clone() for name, t in other.state_dict().items()}
    exchange(one, held)
    assert all(torch.equal(t, other.state_dict()[name]) for name, t in one.state_dict().items())
    exchange(one, held)
    assert all(torch.equal(t, before[name]) for name, t in one.state_dict().items())


def test_states_that_do_not_fit_are_refused():
    trainer = trainer_of(Toy(), epochs=1)
    trainer.run(until_step=3)
    with pytest.raises(CheckpointError, match="ema_decay"):
        trainer_of(Toy(), epochs=1, ema_decay=None).load_state(trainer.state())
    with pytest.raises(CheckpointError, match="table optimiser"):
        trainer_of(Toy(), epochs=1, table_optimizer="adam").load_state(trainer.state())
    with pytest.raises(CheckpointError, match="another model"):
        trainer.average.load_state({"w": torch.ones(1)}, {"steps": 1, "log_sum": 0.0})
    with pytest.raises(InputError, match="ema_decay must lie between"):
        TrainConfig(ema_decay=1.0)

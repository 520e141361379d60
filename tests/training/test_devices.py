"""Devices and precision: what "auto" picks, that batches move whole, and that bfloat16 trains close to float32."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from contract.errors import InputError
from tests.training.toy_training import STEPS_PER_EPOCH, Toy, trainer_of
from training import devices
from training.devices import autocast, has_bfloat16, pick_device, pick_precision, to_device

CPU = torch.device("cpu")
META = torch.device("meta")  # a device that every machine has beside the CPU


@dataclass(frozen=True)
class Batch:
    slots: dict[str, Tensor]
    mask: Tensor
    n_cuts: int
    note: str = "x"
    derived: int = field(init=False, default=3)


class Pair(NamedTuple):
    one: Tensor
    other: list[Tensor]


def test_batches_move_whole():
    batch = Batch({"a": torch.ones(2)}, torch.zeros(3), 4)
    moved = to_device(batch, META)
    assert moved.slots["a"].device == moved.mask.device == META
    assert (moved.n_cuts, moved.note, moved.derived) == (4, "x", 3)
    assert batch.mask.device == CPU
    pair = to_device(Pair(torch.ones(1), [torch.ones(2)]), META)
    assert isinstance(pair, Pair)
    assert pair.one.device == pair.other[0].device == META
    numbers, words = to_device((torch.ones(1), "a"), META)
    assert numbers.device == META
    assert words == "a"


def test_auto_picks_what_the_machine_has(monkeypatch):
    assert pick_device("cpu") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == CPU
    with pytest.raises(InputError, match="no CUDA"):
        pick_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto").type == pick_device("cuda").type == "cuda"
    with pytest.raises(InputError, match="unknown device"):
        pick_device("tpu")
    for found in (False, True):
        monkeypatch.setattr(devices, "has_bfloat16", lambda device, found=found: found)
        assert pick_precision("auto", CPU) == (torch.bfloat16 if found else torch.float32)
        assert pick_precision("bfloat16", CPU) == torch.bfloat16
        assert pick_precision("float32", CPU) == torch.float32
    with pytest.raises(InputError, match="unknown precision"):
        pick_precision("float16", CPU)


def test_hardware_is_asked_old_torch_and_new(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False, "amx_bf16": True}, raising=False)
    assert has_bfloat16(CPU)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64"}, raising=False)
    assert not has_bfloat16(CPU)
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not has_bfloat16(CPU)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    assert has_bfloat16(CPU)


def test_autocast_is_off_at_float32():
    layer = torch.nn.Linear(2, 2)
    with autocast(CPU, torch.float32):
        assert layer(torch.ones(1, 2)).dtype == torch.float32
    with autocast(CPU, torch.bfloat16):
        assert layer(torch.ones(1, 2)).dtype == torch.bfloat16


def test_bfloat16_trains_close_to_float32_and_keeps_float32_weights():
    exact, half = Toy(), Toy()
    exact_result = trainer_of(exact, ema_decay=None).run()
    trainer = trainer_of(half, ema_decay=None, precision="bfloat16")
    result = trainer.run()
    assert trainer.precision == torch.bfloat16
    assert result.losses != exact_result.losses
    assert result.losses == pytest.approx(exact_result.losses, rel=0.2)
    assert result.losses[-1] < 0.7 * result.losses[0]
    assert {p.dtype for p in half.parameters()} == {torch.float32}


def test_bfloat16_resumes_to_the_bit():
    whole, first, second = Toy(), Toy(), Toy(seed=2)
    trainer_of(whole, epochs=2, precision="bfloat16").run()
    trainer = trainer_of(first, epochs=2, precision="bfloat16")
    trainer.run(until_step=STEPS_PER_EPOCH + 3)
    again = trainer_of(second, epochs=2, precision="bfloat16")
    again.load_state(trainer.state())
    again.run()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name

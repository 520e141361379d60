"""Two gloo processes train as one; batches are cut without loss."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from contract.errors import InputError
from tests.training import toy_parallel
from tests.training.toy_parallel import ParallelToy, ToyBatch, trainer_of
from training import distributed
from training import tables as tables_module
from training.distributed import DataParallel, _buckets, split_batch

RANKS = 2


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> Path:
    """What two processes under torchrun wrote."""
    out = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "-m", "tests.training.toy_parallel", str(out)],
        cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def tensors(out: Path, name: str) -> list[dict[str, Tensor]]:
    return [load_file(out / f"{name}-{rank}.safetensors") for rank in range(RANKS)]


@pytest.mark.parametrize("kind", ["adagrad", "rowwise_adagrad"])
def test_two_processes_train_as_one(ran, monkeypatch, kind):
    monkeypatch.setattr(tables_module, "SPARSE_FROM_ROWS", tables_module.SPARSE_FROM_ROWS)  # the toy sets it
    task = ParallelToy()
    start = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    result = trainer_of(task, table_optimizer=kind).run()
    assert task.tables.weights["video"].grad.is_sparse
    one, other = tensors(ran, kind)
    torch.testing.assert_close(one["losses"], torch.tensor(result.losses, dtype=torch.float64), rtol=1e-5, atol=1e-6)
    for name, tensor in task.state_dict().items():
        assert torch.equal(one[name], other[name]), f"the ranks differ in {name}"
        torch.testing.assert_close(one[name], tensor, rtol=1e-5, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")
        if tensor.is_floating_point():
            assert not torch.equal(tensor, start[name]), name


def test_a_signal_to_one_rank_stops_all_and_resume_is_exact(ran):
    for rank in range(RANKS):
        text = (ran / f"interrupted-{rank}.txt").read_text()
        assert f"after step {toy_parallel.STOP_AT + 1} of" in text
        assert ("SIGTERM" in text) == (rank == 1)
    (resumed, resumed_other), (whole, whole_other) = tensors(ran, "resumed"), tensors(ran, "whole")
    for name in whole:
        assert torch.equal(resumed[name], whole[name]), name
        assert torch.equal(resumed[name], resumed_other[name]), name
        assert torch.equal(whole[name], whole_other[name]), name


@settings(max_examples=60)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 5), st.integers(1, 15), st.integers(0, 10**6))
def test_parts_hold_every_target_once(world, rows, cuts, n_targets, seed):
    random = np.random.default_rng(seed)
    cell = torch.from_numpy(random.integers(0, rows * cuts, n_targets))
    mask = torch.arange(rows, dtype=torch.float32)[:, None].repeat(1, 3)  # tells the rows apart
    number = torch.arange(n_targets)
    batch = ToyBatch({"video": mask.long()[..., None]}, mask, cuts, cell, number, number + 100, number / 8)
    found, shares = [], []
    for rank in range(world):
        part, share = split_batch(batch, rank, world)
        shares.append(share)
        assert part.n_cuts == cuts
        assert torch.equal(part.history["video"][..., 0].float(), part.mask)
        assert len(torch.unique(part.cell // cuts)) == len(part.mask), "a row without a target"
        if share:
            row = part.mask[part.cell // cuts, 0].long()
            told = part.item.tolist(), part.owner.tolist(), (part.weight * 8).int().tolist()
            found += zip((row * cuts + part.cell % cuts).tolist(), *told, strict=True)
    want = zip(cell.tolist(), range(n_targets), range(100, 100 + n_targets), range(n_targets), strict=True)
    assert sorted(found) == sorted(want)
    assert sum(shares) == pytest.approx(1.0)
    rows_with = len(torch.unique(cell // cuts))
    assert sum(share > 0 for share in shares) == min(world, rows_with)


def test_batches_that_can_not_be_cut_are_refused():
    @dataclass(frozen=True)
    class Other:
        mask: Tensor

    batch = next(toy_parallel.batches(0, 0))
    for wrong in (Other(torch.ones(1)), (torch.ones(1), torch.ones(1))):
        with pytest.raises(InputError, match="can't be cut for ranks"):
            split_batch(wrong, 0, 2)
    empty = ToyBatch(
        batch.history, batch.mask, 1, *(torch.zeros(0, dtype=torch.int64) for _ in range(3)), torch.zeros(0)
    )
    with pytest.raises(InputError, match="without targets"):
        split_batch(empty, 0, 2)


def test_alone_there_is_no_group(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert DataParallel.from_environment() is None


def test_steps_and_ranks_draw_differently():
    def draw(rank: int, seed: int, step: int) -> list[float]:
        with torch.random.fork_rng(devices=[]):
            DataParallel(rank, 3).seed_step(seed, step)
            return torch.rand(4).tolist()

    draws = [draw(rank, seed, step) for rank in range(3) for seed in range(2) for step in range(4)]
    assert len({tuple(values) for values in draws}) == len(draws)
    assert draw(1, 1, 3) == draw(1, 1, 3)


def test_gradients_travel_in_buckets(monkeypatch):
    monkeypatch.setattr(distributed, "BUCKET_BYTES", 40)
    sizes = [3, 4, 5, 100, 2, 8, 1]
    buckets = _buckets([nn.Parameter(torch.zeros(size)) for size in sizes])
    assert [[p.numel() for p in bucket] for bucket in buckets] == [[3, 4], [5], [100], [2, 8], [1]]

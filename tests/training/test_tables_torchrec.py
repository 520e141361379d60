"""Sharded tables in real processes: equal to SparseTables, resumed to the bit, reloaded in one process.

torchrec does not belong to the project's environment, so the fixture installs training/requirements-torchrec.txt into
pytest's cache once (51 MB) and only the started processes see it.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import load_file

from contract.errors import InputError
from tests.training.toy_parallel import KEYS, SPEC, ParallelToy, trainer_of
from training import tables as tables_module
from training.distributed import DataParallel
from training.table_shards import TableShards
from training.tables_torchrec import REQUIREMENTS, ShardedTables

REPOSITORY = Path(__file__).parents[2]


def test_outside_torchrun_and_without_torchrec_it_says_what_to_do(monkeypatch):
    with pytest.raises(InputError, match="start the job with torchrun"):
        ShardedTables.from_spec_and_keys(SPEC, KEYS, None)
    monkeypatch.setitem(sys.modules, "fbgemm_gpu.split_embedding_configs", None)  # as if it were not there
    with pytest.raises(InputError, match=f"pip install --no-deps -r {REQUIREMENTS}"):
        ShardedTables.from_spec_and_keys(SPEC, KEYS, DataParallel(0, 2))


def test_the_environment_file_belongs_to_the_torch_that_is_pinned():
    """torchrec and fbgemm move with torch, minor by minor: 1.8 is for 2.13."""
    pins = dict(line.split("#")[0].split("==") for line in REQUIREMENTS.read_text().splitlines() if "==" in line)
    assert {name: pins[name].strip() for name in ("torchrec", "fbgemm-gpu-cpu")} == dict.fromkeys(
        ("torchrec", "fbgemm-gpu-cpu"), "1.8.0"
    )
    assert '"torch==2.13.0"' in (REPOSITORY / "pyproject.toml").read_text()
    for line in REQUIREMENTS.read_text().splitlines():
        assert "#" in line, f"a pin without its reason: {line}"


@pytest.fixture(scope="module")
def torchrec(request) -> Path:
    """A folder with torchrec and what it needs beside torch, installed as the file says and kept between runs."""
    name = hashlib.sha256(REQUIREMENTS.read_bytes() + torch.__version__.encode()).hexdigest()[:12]
    folder = request.config.cache.mkdir("torchrec") / name
    if not folder.exists():
        aside = folder.with_name(f"{name}.{os.getpid()}")
        command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "-q", "--no-deps"]
        subprocess.run([*command, "--target", str(aside), "-r", str(REQUIREMENTS)], check=True, timeout=240)
        os.replace(aside, folder)
    return folder


def run(torchrec: Path, processes: int, *words: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join((str(torchrec), "."))}
    done = subprocess.run(
        [*command, "-m", "tests.training.toy_torchrec", *words],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def ran(torchrec, tmp_path_factory) -> Path:
    """What two processes wrote, and then one."""
    out = tmp_path_factory.mktemp("torchrec")
    run(torchrec, 2, "train", str(out))
    run(torchrec, 1, "reload", str(out))
    return out


@pytest.mark.slow
def test_two_processes_train_the_rows_that_one_does(ran, monkeypatch):
    """Dropout off: each rank draws its own."""
    monkeypatch.setattr(tables_module, "SPARSE_FROM_ROWS", tables_module.SPARSE_FROM_ROWS)  # the toy sets it
    task = ParallelToy()
    start = {table: weight.detach().clone() for table, weight in task.tables.weights.items()}
    trainer = trainer_of(task, table_optimizer="rowwise_adagrad", ema_decay=None)
    result = trainer.run()
    assert [float(line) for line in (ran / "losses.txt").read_text().split()] == pytest.approx(result.losses, rel=1e-5)
    dense, rows = load_file(ran / "trained.dense"), load_numpy(ran / "trained.tables")
    assert set(dense) == {name for name in task.state_dict() if not name.startswith("tables.")}
    for name, tensor in dense.items():
        torch.testing.assert_close(tensor, task.state_dict()[name], rtol=1e-5, atol=1e-5)
    for table, weight in task.tables.weights.items():
        assert rows[f"{table}.keys"].tolist() == task.tables.keys[table].view(np.int64).tolist()
        np.testing.assert_allclose(rows[f"{table}.rows"], weight.detach().numpy(), rtol=1e-5, atol=1e-5)
        assert np.abs(rows[f"{table}.rows"] - start[table].numpy()).max() > 0.01
    # Adagrad forgives a gradient that is everywhere half as large (a mean over ranks); its sums don't.
    shards = TableShards(ran / "trained-shards")
    for optimizer in trainer.optimizers[1:]:
        for weight, state in optimizer.state.items():
            (table,) = (name for name, other in task.tables.weights.items() if other is weight)
            sums = shards.read(table, 0, len(weight)).sums
            np.testing.assert_allclose(sums, state["sum"].numpy(), rtol=1e-4, atol=1e-9)


@pytest.mark.slow
def test_what_was_stopped_goes_on_to_the_bit(ran):
    for kind, load in (("dense", load_file), ("tables", load_numpy)):
        whole, resumed = load(ran / f"whole.{kind}"), load(ran / f"resumed.{kind}")
        assert whole.keys() == resumed.keys()
        for name in whole:
            assert np.array_equal(np.asarray(whole[name]), np.asarray(resumed[name])), name


@pytest.mark.slow
def test_one_process_reads_the_rows_of_two(ran):
    """With torchrec (a job of one process) and without it (SparseTables, what a checkpoint is made of)."""
    shards = TableShards(ran / "shards")
    assert shards.world == 2
    trained, reloaded = load_numpy(ran / "resumed.tables"), load_numpy(ran / "reloaded.tables")
    plain = shards.to_tables().export()
    assert trained.keys() == reloaded.keys() == plain.keys()
    for name in trained:
        assert np.array_equal(trained[name], reloaded[name]), name
        assert np.array_equal(trained[name], plain[name]), name


@pytest.mark.slow
def test_the_optimizers_sums_travel_too(ran):
    two, one = TableShards(ran / "half"), TableShards(ran / "half-again")
    assert (two.world, one.world) == (2, 1)
    for table, size in two.tables.items():
        before, after = two.read(table, 0, size["rows"]), one.read(table, 0, size["rows"])
        assert np.array_equal(before.sums, after.sums)
        assert np.array_equal(before.rows, after.rows)
        assert before.sums.max() > 0

"""A training that is killed goes on from its last save and ends with the same weights, to the bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from contract.errors import CheckpointError, InputError, Interrupted
from tests.training import toy_training
from tests.training.toy_training import EPOCHS, STEPS, STEPS_PER_EPOCH, Toy, trainer_of
from training.autosave import BEST, STATE, Autosave
from training.checkpoint import TrainingState
from training.trainer import TrainConfig, Trainer


def victim(directory: Path, log: Path) -> subprocess.Popen:
    words = [str(directory), str(log), str(torch.get_num_threads())]
    command = [sys.executable, "-m", "tests.training.toy_training", *words]
    return subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for_step(process: subprocess.Popen, directory: Path, step: int) -> None:
    """Until the saved state says so; a process that ended before fails the test."""
    saver = Autosave(directory)
    while True:
        assert process.poll() is None, process.stderr.read().decode()
        if saver.exists:
            try:
                if saver.load().meta["step"] >= step:
                    return
            except CheckpointError:
                pass  # replaced between the reads of its two files
        time.sleep(0.01)


def assert_same_weights(one: torch.nn.Module, other: torch.nn.Module) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


def test_a_killed_training_ends_as_if_it_had_not_been(tmp_path):
    whole = Toy()
    trainer = trainer_of(whole)
    result = trainer.run()
    process = victim(tmp_path / "saves", tmp_path / "log.jsonl")
    wait_for_step(process, tmp_path / "saves", 60)
    process.send_signal(signal.SIGKILL)  # between two saves or in the middle of one
    assert process.wait() == -signal.SIGKILL
    process.communicate()

    resumed = Toy(seed=5)
    again = trainer_of(resumed, log_path=tmp_path / "log.jsonl")
    again.load_state(Autosave(tmp_path / "saves").load())
    assert 60 <= again.step < STEPS
    result_again = again.run()
    assert_same_weights(whole, resumed)
    assert result_again.losses == result.losses
    assert result_again.history == result.history
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == list(range(1, STEPS + 1))
    assert len(lines) == STEPS + EPOCHS


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves(tmp_path, number):
    saver, task = Autosave(tmp_path / "saves"), Toy()

    def batches(epoch, seed):
        for i, batch in enumerate(toy_training.batches(epoch, seed)):
            if (epoch, i) == (2, 7):
                os.kill(os.getpid(), number)
            yield batch

    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(Interrupted, match=f"stopped by {number.name} after step 48 of {STEPS}.*saves"):
        trainer_of(task, saver, None, batches=batches).run()
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    resumed, whole = Toy(seed=3), Toy()
    again = trainer_of(resumed)
    again.load_state(saver.load())
    assert again.step == 48
    again.run()
    trainer_of(whole).run()
    assert_same_weights(whole, resumed)


def test_no_save_no_handlers(monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: pytest.fail("the process's signals were touched"))
    trainer_of(Toy(), epochs=1).run()


def test_an_early_stop_survives(tmp_path):
    saver, task = Autosave(tmp_path / "saves"), Toy()
    trainer = trainer_of(task, saver, None, patience=2)
    values = iter([0.3, 0.5, 0.4, 0.2, 0.9])
    trainer.validate = lambda: {"score": next(values)}
    result = trainer.run()
    assert result.steps == 4 * STEPS_PER_EPOCH
    resumed = Toy(seed=4)
    again = trainer_of(resumed, patience=2)
    again.load_state(saver.load())
    assert again.run().to_dict() == result.to_dict()
    assert_same_weights(task, resumed)


def test_state_after_the_run_is_that_of_the_last_step_not_of_the_best():
    states = []
    task = Toy()
    trainer = trainer_of(task)
    values = iter([0.9, *[0.1] * 30])
    trainer.validate = lambda: {"score": next(values)}
    trainer.save = lambda state: states.append({name: t.clone() for name, t in state.tensors.items()})
    trainer.run()
    after = trainer.state().tensors
    assert after.keys() == states[-1].keys()
    for name, tensor in after.items():
        assert torch.equal(tensor, states[-1][name]), name
    for name, tensor in task.state_dict().items():
        assert torch.equal(tensor, after[f"best.{name}"])
        assert not torch.equal(tensor, after[f"task.{name}"])


def state_of(step: int, best_epoch: int) -> TrainingState:
    tensors = {"task.w": torch.full((3,), float(step))}
    if best_epoch >= 0:
        tensors |= {f"{BEST}w": torch.full((3,), float(best_epoch)), f"{BEST}tied": tensors["task.w"]}
    return TrainingState(tensors, {"step": step, "best_epoch": best_epoch})


def test_a_save_of_a_run_told_otherwise_is_refused(tmp_path):
    """Parts are compared by value; a key that a save does not have yet counts as its blank."""
    trainer = trainer_of(Toy())
    trainer.run(until_step=1)
    told = {"data": {"name": "toy", "batch": 4}, "train": {"rate": 0.1}}
    Autosave(tmp_path / "s", told).save(trainer.state())
    newer = {"data": {"name": "toy", "batch": 4, "half_life": None}, "train": {"rate": 0.1}}
    blank = {"data": {"half_life": None}}
    assert Autosave(tmp_path / "s", newer, blank).load().meta["step"] == 1
    assert Autosave(tmp_path / "s").load().meta["step"] == 1
    for other in (newer, {**told, "train": {"rate": 0.2}}, {"data": told["data"]}, {**told, "model": {"width": 3}}):
        with pytest.raises(CheckpointError, match="another run"):
            Autosave(tmp_path / "s", other).load()
    with pytest.raises(CheckpointError, match=r"another run \(data\)"):
        Autosave(tmp_path / "s", {**newer, "data": {**newer["data"], "half_life": 0.5}}, blank).load()


def test_the_refusal_prints_what_differs_and_nothing_else(tmp_path):
    saver = Autosave(tmp_path / "s", {"data": {"batch": 4, "cap": None}, "train": {"epochs": 3, "rate": 0.1}})
    saver.save(state_of(1, -1))
    now = {"data": {"batch": 4}, "train": {"epochs": 5, "rate": 0.1}, "preset": "tiny"}
    with pytest.raises(CheckpointError, match=r"another run \(data, preset, train\)") as refused:
        Autosave(tmp_path / "s", now).load()
    assert refused.value.got == "data.cap not told, preset tiny, train.epochs 5"
    assert refused.value.allowed == "data.cap None, preset None, train.epochs 3"


def test_metrics_of_numpy_and_nan_do_not_end_a_training(tmp_path):
    saver, log = Autosave(tmp_path / "saves"), tmp_path / "log.jsonl"
    trainer = trainer_of(Toy(), saver, None, epochs=2, log_path=log)
    trainer.validate = lambda: {"score": np.float32(0.5), "auc": float("nan"), "count": np.int64(3)}
    trainer.run()
    (first, second) = saver.load().meta["history"]
    assert (first["score"], first["count"], second["epoch"]) == (0.5, 3, 1)
    assert np.isnan(first["auc"])
    assert sum("validation" in line for line in log.read_text().splitlines()) == 2


def test_best_weights_are_written_when_they_change(tmp_path):
    saver = Autosave.beside(tmp_path / "out")
    assert saver.directory == tmp_path / ".out.autosave"
    assert not saver.exists
    saver.save(state_of(1, -1))
    assert [path.name for path in saver.directory.iterdir()] == [STATE]
    written = []
    for step, best_epoch in ((2, 0), (3, 0), (4, 1), (5, 1)):
        saver.save(state_of(step, best_epoch))
        (name,) = [path for path in saver.directory.iterdir() if path.name != STATE]
        written.append((name.name, name.stat().st_mtime_ns))
        loaded = saver.load()
        assert loaded.meta == {"step": step, "best_epoch": best_epoch}
        assert loaded.tensors["best.w"].tolist() == [best_epoch] * 3
        assert loaded.tensors["task.w"].tolist() == [step] * 3
    assert written[0] == written[1]
    assert written[2] == written[3] != written[0]
    other = Autosave(saver.directory)  # of another run, whose best epoch has the same number
    other.save(TrainingState({"best.w": torch.ones(3), "task.w": torch.ones(3)}, {"step": 1, "best_epoch": 1}))
    assert saver.load().tensors["best.w"].tolist() == [1, 1, 1]
    saver.clear()
    assert not saver.directory.exists()


@pytest.mark.parametrize("cut", ["best", "state"])
def test_a_save_cut_short_leaves_the_one_before(tmp_path, monkeypatch, cut):
    saver = Autosave(tmp_path)
    saver.save(state_of(1, 0))
    real, calls = os.replace, []

    def cut_short(source, target):
        calls.append(target)
        if len(calls) == (1 if cut == "best" else 2):
            raise OSError("killed here")
        real(source, target)

    monkeypatch.setattr(os, "replace", cut_short)
    with pytest.raises(OSError, match="killed here"):
        saver.save(state_of(2, 1))
    monkeypatch.undo()
    after = Autosave(tmp_path)
    assert after.load().meta["step"] == 1
    assert after.load().tensors["best.w"].tolist() == [0, 0, 0]
    after.save(state_of(3, 2))
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != STATE)[1:] == []
    assert after.load().tensors["best.w"].tolist() == [2, 2, 2]


def test_what_can_not_be_loaded_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no saved training state"):
        Autosave(tmp_path).load()
    saver = Autosave(tmp_path)
    saver.save(state_of(1, 0))
    whole = (tmp_path / STATE).read_bytes()
    (tmp_path / STATE).write_bytes(whole[:-4])
    with pytest.raises(CheckpointError, match="can't be read"):
        saver.load()
    (tmp_path / STATE).write_bytes(whole)
    next(tmp_path.glob("best-*")).unlink()
    with pytest.raises(CheckpointError, match="can't be read"):
        saver.load()
    with pytest.raises(InputError, match="needs a `save`"):
        Trainer(Toy(), toy_training.batches, 5, TrainConfig(), save_every_s=10)

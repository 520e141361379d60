"""The loop: resume is exact to the bit, the best epoch is kept, schedules and refusals."""

from __future__ import annotations

import io
import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from contract.errors import CheckpointError, InputError
from contract.spec import FeatureSpec, Field
from training.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from training.progress import Progress
from training.tables import SparseTables
from training.trainer import TrainConfig, Trainer

SPEC = FeatureSpec("toy", (Field("video", "video_id", "rows", "video", "page", "served", 4, table="video"),))
N_KEYS, BATCH, STEPS_PER_EPOCH = 20, 8, 5


class ToyTask(nn.Module):
    """Predicts a number of a video from its row; dropout uses torch's generator, so that its state matters."""

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.tables = SparseTables.from_spec_and_keys(
            SPEC, {"video": np.arange(N_KEYS, dtype=np.uint64)}, dropout=0.2, seed=seed
        )
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 1))
        self.register_buffer("seen", torch.zeros(N_KEYS + 1))

    def loss(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, float]]:
        slots, targets = batch
        self.seen.index_add_(0, slots, torch.ones(len(slots)))
        guess = self.net(self.tables.rows(SPEC, "rows", {"video": slots[:, None]})).squeeze(-1)
        loss = ((guess - targets) ** 2).mean()
        return loss, {"guess": float(guess.detach().mean())}


def toy_batches(epoch: int, seed: int):
    random = np.random.default_rng((seed, epoch))
    for _ in range(STEPS_PER_EPOCH):
        slots = torch.from_numpy(random.integers(1, N_KEYS + 1, BATCH))
        yield slots, slots.float() / N_KEYS


def trainer_of(task: ToyTask, **options) -> Trainer:
    run = {name: options.pop(name) for name in ("validate", "metric", "log_path") if name in options}
    return Trainer(task, toy_batches, STEPS_PER_EPOCH, TrainConfig(**{"epochs": 2, **options}), **run)


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


@pytest.mark.parametrize("stop", [1, 3, 5, 7])
def test_resume_is_exact_to_the_bit(tmp_path, stop):
    whole = ToyTask()
    whole_result = trainer_of(whole).run()

    first = ToyTask()
    trainer = trainer_of(first)
    trainer.run(until_step=stop)
    save_checkpoint(
        tmp_path / "half",
        kind="kir",
        model=first.net,
        tables=first.tables,
        spec=SPEC,
        model_config={},
        training={},
        metrics={},
        card_text="half",
        state=trainer.state(),
    )
    torch.manual_seed(999)  # what happens in between must not matter
    second = ToyTask(seed=7)
    resumed = trainer_of(second)
    resumed.load_state(load_checkpoint(tmp_path / "half").state())
    assert resumed.step == stop
    result = resumed.run()

    assert_same_weights(whole, second)
    assert result.steps == whole_result.steps == 10
    assert result.losses == whole_result.losses


def test_the_loss_falls_and_two_runs_agree():
    one, other = ToyTask(), ToyTask()
    result = trainer_of(one, epochs=20, learning_rate=0.02).run()
    again = trainer_of(other, epochs=20, learning_rate=0.02).run()
    assert result.losses == again.losses
    assert result.losses[-1] < 0.5 * result.losses[0]
    assert result.steps == 100
    assert len(result.losses) == 20


def test_another_seed_gives_another_run():
    results = [trainer_of(ToyTask(), seed=seed).run().losses for seed in (0, 1)]
    assert results[0] != results[1]


def test_run_leaves_the_callers_generator_alone():
    task = ToyTask()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    trainer_of(task).run()
    assert torch.equal(before, torch.get_rng_state())


def test_the_best_epoch_is_kept_and_training_stops_early():
    task = ToyTask()
    scores = iter([0.1, 0.5, 0.4, 0.3, 0.2])
    seen: list[dict[str, Tensor]] = []

    def validate() -> dict[str, float]:
        assert not task.training
        seen.append({name: tensor.clone() for name, tensor in task.state_dict().items()})
        return {"score": next(scores)}

    result = trainer_of(task, epochs=5, patience=2, validate=validate, metric="score").run()
    assert result.best == 0.5
    assert result.steps == 4 * STEPS_PER_EPOCH
    assert [line["score"] for line in result.history] == [0.1, 0.5, 0.4, 0.3]
    for name, tensor in task.state_dict().items():
        assert torch.equal(tensor, seen[1][name]), name


def test_resume_remembers_the_best_epoch():
    def scores_from(values):
        values = iter(values)
        return lambda: {"score": next(values)}

    task = ToyTask()
    trainer = trainer_of(task, validate=scores_from([0.9]), metric="score")
    trainer.run(until_step=STEPS_PER_EPOCH)
    best = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    other = ToyTask(seed=3)
    resumed = trainer_of(other, validate=scores_from([0.1]), metric="score")
    resumed.load_state(trainer.state())
    assert resumed.run().best == 0.9
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, best[name]), name


def test_validation_every_few_epochs_and_at_the_end():
    trainer = trainer_of(ToyTask(), epochs=5, validate_every=2, validate=lambda: {"score": 1.0}, metric="score")
    assert [line["epoch"] for line in trainer.run().history] == [1, 3, 4]
    cut = trainer_of(ToyTask(), epochs=5, validate_every=4, max_steps=12, validate=lambda: {"score": 1.0})
    assert [line["epoch"] for line in cut.run().history] == [2]
    with pytest.raises(InputError, match="validate_every must be above 0"):
        TrainConfig(validate_every=0)


def test_a_failing_validation_leaves_the_weights_of_training():
    def fails() -> dict[str, float]:
        raise ValueError("no data")

    task = ToyTask()
    trainer = trainer_of(task, ema_decay=0.5, validate=fails)
    with pytest.raises(ValueError, match="no data"):
        trainer.run()
    for name, tensor in trainer.state().tensors.items():
        if name.startswith("task."):
            assert torch.equal(tensor, task.state_dict()[name.removeprefix("task.")])


def test_warm_up_rises_and_cosine_falls():
    trainer = trainer_of(ToyTask(), epochs=20, warmup=0.1, final_rate=0.05)
    factors = []
    for trainer.step in range(100):
        factors.append(trainer.rate_factor())
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == pytest.approx(1.0)
    assert all(a >= b for a, b in pairwise(factors[10:]))
    assert factors[-1] == pytest.approx(0.05, abs=0.01)


def test_a_warm_up_may_be_told_in_steps():
    share, steps = (trainer_of(ToyTask(), epochs=20, warmup=warmup) for warmup in (0.1, 10))
    assert share.total_steps == 100
    for share.step in range(100):
        steps.step = share.step
        assert steps.rate_factor() == pytest.approx(share.rate_factor())
    longer = trainer_of(ToyTask(), epochs=20, warmup=1000)
    longer.step = 99
    assert longer.rate_factor() == pytest.approx(1.0)


@pytest.mark.parametrize("wrong", [{"warmup": -0.1}, {"patience": 0}])
def test_settings_out_of_range(wrong):
    with pytest.raises(InputError, match="out of range"):
        TrainConfig(**wrong)


def test_a_time_budget_ends_the_run_and_cools_it():
    trainer = trainer_of(ToyTask(), epochs=100_000, max_seconds=0.3)
    result = trainer.run()
    assert 0.3 <= result.seconds < 5
    assert result.steps < 500_000
    assert trainer.rate_factor() == pytest.approx(trainer.config.final_rate)


def test_clipping_bounds_the_dense_gradient():
    task = ToyTask()
    trainer = trainer_of(task, clip=1e-3, max_steps=1)
    trainer.run()
    norm = torch.sqrt(sum((p.grad**2).sum() for p in trainer.dense))
    assert float(norm) <= 1e-3 * 1.001


def test_rows_decay_with_the_rate_and_the_net_does_not():
    """Without a gradient nothing else moves: after n steps the product of what each left."""
    task = ToyTask()
    before = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    task.loss = lambda batch: (sum((p * 0.0).sum() for p in task.parameters()), {})
    trainer = trainer_of(task, epochs=1, table_decay=0.2, weight_decay=0.0, warmup=0.4, final_rate=0.5)
    left = 1.0
    for step in range(1, STEPS_PER_EPOCH + 1):
        left *= 1 - 0.2 * trainer.rate_factor()
        trainer.run(until_step=step)
    assert 0.2 < left < 0.6
    for name, tensor in task.state_dict().items():
        decays = name.startswith("tables.")
        torch.testing.assert_close(tensor, before[name] * left if decays else before[name], msg=name)


def test_tables_are_not_among_the_dense_parameters():
    task = ToyTask()
    trainer = trainer_of(task)
    assert {id(p) for p in trainer.dense} == {id(p) for p in task.net.parameters()}


def test_the_log_is_json_lines(tmp_path):
    log = tmp_path / "deep" / "train_log.jsonl"
    trainer_of(ToyTask(), log_path=log, validate=lambda: {"score": 1.0}, metric="score").run()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 11))
    assert [line["validation"] for line in lines if "validation" in line] == [{"score": 1.0}] * 2
    assert all(line["rate"] <= 1.0 for line in lines if "rate" in line)


def test_state_of_another_run_is_refused():
    trainer = trainer_of(ToyTask())
    trainer.run(until_step=2)
    state = trainer.state()
    with pytest.raises(CheckpointError, match="another run"):
        trainer_of(ToyTask(), epochs=3).load_state(state)
    with pytest.raises(CheckpointError, match="another run"):
        trainer_of(ToyTask(), seed=1).load_state(state)
    fewer = {name: tensor for name, tensor in state.tensors.items() if name != "task.net.0.weight"}
    with pytest.raises(CheckpointError, match="another model"):
        trainer_of(ToyTask()).load_state(TrainingState(fewer, state.meta))


def test_what_can_not_be_trained_is_refused():
    with pytest.raises(InputError, match="nothing to train on"):
        Trainer(ToyTask(), toy_batches, 0, TrainConfig())
    with pytest.raises(InputError, match="early stopping"):
        trainer_of(ToyTask(), patience=1)
    with pytest.raises(InputError, match="epochs must be above 0"):
        TrainConfig(epochs=0)
    with pytest.raises(InputError, match="no batch"):
        Trainer(ToyTask(), lambda epoch, seed: [], 5, TrainConfig()).run()


def test_torchrun_with_a_model_of_one_process_is_refused(monkeypatch):
    """Each rank would train its own copy and write it over the others'."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="trains in one process; got WORLD_SIZE=2"):
        trainer_of(ToyTask())
    monkeypatch.setenv("WORLD_SIZE", "1")
    trainer_of(ToyTask())


def test_a_loss_that_is_not_finite_stops_the_run():
    task = ToyTask()
    with torch.no_grad():
        task.net[0].weight.fill_(float("nan"))
    with pytest.raises(InputError, match="not finite"):
        trainer_of(task).run()


def test_progress_is_plain_lines_off_a_terminal():
    stream = io.StringIO()
    with Progress("toy", 2, stream=stream) as bar:
        bar.update(1, {"loss": 0.5})
        bar.update(2, {"loss": 0.25})
    assert stream.getvalue() == "toy: step 2/2  loss 0.2500\n"
    silent = io.StringIO()
    with Progress("toy", 2, stream=silent, quiet=True) as bar:
        bar.update(2, {})
    assert silent.getvalue() == ""


def test_progress_is_a_bar_on_a_terminal():
    pytest.importorskip("rich")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with Progress("toy", 2, stream=stream) as bar:
        bar.update(2, {"loss": 0.25})
        assert bar._bar is not None
    assert "step 2/2" not in stream.getvalue()

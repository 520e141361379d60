"""What the optimiser remembers of a row: read from it, saved, and taken up by a fresh one after growth."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from contract.errors import CheckpointError
from contract.spec import FeatureSpec, Field
from training.checkpoint import load_checkpoint, save_checkpoint
from training.row_memory import read_row_memory, row_memory, take_up
from training.tables import SparseTables

SPEC = FeatureSpec("t", (Field("video_id", "video_id", "rows", "video", "page", "served", 3, table="video"),))
KEYS = np.array([5, 9, 20], np.uint64)


def tables_of(keys=KEYS) -> SparseTables:
    return SparseTables.from_spec_and_keys(SPEC, {"video": keys}, seed=1)


def trained(kind: str) -> tuple[SparseTables, list, np.ndarray]:
    """Two steps with known gradients; the sum of squares of each weight, by hand."""
    tables = tables_of()
    optimizers = tables.optimizers(0.1, kind)
    squares = np.zeros((4, 3), np.float32)
    random = np.random.default_rng(3)
    for _ in range(2):
        grad = random.normal(size=(4, 3)).astype(np.float32)
        tables.weights["video"].grad = torch.from_numpy(grad)
        squares += grad**2
        for optimizer in optimizers:
            optimizer.step()
    return tables, optimizers, squares


def saved(tmp_path, tables, state):
    return save_checkpoint(
        tmp_path / "c", kind="kuaiformer", model=torch.nn.Linear(1, 1), tables=tables, spec=SPEC, model_config={},
        training={}, metrics={}, card_text="", state=state,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["adagrad", "rowwise_adagrad"])
def test_it_is_the_mean_square_of_a_rows_gradients_summed(kind):
    tables, optimizers, squares = trained(kind)
    state = row_memory(optimizers, tables)
    np.testing.assert_allclose(state.tensors["row_memory.video"], squares.mean(axis=1), rtol=1e-5)


def test_adam_has_none():
    tables, optimizers, _ = trained("adam")
    assert row_memory(optimizers, tables) is None


@pytest.mark.parametrize("kind", ["adagrad", "rowwise_adagrad"])
def test_grown_tables_go_on_with_it(tmp_path, kind):
    tables, optimizers, squares = trained(kind)
    memory = read_row_memory(load_checkpoint(saved(tmp_path, tables, row_memory(optimizers, tables)).path))
    origins = tables.grow({"video": np.array([7, 20, 30], np.uint64)})
    fresh = tables.optimizers(0.1, kind)
    take_up(fresh, tables, memory, origins)
    want = dict(zip([0, 1, 3, 4], squares.mean(axis=1), strict=True))  # keys: default, 5, 7, 9, 20, 30
    got = fresh[0].state[tables.weights["video"]]["sum"].reshape(6, -1)
    assert got.shape[1] == (3 if kind == "adagrad" else 1)
    np.testing.assert_allclose(got, [[want.get(row, 0.0)] * got.shape[1] for row in range(6)], rtol=1e-5)


def test_a_known_row_moves_less_than_a_new_one(tmp_path):
    """The point of it all: the same gradient, a small step where much was seen, the whole rate where nothing was."""
    tables, _, _ = trained("adagrad")
    memory = {"video": torch.tensor([100.0, 100.0, 100.0, 100.0])}
    origins = tables.grow({"video": np.array([30], np.uint64)})
    before = tables.weights["video"].detach().clone()
    fresh = tables.optimizers(0.1, "adagrad")
    take_up(fresh, tables, memory, origins)
    tables.weights["video"].grad = torch.ones(5, 3)
    fresh[0].step()
    moved = (tables.weights["video"].detach() - before).abs().mean(dim=1)
    assert moved[4] == pytest.approx(0.1, rel=1e-4)
    assert moved[:4].max() < 0.011


def test_a_checkpoint_without_it(tmp_path):
    with pytest.raises(CheckpointError, match="no training state"):
        read_row_memory(saved(tmp_path, tables_of(), None))


def test_a_memory_of_other_tables(tmp_path):
    tables, optimizers, _ = trained("adagrad")
    checkpoint = saved(tmp_path, tables_of(KEYS[:2]), row_memory(optimizers, tables))
    with pytest.raises(CheckpointError, match="other tables"):
        read_row_memory(checkpoint)

"""Tables: slots and pooled rows agree with the contract; sparse and dense gradients train the same rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.errors import CheckpointError, SpecError
from contract.features import pool_rows
from contract.spec import FeatureSpec, Field
from contract.specs import kuaiformer_spec
from contract.vocabulary import MISSING_KEY, TAGS_MAX
from training import tables as tables_module
from training.tables import INIT_STD, SparseTables, table_keys

SPEC = FeatureSpec(
    "toy",
    (
        Field("video_id", "video_id", "rows", "video", "page", "served", 4, table="video"),
        Field("tags", "tags", "rows", "video", "page", "served", 3, table="tag", max_len=TAGS_MAX),
        Field("seen_video_id", "video_id", "seen_rows", "video", "page", "served", 4, table="video"),
        Field("hour", "hour", "dense", "user", "page", "dense", 24),
    ),
)
VIDEOS = np.array([7, 3, 2**63 + 5, 3, 11], np.uint64)
TAGS = np.array([1, 2, 5], np.uint64)


def toy(dropout: float = 0.0, seed: int = 0) -> SparseTables:
    tables = SparseTables.from_spec_and_keys(SPEC, {"video": VIDEOS, "tag": TAGS}, dropout=dropout, seed=seed)
    with torch.no_grad():
        for weight in tables.weights.values():
            weight[0] = 0.5
    return tables


def test_keys_ascend_behind_the_default_row():
    tables = toy()
    assert tables.keys["video"].tolist() == [int(MISSING_KEY), 3, 7, 11, 2**63 + 5]
    assert tables.n_rows == {"tag": 4, "video": 5}
    assert tables.widths == {"tag": 3, "video": 4} == SPEC.tables


def test_slots_tell_missing_from_unknown():
    slots = toy().slots("video", np.array([[3, 999], [int(MISSING_KEY), 2**63 + 5]], np.uint64))
    assert slots.tolist() == [[1, 0], [-1, 4]]
    assert slots.dtype == np.int64
    empty = SparseTables.from_spec_and_keys(SPEC, {})
    assert empty.slots("tag", np.array([1, MISSING_KEY], np.uint64)).tolist() == [0, -1]


def test_default_rows_start_at_zero_and_seeds_matter():
    one, other = (SparseTables.from_spec_and_keys(SPEC, {"video": VIDEOS}, seed=seed) for seed in (1, 2))
    again = SparseTables.from_spec_and_keys(SPEC, {"video": VIDEOS}, seed=1)
    assert not one.weights["video"][0].any()
    assert torch.equal(one.weights["video"], again.weights["video"])
    assert not torch.equal(one.weights["video"], other.weights["video"])


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.integers(1, 20))
def test_rows_equal_the_contracts_pooling(seed, n):
    random = np.random.default_rng(seed)
    tables = toy()
    slots = {"video_id": random.integers(-1, 5, (n, 1)), "tags": random.integers(-1, 4, (n, TAGS_MAX))}
    slow = pool_rows(SPEC, "rows", tables.numpy_rows(), slots, np.empty((n, 7), np.float32))
    rows = tables.rows(SPEC, "rows", {name: torch.from_numpy(s) for name, s in slots.items()})
    np.testing.assert_allclose(rows.detach().numpy(), slow, rtol=1e-6, atol=1e-7)


def test_rows_take_any_leading_shape():
    tables = toy()
    slots = {"video_id": torch.randint(-1, 5, (2, 6, 1)), "tags": torch.randint(-1, 4, (2, 6, TAGS_MAX))}
    rows = tables.rows(SPEC, "rows", slots)
    assert rows.shape == (2, 6, SPEC.width("rows"))
    flat = tables.rows(SPEC, "rows", {name: s.reshape(12, -1) for name, s in slots.items()})
    assert torch.equal(rows.reshape(12, -1), flat)


def test_gradients_reach_only_the_rows_read():
    tables = toy()
    slots = {"video_id": torch.tensor([[1], [-1]]), "tags": torch.tensor([[2, 3, -1], [-1, -1, -1]])}
    tables.rows(SPEC, "rows", slots).sum().backward()
    assert tables.weights["video"].grad[:, 0].tolist() == [1, 1, 0, 0, 0]
    assert tables.weights["tag"].grad[:, 0].tolist() == [1, 0, 0.5, 0.5]


def test_a_block_without_served_fields_is_refused():
    with pytest.raises(SpecError, match="no served field"):
        toy().rows(SPEC, "nowhere", {})


def test_field_slots_read_raw_columns():
    tables = toy()
    columns = {
        "video_id": np.array([7, 8, MISSING_KEY], np.uint64),
        "tags": np.array([[1, 5, MISSING_KEY], [9, MISSING_KEY, MISSING_KEY], [MISSING_KEY] * 3], np.uint64),
    }
    slots = tables.field_slots(SPEC, "rows", columns)
    assert slots["video_id"].tolist() == [[2], [0], [-1]]
    assert slots["tags"].tolist() == [[1, 3, -1], [0, -1, -1], [-1, -1, -1]]


def test_rows_begin_as_spread_as_is_asked():
    keys = {"video": np.arange(1, 2_001, dtype=np.uint64)}
    for told in ({}, {"init_std": 0.01}, {"init_std": 0.0}):
        rows = SparseTables(keys, {"video": 16}, **told).weights["video"].detach()
        assert float(rows[1:].std()) == pytest.approx(told.get("init_std", INIT_STD), rel=0.02)
        assert not rows[0].any()
    for bad in (-0.1, float("nan")):
        with pytest.raises(SpecError, match="init_std"):
            SparseTables(keys, {"video": 16}, init_std=bad)


def test_key_dropout_reads_the_default_row_in_training_alone():
    tables = toy(dropout=0.5)
    slots = {"video_id": torch.ones((4000, 1), dtype=torch.int64), "tags": torch.full((4000, TAGS_MAX), -1)}
    torch.manual_seed(0)
    tables.train()
    share = (tables.rows(SPEC, "rows", slots)[:, 0] == 0.5).float().mean()
    assert 0.45 < float(share) < 0.55
    tables.eval()
    assert not (tables.rows(SPEC, "rows", slots)[:, 0] == 0.5).any()
    with pytest.raises(SpecError, match="dropout"):
        toy(dropout=1.0)


def train(tables: SparseTables, steps: int = 5) -> None:
    optimizers = tables.optimizers(0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        slots = {
            "video_id": torch.randint(-1, 5, (6, 1), generator=generator),
            "tags": torch.randint(-1, 4, (6, TAGS_MAX), generator=generator),
        }
        for optimizer in optimizers:
            optimizer.zero_grad()
        (tables.rows(SPEC, "rows", slots) ** 2).sum().backward()
        for optimizer in optimizers:
            optimizer.step()


def test_sparse_and_dense_gradients_train_the_same_rows(monkeypatch):
    dense = toy()
    train(dense)
    monkeypatch.setattr(tables_module, "SPARSE_FROM_ROWS", 5)  # the video table becomes "large"
    mixed = toy()
    assert len(mixed.optimizers(0.1)) == 2
    train(mixed)
    for table in dense.weights:
        torch.testing.assert_close(dense.weights[table], mixed.weights[table])
    monkeypatch.setattr(tables_module, "SPARSE_FROM_ROWS", 1)
    sparse = toy()
    train(sparse)
    assert sparse.weights["tag"].grad.is_sparse
    for table in dense.weights:
        torch.testing.assert_close(dense.weights[table], sparse.weights[table])


def test_export_and_back():
    tables = toy()
    arrays = tables.export()
    assert arrays["video.keys"].dtype == np.int64
    assert arrays["video.keys"][0] == -1
    back = SparseTables.from_export(arrays)
    assert back.keys["video"].tolist() == tables.keys["video"].tolist()
    for table in tables.weights:
        assert torch.equal(back.weights[table], tables.weights[table])


def test_contradicting_exports_are_refused():
    arrays = toy().export()
    without = {name: array for name, array in arrays.items() if name != "tag.rows"}
    with pytest.raises(CheckpointError, match="incomplete"):
        SparseTables.from_export(without)
    with pytest.raises(CheckpointError, match="do not fit"):
        SparseTables.from_export({**arrays, "tag.rows": arrays["tag.rows"][:2]})
    with pytest.raises(CheckpointError, match="ascend"):
        SparseTables.from_export({**arrays, "tag.keys": arrays["tag.keys"][::-1].copy()})


def test_new_keys_start_from_the_default_row():
    tables = toy()
    before = {int(k): row.clone() for k, row in zip(tables.keys["video"], tables.weights["video"], strict=True)}
    origins = tables.grow({"video": np.array([5, 3, 20], np.uint64)})
    assert tables.keys["video"].tolist() == [int(MISSING_KEY), 3, 5, 7, 11, 20, 2**63 + 5]
    assert origins["video"].tolist() == [0, 1, -1, 2, 3, -1, 4]
    for key, row in zip(tables.keys["video"], tables.weights["video"], strict=True):
        assert torch.equal(row, before.get(int(key), before[int(MISSING_KEY)]))
    with pytest.raises(SpecError, match="no such table"):
        tables.grow({"nowhere": VIDEOS})


def test_unknown_tables_are_refused():
    with pytest.raises(SpecError, match="no such table"):
        SparseTables.from_spec_and_keys(SPEC, {"nowhere": VIDEOS})
    with pytest.raises(SpecError, match="one key array"):
        SparseTables({"video": VIDEOS}, {})


def test_table_keys_gather_what_columns_bring():
    columns = {"video_id": VIDEOS, "tags": np.full((5, TAGS_MAX), MISSING_KEY)}
    columns["tags"][0, :2] = (4, 2)
    keys = table_keys(SPEC, [("rows", columns), ("seen_rows", {"video_id": np.array([1], np.uint64)})])
    assert keys["video"].tolist() == [1, 3, 7, 11, 2**63 + 5]
    assert keys["tag"].tolist() == [2, 4]


def test_shipped_specs_make_tables():
    tables = SparseTables.from_spec_and_keys(kuaiformer_spec(8, 4), {})
    assert tables.n_rows == dict.fromkeys(("author", "duration", "gap", "play_ratio", "tag", "video"), 1)


def test_single_tables_may_drop_more():
    tables = SparseTables({"a": np.arange(3, dtype=np.uint64), "b": np.arange(3, dtype=np.uint64)}, {"a": 2, "b": 2})
    tables.dropout_of["b"] = 0.999
    slots = torch.ones(200, 1, dtype=torch.int64)
    tables.train()
    assert bool((tables._pooled("a", slots) == tables.weights["a"][1]).all())
    assert bool((tables._pooled("b", slots) == 0).all(dim=1).float().mean() > 0.9)
    tables.eval()
    assert bool((tables._pooled("b", slots) == tables.weights["b"][1]).all())

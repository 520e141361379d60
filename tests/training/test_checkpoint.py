"""Checkpoints: what is written comes back, what is damaged is refused, and writing is whole or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

from contract.errors import CheckpointError
from contract.features import pool_rows
from contract.spec import FeatureSpec, Field
from training import checkpoint as checkpoint_module
from training.checkpoint import TrainingState, load_checkpoint, model_card, save_checkpoint
from training.tables import SparseTables

SPEC = FeatureSpec("toy", (Field("video", "video_id", "rows", "video", "page", "served", 4, table="video"),))


def make(kind: str = "ranker", seed: int = 0) -> dict:
    torch.manual_seed(seed)
    tables = SparseTables.from_spec_and_keys(SPEC, {"video": np.array([2, 2**63 + 1], np.uint64)}, seed=seed)
    return {
        "kind": kind,
        "model": nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1)),
        "tables": tables,
        "spec": SPEC,
        "model_config": {"preset": "tiny", "width": 3},
        "training": {"seed": seed, "data": "toy"},
        "metrics": {"auc": 0.5},
        "card_text": "# A toy\n",
        "state": TrainingState({"a": torch.arange(3.0)}, {"step": 5}),
    }


@pytest.fixture
def saved(tmp_path):
    return save_checkpoint(tmp_path / "one", **make())


def test_what_is_saved_comes_back(saved):
    made = make()
    back = load_checkpoint(saved.path)
    assert back.kind == "ranker"
    assert back.spec == SPEC
    assert back.spec.fingerprint == SPEC.fingerprint
    assert back.metrics == {"auc": 0.5}
    assert back.model_config == {"preset": "tiny", "width": 3}
    assert back.config["training"] == {"seed": 0, "data": "toy"}
    for name, tensor in made["model"].state_dict().items():
        assert torch.equal(back.dense[name], tensor)
    assert back.tables.keys["video"].tolist() == made["tables"].keys["video"].tolist()
    assert torch.equal(back.tables.weights["video"], made["tables"].weights["video"])
    assert back.card_path.read_text() == "# A toy\n"
    assert back.has_state
    assert back.state().tensors["a"].tolist() == [0, 1, 2]
    assert back.state().meta == {"step": 5}


def test_the_layout_is_the_documented_one(saved):
    names = {str(path.relative_to(saved.path)) for path in saved.path.rglob("*") if path.is_file()}
    assert names == {
        "config.json",
        "model.safetensors",
        "tables.safetensors",
        "metrics.json",
        "README.md",
        "state/optimizer.safetensors",
        "state/state.json",
    }
    config = json.loads((saved.path / "config.json").read_text())
    assert config["format"] == "kir-checkpoint/1"
    assert saved.model_path.name in names
    assert saved.tables_path.name in names


def test_tables_are_readable_without_torch(saved):
    arrays = load_file(saved.tables_path)
    assert arrays["video.keys"].view(np.uint64).tolist() == [2**64 - 1, 2, 2**63 + 1]
    slots = {"video": np.array([[1], [0], [-1], [2]])}
    rows = pool_rows(SPEC, "rows", {"video": arrays["video.rows"]}, slots, np.empty((4, 4), np.float32))
    np.testing.assert_array_equal(rows[3], arrays["video.rows"][2])


def test_version_is_the_hash_of_the_net_and_of_the_tables_where_they_count(tmp_path):
    for kind, tables_count in (("ranker", True), ("kuaiformer", False), ("kir", False)):
        one = save_checkpoint(tmp_path / f"{kind}-1", **make(kind))
        bits = one.model_path.read_bytes() + (one.tables_path.read_bytes() if tables_count else b"")
        assert one.version == f"{kind}-{hashlib.sha256(bits).hexdigest()[:12]}"
        made = make(kind)
        with torch.no_grad():
            made["tables"].weights["video"][1] += 1
        assert (save_checkpoint(tmp_path / f"{kind}-2", **made).version != one.version) == tables_count


def test_the_same_weights_have_the_same_version(tmp_path):
    assert save_checkpoint(tmp_path / "a", **make()).version == save_checkpoint(tmp_path / "b", **make()).version


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tables.safetensors", "metrics.json"])
def test_a_missing_or_cut_file_is_refused_and_named(saved, name):
    path = saved.path / name
    whole = path.read_bytes()
    for size in (0, 1, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=name):
            load_checkpoint(saved.path)
    path.unlink()
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(saved.path)


@pytest.mark.parametrize("name", ["model.safetensors", "tables.safetensors"])
def test_a_flipped_byte_is_found(saved, name):
    path = saved.path / name
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="altered"):
        load_checkpoint(saved.path)


@pytest.mark.parametrize("name", ["state/optimizer.safetensors", "state/state.json"])
def test_cut_state_is_refused_when_asked_for(saved, name):
    path = saved.path / name
    path.write_bytes(path.read_bytes()[:-4])
    loaded = load_checkpoint(saved.path)
    with pytest.raises(CheckpointError):
        loaded.state()


def test_a_checkpoint_without_state_says_so(tmp_path):
    saved = save_checkpoint(tmp_path / "one", **{**make(), "state": None})
    assert not saved.has_state
    with pytest.raises(CheckpointError, match="no training state"):
        saved.state()


def test_another_kind_or_format_is_refused(saved):
    with pytest.raises(CheckpointError, match="another kind"):
        load_checkpoint(saved.path, kind="kir")
    config = json.loads((saved.path / "config.json").read_text())
    for change, message in (
        ({"format": "other/1"}, "not a checkpoint"),
        ({"version": "ranker-000000000000"}, "version does not belong"),
        ({"kind": "nothing"}, "another kind"),
    ):
        (saved.path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(saved.path)
    del config["spec"]
    (saved.path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="lacks an entry"):
        load_checkpoint(saved.path)


def test_no_directory_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="unknown kind"):
        save_checkpoint(tmp_path / "x", **make("nothing"))


def test_tables_that_do_not_fit_the_spec_are_refused(tmp_path):
    other = FeatureSpec("toy", (Field("video", "video_id", "rows", "video", "page", "served", 8, table="video"),))
    with pytest.raises(CheckpointError, match="do not fit the spec"):
        save_checkpoint(tmp_path / "x", **{**make(), "spec": other})
    assert not list(tmp_path.iterdir())


def test_a_net_of_another_shape_is_refused(saved):
    net = make(seed=1)["model"]
    saved.load_into(net)
    assert torch.equal(net[0].weight, saved.dense["0.weight"])
    for wrong in (nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 1)), nn.Sequential(nn.Linear(4, 3))):
        with pytest.raises(CheckpointError, match=r"tensors differ"):
            saved.load_into(wrong)


def test_overwriting_is_explicit_and_whole(tmp_path, saved):
    with pytest.raises(CheckpointError, match="exists"):
        save_checkpoint(saved.path, **make(seed=1))
    assert load_checkpoint(saved.path).version == saved.version
    (saved.path / "stray").write_text("old")
    new = save_checkpoint(saved.path, **make(seed=1), overwrite=True)
    assert new.version != saved.version
    assert not (saved.path / "stray").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_a_failed_write_leaves_the_old_checkpoint_and_no_rest(tmp_path, saved, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint_module, "flush_directory", fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(saved.path, **make(seed=1), overwrite=True)
    assert load_checkpoint(saved.path).version == saved.version
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_metrics_must_be_numbers_json_knows(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_checkpoint(tmp_path / "x", **{**make(), "metrics": {"auc": float("nan")}})


def test_a_copied_checkpoint_is_the_same(tmp_path, saved):
    shutil.copytree(saved.path, tmp_path / "copy")
    assert load_checkpoint(tmp_path / "copy").version == saved.version


def test_the_card_lists_what_it_is_given():
    card = model_card("Toy", {"seed": 3}, {"auc": 0.51234, "protocol": "toy"}, notes="Said aside.")
    assert card.startswith("# Toy\n")
    assert "| seed | 3 |" in card
    assert "| auc | 0.5123 |" in card
    assert "| protocol | toy |" in card
    assert card.endswith("Said aside.\n")

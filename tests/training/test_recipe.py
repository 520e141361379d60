"""Recipes: they come back as they were saved, say what is wrong with them, and the shipped ones can be trained."""

from __future__ import annotations

import json
import re

import pytest

from contract.errors import InputError
from training.kuaiformer import KuaiFormer, KuaiFormerConfig, preset_config
from training.kuaiformer_task import LossConfig
from training.recipe import FOLDER, TABLE_RATE, DataConfig, Recipe, read_recipe
from training.trainer import TrainConfig

FULL = {
    "preset": "paper",
    "model": {"layers": 2, "windows": [8, 4], "latest": 6, "dropout": 0, "normalise": False},
    "data": {
        "batch": 512,
        "stride": 3,
        "cap": 4,
        "half_life_days": 2.5,
        "key_dropout": 0.1,
        "item_dropout": 0.2,
        "init_std": 0.01,
        "select_by": "ndcg@10",
    },
    "loss": {"candidates": "sampled", "negatives": 64, "correction": "corrected", "smoothing": "paper", "alpha": 0.2},
    "train": {"epochs": 7, "patience": 2, "ema_decay": 0.99, "precision": "auto", "seed": 3},
}


def test_what_is_left_out_has_its_default():
    recipe = Recipe.from_dict({})
    assert recipe == Recipe()
    assert recipe.config() == KuaiFormerConfig()
    assert (recipe.data, recipe.loss) == (DataConfig(), LossConfig())
    assert recipe.train == TrainConfig(epochs=10, table_rate=TABLE_RATE)
    assert Recipe.from_dict({"train": {"epochs": 3}}).train.table_rate == TABLE_RATE, "the recipe's own, kept"


def test_every_value_arrives_and_comes_back():
    recipe = Recipe.from_dict(FULL)
    config = recipe.config()
    assert (config.preset, config.layers, config.windows, config.latest) == ("paper", 2, (8, 4), 6)
    assert config.interests == preset_config("paper").interests, "what `model` does not change is the preset's"
    assert recipe.data == DataConfig(512, 3, 4, 2.5, 0.1, 0.2, 0.01, "ndcg@10")
    assert (recipe.loss.negatives, recipe.loss.smoothing, recipe.train.patience) == (64, "paper", 2)
    for back in (recipe.to_dict(), json.loads(json.dumps(recipe.to_dict()))):
        assert Recipe.from_dict(back) == recipe
        assert Recipe.from_dict(back).config() == config


def test_fields_the_data_do_not_tell_are_left_out():
    recipe = Recipe.from_dict({"model": {"without": ["history_gap"]}})
    assert recipe.config(("history_play", "history_gap")).without == ("history_gap", "history_play")
    assert recipe.config().without == ("history_gap",)
    names = {field.name for field in recipe.config(("history_play",)).spec().fields}
    assert "history_duration" in names
    assert not names & {"history_gap", "history_play"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"modle": {}}, "unknown part"),
        ({"model": {"size": 3}}, "unknown key"),
        ({"model": {"preset": "paper"}}, "unknown key"),
        ({"train": {"lr": 0.1}}, "unknown key"),
        ({"data": {"batchsize": 3}}, "unknown key"),
        ({"loss": {"alpha": "high"}}, "another type"),
        ({"loss": {"alpha": None}}, "another type"),
        ({"loss": {"alpha": float("nan")}}, "another type"),
        ({"loss": {"except_owned": 1}}, "another type"),
        ({"data": {"batch": 10.5}}, "another type"),
        ({"data": {"batch": True}}, "another type"),
        ({"data": {"batch": None}}, "another type"),
        ({"data": {"cap": "two"}}, "another type"),
        ({"train": {"max_steps": 2.5}}, "another type"),
        ({"train": {"precision": 16}}, "another type"),
        ({"model": {"layers": "four"}}, "another type"),
        ({"model": {"windows": 64}}, "another type"),
        ({"model": {"windows": [64, "16"]}}, "another type"),
        ({"model": {"without": "history_gap"}}, "another type"),
        ({"preset": ["paper"]}, "another type"),
        ({"model": [1]}, "is an object"),
        ({"train": 3}, "is an object"),
        ({"preset": "huge"}, "unknown preset"),
        ({"model": {"width": 33}}, "multiple of the heads"),
        ({"model": {"latest": 0}}, "raw tail"),
        ({"loss": {"smoothing": "much"}}, "unknown smoothing"),
        ({"loss": {"correction": "log"}}, "unknown correction"),
        ({"loss": {"candidates": "all"}}, "unknown candidates"),
        ({"loss": {"alpha": 1.0}}, "out of range.*allowed: alpha from 0 to below 1, negatives from 1$"),
        ({"loss": {"negatives": 0}}, "out of range"),
        ({"train": {"epochs": 0}}, "epochs"),
        ({"train": {"seed": -1}}, "seeds start at 0"),
        ({"train": {"table_optimizer": "sgd"}}, "table_optimizer"),
    ],
)
def test_mistakes_are_named(data, message):
    with pytest.raises(InputError) as refused:
        Recipe.from_dict(data)
    assert re.search(message, str(refused.value))


def test_settings_change_one_value_each():
    recipe = Recipe.from_dict(FULL).changed(
        ["model.layers=4", "loss.smoothing=standard", "data.cap=null", "train.ema_decay=0.5", "model.windows=[]"]
    )
    assert (recipe.config().layers, recipe.config().windows, recipe.loss.smoothing) == (4, (), "standard")
    assert (recipe.data.cap, recipe.train.ema_decay) == (None, 0.5)
    assert (recipe.data.stride, recipe.config().latest, recipe.loss.alpha) == (3, 6, 0.2), "all else stays"
    assert Recipe().changed(["train.seed=1", "train.seed=2"]).train.seed == 2, "the last one counts"
    assert Recipe().changed([]) == Recipe()
    assert Recipe.from_dict(FULL).model["layers"] == 2, "the one changed is another"
    assert Recipe().changed(['model.without=["history_gap"]']).config().without == ("history_gap",)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("layers=4", "PART.KEY=VALUE"),
        ("model.layers", "PART.KEY=VALUE"),
        ("preset.x=paper", "PART.KEY=VALUE"),
        ("preset=paper", "PART.KEY=VALUE"),
        ("net.layers=4", "PART.KEY=VALUE"),
        ("model.layer=4", "unknown key"),
        ("model.layers=four", "another type"),
        ("train.epochs=", "another type"),
        ("loss.smoothing=much", "unknown smoothing"),
    ],
)
def test_wrong_settings_are_named(setting, message):
    with pytest.raises(InputError, match=message):
        Recipe().changed([setting])


def test_recipes_are_read_by_name_or_from_a_file(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(FULL))
    assert read_recipe(path) == read_recipe(str(path)) == Recipe.from_dict(FULL)
    shipped = sorted(FOLDER.glob("*.json"))
    assert read_recipe(shipped[0].stem) == read_recipe(shipped[0])
    with pytest.raises(InputError, match="no such recipe") as refused:
        read_recipe("nowhere")
    assert shipped[0].stem in str(refused.value)
    for text, message in (("{", "not a readable recipe"), ("[]", "one JSON object"), ('{"model": {"x": 1}}', "mine")):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            read_recipe(path)
    with pytest.raises(InputError, match="not a readable recipe"):
        read_recipe(_folder(tmp_path / "folder.json"))


def _folder(path):
    path.mkdir()
    return path


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_shipped_recipes_make_a_net(path):
    recipe = read_recipe(path)
    assert set(json.loads(path.read_text())) <= {"preset", "model", "data", "loss", "train"}
    config = recipe.config()
    assert recipe.data.stride is None or recipe.data.stride <= config.latest
    assert KuaiFormer(config, config.spec()).encoder.queries.shape == (config.interests, config.width)
    if recipe.train.patience is not None:
        assert recipe.data.select_by, "stopping early needs a metric to go by"

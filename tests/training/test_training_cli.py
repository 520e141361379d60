"""`kir simulate`, `train`, `evaluate` through the real command line, and the examples."""

from __future__ import annotations

import argparse
import importlib.util
import json
import shlex
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import kir
from contract.catalogue import read_catalogue, read_users
from contract.parquet import read_events
from training import cli
from training.checkpoint import load_checkpoint
from training.kuaiformer import preset_config
from training.recipe import Recipe, read_recipe

SIM = "sim:users=40,items=150,days=3"
GUIDE = (Path(__file__).parents[2] / "docs" / "kuaiformer.md").read_text()
KUAIFORMER_COMMANDS = [
    shlex.split(line, comments=True) for line in GUIDE.splitlines() if line.startswith("kir train kuaiformer")
]


def run(*words: str) -> int:
    return kir.main([str(word) for word in words])


def test_simulate_writes_what_train_reads(tmp_path, capsys):
    out = tmp_path / "sim"
    assert run("simulate", "--out", out, "--users", 20, "--items", 100, "--days", 2, "--seed", 3) == 0
    events = read_events(out / "events.parquet")
    assert f"{len(events)} impressions of 20 users and 100 videos over 2 days" in capsys.readouterr().out
    assert len(read_catalogue(out / "catalogue.parquet")) == 100
    assert len(read_users(out / "users.parquet")) == 20
    assert run("simulate", "--out", out, "--users", 20) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run("simulate", "--out", out, "--users", 20, "--items", 100, "--days", 2, "--overwrite") == 0
    model = tmp_path / "model"
    assert run("train", "ranker", "--data", f"events:{out}", "--out", model, "--epochs", 1) == 0
    assert load_checkpoint(model).kind == "ranker"


def test_simulate_takes_a_file_name(tmp_path):
    path = tmp_path / "my.parquet"
    assert run("simulate", "--out", path, "--users", 10, "--items", 50, "--days", 1, "--drift", 0) == 0
    assert len(read_events(path)) > 0
    assert (tmp_path / "catalogue.parquet").exists()


@pytest.mark.parametrize(
    ("model", "metric", "protocol"),
    [("kuaiformer", "recall@10", "full ranking of 150 videos"), ("ranker", "auc_long_view", "impressions of")],
)
def test_train_then_evaluate(tmp_path, capsys, model, metric, protocol):
    out, figures = tmp_path / "model", tmp_path / "figures.json"
    assert run("train", model, "--data", SIM, "--out", out, "--epochs", 1, "--preset", "tiny") == 0
    printed = capsys.readouterr().out
    checkpoint = load_checkpoint(out, kind=model)
    assert checkpoint.version in printed
    assert printed.index(protocol) < printed.index(metric)
    steps = [json.loads(line)["step"] for line in (out / "train_log.jsonl").read_text().splitlines()]
    assert steps[0] == 1
    told = checkpoint.config["training"]
    assert steps[-1] <= (told["result"] if model == "kuaiformer" else told["stages"][0])["steps"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (out / "README.md").read_text().startswith("# ")
    assert SIM.startswith(checkpoint.config["training"]["data"])
    assert run("evaluate", out, "--data", SIM, "--json", figures) == 0
    assert protocol in capsys.readouterr().out
    written = json.loads(figures.read_text())
    assert written["version"] == checkpoint.version
    assert written["metrics"][metric] == pytest.approx(checkpoint.metrics[metric], abs=1e-9)


def test_steps_and_resume_end_where_one_run_does(tmp_path, capsys):
    train = ("train", "kuaiformer", "--data", SIM, "--epochs", 1, "--holdout-days", 0, "--set", "data.batch=128")
    assert run(*train, "--out", tmp_path / "whole") == 0
    assert run(*train, "--out", tmp_path / "parts", "--steps", 3) == 0
    whole, part = (load_checkpoint(tmp_path / name) for name in ("whole", "parts"))
    assert part.config["training"]["result"]["steps"] == 3
    assert run(*train, "--out", tmp_path / "parts", "--resume") == 2, "the checkpoint of step 3 stands there"
    assert run(*train, "--out", tmp_path / "parts", "--resume", "--overwrite", "--epochs", 4) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert "; got train.epochs 4; allowed: train.epochs 1; resume with" in told, "the keys that differ, and no others"
    assert run(*train, "--out", tmp_path / "parts", "--resume", "--overwrite") == 0
    assert part.version != whole.version == load_checkpoint(tmp_path / "parts").version
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts", "whole"]


def test_a_recipe_and_changes_to_it_reach_the_checkpoint(tmp_path, capsys):
    recipe = {"preset": "tiny", "model": {"layers": 1}, "train": {"epochs": 3, "seed": 5, "learning_rate": 0.004}}
    (tmp_path / "mine.json").write_text(json.dumps(recipe))
    train = ("train", "kuaiformer", "--data", SIM, "--holdout-days", 0, "--recipe", tmp_path / "mine.json")
    changes = ("--epochs", 1, "--seed", 0, "--set", "model.interests=3", "--set", "loss.smoothing=standard")
    assert run(*train, *changes, "--out", tmp_path / "m") == 0
    saved = load_checkpoint(tmp_path / "m").config
    assert (saved["model"]["layers"], saved["model"]["interests"]) == (1, 3)
    label = "tiny, changed: layers 1, interests 3"
    assert f"| preset | {label} |" in (tmp_path / "m" / "README.md").read_text()
    assert run("describe", tmp_path / "m") == 0
    assert label in capsys.readouterr().out
    used = saved["training"]["recipe"]
    assert (used["train"]["epochs"], used["train"]["learning_rate"], used["loss"]["smoothing"]) == (
        1,
        0.004,
        "standard",
    )
    assert used["train"]["seed"] == saved["training"]["seed"] == 0, "a seed of 0 counts as given"


@pytest.fixture
def recipes_used(monkeypatch):
    """The recipe that each `kir train kuaiformer` would have trained with; no data are read."""
    from training import kuaiformer_train, readers, retrieval_split

    used: list[Recipe] = []
    monkeypatch.setattr(readers, "open_data", lambda name: None)
    monkeypatch.setattr(retrieval_split, "split_of", lambda data, name, **options: None)
    monkeypatch.setattr(kuaiformer_train, "train_kuaiformer", lambda split, out, recipe, **options: used.append(recipe))
    return used


def test_a_preset_replaces_the_recipes(tmp_path, recipes_used):
    used = recipes_used
    train = ("train", "kuaiformer", "--data", SIM, "--out", tmp_path / "m")
    assert run(*train, "--preset", "paper", "--set", "model.heads=32") == 0, "too many for the preset before"
    assert run(*train) == 0
    assert (used[0].config().layers, used[0].config().heads, used[0].config().preset) == (4, 32, "paper")
    assert used[1].config().preset == "tiny"


def test_a_preset_beside_a_recipe_is_the_whole_model(tmp_path, recipes_used):
    """The recipe's sizes go with its own preset: `paper` is the paper's model, whoever says how it is trained."""
    train = ("train", "kuaiformer", "--data", SIM, "--out", tmp_path / "m", "--recipe", "ml-1m")
    assert run(*train, "--preset", "paper") == 0
    assert run(*train, "--preset", "paper", "--set", "model.interests=4") == 0
    assert run(*train) == 0
    paper, four, own = recipes_used
    assert paper.config() == preset_config("paper")
    assert paper.train == own.train
    assert paper.loss == own.loss
    assert (four.config().interests, four.config().layers) == (4, 4), "the paper's variant with 4 query tokens"
    assert own == read_recipe("ml-1m")


@pytest.mark.parametrize("words", KUAIFORMER_COMMANDS, ids=lambda words: " ".join(words[4:]))
def test_the_guides_commands_act(recipes_used, words):
    """docs/kuaiformer.md: every setting of its commands reaches the recipe, and none is without effect."""
    assert run(*words[1:]) == 0
    (used,) = recipes_used
    assert "loss.correction" not in " ".join(words) or used.loss.told(150) == ""
    for name, value in (word.split("=") for word in words if "." in word and "=" in word):
        part, key = name.split(".")
        assert str(getattr(used.config() if part == "model" else getattr(used, part), key)) == value


def test_a_correction_without_effect_is_said(tmp_path, capsys):
    train = ("train", "kuaiformer", "--data", SIM, "--epochs", 1, "--holdout-days", 0, "--steps", 2)
    assert run(*train, "--out", tmp_path / "all", "--set", "loss.correction=corrected") == 0
    assert "over all 150 items has nothing to correct, so loss.correction=corrected" in capsys.readouterr().err
    saved = load_checkpoint(tmp_path / "all")
    assert saved.config["training"]["correction"] == "none"
    assert "| correction | none |" in (saved.path / "README.md").read_text()
    acts = ("--set", "loss.candidates=in-batch", "--set", "loss.correction=corrected")
    assert run(*train, "--out", tmp_path / "batch", *acts) == 0
    assert "nothing to correct" not in capsys.readouterr().err
    assert load_checkpoint(tmp_path / "batch").config["training"]["correction"] == "corrected"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train", "ranker", "--data", "csv:x", "--out", "m"), "KIND:PATH"),
        (("train", "ranker", "--data", "events:nowhere", "--out", "m"), "nowhere"),
        (("train", "ranker", "--data", SIM, "--out", "m", "--holdout-days", "-1"), "--holdout-days"),
        (("train", "ranker", "--data", SIM, "--out", "m", "--resume", "nowhere"), "--resume nowhere"),
        (("train", "ranker", "--data", SIM, "--out", "m", "--preset", "seed"), "unknown preset"),
        (("train", "ranker", "--data", SIM, "--out", "m", "--holdout-days", "9"), "hold out"),
        (("train", "kir", "--data", SIM, "--out", "m", "--steps", "5"), "--steps"),
        (("train", "ranker", "--data", SIM, "--out", "m", "--pxtr-only"), "--pxtr-only is for kir"),
        (("train", "ranker", "--data", SIM, "--out", "m", "--set", "loss.alpha=0.2"), "recipes are kuaiformer's"),
        (("train", "kuaiformer", "--data", SIM, "--out", "m", "--recipe", "nowhere"), "no such recipe"),
        (("train", "kuaiformer", "--data", SIM, "--out", "m", "--set", "model.size=3"), "size"),
        (("train", "kuaiformer", "--data", SIM, "--out", "m", "--set", "loss=3"), "PART.KEY=VALUE"),
        (("train", "kuaiformer", "--data", SIM, "--out", "m", "--resume"), "no saved training state"),
        (("evaluate", "nowhere", "--data", SIM), "nowhere"),
    ],
)
def test_mistakes_end_in_one_line(tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    assert run(*words) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith(f"kir {words[0]}: ")
    assert message in line
    assert not (tmp_path / "m").exists()


def test_evaluate_refuses_data_before_the_cut(tmp_path, capsys):
    out = tmp_path / "model"
    assert run("train", "ranker", "--data", SIM, "--out", out, "--epochs", 1, "--holdout-days", 0) == 0
    assert run("evaluate", out, "--data", SIM) == 2
    assert "--holdout-days" in capsys.readouterr().err


def test_sequences_are_refused_with_a_reason(tmp_path, capsys, monkeypatch):
    import training.readers

    monkeypatch.setattr(training.readers, "open_data", lambda name: object())
    assert run("train", "ranker", "--data", "ml-1m:x", "--out", tmp_path / "m") == 2
    assert "no events" in capsys.readouterr().err


def test_kir_is_called_with_what_the_flags_say(tmp_path, monkeypatch):
    called = {}

    def train_kir(events, out_dir, preset, **options):
        called.update(options, events=len(events), out=out_dir, preset=preset)
        return types.SimpleNamespace(version="kir-0", metrics={"auc": 0.5, "steps": 3}, path=out_dir)

    monkeypatch.setitem(sys.modules, "training.kir_train", types.SimpleNamespace(train_kir=train_kir))
    assert run("train", "kir", "--data", SIM, "--out", tmp_path / "k", "--epochs", 2, "--preset", "kir2022") == 0
    assert called["epochs"] == 2
    assert called["preset"] == "kir2022"
    assert called["out"] == tmp_path / "k"
    assert not called["pxtr_only"]
    assert called["init_from"] is None
    assert run("train", "kir", "--data", SIM, "--out", tmp_path / "k", "--pxtr-only") == 0
    assert called["pxtr_only"]
    assert run("train", "kir", "--data", SIM, "--out", tmp_path / "k", "--init-from", "runs/before") == 0
    assert called["init_from"] == "runs/before"


@pytest.mark.parametrize(
    ("model", "flags", "told"),
    [
        ("ranker", ("--init-from", "x"), "--init-from is for kir"),
        ("kir", ("--init-from", "x", "--preset", "kir"), "--init-from with --preset"),
        ("kir", ("--init-from", "x", "--pxtr-only"), "--init-from with --pxtr-only"),
        ("kir", ("--init-from", "x"), "no such checkpoint directory"),
    ],
)
def test_a_checkpoint_that_is_tuned_keeps_its_shape(tmp_path, capsys, model, flags, told):
    flags = [tmp_path / "none" if flag == "x" else flag for flag in flags]
    assert run("train", model, "--data", SIM, "--out", tmp_path / "k", *flags) == 2
    assert told in capsys.readouterr().err


def test_a_ranker_has_the_presets_that_help_names(capsys):
    from training.ranker import PRESETS

    assert tuple(PRESETS) == cli.RANKER_PRESETS
    with pytest.raises(SystemExit):
        kir.main(["train", "--help"])
    assert f"ranker: {', '.join(PRESETS)};" in " ".join(capsys.readouterr().out.split())


def test_help_names_every_flag(capsys):
    for name in ("simulate", "train", "evaluate"):
        parser = argparse.ArgumentParser()
        getattr(cli, f"add_{name}_arguments")(parser)
        with pytest.raises(SystemExit):
            kir.main([name, "--help"])
        text = capsys.readouterr().out
        for action in parser._actions:
            assert all(flag in text for flag in action.option_strings)


def test_kuairand_days_begin_in_china():
    args = argparse.Namespace(utc_offset_hours=None, data="kuairand:x")
    assert cli._utc_offset(args) == 8.0
    args.data = "events:x"
    assert cli._utc_offset(args) == 0.0
    args.utc_offset_hours = -3.0
    assert cli._utc_offset(args) == -3.0


def test_the_command_line_is_light_at_import():
    code = "import sys, training.cli; print([m for m in ('torch', 'pyarrow', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["train_retrieval", "rank_without_leaks"])
def test_examples_run(repository, capsys, name):
    path = repository / "examples" / f"{name}.py"
    module_spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    assert module.main(n_users=40, n_items=150, days=3, epochs=1)
    assert capsys.readouterr().out.count("\n") >= 3


def test_annotate_fills_pxtr_and_keeps_the_rest(tmp_path, capsys):
    out = tmp_path / "data"
    assert run("annotate", "--data", SIM, "--out", out, "--folds", 2, "--epochs", 1) == 0
    assert "with pXTR of a ranker that saw earlier days only" in capsys.readouterr().out
    events = read_events(out / "events.parquet")
    days = events["time_ms"] // 86_400_000
    filled = np.isfinite(events["pxtr"]).any(axis=1)
    assert not filled[days == days.min()].any()
    assert filled[days > days.min()].all()
    assert len(read_catalogue(out / "catalogue.parquet")) == 150
    assert run("annotate", "--data", SIM, "--out", out) == 2
    assert "--overwrite" in capsys.readouterr().err
    (tmp_path / "ranker").mkdir()
    (tmp_path / "ranker" / "config.json").write_text("{}")
    assert run("annotate", "--data", SIM, "--out", tmp_path / "ranker") == 2
    assert "is a checkpoint directory" in capsys.readouterr().err
    assert len(list((tmp_path / "ranker").iterdir())) == 1

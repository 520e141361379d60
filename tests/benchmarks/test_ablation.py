"""Plans: every arm differs from the base in what it names; a run trains, goes on, judges on the same queries."""

from __future__ import annotations

import json

import pytest

from benchmarks.ablation import FOLDER, read_plan, run_ablation
from contract.errors import InputError

DATA = "sim:users=30,items=120,days=3"
PLAN = {
    "base": {"preset": "tiny", "data": {"batch": 128}, "train": {"epochs": 1}},
    "arms": {"base": [], "raw": ["model.windows=[]", "model.latest=64"], "one": ["model.interests=1"]},
    "groups": {"Windows": ["base", "raw"], "Queries": ["base", "one"]},
}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_plans_that_ship_can_be_read(path):
    plan = read_plan(path.stem)
    recipes = [json.dumps(plan.recipe(arm).to_dict(), sort_keys=True) for arm in plan.arms]
    assert len(set(recipes)) == len(recipes), "no arm twice"
    assert all(len(group) > 1 for group in plan.groups.values())
    assert set(plan.arms) == {arm for group in plan.groups.values() for arm in group}


def test_a_plan_is_run_in_pieces(tmp_path):
    (tmp_path / "plan.json").write_text(json.dumps(PLAN))
    plan = str(tmp_path / "plan.json")
    result, table = run_ablation(plan, DATA, tmp_path / "out", only=["base", "raw"], quiet=True)
    assert set(result["arms"]) == {"base", "raw"}
    assert "Queries" in table
    before = (tmp_path / "out" / "base-0" / "model.safetensors").stat().st_mtime_ns
    result, table = run_ablation(plan, DATA, tmp_path / "out", quiet=True, command="kir bench ablation mine")
    assert json.loads((tmp_path / "out" / "ablation.json").read_text())["command"] == "kir bench ablation mine"
    assert (tmp_path / "out" / "base-0" / "model.safetensors").stat().st_mtime_ns == before, "not trained again"
    assert set(result["arms"]) == {"base", "raw", "one"}
    assert set(result["groups"]["Windows"]) == {"raw"}
    change = result["groups"]["Queries"]["one"]["recall@10"]
    quality = {arm: facts["metrics"]["recall@10"] for arm, facts in result["arms"].items()}
    assert change["mean"] == pytest.approx(quality["one"] - quality["base"])
    assert change["low"] <= change["mean"] <= change["high"]
    assert all(min(facts["encoder_ms_per_user"].values()) > 0 for facts in result["arms"].values())
    assert set(result["served"]) == {"base", "one"}, "those with windows"
    assert result["served"]["one"]["apart"]["recall@10"]["mean"] == pytest.approx(
        result["served"]["one"]["metrics"]["recall@10"] - quality["one"]
    )
    assert "one as a server answers that keeps its windows" in table
    assert "full ranking of 120 videos" in table
    assert json.loads((tmp_path / "out" / "ablation.json").read_text())["arms"].keys() == result["arms"].keys()


def test_arms_of_another_plan_or_other_epochs_are_not_taken(tmp_path):
    (tmp_path / "plan.json").write_text(json.dumps(PLAN))
    run_ablation(str(tmp_path / "plan.json"), DATA, tmp_path / "out", only=["raw"], quiet=True)
    for changes, epochs in (
        ({}, 2),
        ({"arms": {**PLAN["arms"], "raw": ["model.windows=[]", "model.latest=32"]}}, None),
    ):
        (tmp_path / "plan.json").write_text(json.dumps({**PLAN, **changes}))
        with pytest.raises(InputError, match="trained otherwise"):
            run_ablation(str(tmp_path / "plan.json"), DATA, tmp_path / "out", only=["raw"], epochs=epochs, quiet=True)


def test_long_histories_alone_are_judged(tmp_path):
    (tmp_path / "plan.json").write_text(json.dumps({**PLAN, "min_history": 20}))
    result, _ = run_ablation(str(tmp_path / "plan.json"), DATA, tmp_path / "out", only=["base"], quiet=True)
    assert "20 positives or more" in result["protocol"]
    (tmp_path / "plan.json").write_text(json.dumps({**PLAN, "min_history": 10_000}))
    with pytest.raises(InputError, match="so long a history"):
        run_ablation(str(tmp_path / "plan.json"), DATA, tmp_path / "out", quiet=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": {"base": ["model.colour=1"]}, "groups": {}}, "unknown key"),
        ({"groups": {"x": ["base", "nobody"]}}, "nobody"),
        ({"extra": 1}, "base, arms and groups"),
        ({"base": "no-such-recipe"}, "no such recipe"),
    ],
)
def test_broken_plans_say_what_is_wrong(tmp_path, changes, message):
    (tmp_path / "plan.json").write_text(json.dumps({**PLAN, **changes}))
    with pytest.raises(InputError, match=message):
        read_plan(str(tmp_path / "plan.json"))


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such plan"):
        read_plan("nothing")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(InputError, match="readable"):
        read_plan(str(tmp_path / "x.json"))
    (tmp_path / "plan.json").write_text(json.dumps(PLAN))
    with pytest.raises(InputError, match="unknown arm"):
        run_ablation(str(tmp_path / "plan.json"), DATA, tmp_path, only=["nobody"], quiet=True)

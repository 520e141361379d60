"""The reranker's ablation on a toy log: arms differ as told, are kept, and what is compared is the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import rerank_ablation
from benchmarks.rerank_ablation import ARMS, FEEDBACK, arm_changes, run_rerank_ablation
from contract.errors import InputError
from contract.specs import kir_spec
from training.kir_config import KirConfig
from training.kir_data import SEEN

DATA = "sim:users=40,items=150,days=2"
QUICK = {"epochs": 1}


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> tuple[Path, dict, str, list[str]]:
    out, said = tmp_path_factory.mktemp("rerank"), []
    only = ("one-shot", "no-feedback", "kir2022")
    result, table = run_rerank_ablation(DATA, out, "kir bench …", only=only, log=said.append, **QUICK)
    return out, result, table, said


def test_arms_name_what_there_is():
    fields = {field.name for field in kir_spec().fields}
    for name, arm in ARMS.items():
        assert set(arm.without) <= fields, name
        assert arm.seen in SEEN
        assert not arm.of or arm.of in ARMS
        KirConfig.of("tiny", **arm_changes(arm, "tiny"))
    feedback = {f.name for f in kir_spec().fields if f.group == "feedback" and f.name != "start"}
    assert feedback | {"surprise"} == set(FEEDBACK)


def test_another_presets_shape_keeps_the_sizes():
    found = KirConfig.of("tiny", **arm_changes(ARMS["kir2020"], "tiny"))
    assert (found.width, found.blocks, found.watched) == (16, 2, 20)
    assert (found.reads, found.placed, found.loss) == ("mean", 0, "weighted")
    assert KirConfig.of("tiny", **arm_changes(ARMS["kir2022"], "tiny")).blocks == 0


def test_every_arm_asked_for_is_in_the_table(ran):
    _, result, table, _ = ran
    assert list(result["arms"]) == ["full", "one-shot", "no-feedback", "kir2022"]
    for name, arm in result["arms"].items():
        assert name in table
        for label in rerank_ablation.LABELS:
            assert 0.0 <= arm["results"][label]["metrics"]["gauc"]["mean"] <= 1.0
            assert (label in arm["minus_reference"]) == (name != "full")
    assert "protocol:" in table
    impressions = {arm["results"]["effective_view"]["impressions"] for arm in result["arms"].values()}
    assert len(impressions) == 1, "all arms are judged on the same impressions"


def test_one_shot_asks_the_model_of_full(ran):
    out, result, _, said = ran
    assert "one-shot: training" not in said
    assert not (out / "one-shot").exists()
    assert result["arms"]["one-shot"]["swipe_macs"] == result["arms"]["full"]["swipe_macs"]
    assert result["arms"]["kir2022"]["swipe_macs"] < result["arms"]["full"]["swipe_macs"], "no blocks to run"
    same = (result["arms"][name]["results"]["effective_view"]["auc"] for name in ("full", "one-shot"))
    assert len(set(same)) == 2, "what it knew must matter"


def test_done_arms_are_not_trained_again(ran):
    out, result, _, _ = ran
    said: list[str] = []
    again, _ = run_rerank_ablation(DATA, out, "", only=("no-feedback",), log=said.append, **QUICK)
    assert not any(line.endswith("training") for line in said)
    assert again["arms"]["no-feedback"]["results"] == result["arms"]["no-feedback"]["results"]


def test_arms_of_other_settings_are_refused(ran):
    out, _, _, _ = ran
    with pytest.raises(InputError, match="other settings"):
        run_rerank_ablation(DATA, out, "", only=("full",), epochs=2, log=lambda line: None)


@pytest.mark.parametrize(("data", "only", "message"), [(DATA, ("ful",), "unknown arm")])
def test_wrong_uses_are_refused(tmp_path, data, only, message):
    with pytest.raises(InputError, match=message):
        run_rerank_ablation(data, tmp_path, "", only=only, log=lambda line: None)


@pytest.mark.parametrize("note", [None, "{", "[1]"])
def test_a_directory_of_someone_else_is_left_alone(tmp_path, note):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    if note is not None:
        (tmp_path / "full.json").write_text(note)
    with pytest.raises(InputError, match=r"no finished arm|other settings"):
        run_rerank_ablation(DATA, tmp_path, "", only=("full",), log=lambda line: None, **QUICK)
    assert (tmp_path / "full" / "mine.txt").read_text() == "keep"

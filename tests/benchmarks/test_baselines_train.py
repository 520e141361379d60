"""Baselines trained, saved and scored: they learn, they resume bit for bit, and they say what is wrong."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import kir
from benchmarks.baselines import BASELINES, COUNTED, TRAINED, load_baseline
from benchmarks.baselines.recipe import RECIPES, DataConfig, Recipe
from benchmarks.baselines.sequences import SequenceScorer, baseline_spec
from benchmarks.baselines.train import NETS, TITLES, make_net, make_task, some_queries, train_baseline
from contract.errors import CheckpointError, InputError
from tests.benchmarks.baseline_toys import groups, ring, sequences
from training.checkpoint import load_checkpoint
from training.retrieval_eval import evaluate
from training.train_log import LOG_NAME

SMALL = {
    "sasrec": {"width": 16, "length": 8, "layers": 1, "heads": 2, "dropout": 0.0},
    "gru4rec": {"width": 16, "length": 8, "dropout": 0.0},
    "comirec-sa": {"width": 16, "length": 4, "interests": 2},
    "comirec-dr": {"width": 16, "length": 4, "interests": 2, "transform": "shared"},
}
FAST = {"learning_rate": 0.02, "table_rate": 0.3, "epochs": 12}


def small(name, **train):
    return Recipe(name, SMALL[name], DataConfig(batch=64, latest=8, stride=5), {**FAST, **train})


def learned(split, recipe, tmp_path):
    train_baseline(split, tmp_path / "out", recipe)
    return evaluate(split, "val", load_baseline(tmp_path / "out"), quick=True).values


@pytest.mark.parametrize("name", ["sasrec", "gru4rec"])
def test_the_ring_is_learned(name, tmp_path):
    """The next item follows from the last one alone; chance is an MRR of about .5 over the three items not masked."""
    split = replace(ring(), mask_history=False)
    assert learned(split, small(name), tmp_path)["mrr"] > 0.95


@pytest.mark.parametrize("name", ["comirec-sa", "comirec-dr"])
def test_groups_are_learned(name, tmp_path):
    """Of 24 items five are masked; the sixth of the user's group must come first of the other nineteen."""
    assert learned(groups(), small(name), tmp_path)["mrr"] > 0.8


def test_popularity_is_learned_by_none_of_them_before_training():
    split = replace(ring(), mask_history=False)
    for name in TRAINED:
        task, _ = make_task(split, small(name))
        scorer = SequenceScorer(name, task.net, task.tables, task.spec, 8)
        assert evaluate(split, "val", scorer, quick=True).values["mrr"] < 0.6, name


@pytest.mark.parametrize("name", TRAINED)
def test_a_checkpoint_gives_the_same_scores(name, tmp_path):
    split = groups()
    saved = train_baseline(split, tmp_path / "a", small(name, epochs=1))
    task, _ = make_task(split, small(name, epochs=1))
    checkpoint = load_checkpoint(tmp_path / "a", kind="baseline")
    checkpoint.load_into(task.net)
    by_hand = SequenceScorer(name, task.net, checkpoint.tables, checkpoint.spec, SMALL[name]["length"])
    user, end = np.arange(9), split.train_end[:9]
    loaded = load_baseline(tmp_path / "a")
    assert (loaded.name, load_baseline(tmp_path / "a", "mine").name) == (name, "mine")
    np.testing.assert_array_equal(loaded.scores(split, user, end), by_hand.scores(split, user, end))
    assert saved.version.startswith("baseline-")
    assert saved.spec.tables == {"video": 16}
    assert saved.metrics["recall@10"] == pytest.approx(evaluate(split, "val", loaded).values["recall@10"])
    assert saved.config["training"]["recipe"]["model"] == SMALL[name]
    lines = [json.loads(line) for line in (tmp_path / "a" / LOG_NAME).read_text().splitlines()]
    assert any("validation" in line for line in lines)
    assert [path.name for path in tmp_path.iterdir()] == ["a"], "nothing is left beside it"


def test_a_checkpoint_that_was_touched_is_refused(tmp_path):
    train_baseline(groups(), tmp_path / "a", small("gru4rec", epochs=1))
    tables = tmp_path / "a" / "tables.safetensors"
    tables.write_bytes(tables.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match="truncated or altered"):
        load_baseline(tmp_path / "a")
    with pytest.raises(CheckpointError, match="exists"):
        train_baseline(groups(), tmp_path / "a", small("gru4rec", epochs=1))


@pytest.mark.parametrize("name", ["sasrec", "comirec-sa"])
def test_resumed_is_as_if_never_stopped(name, tmp_path):
    split, recipe = ring(), small(name, epochs=3)
    recipe = replace(recipe, model={**recipe.model, "dropout": 0.3}, data=replace(recipe.data, negatives=5))
    whole = train_baseline(split, tmp_path / "whole", recipe)
    train_baseline(split, tmp_path / "cut", recipe, steps=7)
    cut = train_baseline(split, tmp_path / "cut", recipe, resume=True, overwrite=True)
    assert cut.version == whole.version
    assert train_baseline(split, tmp_path / "other", replace(recipe, train={**recipe.train, "seed": 1})).version != (
        whole.version
    )


@pytest.mark.parametrize(
    "other", [{"train": {"learning_rate": 1e-5}}, {"data": {"except_seen": True}}, {"model": {"dropout": 0.5}}]
)
def test_another_recipe_does_not_go_on(other, tmp_path):
    split, recipe = ring(), small("sasrec", epochs=3)
    train_baseline(split, tmp_path / "m", recipe, steps=7)
    with pytest.raises(CheckpointError, match="another run"):
        train_baseline(split, tmp_path / "m", recipe.with_values(other, "test"), resume=True, overwrite=True)


def test_the_best_epoch_is_kept(tmp_path):
    """At a rate that destroys what was learned the last epoch is not the best one."""
    split = replace(ring(), mask_history=False)
    recipe = small("gru4rec", epochs=8, learning_rate=0.5, table_rate=2.0)
    saved = train_baseline(split, tmp_path / "a", recipe)
    lines = [json.loads(line) for line in (tmp_path / "a" / LOG_NAME).read_text().splitlines()]
    by_epoch = [line["validation"]["ndcg@10"] for line in lines if "validation" in line]
    assert saved.metrics["ndcg@10"] == pytest.approx(max(by_epoch))


def test_the_last_epoch_is_kept_where_no_query_may_choose(tmp_path):
    """`val` is measured then, and has had no say."""
    recipe = small("sasrec", epochs=3)
    recipe = replace(recipe, data=replace(recipe.data, val_queries=0), train={**recipe.train, "patience": 1})
    saved = train_baseline(ring(), tmp_path / "m", recipe)
    assert saved.config["training"]["result"]["best"] is None
    assert saved.config["training"]["result"]["epochs"] == 3
    assert 0 <= saved.metrics["recall@10"] <= 1


def test_without_val_the_last_epoch_is_kept(tmp_path):
    split = replace(groups(), queries={})
    saved = train_baseline(split, tmp_path / "a", small("gru4rec", epochs=2, patience=1))
    assert set(saved.metrics) == {"final_loss"}
    assert saved.config["training"]["result"]["epochs"] == 2
    assert load_baseline(tmp_path / "a").scores(split, np.array([0]), split.train_end[:1]).shape == (1, 24)


@torch.no_grad()
def test_the_loss_is_the_mean_over_the_cuts_that_have_a_history():
    split = groups()
    for name in TRAINED:
        task, data = make_task(split, small(name))
        batch = next(iter(data.batches(0, 0)))
        tokens_BLD = task.tables.rows(task.spec, "history_rows", batch.history)
        users_BPKD = task.net(tokens_BLD, batch.mask, batch.n_cuts)
        items_ND = task.tables.rows(task.spec, "item_rows", data.item_slots)
        terms, empty = [], 0
        for cell, item in zip(batch.cell.tolist(), batch.item.tolist(), strict=True):
            row, cut = divmod(cell, batch.n_cuts)
            if not batch.mask[row, batch.mask.shape[1] - batch.n_cuts + cut]:
                empty += 1
                continue
            # The interest nearest to the target answers for every item.
            answer_D = max(users_BPKD[row, cut], key=lambda u, v=items_ND[item]: float(u @ v))
            terms.append(-torch.log_softmax(items_ND @ answer_D, dim=0)[item])
        loss, numbers = task.loss(batch)
        assert float(loss) == pytest.approx(float(sum(terms)) / len(terms), rel=1e-5), name
        assert numbers == {"targets": len(terms)}
        assert empty > 0


@pytest.mark.parametrize("name", TRAINED)
def test_users_of_a_single_positive_alone_teach_nothing(name, tmp_path):
    """Batches are made by length, so that one may hold nobody else."""
    split = sequences([[n % 5] for n in range(70)], [(n + 1) % 5 for n in range(70)])
    train_baseline(split, tmp_path / "out", small(name, epochs=1))
    fresh = make_task(split, small(name))[0].tables.weights["video"]
    assert torch.equal(load_checkpoint(tmp_path / "out").tables.weights["video"], fresh)


@pytest.mark.parametrize("name", TRAINED)
def test_bfloat16_gives_nearly_the_same_loss_and_gradient(name):
    """Recipes may ask for it; weights and sums stay float32."""
    task, data = make_task(groups(), small(name))
    batch = next(iter(data.batches(0, 0)))
    found = []
    for half in (False, True):
        task.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss, _ = task.loss(batch)
        loss.backward()
        found.append((float(loss.detach()), task.tables.weights["video"].grad.flatten().clone()))
    assert found[1][0] == pytest.approx(found[0][0], rel=0.01)
    assert torch.cosine_similarity(found[0][1], found[1][1], dim=0) > 0.99


@torch.no_grad()
def test_with_all_items_drawn_the_sampled_loss_is_the_full_one():
    split = groups()
    recipe = small("sasrec")
    whole, data = make_task(split, recipe)
    drawn, _ = make_task(split, replace(recipe, data=replace(recipe.data, negatives=1000)))
    some, _ = make_task(split, replace(recipe, data=replace(recipe.data, negatives=2)))
    batch = next(iter(data.batches(0, 0)))
    full = float(whole.loss(batch)[0])
    assert float(drawn.loss(batch)[0]) == pytest.approx(full, rel=1e-6)
    torch.manual_seed(0)
    estimates = [float(some.loss(batch)[0]) for _ in range(3)]
    assert len(set(estimates)) == 3, "drawn anew for each step"
    assert np.mean(estimates) == pytest.approx(full, rel=0.3)


@pytest.fixture
def scorer_and_split():
    split = groups()
    task, _ = make_task(split, small("sasrec"))
    return SequenceScorer("sasrec", task.net, task.tables, task.spec, 8), split


def test_scores_do_not_depend_on_the_batch(scorer_and_split):
    scorer, split = scorer_and_split
    user, end = np.arange(20), split.index.offsets[:20] + np.arange(20) % 6
    whole = scorer.scores(split, user, end)
    order = np.random.default_rng(0).permutation(20)
    np.testing.assert_allclose(scorer.scores(split, user[order], end[order]), whole[order], rtol=1e-5, atol=1e-6)
    alone = np.concatenate([scorer.scores(split, user[i : i + 1], end[i : i + 1]) for i in range(20)])
    np.testing.assert_allclose(alone, whole, rtol=1e-5, atol=1e-6)


def test_only_the_history_that_the_protocol_allows_is_read(scorer_and_split):
    scorer, split = scorer_and_split
    user, end = np.arange(6), split.index.offsets[1:7]
    shorter = replace(split, history=2)
    found = scorer.scores(shorter, user, end)
    assert not np.allclose(found, scorer.scores(split, user, end))
    scorer.length = 2
    np.testing.assert_allclose(found, scorer.scores(split, user, end), rtol=1e-5, atol=1e-6)


def test_nothing_behind_the_end_is_read(scorer_and_split):
    scorer, split = scorer_and_split
    user, end = np.arange(6), split.index.offsets[:6] + 3
    before = scorer.scores(split, user, end)
    columns = dict(split.index.columns)
    columns["video_id"] = columns["video_id"].copy()
    for one in range(6):
        columns["video_id"][end[one] : split.index.offsets[one + 1]] = 100
    later = replace(split, index=replace(split.index, columns=columns))
    np.testing.assert_array_equal(scorer.scores(later, user, end), before)


def test_without_history_the_order_is_popularity(scorer_and_split):
    scorer, split = scorer_and_split
    found = scorer.scores(split, np.array([-1, 3, 4]), np.array([0, split.index.offsets[3], split.train_end[4]]))
    np.testing.assert_array_equal(found[0], split.counts())
    np.testing.assert_array_equal(found[1], split.counts())
    assert not np.array_equal(found[2], split.counts())


def test_scoring_leaves_the_mode_alone_and_sees_new_weights(scorer_and_split):
    scorer, split = scorer_and_split
    user, end = np.arange(3), split.train_end[:3]
    scorer.net.train()
    before = scorer.scores(split, user, end)
    assert scorer.net.training
    with torch.no_grad():
        scorer.tables.weights["video"].mul_(2.0)
    scorer.refresh()
    assert not np.allclose(scorer.scores(split, user, end), before)


def test_an_item_that_training_never_saw_has_the_default_row():
    split = sequences([[0, 1, 2], [1, 2, 0]], [4, 3])
    task, _ = make_task(split, small("sasrec"))
    assert task.tables.n_rows == {"video": 4}
    scorer = SequenceScorer("sasrec", task.net, task.tables, task.spec, 8)
    scores = scorer.scores(split, np.array([0]), split.index.offsets[1:2])
    assert np.isfinite(scores).all()
    assert scores[0, 3] == scores[0, 4], "nothing tells the two apart"


def test_every_baseline_has_a_recipe_that_makes_it():
    assert set(json.loads(RECIPES.read_text())) == {*COUNTED, *TRAINED}
    assert (*BASELINES,) == COUNTED
    assert set(NETS) == set(TITLES) == set(TRAINED)
    for name, by_data in json.loads(RECIPES.read_text()).items():
        for data_name in [*by_data, "sim"]:
            recipe = Recipe.shipped(name, data_name)
            recipe.train_config()
            if name in TRAINED:
                make_net(name, dict(recipe.model))
                assert recipe.data.latest >= recipe.model["length"], "a segment holds what the net can read"


def test_recipes_say_what_is_wrong():
    recipe = Recipe.shipped("sasrec", "ml-1m")
    changed = recipe.changed(["model.dropout=0.5", "train.table_optimizer=adam", "data.negatives=null"])
    assert (changed.model["dropout"], changed.train["table_optimizer"], changed.data.negatives) == (0.5, "adam", None)
    assert changed.train_config().table_optimizer == "adam"
    for setting, words in (
        ("model.dropout", "not a setting"),
        ("loss.alpha=1", "not a setting"),
        ("data.batches=1", "unknown key"),
    ):
        with pytest.raises(InputError, match=words):
            recipe.changed([setting])
    with pytest.raises(InputError, match="not a training configuration"):
        recipe.changed(["train.rate=1"]).train_config()
    with pytest.raises(InputError, match="no recipe"):
        Recipe.shipped("mind", "ml-1m")


def test_a_sample_of_val_is_the_same_each_time():
    split = groups()
    some = some_queries(split, 10)
    assert len(some) == 10
    np.testing.assert_array_equal(some.user, some_queries(split, 10).user)
    assert some_queries(split, None) is split.chosen("val")
    assert some_queries(split, 1000) is split.chosen("val")


def test_the_spec_is_kuaiformers_own_item_rows():
    spec = baseline_spec(8)
    assert [f.name for f in spec.fields] == ["history_video_id", "item_video_id"]
    assert spec.tables == {"video": 8}


SIM = "sim:users=30,items=60,days=3"
TINY = ["--set", "model.width=8", "--set", "data.batch=256", "--set", "train.epochs=1"]


def test_the_command_trains_and_the_comparison_takes_it(tmp_path, capsys):
    out = tmp_path / "sasrec"
    assert kir.main(["bench", "baseline", "sasrec", "--data", SIM, "--out", str(out), *TINY]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed["name"] == "sasrec"
    assert 0 <= printed["metrics"]["recall@10"] <= 1
    assert printed["training"]["recipe"]["model"]["width"] == 8
    command = ["bench", "retrieval", str(out), "--baseline", "popularity,item-cf", "--data", SIM]
    assert kir.main([*command, "--out", str(tmp_path / "report")]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(result["arms"]) == ["sasrec", "popularity", "item-cf"]
    ours = result["arms"]["sasrec"]["metrics"]["recall@10"]["mean"]
    assert ours == pytest.approx(printed["metrics"]["recall@10"])


def test_the_command_measures_what_is_not_saved(capsys):
    assert kir.main(["bench", "baseline", "item-cf", "--data", SIM, "--set", "model.neighbours=5"]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed["about"]["recipe"]["model"]["neighbours"] == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sasrec", "--data", SIM], "pass --out"),
        (["item-cf", "--data", SIM, "--out", "x"], "leave --out away"),
        (["sasrec", "--data", SIM, "--out", "x", "--holdout-days", "-1"], "can't be negative"),
        (["sasrec", "--data", SIM, "--out", "x", "--set", "depth=2"], "not a setting"),
    ],
)
def test_the_command_says_what_is_wrong(words, message, capsys):
    assert kir.main(["bench", "baseline", *words]) == 2
    assert message in capsys.readouterr().err

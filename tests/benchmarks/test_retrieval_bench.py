"""`kir bench retrieval`: models on the same queries, seeds averaged, differences to the first, published rows apart."""

from __future__ import annotations

import json
import re

import numpy as np
import pyarrow.parquet as pq
import pytest

import kir
from benchmarks.baselines.prior import WithPrior, prior_weights
from benchmarks.retrieval import PUBLISHED, Named, bench_retrieval, published
from benchmarks.retrieval_report import render
from contract.errors import InputError
from tests.training.retrieval_makers import Fixed, masked_split
from training.checkpoint import load_checkpoint
from training.evaluation import Cut
from training.readers import open_data
from training.recency import recency_of
from training.retrieval_eval import Popularity, evaluate
from training.retrieval_metrics import figures
from training.retrieval_result import RetrievalResult
from training.retrieval_split import split_of

SIM = "sim:users=25,items=240,days=3"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Saved results of one split: three seeds of a model, and popularity."""
    folder, split = tmp_path_factory.mktemp("results"), masked_split(n_items=250, n_users=50)
    for seed in range(3):
        evaluate(split, "test", Fixed(seed), draws=50).save(folder / f"s{seed}.parquet")
    evaluate(split, "test", Popularity(), draws=50).save(folder / "floor.parquet")
    return folder


def bench(models, out, **options):
    return bench_retrieval([str(model) for model in models], [], out, "kir bench", log=lambda line: None, **options)


def test_seeds_are_averaged_and_compared_query_by_query(results, tmp_path):
    seeds = ",".join(str(results / f"s{seed}.parquet") for seed in range(3))
    result, table = bench([f"ours={seeds}", results / "floor.parquet"], tmp_path / "out")
    ours = [RetrievalResult.load(results / f"s{seed}.parquet") for seed in range(3)]
    floor = RetrievalResult.load(results / "floor.parquet")
    arm = result["arms"]["ours"]
    assert arm["name"] == "ours (mean of 3)"
    assert arm["seeds"] == [one.values for one in ours]
    for name in ("recall@10", "ndcg@20", "mrr", "auc"):
        assert arm["metrics"][name]["mean"] == pytest.approx(np.mean([one.values[name] for one in ours]))
        difference = floor.values[name] - arm["metrics"][name]["mean"]
        assert result["differences"]["floor"][name]["mean"] == pytest.approx(difference)
        assert arm["metrics"][name]["low"] < arm["metrics"][name]["mean"] < arm["metrics"][name]["high"]
    assert arm["coverage"]["coverage@10"] == pytest.approx(np.mean([one.coverage["coverage@10"] for one in ours]))
    assert arm["metrics"]["mrr"]["claim"]
    assert not arm["metrics"]["recall@20"]["claim"]
    assert "ours (mean of 3)" in table
    assert "floor − ours (mean of 3)" in table
    assert table.startswith("protocol: full ranking of 250 items")
    assert result["reference"] == "ours"


def test_the_interval_of_a_difference_is_paired(results, tmp_path):
    """Much narrower than two intervals apart would be, where models agree on most queries."""
    first = RetrievalResult.load(results / "s0.parquet")
    again = first.renamed("again")
    again.ranks.rank[:3] += 1
    again.save(tmp_path / "again.parquet")
    result, _ = bench([results / "s0.parquet", tmp_path / "again.parquet"], tmp_path / "out")
    moved = result["differences"]["again"]["mrr"]
    expected = (figures(again.ranks, 250) - figures(RetrievalResult.load(results / "s0.parquet").ranks, 250)).mean(0)
    assert moved["mean"] == pytest.approx(expected[-2])
    own = result["arms"]["s0"]["metrics"]["mrr"]
    assert 0 < moved["high"] - moved["low"] < (own["high"] - own["low"]) / 3


def test_the_page_holds_every_model_and_figure(results, tmp_path):
    result, _ = bench([results / "s0.parquet", results / "floor.parquet"], tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert json.loads((tmp_path / "out" / "report.json").read_text())["arms"].keys() == {"s0", "floor"}
    assert page.count("<svg") == 2
    for arm in result["arms"].values():
        for one in arm["metrics"].values():
            assert f"{one['mean']:.4f} [{one['low']:.4f}, {one['high']:.4f}]" in page
    assert "recall@100 *" in page
    assert "recall@10 *" not in page
    assert "full ranking of 250 items" in page
    assert not re.search(r"(src|href)=.http", page), "the page stands alone"
    assert "Paired differences to s0" in page


def test_one_model_alone_has_no_differences(results, tmp_path):
    result, table = bench([results / "s0.parquet"], tmp_path / "out")
    assert result["differences"] == {}
    assert "Paired differences" not in render(result)
    assert "paired differences" not in table


def test_published_rows_stand_apart(results, tmp_path):
    """The fixture's data are called ml-1m: printed figures are shown with it, and are in no measured table."""
    result, table = bench([results / "s0.parquet"], tmp_path / "out")
    assert result["published"]["rows"]["LRURec"]["recall@10"] == 0.32636
    assert set(result["arms"]) == {"s0"}
    measured, others = table.split("\n\n")
    assert others.startswith("published, LRURec (WSDM 2024): printed there, not measured here")
    assert "0.3264" in others
    assert "LRURec" not in measured
    assert render(result).count("Published, LRURec (WSDM 2024)") == 1


def test_published_rows_are_of_the_test_split_alone():
    assert published("ml-1m", "val") is None
    assert published("amazon-beauty", "test")["rows"]["LRURec"] == {"ndcg@10": 0.03088, "recall@10": 0.05284}


def test_printed_ratios_stand_beside_ours(results, tmp_path, monkeypatch):
    """KuaiRand's protocol has no printed figures; KuaiFormer's own ratios are printed for another catalogue."""
    others = published("kuairand", "val")
    assert others["rows"]["KuaiFormer / SASRec"]["recall@50"] == pytest.approx(4.21 / 1.17, abs=1e-3)
    assert others["rows"]["KuaiFormer / ComiRec"]["recall@1000"] == pytest.approx(19.88 / 10.06, abs=1e-3)
    monkeypatch.setattr("benchmarks.retrieval.published", lambda data, split: others)
    result, table = bench([results / "s0.parquet", results / "floor.parquet"], tmp_path / "out")
    mine, floor = (result["arms"][name]["metrics"]["recall@100"]["mean"] for name in ("s0", "floor"))
    row = result["published"]["rows"]["here: s0 / floor"]
    assert row["recall@100"] == pytest.approx(mine / floor)
    assert "here: s0 / floor" in table
    assert "here: s0 / floor" in render(result)


def test_lists_are_kept_where_asked(tmp_path):
    """Of any model, a baseline too: whoever has the file works the metrics out anew."""
    options = {"data": SIM, "cut": Cut(holdout_days=1), "log": lambda line: None}
    for top in (0, 15):
        result, _ = bench_retrieval([], ["popularity"], tmp_path / str(top), "kir bench", top=top, **options)
        saved = tmp_path / str(top) / "results" / "popularity.parquet"
        assert ("items" in pq.read_schema(saved).names) == (top > 0)
        again = RetrievalResult.load(saved)
        assert {name: one.mean for name, one in again.metrics.items()} == {
            name: one["mean"] for name, one in result["arms"]["popularity"]["metrics"].items()
        }


@pytest.mark.realdata
def test_published_rows_are_those_of_the_data_sheet(data_dir):
    sheet = (data_dir / "README.md").read_text()
    found = json.loads(PUBLISHED.read_text())
    numbers = {
        value
        for name, data in found.items()
        if not data.get("ratios")
        for row in data["rows"].values()
        for value in row.values()
    }
    assert len(numbers) == 36
    for value in numbers:
        assert f"{value:.5f}"[1:].rstrip("0") in sheet or f"{value:.5f}"[1:] in sheet, value


def test_the_command_makes_what_is_not_there_yet(tmp_path, capsys):
    out = tmp_path / "out"
    words = ["bench", "retrieval", "--baseline", "popularity", "--data", SIM, "--holdout-days", "1", "--out", str(out)]
    assert kir.main([*words, "--json", str(tmp_path / "line.json")]) == 0
    printed = capsys.readouterr().out
    line = json.loads((tmp_path / "line.json").read_text())
    assert not printed.splitlines()[-1].startswith("{"), "what is in a file is not printed as well"
    assert line["benchmark"] == "retrieval"
    assert line["command"].startswith("kir bench retrieval --baseline popularity --data sim:")
    saved = RetrievalResult.load(out / "results" / "popularity.parquet")
    assert saved.values["mrr"] == line["arms"]["popularity"]["metrics"]["mrr"]["mean"]
    assert kir.main(["bench", "retrieval", str(out / "results" / "popularity.parquet"), "--out", str(out)]) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert again["arms"]["popularity"]["metrics"] == line["arms"]["popularity"]["metrics"]


def test_the_prior_is_added_once_an_item(tmp_path):
    split = split_of(open_data(SIM), "sim", holdout_days=1)
    scorer = WithPrior(Popularity(), 0.25, 2.0)
    assert scorer.name == "popularity+prior"
    user, end = np.array([-1, 0]), np.array([0, 1])
    want = split.counts() + 0.25 * recency_of(split, 2.0).now_N
    np.testing.assert_allclose(scorer.scores(split, user, end), np.broadcast_to(want, (2, split.n_items)), rtol=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["s0=x"], "NAME=WEIGHT"),
        (["s0"], "NAME=WEIGHT"),
        (["nobody=1"], "names no model"),
        (["s0=1"], "names no model"),
    ],
)
def test_a_prior_is_of_checkpoints_by_name(words, message, results, tmp_path):
    """A saved result keeps ranks alone: nothing can be added to it."""
    with pytest.raises(InputError, match=message):
        bench([results / "s0.parquet"], tmp_path / "out", priors=prior_weights(words))


def test_names_and_paths(results):
    one, two = results / "s0.parquet", results / "s1.parquet"
    assert Named.of(str(one)) == Named("s0", (one,))
    assert Named.of(f"x={one},{two}") == Named("x", (one, two))
    assert Named.of(f"x={one}").checkpoints == []
    assert Named.of(str(results)).checkpoints == [results]


@pytest.mark.parametrize(
    ("models", "options", "message"),
    [
        ([], {}, "nothing to compare"),
        (["absent.parquet"], {}, "no such result file"),
        (["=S0"], {}, r"NAME=\]PATH"),
        (["S0", "S0"], {}, "one name"),
        (["FOLDER"], {}, "need data"),
        (["S0", "OTHER"], {}, "can't be compared"),
    ],
)
def test_what_can_not_be_compared_is_refused(results, tmp_path, models, options, message):
    evaluate(masked_split(n_items=240, n_users=50), "test", Popularity(), draws=0).save(tmp_path / "other.parquet")
    paths = {"S0": results / "s0.parquet", "OTHER": tmp_path / "other.parquet", "FOLDER": tmp_path}
    for name, path in paths.items():
        models = [model.replace(name, str(path)) for model in models]
    with pytest.raises(InputError, match=message):
        bench(models, tmp_path / "out", **options)
    assert not (tmp_path / "out" / "report.html").exists()


@pytest.mark.parametrize("name", ["luck", "sasrec"])
def test_unknown_baselines_are_refused_before_any_work(tmp_path, capsys, name):
    words = ["--baseline", f"popularity,{name}", "--data", SIM, "--holdout-days", "1", "--out", str(tmp_path)]
    assert kir.main(["bench", "retrieval", *words]) == 2
    line = capsys.readouterr().err
    assert f"unknown baseline; got {name}" in line
    assert "kir bench baseline" in line
    assert not list(tmp_path.iterdir())


def test_checkpoints_of_every_kind_meet_on_the_same_queries(tmp_path, capsys):
    """KuaiFormer, a trained baseline and a counted one, asked from where the latest training ended."""
    train = ["--data", SIM, "--epochs", "1"]
    assert kir.main(["train", "kuaiformer", *train, "--out", str(tmp_path / "ours"), "--holdout-days", "2"]) == 0
    assert kir.main(["bench", "baseline", "sasrec", *train, "--out", str(tmp_path / "sasrec")]) == 0
    later = load_checkpoint(tmp_path / "sasrec").config["training"]["trained_until_ms"]
    assert later > load_checkpoint(tmp_path / "ours").config["training"]["trained_until_ms"]
    capsys.readouterr()
    models = ["best=" + str(tmp_path / "ours"), str(tmp_path / "sasrec")]
    words = [*models, "--baseline", "item-cf", "--data", SIM, "--out", str(tmp_path / "out")]
    assert kir.main(["bench", "retrieval", *words, "--prior", "sasrec=0.5"]) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(line["arms"]) == ["best", "sasrec", "item-cf", "sasrec+prior"]
    assert set(line["differences"]) == {"sasrec", "item-cf", "sasrec+prior"}
    assert line["arms"]["sasrec+prior"]["metrics"] != line["arms"]["sasrec"]["metrics"]
    assert line["arms"]["sasrec+prior"]["about"]["prior"] == 0.5
    assert f"from {later} ms on" in line["protocol"]
    assert "CAUTION" not in line["protocol"]
    trained = load_checkpoint(tmp_path / "sasrec").metrics["mrr"]
    assert line["arms"]["sasrec"]["metrics"]["mrr"]["mean"] == pytest.approx(trained, abs=1e-9)
    dump, again = tmp_path / "lists.parquet", tmp_path / "again.json"
    words = [str(tmp_path / "sasrec"), "--data", SIM, "--dump", str(dump), "--json", str(again)]
    assert kir.main(["evaluate", *words]) == 0
    assert f"from {later} ms on" in capsys.readouterr().out
    told = json.loads(again.read_text())
    assert told["version"] == load_checkpoint(tmp_path / "sasrec").version
    assert told["metrics"]["mrr"] == pytest.approx(trained, abs=1e-9), "kir evaluate opens baselines as well"
    assert RetrievalResult.load(dump).values["mrr"] == pytest.approx(trained, abs=1e-9)

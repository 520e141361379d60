"""`kir evaluate`: any checkpoint on any data, dumps, cuts; and the mistakes a person can make."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import kir
from contract.errors import InputError
from contract.parquet import write_events
from training.checkpoint import load_checkpoint, save_checkpoint
from training.days import DAY_MS
from training.evaluation import Cut, evaluate_checkpoint, kind_of, open_split, trained_until
from training.known_items import KnownItems
from training.kuaiformer import KuaiFormer, preset_config
from training.readers import open_data
from training.retrieval_result import RetrievalResult, compare
from training.retrieval_split import split_of
from training.tables import SparseTables, table_keys
from training.within_user import read_scores

SIM = "sim:users=30,items=120,days=3"
CONFIG = preset_config("tiny", width=16, hidden=24, video_width=8, attribute_width=4)


def run(*words: object) -> int:
    return kir.main([str(word) for word in words])


def checkpoint_of(path, split, training, kind="kuaiformer"):
    """An untrained KuaiFormer that knows the split's items; kind: what it says it is."""
    spec = CONFIG.spec()
    items = {name: getattr(split.items, name) for name in ("video_id", "author_id", "tags", "duration_ms")}
    keys = table_keys(spec, [("history_rows", split.index.columns), ("item_rows", items)])
    torch.manual_seed(0)
    return save_checkpoint(
        path,
        kind=kind,
        model=KuaiFormer(CONFIG, spec),
        tables=SparseTables.from_spec_and_keys(spec, keys),
        spec=spec,
        model_config=CONFIG.to_dict(),
        training=training,
        metrics={},
        card_text="# test\n",
    )


@pytest.fixture(scope="module")
def log():
    return open_data(SIM)


@pytest.fixture(scope="module")
def cut_ms(log):
    return (int(log.events["time_ms"].max()) // DAY_MS) * DAY_MS


@pytest.fixture(scope="module")
def model(log, cut_ms, tmp_path_factory):
    split = split_of(log, "sim", cut_ms=cut_ms)
    return checkpoint_of(
        tmp_path_factory.mktemp("model") / "m", split, {"trained_until_ms": cut_ms, "data": "sim"}
    ).path


@pytest.fixture(scope="module")
def sequences(tmp_path_factory):
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder, random = tmp_path_factory.mktemp("sequences"), np.random.default_rng(0)
    places = ("train", "train", "train", "train", "val", "test")
    rows = [(u, p, int(random.integers(40)), part) for u in range(25) for p, part in enumerate(places)]
    names = ("user_id", "position", "item_id", "split")
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    pq.write_table(pa.table(columns), folder / "leave_one_out.parquet")
    return folder


def test_a_log_is_cut_where_training_ended(model, cut_ms, capsys, tmp_path):
    figures = tmp_path / "deep" / "figures.json"
    assert run("evaluate", model, "--data", SIM, "--json", figures) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("protocol: full ranking of 120 videos")
    assert f"from {cut_ms} ms on" in printed
    assert "CAUTION" not in printed
    found = json.loads(figures.read_text())
    assert found["version"] == load_checkpoint(model).version == found["result"]["name"]
    assert found["metrics"]["recall@10"] == found["result"]["metrics"]["recall@10"]["mean"]
    assert found["metrics"]["popularity_mrr"] == found["popularity"]["metrics"]["mrr"]["mean"]
    difference = found["metrics"]["mrr"] - found["metrics"]["popularity_mrr"]
    assert found["comparison"]["metrics"]["mrr"]["mean"] == pytest.approx(difference)
    assert found["result"]["about"]["trained_until_ms"] == cut_ms
    assert (found["known_items"]["items"], found["known_items"]["share"] > 0.9) == (120, True)
    assert "has rows for" not in printed, "nothing to say of data that it knows"
    assert found["result"]["speed"]["queries_per_second"] > 0


def test_an_earlier_cut_is_said_aloud(model, cut_ms, capsys):
    assert run("evaluate", model, "--data", SIM, "--from-ms", cut_ms - DAY_MS) == 0
    assert f"CAUTION: training went up to {cut_ms} ms" in capsys.readouterr().out
    assert run("evaluate", model, "--data", SIM, "--holdout-days", 2) == 0
    assert "CAUTION" in capsys.readouterr().out
    assert run("evaluate", model, "--data", SIM, "--holdout-days", 1) == 0
    assert "CAUTION" not in capsys.readouterr().out


def test_data_that_the_checkpoint_does_not_know_are_said_aloud(model, sequences, tmp_path, capsys):
    data = f"ml-1m:{sequences}"
    assert run("evaluate", model, "--data", data, "--json", tmp_path / "f.json") == 0
    n = split_of(open_data(data), "ml-1m").n_items
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "has rows for" in line]
    assert line.startswith(f"CAUTION: trained on sim, asked about ml-1m: the checkpoint has rows for 0 of {n} items")
    known = json.loads((tmp_path / "f.json").read_text())["known_items"]
    assert known == {"known": 0, "items": n, "trained_on": "sim", "asked": "ml-1m", "share": 0.0}


def test_what_is_said_of_known_items():
    assert KnownItems(9, 10, "sim", "sim").line == ""
    assert KnownItems(9, 10, "", "events").line == "", "nothing says that the data are others"
    assert KnownItems(9, 10, "sim", "events").line.startswith("note: trained on sim, asked about events: ")
    few = KnownItems(1, 10, "sim", "sim")
    assert few.line == "CAUTION: the checkpoint has rows for 1 of 10 items of these data (10%)"
    assert KnownItems(0, 0, "sim", "sim").share == 0


def test_a_dump_gives_the_same_table(model, capsys, tmp_path):
    dump = tmp_path / "lists.parquet"
    assert run("evaluate", model, "--data", SIM, "--dump", dump, "--top", 60, "--json", tmp_path / "a.json") == 0
    capsys.readouterr()
    assert run("evaluate", "--from-dump", dump, "--json", tmp_path / "b.json") == 0
    assert capsys.readouterr().out.startswith("protocol: full ranking of 120 videos")
    first, second = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    assert first["result"] == second["result"]
    back = RetrievalResult.load(dump)
    assert back.values == second["metrics"]


@pytest.mark.parametrize("which", ["val", "test"])
def test_sequences_are_evaluated_by_split(sequences, tmp_path, capsys, which):
    name = f"ml-1m:{sequences}"
    checkpoint = checkpoint_of(tmp_path / "m", split_of(open_data(name), "ml-1m"), {})
    assert trained_until(checkpoint.path) is None
    dump = tmp_path / f"{which}.parquet"
    assert run("evaluate", tmp_path / "m", "--data", name, "--split", which, "--dump", dump) == 0
    printed = capsys.readouterr().out
    assert f"leave-one-out, {which}: 25 queries" in printed
    result = RetrievalResult.load(dump)
    assert (result.data, result.split) == ("ml-1m", which)
    assert (result.ranks.history == (4 if which == "val" else 5)).all()
    assert compare(result, result).metrics["mrr"].mean == 0


SERVER = "server (server_position)"  # the simulator tells no pXTR


@pytest.fixture(scope="module")
def rankers(tmp_path_factory):
    """A KIR and a server ranker of the simulated log, trained as briefly as may be."""
    folder = tmp_path_factory.mktemp("rankers")
    for model in ("kir", "ranker"):
        assert run("train", model, "--data", SIM, "--out", folder / model, "--epochs", 1) == 0
    return folder


@pytest.mark.parametrize("model", ["kir", "ranker"])
def test_kir_and_ranker_are_evaluated_too(rankers, tmp_path, capsys, model):
    out, figures, dump = rankers / model, tmp_path / "figures.json", tmp_path / "scores.parquet"
    assert run("evaluate", out, "--data", SIM, "--json", figures, "--dump", dump) == 0
    checkpoint, found = load_checkpoint(out), json.loads(figures.read_text())
    printed = capsys.readouterr().out
    assert "protocol: " in printed
    assert "CAUTION" not in printed
    ours, floor = found["within_user"]
    assert (ours["name"], floor["name"]) == (checkpoint.version, "item rate" if model == "ranker" else SERVER)
    apart = found["comparison"]["primary"]["mean"]
    assert apart == pytest.approx(ours["metrics"]["primary"]["mean"] - floor["metrics"]["primary"]["mean"])
    assert run("evaluate", "--from-dump", dump, "--json", tmp_path / "again.json") == 0
    assert "GAUC weighted by positives" in capsys.readouterr().out
    assert json.loads((tmp_path / "again.json").read_text())["result"] == ours
    shared = [name for name in checkpoint.metrics if name.startswith(("auc", "gauc"))]
    assert shared
    for name in shared:
        assert found["metrics"][name] == pytest.approx(checkpoint.metrics[name], abs=1e-6)
    assert found["cut_ms"] == found["trained_until_ms"] == trained_until(out)
    assert found["caution"] == ""
    counts = {k.removeprefix("positives_"): n for k, n in found["metrics"].items() if k.startswith("positives_")}
    assert found["no_claim"] == {head: n for head, n in counts.items() if n < 500} != {}
    marked = [line for line in printed.splitlines() if "no claim (n < 500)" in line]
    assert {line.split()[0] for line in marked} >= {f"positives_{head}" for head in found["no_claim"]}
    task = "effective_view" if model == "kir" else "long_view"
    assert found["metrics"][f"gauc_{task}"] == pytest.approx(ours["metrics"]["gauc"]["mean"]), "one GAUC, not two"
    assert run("evaluate", out, "--data", SIM, "--split", "val") == 2
    assert "--split" in capsys.readouterr().err


@pytest.mark.parametrize(("model", "flags"), [("kir", ("--holdout-days", 2)), ("ranker", ("--from-ms", 5))])
def test_scoring_what_training_saw_is_said_aloud(rankers, tmp_path, capsys, model, flags):
    until, figures = trained_until(rankers / model), tmp_path / "figures.json"
    assert run("evaluate", rankers / model, "--data", SIM, *flags, "--json", figures) == 0
    leak = f"CAUTION: training went up to {until} ms; if it was on this log, it saw impressions before that"
    assert capsys.readouterr().out.count(leak) == 2, "above the figures and above the table of intervals"
    found = json.loads(figures.read_text())
    assert found["caution"] == leak
    assert all(leak in one["protocol"] for one in (found["metrics"], *found["within_user"]))


@pytest.mark.parametrize("model", ["kir", "ranker"])
def test_a_log_that_begins_after_training_is_scored_whole(rankers, log, tmp_path, capsys, model):
    later = log.events.with_columns(time_ms=log.events["time_ms"] + 10 * DAY_MS)
    write_events(tmp_path / "events.parquet", later)
    assert run("evaluate", rankers / model, "--data", f"events:{tmp_path}", "--dump", tmp_path / "scores.parquet") == 0
    printed = capsys.readouterr().out
    assert f"protocol: {len(later)} impressions" in printed
    assert "CAUTION" not in printed
    assert len(read_scores(tmp_path / "scores.parquet")) == int((later["long_view"] >= 0).sum())


def test_where_a_log_is_cut(log, cut_ms):
    events = log.events
    assert Cut().of(events, cut_ms) == cut_ms
    assert Cut(from_ms=5).of(events, cut_ms) == 5
    assert Cut(holdout_days=1).of(events, None) == cut_ms
    shifted = Cut(holdout_days=1, utc_offset_hours=8.0).of(events, None)
    assert (shifted + 8 * 3_600_000) % DAY_MS == 0
    with pytest.raises(InputError, match="nothing says where"):
        Cut().of(events, None)
    with pytest.raises(InputError, match="--holdout-days starts"):
        Cut(holdout_days=0)
    with pytest.raises(InputError, match="both"):
        Cut(from_ms=1, holdout_days=1)


def test_the_caution_is_part_of_every_protocol(cut_ms):
    split = open_split(SIM, Cut(from_ms=cut_ms - 1), cut_ms)
    assert all("CAUTION" in queries.protocol for queries in split.queries.values())
    assert "CAUTION" not in open_split(SIM, Cut(), cut_ms).queries["val"].protocol


@pytest.mark.parametrize(("said", "until"), [(None, None), (-1, None), (0, None), (5, 5)])
def test_where_a_training_ended(tmp_path, said, until):
    (tmp_path / "config.json").write_text(json.dumps({"training": {"trained_until_ms": said}}))
    assert trained_until(tmp_path) == until
    with pytest.raises(InputError, match="not a checkpoint directory"):
        trained_until(tmp_path / "absent")


def test_kinds_are_read_without_the_rest(model, tmp_path):
    assert kind_of(model) == "kuaiformer"
    assert kind_of(tmp_path) == kind_of(tmp_path / "nowhere") == ""
    (tmp_path / "config.json").write_text("[]")
    assert kind_of(tmp_path) == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("MODEL", "--data", SIM, "--split", "test"), "no such split"),
        (("MODEL", "--data", "ml-1m:SEQUENCES", "--from-ms", 5), "not cut by time"),
        (("MODEL", "--data", SIM, "--from-ms", 5, "--holdout-days", 1), "both say where to cut"),
        (("MODEL", "--data", SIM, "--from-ms", 10**15), "the data end before the cut"),
        (("MODEL", "--data", SIM, "--from-dump", "x"), "or --from-dump alone"),
        (("MODEL",), "give a checkpoint and --data"),
        (("--from-dump", "absent.parquet"), "no such result file"),
        (("absent", "--data", SIM), "no such checkpoint directory"),
    ],
)
def test_mistakes_end_in_one_line(model, sequences, tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    names = {"MODEL": model, "SEQUENCES": sequences}
    for name, path in names.items():
        words = [str(word).replace(name, str(path)) for word in words]
    assert run("evaluate", *words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("kir evaluate: ")
    assert message in line


def test_a_baseline_is_refused_where_nothing_opens_it(tmp_path):
    """The command hands over what does; tests/benchmarks/test_retrieval_bench.py asks it."""
    checkpoint = checkpoint_of(tmp_path / "m", split_of(open_data(SIM), "sim"), {}, kind="baseline")
    with pytest.raises(InputError, match="opened by the benchmarks"):
        evaluate_checkpoint(checkpoint.path, SIM, Cut())


def test_without_an_end_of_training_a_cut_must_be_given(log, cut_ms, tmp_path, capsys):
    split = split_of(log, "sim", cut_ms=cut_ms)
    checkpoint_of(tmp_path / "m", split, {"trained_until_ms": None})
    assert run("evaluate", tmp_path / "m", "--data", SIM) == 2
    assert "--holdout-days" in capsys.readouterr().err
    assert run("evaluate", tmp_path / "m", "--data", SIM, "--holdout-days", 1) == 0

"""Results: claims, tables, files that give themselves back, comparisons of the same queries alone, tampered dumps."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contract.errors import InputError
from contract.vocabulary import MISSING_KEY
from tests.training.retrieval_makers import Fixed, Target, masked_split
from training.readers import open_data
from training.retrieval_dump import METADATA, DumpWriter
from training.retrieval_eval import Popularity, evaluate
from training.retrieval_metrics import Ranks, claims, figures, means
from training.retrieval_result import RetrievalResult, compare, results_table
from training.retrieval_split import split_of


@pytest.fixture(scope="module")
def split():
    return masked_split(n_items=120, n_users=60)


@pytest.fixture(scope="module")
def result(split):
    return evaluate(split, "val", Fixed(levels=40), draws=80, about={"seed": 4})


def ranks_of(rank, users=None, others=99) -> Ranks:
    n = len(rank)
    numbers = np.arange(n)
    users = numbers if users is None else np.asarray(users)
    return Ranks(
        numbers,
        users.astype(np.uint64),
        numbers * 0,
        numbers.astype(np.uint64),
        np.array(rank, float),
        numbers * 0 + others,
    )


def test_figures_of_known_ranks():
    found = means([ranks_of([1, 10, 10.5, 100])], 100, draws=0)
    assert {name: one.mean for name, one in found.items()} == pytest.approx(
        {
            "recall@10": 0.5,
            "recall@20": 0.75,
            "recall@50": 0.75,
            "ndcg@10": (1 + 1 / np.log2(11)) / 4,
            "ndcg@20": (1 + 1 / np.log2(11) + 1 / np.log2(11.5)) / 4,
            "mrr": (1 + 1 / 10 + 1 / 10.5 + 1 / 100) / 4,
            "auc": (1 + 90 / 99 + 89.5 / 99 + 0) / 4,
        }
    )


def test_users_with_many_queries_are_drawn_whole():
    rank = np.where(np.arange(200) % 20 < 10, 1.0, 60.0)
    apart = means([ranks_of(rank)], 100)["recall@10"]
    together = means([ranks_of(rank, users=np.arange(200) // 10)], 100)["recall@10"]
    assert apart.mean == together.mean == 0.5
    assert together.high - together.low > 2 * (apart.high - apart.low)


@pytest.mark.parametrize(
    ("name", "n_items", "claim"),
    [("recall@10", 200, True), ("recall@10", 199, False), ("recall@500", 57_289, True), ("ndcg@20", 300, False),
     ("mrr", 5, True), ("auc", 5, True)],
)  # fmt: skip
def test_cut_offs_beyond_a_twentieth_carry_no_claim(name, n_items, claim):
    assert claims(name, n_items) is claim


def test_the_protocol_stands_above_the_table(result):
    lines = str(result).splitlines()
    assert lines[0].startswith("protocol: full ranking of 120 items; leave-one-out, val")
    assert "recall@k is hit rate@k" in lines[0]
    assert any(line.split()[:1] == ["recall@10"] and "*" in line for line in lines), "10 of 120 is more than 5 %"
    assert "carries no claim" in lines[-1]
    assert not any("*" in line for line in lines if "mrr" in line)


def test_tables_set_results_side_by_side(split, result):
    other = evaluate(split, "val", Popularity(), draws=20)
    lines = results_table([result, other]).splitlines()
    assert lines[2].split() == ["fixed", "popularity"]
    (row,) = [line for line in lines if line.split()[:1] == ["mrr"]]
    assert row.index(f"{result.values['mrr']:.4f}") < row.index(f"{other.values['mrr']:.4f}")


def test_the_dict_is_json_and_says_what_claims(result):
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert data["queries"] == len(result.ranks)
    assert data["metrics"]["mrr"]["claim"] is True
    assert data["metrics"]["recall@50"]["claim"] is False
    assert data["about"] == {"seed": 4, "bootstrap_seed": 0, "bootstrap_draws": 80}
    quick = RetrievalResult.of(
        result.ranks, n_items=120, draws=0, name="x", data="d", split="val", protocol="p", coverage={}, speed={}
    )
    assert "low" not in json.loads(json.dumps(quick.to_dict(), allow_nan=False))["metrics"]["mrr"]


def equal(one: RetrievalResult, other: RetrievalResult) -> None:
    for name in ("name", "data", "split", "protocol", "n_items"):
        assert getattr(one, name) == getattr(other, name)
    assert one.metrics == other.metrics
    assert dict(one.coverage) == dict(other.coverage)
    assert dict(one.about) == dict(other.about)
    for name in Ranks.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(one.ranks, name), getattr(other.ranks, name))


def test_a_saved_result_comes_back(result, tmp_path):
    path = result.save(tmp_path / "deep" / "result.parquet")
    equal(RetrievalResult.load(path), result)
    assert [one.name for one in path.parent.iterdir()] == ["result.parquet"]


@pytest.mark.parametrize("top", [1, 10, 60, 500])
def test_a_dump_alone_gives_the_metrics(split, tmp_path, top):
    path = tmp_path / "dump.parquet"
    found = evaluate(split, "test", Fixed(levels=30), dump=path, top=top, draws=40)
    equal(RetrievalResult.load(path), found)


def test_anyone_can_recompute_it(split, tmp_path):
    """With pyarrow and the documented columns, nothing of ours; lists hold what the scorer ranked first."""
    path, scorer = tmp_path / "dump.parquet", Fixed(levels=25)
    found = evaluate(split, "test", scorer, dump=path, top=50, draws=0)
    rows = sorted(pq.read_table(path).to_pylist(), key=lambda row: row["query"])
    rank = np.array([row["rank"] for row in rows])
    assert np.mean(rank <= 10) == pytest.approx(found.values["recall@10"])
    assert np.mean(np.where(rank <= 20, 1 / np.log2(rank + 1), 0)) == pytest.approx(found.values["ndcg@20"])
    shown = {item for row in rows for item in row["items"][:50]}
    assert len(shown) / 120 == found.coverage["coverage@50"]
    queries = split.chosen("test")
    for row, user, end in zip(rows, queries.user, queries.end, strict=True):
        assert row["user_id"] == split.index.user_id[user]
        hidden = set(split.history_rows(np.array([user]), np.array([end]), split.history)[0])
        assert row["history"] == min(end - split.index.offsets[user], split.history)
        scores = scorer.of(split, int(user), int(end))
        best = sorted((n for n in range(120) if n not in hidden), key=lambda n: (-scores[n], n))[:50]
        assert row["items"] == split.items.video_id[best].tolist()
        np.testing.assert_array_equal(row["scores"], scores[best])
    facts = json.loads(pq.read_metadata(path).metadata[METADATA])
    assert facts["protocol"] == queries.protocol


def test_the_guides_example_gives_the_figures(split, tmp_path, monkeypatch, capsys, repository):
    monkeypatch.chdir(tmp_path)
    found = evaluate(split, "val", Fixed(levels=20), dump="lists.parquet", draws=0).values
    (example,) = re.findall(r"```python\n(.*?)```", (repository / "docs" / "evaluation.md").read_text(), re.DOTALL)
    exec(compile(example, "docs/evaluation.md", "exec"), {})
    words = capsys.readouterr().out.split()
    for name in ("recall@10", "ndcg@10", "mrr", "auc"):
        assert float(words[words.index(name) + 1]) == pytest.approx(found[name])
    assert "leave-one-out, val" in " ".join(words)


def test_a_dump_of_a_log_repeats_shared_lists(tmp_path):
    split = split_of(open_data("sim:users=15,items=70,days=3"), "sim")
    found = evaluate(split, "val", Fixed(), dump=tmp_path / "d.parquet", top=7, draws=30)
    equal(RetrievalResult.load(tmp_path / "d.parquet"), found)
    rows = pq.read_table(tmp_path / "d.parquet").to_pylist()
    assert len({tuple(row["items"]) for row in rows}) < len(rows)


def test_unknown_users_are_null_in_the_file(split, tmp_path):
    queries = split.chosen("val").take(np.array([0, 1]))
    unknown = replace(queries, user=np.array([-1, 1]), end=np.array([0, queries.end[1]]))
    found = evaluate(split, unknown, Popularity(), draws=0, dump=tmp_path / "d.parquet")
    assert pq.read_table(tmp_path / "d.parquet").column("user_id").null_count == 1
    back = RetrievalResult.load(tmp_path / "d.parquet")
    assert back.ranks.user_id[0] == MISSING_KEY
    np.testing.assert_array_equal(back.ranks.rank, found.ranks.rank)


def test_a_run_that_fails_leaves_no_file(split, tmp_path):
    class Breaks(Fixed):
        def scores(self, split, user, end):
            if self.calls:
                raise RuntimeError("out of memory")
            return super().scores(split, user, end)

    (tmp_path / "old.parquet").write_text("kept")
    with pytest.raises(RuntimeError):
        evaluate(split, "val", Breaks(), dump=tmp_path / "old.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["old.parquet"]
    assert (tmp_path / "old.parquet").read_text() == "kept"


def rewritten(path, change):
    table, told = pq.read_table(path), pq.read_metadata(path).metadata[METADATA]
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema.with_metadata({METADATA: told})), path)


def better_rank(rows):
    row = next(row for row in rows if row["rank"] > 30)
    row["rank"] = 1.0


def worse_rank(rows):
    row = next(row for row in rows if row["target"] in row["items"][:5])
    row["rank"] += 1


def swapped_items(rows):
    row = next(row for row in rows if row["target"] in row["items"][2:5] and row["items"][0] != row["target"])
    place = row["items"].index(row["target"])
    row["items"][0], row["items"][place] = row["items"][place], row["items"][0]


def swapped_scores(rows):
    rows[0]["scores"][0], rows[0]["scores"][1] = rows[0]["scores"][1], rows[0]["scores"][0]


def nothing(rows):
    assert rows


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (better_rank, "contradict each other"),
        (worse_rank, "contradict each other"),
        (swapped_items, "contradict each other"),
        (swapped_scores, "not in order of its scores"),
        (nothing, None),
    ],
)
def test_tampered_dumps_are_refused(split, tmp_path, change, message):
    path = tmp_path / "dump.parquet"
    evaluate(split, "val", Fixed(), dump=path, top=30, draws=0)
    rewritten(path, change)
    if message is None:
        assert len(RetrievalResult.load(path).ranks) == len(split.chosen("val"))
        return
    with pytest.raises(InputError, match=message):
        RetrievalResult.load(path)


def test_files_of_another_kind_are_refused(tmp_path):
    path = tmp_path / "x.parquet"
    with pytest.raises(InputError, match="no such result file"):
        RetrievalResult.load(path)
    path.write_text("not parquet")
    with pytest.raises(InputError, match="not a readable Parquet"):
        RetrievalResult.load(path)
    pq.write_table(pa.table({"query": [1]}), path)
    with pytest.raises(InputError, match="not a file of ranked results"):
        RetrievalResult.load(path)


def test_a_file_without_its_columns_is_refused(result, tmp_path):
    path = result.save(tmp_path / "x.parquet")
    told = {METADATA: pq.read_metadata(path).metadata[METADATA]}
    pq.write_table(pq.read_table(path).drop_columns(["rank"]).replace_schema_metadata(told), path)
    with pytest.raises(InputError, match="lacks columns"):
        RetrievalResult.load(path)


def test_comparisons_are_paired(split):
    ours, theirs = (evaluate(split, "val", scorer, draws=0) for scorer in (Fixed(0), Popularity()))
    found = compare(ours, theirs, seed=1, draws=200)
    difference = figures(ours.ranks, 120) - figures(theirs.ranks, 120)
    random = np.random.default_rng(1)
    users, index = np.unique(ours.ranks.user_id, return_inverse=True)
    assert len(users) == len(index), "one query a user, so drawing users is drawing queries"
    by_user = difference[np.argsort(index)]
    drawn = [by_user[random.integers(0, len(users), len(users))].mean(axis=0) for _ in range(200)]
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    np.testing.assert_allclose([one.mean for one in found.metrics.values()], difference.mean(axis=0))
    np.testing.assert_allclose([one.low for one in found.metrics.values()], low)
    np.testing.assert_allclose([one.high for one in found.metrics.values()], high)
    assert {name: -one.mean for name, one in compare(theirs, ours).metrics.items()} == pytest.approx(
        {name: one.mean for name, one in found.metrics.items()}
    )
    assert "fixed − popularity" in str(found)
    assert json.dumps(found.to_dict(), allow_nan=False)


def test_a_difference_is_claimed_where_the_cut_off_carries_one(split):
    ours = evaluate(replace(split, mask_history=False), "val", Target(split, "val"), draws=0)
    theirs = evaluate(replace(split, mask_history=False), "val", Popularity(), draws=0)
    found = compare(ours, theirs, draws=100)
    assert found.metrics["recall@10"].excludes_zero
    assert found.metrics["mrr"].excludes_zero
    assert not found.claims("recall@10"), "10 of 120 is more than 5 %"
    assert found.claims("mrr")
    lines = {line.split()[0]: line for line in str(found).splitlines()[2:]}
    assert "excludes 0" in lines["mrr"]
    assert "excludes 0" not in lines["recall@10"]


def test_a_result_does_not_differ_from_itself(result):
    found = compare(result, result)
    assert all((one.mean, one.low, one.high) == (0, 0, 0) for one in found.metrics.values())
    assert not any(one.excludes_zero for one in found.metrics.values())
    assert "excludes 0" not in str(found)


def test_seeds_are_averaged_query_by_query(split):
    seeds = [evaluate(split, "val", Fixed(seed), draws=0) for seed in range(3)]
    floor = evaluate(split, "val", Popularity(), draws=0)
    found = compare(seeds, floor, draws=100)
    mean = np.mean([one.values["mrr"] for one in seeds]) - floor.values["mrr"]
    assert found.metrics["mrr"].mean == pytest.approx(mean)
    assert found.ours == "fixed (mean of 3)"
    single = compare(seeds[0], floor, draws=100).metrics["mrr"]
    assert found.metrics["mrr"].high - found.metrics["mrr"].low < single.high - single.low


def test_saved_results_compare_as_the_first_ones(result, split, tmp_path):
    other = evaluate(split, "val", Popularity(), draws=0)
    back = [RetrievalResult.load(one.save(tmp_path / f"{one.name}.parquet")) for one in (result, other)]
    assert compare(*back).metrics == compare(result, other).metrics


@pytest.mark.parametrize("change", ["split", "catalogue", "part", "mask", "nothing"])
def test_different_queries_are_not_compared(split, result, change):
    if change == "nothing":
        with pytest.raises(InputError, match="nothing to compare"):
            compare(result, [])
        return
    if change == "split":
        other = evaluate(split, "test", Popularity(), quick=True)
    elif change == "catalogue":
        other = evaluate(masked_split(n_items=121, n_users=60), "val", Popularity(), quick=True)
    elif change == "mask":
        other = evaluate(replace(split, mask_history=False), "val", Popularity(), quick=True)
    else:
        other = replace(evaluate(split, split.chosen("val").take(np.arange(9)), Popularity(), quick=True), split="val")
    with pytest.raises(InputError, match="can't be compared"):
        compare(result, other)


def test_a_writer_is_told_what_it_writes(tmp_path, result):
    """Ranks added in any order come back in the order of the queries."""
    order = np.random.default_rng(0).permutation(len(result.ranks))
    with DumpWriter(tmp_path / "x.parquet") as writer:
        writer.add(result.ranks, order[:10])
        writer.add(result.ranks, order[10:])
        writer.finish(result)
    np.testing.assert_array_equal(RetrievalResult.load(tmp_path / "x.parquet").ranks.rank, result.ranks.rank)

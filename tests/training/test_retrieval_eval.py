"""Full ranking against a slow, obvious reference: masks, ties, repeats, batches; and the scorers that come with it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import training.retrieval_rank as engine
from contract.errors import InputError
from contract.vocabulary import MISSING_KEY
from tests.training.retrieval_makers import Fixed, Target, masked_split
from training.kuaiformer import KuaiFormer, preset_config, score
from training.readers import open_data
from training.retrieval_eval import KuaiFormerScorer, Popularity, evaluate, item_vectors
from training.retrieval_split import split_of
from training.tables import SparseTables, table_keys

CONFIG = preset_config("tiny", width=16, hidden=24, video_width=8, attribute_width=4)


def slow_ranks(split, which, scorer):
    """By definition: sort nothing, count everything, one query and one item at a time."""
    queries, ranks, others = split.chosen(which), [], []
    for user, end, item in zip(queries.user.tolist(), queries.end.tolist(), queries.item.tolist(), strict=True):
        first = max(int(split.index.offsets[user]), end - split.history)
        masked = {int(split.row_P[place]) for place in range(first, end)} if split.mask_history else set()
        scores = scorer.of(split, user, end)
        candidates = [n for n in range(split.n_items) if n not in masked and n != item]
        others.append(len(candidates))
        if item in masked:
            ranks.append(len(candidates) + 1.0)
            continue
        higher = sum(scores[n] > scores[item] for n in candidates)
        ties = sum(scores[n] == scores[item] for n in candidates)
        ranks.append(1 + higher + ties / 2)
    return np.array(ranks, float), np.array(others)


@pytest.mark.parametrize("which", ["val", "test"])
@pytest.mark.parametrize("levels", [0, 3])
@pytest.mark.parametrize("history", [2, 50])
def test_ranks_are_those_of_the_definition(which, levels, history):
    split = masked_split(history=history)
    scorer = Fixed(levels=levels)
    found = evaluate(split, which, scorer, draws=50)
    ranks, others = slow_ranks(split, which, scorer)
    np.testing.assert_array_equal(found.ranks.rank, ranks)
    np.testing.assert_array_equal(found.ranks.others, others)
    assert (ranks == others + 1).any(), "a target that its own history masks stands last"
    for k in (10, 20):
        assert found.values[f"recall@{k}"] == pytest.approx(np.mean(ranks <= k))
        gains = [1 / np.log2(r + 1) if r <= k else 0.0 for r in ranks]
        assert found.values[f"ndcg@{k}"] == pytest.approx(np.mean(gains))
    assert found.values["mrr"] == pytest.approx(np.mean(1 / ranks))
    below = [(n - (r - 1)) / n for r, n in zip(ranks, others, strict=True)]
    assert found.values["auc"] == pytest.approx(np.mean(below))
    assert "recall@50" not in found.values, "the catalogue has 30 items"


def test_logs_share_histories_between_queries(monkeypatch):
    split = split_of(open_data("sim:users=30,items=80,days=3"), "sim")
    queries = split.chosen("val")
    pairs = {*zip(queries.user.tolist(), queries.end.tolist(), strict=True)}
    assert len(pairs) < len(queries), "users have several queries"
    scorer = Fixed(levels=5)
    found = evaluate(split, "val", scorer, quick=True)
    assert sum(scorer.calls) == len(pairs), "each history is scored once"
    np.testing.assert_array_equal(found.ranks.rank, slow_ranks(split, "val", scorer)[0])
    assert (found.ranks.others == 79).all(), "logs mask nothing"
    monkeypatch.setattr(engine, "HISTORIES_AT_ONCE", 3)
    again = evaluate(split, "val", scorer, quick=True)
    np.testing.assert_array_equal(again.ranks.rank, found.ranks.rank)
    monkeypatch.setattr(engine, "SCORES_AT_ONCE", 80)
    np.testing.assert_array_equal(evaluate(split, "val", scorer, quick=True).ranks.rank, found.ranks.rank)
    assert scorer.calls[-1] == 1, "memory bounds a batch, down to one history"


def test_coverage_counts_what_stands_in_any_list():
    split = masked_split(n_items=60)
    scorer = Fixed(seed=3, levels=4)
    shown = {10: set(), 50: set()}
    queries = split.chosen("val")
    for user, end in zip(queries.user.tolist(), queries.end.tolist(), strict=True):
        rows = split.history_rows(np.array([user]), np.array([end]), split.history)[0]
        scores = scorer.of(split, user, end)
        best = sorted((n for n in range(60) if n not in set(rows.tolist())), key=lambda n: (-scores[n], n))
        for k, seen in shown.items():
            seen.update(best[:k])
    found = evaluate(split, "val", scorer, draws=0)
    assert found.coverage == {f"coverage@{k}": len(seen) / 60 for k, seen in shown.items()}
    assert evaluate(split, "val", scorer, quick=True).coverage == {}


@pytest.mark.parametrize("place", [0, 1, 9, 10])
def test_a_scorer_that_knows_the_answer_is_placed_where_it_says(place):
    split = replace(masked_split(), mask_history=False)
    found = evaluate(split, "test", Target(split, "test", place), draws=0).values
    assert found["mrr"] == pytest.approx(1 / (place + 1))
    assert found["recall@10"] == float(place < 10)
    assert found["ndcg@10"] == pytest.approx(1 / np.log2(place + 2) if place < 10 else 0.0)


def test_a_constant_is_worth_a_random_order():
    split = replace(masked_split(), mask_history=False)

    class Constant:
        name = "constant"

        def scores(self, split, user, end):
            return np.zeros((len(user), split.n_items))

    found = evaluate(split, "val", Constant(), draws=0)
    assert set(found.ranks.rank) == {15.5}
    assert found.values["auc"] == 0.5


def test_minus_infinity_is_a_score_and_no_mask():
    """A scorer may leave items out by −inf; among them and the masked ones the target ties with the former alone."""
    split = masked_split(history=50)

    class Half:
        name = "half"

        def of(self, split, user, end):
            scores = np.full(split.n_items, -np.inf, np.float32)
            scores[::2] = 1.0
            return scores

        def scores(self, split, user, end):
            return np.stack([self.of(split, 0, 0)] * len(user))

    found = evaluate(split, "val", Half(), draws=0)
    np.testing.assert_array_equal(found.ranks.rank, slow_ranks(split, "val", Half())[0])
    assert found.coverage["coverage@10"] > 0


def test_some_of_the_queries_give_their_own_ranks():
    split = masked_split()
    whole = evaluate(split, "val", Fixed(), quick=True)
    rows = np.array([3, 8, 20])
    part = evaluate(split, split.chosen("val").take(rows), Fixed(), quick=True)
    np.testing.assert_array_equal(part.ranks.rank, whole.ranks.rank[rows])
    assert part.split == "part"
    assert "3 of these queries" in part.protocol


def test_unknown_users_are_queries_too():
    split = masked_split()
    queries = split.chosen("val").take(np.array([0, 1, 2]))
    unknown = replace(queries, user=np.array([-1, 1, -1]), end=np.array([0, queries.end[1], 0]))
    found = evaluate(split, unknown, Popularity(), quick=True)
    assert found.ranks.user_id[[0, 2]].tolist() == [MISSING_KEY] * 2
    assert found.ranks.history[[0, 2]].tolist() == [0, 0]
    assert found.ranks.others[[0, 2]].tolist() == [29, 29], "nothing is masked for them"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda n, m: np.full((n, m), np.nan), "NaN"),
        (lambda n, m: np.zeros((n, m - 1)), "whole catalogue"),
        (lambda n, m: np.zeros(m), "whole catalogue"),
    ],
)
def test_scores_that_can_not_be_ranked_are_refused(bad, message):
    class Bad:
        name = "bad"

        def scores(self, split, user, end):
            return bad(len(user), split.n_items)

    with pytest.raises(InputError, match=message):
        evaluate(masked_split(), "val", Bad())


def test_popularity_counts_what_may_be_trained_on():
    split = masked_split()
    scores = Popularity().scores(split, np.array([0, 5]), np.array([0, 0]))
    trained = split.row_P[split.train_places()]
    expected = [int((trained == row).sum()) for row in range(split.n_items)]
    assert scores.tolist() == [expected, expected]
    other = masked_split(seed=1)
    one = Popularity()
    one.scores(split, np.array([0]), np.array([0]))
    assert one.scores(other, np.array([0]), np.array([0]))[0].tolist() == other.counts().tolist()


def test_speed_is_told_with_the_figures():
    split = masked_split()
    found = evaluate(split, "val", Popularity(), draws=10)
    queries = split.chosen("val")
    assert found.speed["histories"] == len({*zip(queries.user.tolist(), queries.end.tolist(), strict=True)})
    assert found.speed["queries_per_second"] > 0
    assert 0 < found.speed["one_p50_ms"] <= found.speed["one_p99_ms"]
    assert evaluate(split, "val", Popularity(), quick=True).speed == {}


@pytest.fixture(scope="module")
def model():
    """An untrained net and tables for a small world, and the split it can be asked about."""
    split = split_of(open_data("sim:users=20,items=60,days=3"), "sim")
    spec = CONFIG.spec()
    items = {name: getattr(split.items, name) for name in ("video_id", "author_id", "tags", "duration_ms")}
    keys = table_keys(spec, [("history_rows", split.index.columns), ("item_rows", items)])
    torch.manual_seed(0)
    return KuaiFormer(CONFIG, spec), SparseTables.from_spec_and_keys(spec, keys, dropout=0.3), split


def test_kuaiformer_scores_what_its_parts_say(model):
    """Against one history at a time through the contract's columns, at the whole length."""
    net, tables, split = model
    net.train()
    queries = split.chosen("val")
    user, end = queries.user[:20], queries.end[:20]
    scores = KuaiFormerScorer(net, tables).scores(split, user, end)
    assert net.training, "the mode is put back"
    assert tables.training
    net.eval()
    tables.eval()
    with torch.no_grad():
        items = item_vectors(net, tables, split.items)
        for b, (u, e) in enumerate(zip(user, end, strict=True)):
            places = split.index.windows(split.index.offsets[[u]], np.array([e]), 256)
            slots = tables.field_slots(
                net.spec, "history_rows", {n: c[0] for n, c in split.index.gather(places).items()}
            )
            rows = tables.rows(net.spec, "history_rows", {n: torch.from_numpy(s)[None] for n, s in slots.items()})
            mask = torch.from_numpy((places >= 0).astype(np.float32))
            expected = score(net.encoder(rows, mask), items)[0]
            np.testing.assert_allclose(scores[b], expected.numpy(), atol=1e-5)


def test_kuaiformer_sees_no_more_than_the_protocol_allows(model):
    net, tables, split = model
    short = replace(split, history=2)
    queries = split.chosen("val")
    longest = int(np.argmax(queries.end - split.start(queries.user)))
    user, end = queries.user[[longest]], queries.end[[longest]]
    assert end[0] - split.start(user)[0] > 2
    scorer = KuaiFormerScorer(net, tables)
    allowed = scorer.scores(short, user, end)
    assert not np.allclose(allowed, scorer.scores(split, user, end))
    changed = {name: column.copy() for name, column in split.index.columns.items()}
    changed["video_id"][: end[0] - 2] = split.items.video_id[0]
    other = replace(short, index=replace(split.index, columns=changed))
    np.testing.assert_allclose(scorer.scores(other, user, end), allowed, atol=1e-6)


def test_a_scorer_kept_through_training_sees_the_new_weights(model):
    net, tables, split = model
    scorer = KuaiFormerScorer(net, tables)
    before = evaluate(split, "val", scorer, quick=True)
    saved = {name: weight.clone() for name, weight in net.state_dict().items()}
    with torch.no_grad():
        for weight in net.item.parameters():
            weight.copy_(torch.randn_like(weight))
    after = evaluate(split, "val", scorer, quick=True)
    fresh = evaluate(split, "val", KuaiFormerScorer(net, tables), quick=True)
    net.load_state_dict(saved)
    assert (after.ranks.rank != before.ranks.rank).any()
    np.testing.assert_array_equal(after.ranks.rank, fresh.ranks.rank)


@pytest.mark.realdata
@pytest.mark.parametrize(("name", "which"), [("ml-1m", "val"), ("ml-1m", "test"), ("amazon-beauty", "val")])
def test_popularity_on_public_data(data_dir, name, which):
    """A sample of users ranked by sorting, the file read anew by pyarrow."""
    import pyarrow.parquet as pq

    table = pq.read_table(data_dir / name / "leave_one_out.parquet")
    user_id, item_id = np.asarray(table["user_id"]), np.asarray(table["item_id"])
    trained = np.asarray(table["split"]) == "train"
    counts = dict.fromkeys(np.unique(item_id).tolist(), 0)
    counts |= dict(zip(*(array.tolist() for array in np.unique(item_id[trained], return_counts=True)), strict=True))
    split = split_of(open_data(f"{name}:{data_dir / name}"), name)
    queries = split.chosen(which)
    sample = np.sort(np.random.default_rng(0).permutation(len(queries))[:60])
    found = evaluate(split, queries.take(sample), Popularity(), quick=True)
    for user, target, rank in zip(found.ranks.user_id, found.ranks.target, found.ranks.rank, strict=True):
        rows = sorted(table.take(np.flatnonzero(user_id == user)).to_pylist(), key=lambda row: row["position"])
        items = [row["item_id"] for row in rows]
        place = [row["split"] for row in rows].index(which)
        assert items[place] == target
        hidden = set(items[max(0, place - split.history) : place])
        order = sorted((count for item, count in counts.items() if item not in hidden), reverse=True)
        mine = counts[int(target)]
        assert rank == order.index(mine) + 1 + (order.count(mine) - 1) / 2

"""GAUC and nDCG@5: against loops over users and orders, paired intervals, and dumps that give the same figures."""

from __future__ import annotations

import math
from itertools import pairwise, permutations

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.errors import InputError
from training.within_user import (
    METRICS,
    ScoredLog,
    compare,
    ece,
    evaluate,
    is_scores,
    per_user,
    read_scores,
    results_table,
    write_scores,
)


def made(seed: int, n: int = 60, users: int = 9, levels: int = 5, name: str = "one", good: float = 0.5) -> ScoredLog:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, n).astype(np.int8)
    score = np.round(good * label + rng.random(n), 1) if levels else good * label + rng.random(n)
    return ScoredLog(
        name, np.sort(rng.integers(0, users, n)).astype(np.uint64), rng.integers(0, 40, n).astype(np.uint64),
        np.arange(n), label, score / 2, "label long_view", True, {"seed": seed},
    )  # fmt: skip


def slow_auc(label, score) -> float:
    pairs = [(a > b) + 0.5 * (a == b) for a in score[label == 1] for b in score[label == 0]]
    return float(np.mean(pairs))


def slow_ndcg(label, score) -> float:
    """The mean over every order that the scores allow."""
    if not (label == 1).any():
        return 0.0
    ideal = sum(1 / math.log2(place + 2) for place in range(min(5, int((label == 1).sum()))))
    found = []
    for order in permutations(range(len(label))):
        if all(score[a] >= score[b] for a, b in pairwise(order)):
            found.append(sum(int(label[i] == 1) / math.log2(place + 2) for place, i in enumerate(order[:5])))
    return float(np.mean(found)) / ideal


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 14))
def test_each_user_against_loops(seed, n):
    log = made(seed, n, users=3)
    found = per_user(log.user_id, log.label, log.score)
    for place, user in enumerate(found.user_id):
        mine = log.user_id == user
        label, score = log.label[mine], log.score[mine]
        if 0 < label.sum() < len(label):
            assert found.weighted_auc[place] == pytest.approx(label.sum() * slow_auc(label, score))
            assert found.weight[place] == label.sum()
        else:
            assert found.weight[place] == found.weighted_auc[place] == 0
        if len(label) <= 7:
            assert found.ndcg[place] == pytest.approx(slow_ndcg(label, score))


def test_figures_by_hand():
    users, labels = np.array([1, 1, 1, 2, 2, 3], np.uint64), np.array([1, 0, 0, 0, 1, 0], np.int8)
    log = ScoredLog("x", users, users, np.zeros(6, np.int64), labels, np.array([0.5, 0.9, 0.1, 0.2, 0.8, 0.3]))
    result = evaluate(log, draws=50)
    assert result.values["gauc"] == pytest.approx((0.5 + 1.0) / 2)
    assert result.values["ndcg@5"] == pytest.approx((1 / math.log2(3) + 1.0 + 0.0) / 3)
    assert result.values["primary"] == pytest.approx((result.values["gauc"] + result.values["ndcg@5"]) / 2)
    assert result.values["auc"] == pytest.approx(6 / 8)
    assert result.ece is None
    assert result.metrics["primary"].low <= result.metrics["primary"].mean <= result.metrics["primary"].high


def test_the_order_of_the_file_does_not_help():
    log = made(3)
    rng = np.random.default_rng(0).permutation(len(log))
    turned = ScoredLog("t", *(getattr(log, n)[rng] for n in ("user_id", "video_id", "time_ms", "label", "score")))
    one, other = evaluate(log, draws=0), evaluate(turned, draws=0)
    for name in METRICS:
        assert one.values[name] == pytest.approx(other.values[name], abs=1e-12)


def test_more_than_five_places_and_longer_lists():
    label = np.array([0, 0, 0, 0, 0, 1, 1], np.int8)
    found = per_user(np.zeros(7, np.uint64), label, -np.arange(7.0))
    assert found.ndcg[0] == 0.0
    best = per_user(np.zeros(7, np.uint64), label, np.arange(7.0))
    assert best.ndcg[0] == pytest.approx(1.0)


def test_paired_differences():
    good, poor = made(5, 3000, 400, 0, "good", 0.6), made(5, 3000, 400, 0, "poor", 0.0)
    apart = compare(evaluate(good, draws=0), evaluate(poor, draws=0), draws=200)
    assert apart["primary"].excludes_zero
    assert apart["primary"].low > 0
    assert apart["gauc"].mean == pytest.approx(evaluate(good).values["gauc"] - evaluate(poor).values["gauc"])
    same = compare(evaluate(good, draws=0), evaluate(good, draws=0), draws=50)
    assert (same["primary"].low, same["primary"].high) == (0.0, 0.0)
    with pytest.raises(InputError, match="different impressions"):
        compare(evaluate(good), evaluate(made(6, 3000, 400, 0)))
    table = results_table([evaluate(good), evaluate(poor)], first_against=True)
    assert "good − it, primary" in table
    assert "excludes 0" in table
    assert "3000 impressions of" in table


def test_calibration():
    chance = np.repeat([0.1, 0.9], 500)
    label = np.concatenate([np.arange(500) < 50, np.arange(500) < 450])
    assert ece(label, chance) == pytest.approx(0.0, abs=0.2)
    assert ece(label, chance, bins=2) == pytest.approx(0.0, abs=1e-9)
    assert ece(label, np.full(1000, 0.9), bins=1) == pytest.approx(0.4)


def test_a_dump_gives_the_same_figures(tmp_path):
    log = made(8)
    path = write_scores(tmp_path / "deep" / "scores.parquet", log)
    assert pq.read_schema(path).names == ["user_id", "video_id", "time_ms", "label", "score"]
    back = read_scores(path)
    assert evaluate(back).to_dict() == evaluate(log).to_dict()
    assert (back.name, back.protocol, back.probability, back.about) == ("one", "label long_view", True, {"seed": 8})
    assert is_scores(path)
    assert sorted(p.name for p in path.parent.iterdir()) == ["scores.parquet"]


def test_what_is_no_scored_log(tmp_path):
    log = made(1)
    columns = {name: getattr(log, name) for name in ("user_id", "video_id", "time_ms", "label", "score")}
    for change, match in (
        ({"label": log.label + 1}, "0 or 1"),
        ({"score": np.where(np.arange(60) == 7, np.nan, log.score)}, "row 7"),
        ({"score": log.score[:-1]}, "unequal"),
    ):
        with pytest.raises(InputError, match=match):
            ScoredLog("x", **{**columns, **change})
    with pytest.raises(InputError, match="nothing to evaluate"):
        evaluate(ScoredLog("x", **{name: column[:0] for name, column in columns.items()}))
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and no more")
    pq.write_table(
        pq.read_table(write_scores(tmp_path / "x.parquet", log)).replace_schema_metadata({}), tmp_path / "bare"
    )
    for name, match in (("absent", "no such file"), ("torn.parquet", "not a file of scores"), ("bare", "not a file")):
        assert not is_scores(tmp_path / name)
        with pytest.raises(InputError, match=match):
            read_scores(tmp_path / name)

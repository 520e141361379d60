"""`kir bench ranking` and its baselines: aggregates against loops, no label of the future, models side by side."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks.baselines import aggregates as ag
from benchmarks.baselines.fm import FactorisationMachine, field_indices, fm_scores
from benchmarks.baselines.gbm import gbm_scores
from contract.errors import InputError
from contract.events import Events
from contract.vocabulary import MISSING_KEY
from kir import main
from training.days import cut_before_last_days, days_of
from training.simulator import SimConfig, World, simulate_logs
from training.within_user import read_scores

DATA = "sim:users=60,items=200,days=4"


@pytest.fixture(scope="module")
def events() -> Events:
    return simulate_logs(World(SimConfig(n_users=60, n_items=200, days=4)))


@pytest.fixture(scope="module")
def cut_ms(events) -> int:
    return cut_before_last_days(events, 1)


def flipped(events: Events, cut_ms: int) -> Events:
    later = events["time_ms"] >= cut_ms
    return events.with_columns(
        **{name: np.where(later, 1 - events[name].clip(0), events[name]) for name in ("long_view", "like", "click")}
    )


def test_keys_count_what_came_before():
    keys = ag.Keys(np.array([5, 5, 7]), np.array([7, 5, 9]))
    rate, count = keys.rate(np.array([1.0, 0.0, 1.0]), prior=0.5, weight=2.0)
    np.testing.assert_allclose(rate, [2 / 3, 2 / 4, 1 / 2])
    np.testing.assert_allclose(np.expm1(count), [1, 2, 0])
    pair = keys * ag.Keys(np.array([1, 2, 1]), np.array([1, 2, 1]))
    np.testing.assert_allclose(np.expm1(pair.rate(np.ones(3), 0.0, 1.0)[1]), [1, 1, 0])


def test_aggregates_against_a_loop(events, cut_ms):
    past, rows = (
        events.take(np.flatnonzero(side)) for side in (events["time_ms"] < cut_ms, events["time_ms"] >= cut_ms)
    )
    rows = rows.take(np.arange(25))
    x, names = ag.aggregates(past, rows)
    assert x.shape == (25, len(names)) == (25, len(set(names)))
    base = past["long_view"].mean()
    rate_of = {}
    for video in np.unique(np.concatenate([past["video_id"], rows["video_id"]])):
        seen = past["long_view"][past["video_id"] == video]
        rate_of[video] = (seen.sum() + ag.ITEM_PRIOR * base) / (len(seen) + ag.ITEM_PRIOR)
    rest = past["long_view"] - np.array([rate_of[video] for video in past["video_id"]])
    for i in range(25):
        mine = past["user_id"] == rows["user_id"][i]
        alike = mine & (past["author_id"] == rows["author_id"][i])
        want = {
            "video": rate_of[rows["video_id"][i]],
            "user_rest": rest[mine].sum() / (mine.sum() + ag.USER_PRIOR),
            "user_author": rest[alike].sum() / (alike.sum() + ag.PAIR_PRIOR),
            "user_author_n": np.log1p(alike.sum()),
            "duration_ms": rows["duration_ms"][i],
        }
        for name, value in want.items():
            assert x[i, names.index(name)] == pytest.approx(value, rel=1e-4, abs=1e-5), name


def test_each_day_is_described_by_the_days_before(events):
    days = days_of(events)
    known = np.unique(days)
    x, rows = ag.by_day(events, days, known[1:].tolist())
    assert np.sort(rows).tolist() == np.flatnonzero(days > known[0]).tolist()
    turned = flipped(events, int(events["time_ms"][days == known[2]].min()))
    other, _ = ag.by_day(turned, days, known[1:].tolist())
    early = days[rows] <= known[2]
    np.testing.assert_array_equal(x[early], other[early])
    assert not np.array_equal(x[~early], other[~early])


def test_a_factorisation_machine_is_its_pairs():
    import torch

    torch.manual_seed(0)
    model = FactorisationMachine(9, 4)
    torch.nn.init.normal_(model.weight.weight)
    index = torch.tensor([[0, 3, 7], [1, 3, 8]])
    for i, row in enumerate(index.tolist()):
        v = model.vector.weight
        want = model.bias + sum(model.weight.weight[k, 0] for k in row)
        want = want + sum(v[row[a]] @ v[row[b]] for a in range(3) for b in range(a + 1, 3))
        torch.testing.assert_close(model(index)[i], want)


def test_unknown_values_share_a_row_of_their_field():
    one = Events({"user_id": [1, 2], "video_id": [5, 5], "author_id": np.array([3, MISSING_KEY], np.uint64)})
    other = Events({"user_id": [2, 9, 8], "video_id": [6, 5, 5], "author_id": np.array([3, 3, 4], np.uint64)})
    first, second, size = field_indices(one, other)
    assert first.max() < size
    assert second[0, 0] == first[1, 0]
    assert second[1, 0] == second[2, 0] not in first[:, 0]
    assert second[0, 2] == first[0, 2] != second[2, 2]
    assert len(set(np.concatenate([first, second])[:, 0]) & set(np.concatenate([first, second])[:, 1])) == 0


@pytest.mark.parametrize("score", [fm_scores, gbm_scores])
def test_baselines_never_see_what_they_score(events, cut_ms, score):
    found = score(events, cut_ms)
    assert ((found > 0) & (found < 1)).all()
    np.testing.assert_array_equal(found, score(flipped(events, cut_ms), cut_ms))
    assert len(found) == (events["time_ms"] >= cut_ms).sum()


def test_models_side_by_side(tmp_path, capsys):
    for seed in (0, 1):
        out = str(tmp_path / f"r{seed}")
        assert main(["train", "ranker", "--data", DATA, "--out", out, "--epochs", "1", "--seed", str(seed)]) == 0
    capsys.readouterr()
    models = [f"ours={tmp_path}/r0,{tmp_path}/r1"]
    out = ["--out", str(tmp_path / "b"), "--json", str(tmp_path / "b.json")]
    assert main(["bench", "ranking", *models, "--baseline", "item-rate,fm,lightgbm", "--data", DATA, *out]) == 0
    printed = capsys.readouterr().out
    assert "ours (mean of 2) − it, primary" in printed
    found = json.loads((tmp_path / "b.json").read_text())
    ours = found["arms"]["ours"]
    assert ours["metrics"]["gauc"]["mean"] == pytest.approx(np.mean([seed["gauc"] for seed in ours["seeds"]]))
    assert sorted(p.name for p in (tmp_path / "b/scores").iterdir()) == [
        "fm.parquet", "item-rate.parquet", "lightgbm.parquet", "ours-0.parquet", "ours-1.parquet",
    ]  # fmt: skip
    apart = found["differences"]["fm"]["primary"]["mean"]
    assert apart == pytest.approx(
        ours["metrics"]["primary"]["mean"] - found["arms"]["fm"]["metrics"]["primary"]["mean"]
    )
    dumps = [f"a={tmp_path}/b/scores/ours-0.parquet", f"b={tmp_path}/b/scores/lightgbm.parquet"]
    assert main(["bench", "ranking", *dumps, "--out", str(tmp_path / "c")]) == 0
    assert read_scores(tmp_path / "c/scores/b.parquet").name == "b"


def test_real_time_stands_beside_past_only(tmp_path, capsys):
    for seed in (0, 1):
        words = ["--out", str(tmp_path / f"r{seed}"), "--epochs", "1", "--seed", str(seed)]
        assert main(["train", "ranker", "--data", DATA, *words]) == 0
    capsys.readouterr()
    words = ["--baseline", "item-rate", "--data", DATA, "--real-time", "--json", str(tmp_path / "b.json")]
    assert main(["bench", "ranking", f"us={tmp_path}/r0,{tmp_path}/r1", *words, "--out", str(tmp_path / "b")]) == 0
    printed = capsys.readouterr().out
    assert "REAL-TIME feedback" in printed
    assert "protocol of us (mean of 2); item-rate: " in printed
    assert "us: the same checkpoint" in printed
    found = json.loads((tmp_path / "b.json").read_text())
    assert list(found["arms"]) == ["us-real-time", "us", "item-rate"]
    assert found["reference"] == "us-real-time"
    assert "--real-time" in found["command"].split()
    everyone, *some = found["real_time"]["us"]
    assert everyone["difference"]["primary"] == found["differences"]["us"]["primary"]
    assert [one["at_least"] for one in some] == [3, 6, 12]
    assert len(list((tmp_path / "b/scores").iterdir())) == 5
    dumps = [f"us={tmp_path}/b/scores/us-0.parquet", "--real-time", "--out", str(tmp_path / "c")]
    assert main(["bench", "ranking", *dumps]) == 2
    assert "--real-time scores a ranker's checkpoint" in capsys.readouterr().err


def test_wrong_uses(tmp_path, capsys):
    for words, said in (
        ([], "nothing to compare"),
        (["--baseline", "magic"], "unknown baseline"),
        (["--baseline", "fm"], "pass --data"),
        ([str(tmp_path / "absent")], "no such"),
        ([f"a={tmp_path}", f"a={tmp_path}", "--real-time"], "two models have one name"),
    ):
        assert main(["bench", "ranking", *words, "--out", str(tmp_path / "o")]) == 2
        assert said in capsys.readouterr().err
    timeless = Events({"user_id": [1, 1], "video_id": [1, 2], "long_view": [0, 1], "time_ms": [-1, 5]})
    with pytest.raises(InputError, match="days with times"):
        gbm_scores(timeless, 5)

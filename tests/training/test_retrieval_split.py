"""Splits: what is trained on, what is to be found, and that no history holds what it must not know."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contract.errors import InputError
from contract.events import Events
from contract.history import available_at, is_positive
from training.days import DAY_MS, HOUR_MS, cut_before_last_days, held_out
from training.readers import LogData, open_data, read_leave_one_out
from training.readers.log_data import tables_of
from training.retrieval_split import split_of


@pytest.fixture
def sequences(tmp_path):
    rows = [(3, 0, 20, "train"), (5, 0, 10, "train"), (5, 1, 30, "train"), (5, 2, 10, "val"), (5, 3, 20, "test")]
    names = ("user_id", "position", "item_id", "split")
    columns = {name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
    pq.write_table(pa.table(columns), tmp_path / "leave_one_out.parquet")
    pq.write_table(
        pa.table({"item_id": [10, 20], "genres": ["Action|Comedy|Drama|War", ""]}), tmp_path / "items.parquet"
    )
    return read_leave_one_out(tmp_path)


def test_leave_one_out(sequences):
    split = split_of(sequences, "ml-1m")
    assert (split.n_items, split.mask_history, split.history) == (3, True, 200)
    assert split.train_places().tolist() == [0, 1, 2]
    assert split.counts().tolist() == [1, 1, 1]
    val, test = split.chosen("val"), split.chosen("test")
    assert (val.user.tolist(), val.item.tolist()) == ([1], [0])
    assert split.history_rows(val.user, val.end, 4).tolist() == [[-1, -1, 0, 2]]
    assert test.item.tolist() == [1]
    assert split.history_rows(test.user, test.end, 4).tolist() == [[-1, 0, 2, 0]], "the val item is part of it"
    assert split.history_rows(test.user, test.end, 2).tolist() == [[2, 0]], "the last ones are kept"
    assert len(np.unique(split.items.tags[0])) == 3, "the first three genres are the tags"
    assert (split.items.tags[1:] == split.items.tags[2, 0]).all(), "no genre, no tag"
    assert split_of(sequences, "amazon-beauty").history == 50
    with pytest.raises(InputError, match="no such split"):
        split.chosen("dev")


def test_a_log_is_cut_by_day():
    data = open_data("sim:users=30,items=100,days=3")
    split = split_of(data, "sim", holdout_days=1)
    cut = cut_before_last_days(data.events, 1)
    trained = split.index.event[split.train_places()]
    positive = is_positive(data.events["long_view"], data.events["like"])
    late = held_out(data.events, cut)
    assert sorted(trained) == np.flatnonzero(positive & ~late).tolist()
    queries = split.chosen("val")
    assert len(queries) == int((positive & late).sum())
    known = available_at(data.events)
    for user, end in zip(queries.user[:50], queries.end[:50], strict=True):
        history = split.index.event[split.index.offsets[user] : end]
        assert (known[history] <= cut).all()
    for place in split.train_places()[::17]:
        user = np.searchsorted(split.index.offsets, place, side="right") - 1
        seen = split.index.event[split.index.offsets[user] : split.known_end_P[place]]
        assert (known[seen] <= split.index.time_ms[place]).all()
    assert split_of(data, "sim", holdout_days=0).queries == {}
    assert "full ranking of 100 videos" in queries.protocol


def test_a_cut_at_midnight_counts_days_as_the_log_files_them():
    """KuaiRand files what was shown at 23:50 under the hour 0 of the next day: it is asked for, not trained on."""
    midnight = 20_000 * DAY_MS - 8 * HOUR_MS
    minutes = np.array([-120, -50, -10, -5, 30, -90, 40])
    hour = np.array([22, 23, 0, 0, 0, 22, 0])
    events = Events(
        {
            "user_id": np.array([1, 1, 1, 1, 1, 2, 2]),
            "video_id": np.arange(10, 17),
            "time_ms": midnight + minutes * 60_000,
            "play_time_ms": np.full(7, 1_000),
            "hour": hour,
            "long_view": np.ones(7, int),
        }
    )
    log = LogData(events, *tables_of(events))
    split = split_of(log, "toy", holdout_days=1, utc_offset_hours=8)
    assert split.cut_ms == midnight
    assert split.index.event[split.train_places()].tolist() == [0, 1, 5]
    queries = split.chosen("val")
    assert queries.item.tolist() == [2, 3, 4, 6]
    history = [split.history_rows(queries.user[q : q + 1], queries.end[q : q + 1], 3)[0].tolist() for q in range(4)]
    assert history == [[-1, 0, 1]] * 3 + [[-1, -1, 5]], "known before midnight, and filed before it"
    by_time = split_of(log, "toy", cut_ms=midnight + 1, utc_offset_hours=8)
    assert by_time.index.event[by_time.train_places()].tolist() == [0, 1, 2, 3, 5], "no midnight: the times alone"


@pytest.mark.realdata
def test_the_retrieval_protocol_has_the_counts_of_its_readme(data_dir):
    data = open_data(f"kuairand:{data_dir / 'kuairand-pure'}")
    split = split_of(data, "kuairand", holdout_days=2, utc_offset_hours=8)
    queries = split.chosen("val")
    assert (len(queries), len(np.unique(queries.user)), split.n_items) == (11_892, 7_421, 7_583)
    trained = data.events.take(split.index.event[split.train_places()])
    assert not held_out(trained, split.cut_ms, 8).any()
    assert (queries.end <= split.train_end[queries.user]).all(), "histories end with 04-28"

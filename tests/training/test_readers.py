"""Leave-one-out sequences, event folders, and `open_data`."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contract.catalogue import write_catalogue, write_users
from contract.errors import EventError, InputError
from contract.parquet import write_events
from training.readers import LeaveOneOut, LogData, open_data, read_leave_one_out
from training.readers.log_data import tables_of
from training.simulator import SimConfig, World, simulate_logs

ROWS = [  # user, position, item, split; not in order on purpose
    (5, 1, 30, "train"),
    (5, 0, 10, "train"),
    (5, 3, 20, "test"),
    (5, 2, 10, "val"),
    (3, 0, 20, "train"),
]


def write(path, rows=ROWS, names=("user_id", "position", "item_id", "split")):
    pq.write_table(
        pa.table({name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}), path
    )
    return path


def test_sequences_are_split_and_renumbered(tmp_path) -> None:
    data = read_leave_one_out(write(tmp_path / "leave_one_out.parquet").parent)
    assert data.user_ids.tolist() == [3, 5]
    assert data.item_ids.tolist() == [10, 20, 30]
    assert data.offsets.tolist() == [0, 1, 3]
    assert data.item_ids[data.history(1)].tolist() == [10, 30]
    assert data.item_ids[data.history(1, "test")].tolist() == [10, 30, 10], "the test input includes the val item"
    assert data.history(1, "val").tolist() == data.history(1).tolist()
    assert data.val_items.tolist() == [-1, 0]
    assert data.test_items.tolist() == [-1, 1]
    assert data.history(0, "test").tolist() == data.history(0).tolist(), "no val item, nothing to add"
    assert (data.n_users, data.n_items, data.n_events) == (2, 3, 5)
    with pytest.raises(EventError, match="split"):
        data.history(0, "holdout")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*ROWS, (3, 1, 10, "holdout")], "holdout"),
        ([*ROWS, (5, 4, 10, "test")], "two test"),
        ([*ROWS, (5, 4, 10, "train")], "last"),
        ([*ROWS, (3, 0, 10, "train")], "one position"),
        ([*ROWS, (-3, 0, 10, "train")], "user_id"),
    ],
)
def test_broken_sequences_say_what_is_wrong(tmp_path, rows, message) -> None:
    with pytest.raises(EventError, match=message):
        read_leave_one_out(write(tmp_path / "x.parquet", rows))


def test_broken_files_say_what_is_wrong(tmp_path) -> None:
    with pytest.raises(EventError, match="exist"):
        read_leave_one_out(tmp_path / "x.parquet")
    whole = write(tmp_path / "x.parquet").read_bytes()
    (tmp_path / "x.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EventError, match="readable"):
        read_leave_one_out(tmp_path / "x.parquet")
    with pytest.raises(EventError, match="item_id"):
        read_leave_one_out(write(tmp_path / "y.parquet", names=("user_id", "position", "movie", "split")))


def test_sim_is_opened_by_its_parameters() -> None:
    data = open_data("sim:users=12,items=80,topics=4,days=1,drift=0.5,seed=3,sessions=3,policy=random")
    assert isinstance(data, LogData)
    world = World(SimConfig(n_users=12, n_items=80, n_topics=4, days=1, drift=0.5, seed=3))
    expected = simulate_logs(world, sessions_per_user_day=3.0, policy="random")
    np.testing.assert_array_equal(data.events["time_ms"], expected["time_ms"])
    np.testing.assert_array_equal(data.items.video_id, world.items.video_id)
    assert len(data.users) == 12


@pytest.mark.parametrize(
    "spec",
    [
        "kuairand",
        "netflix:here",
        "events:",
        "ml-1m:",
        "sim:people=3",
        "sim:users=many",
        "sim:drift=-1",
        "sim:policy=best",
        "",
    ],
)
def test_open_data_refuses_what_it_does_not_know(spec) -> None:
    with pytest.raises(InputError):
        open_data(spec)


@pytest.fixture(scope="module")
def world() -> World:
    return World(SimConfig(n_users=12, n_items=80, n_topics=4, days=1))


class TestEventFolders:
    def test_a_folder_with_its_tables(self, world, tmp_path) -> None:
        events = simulate_logs(world)
        shuffled = events.take(np.random.default_rng(0).permutation(len(events)))
        write_events(tmp_path / "events.parquet", shuffled)
        write_catalogue(tmp_path / "catalogue.parquet", world.items)
        write_users(tmp_path / "users.parquet", world.users)
        for spec in (f"events:{tmp_path}", f"events:{tmp_path / 'events.parquet'}"):
            data = open_data(spec)
            assert len(data.items) == 80
            np.testing.assert_array_equal(data.events["time_ms"], events["time_ms"])

    def test_a_folder_of_event_files_alone(self, world, tmp_path) -> None:
        events = simulate_logs(world)
        write_events(tmp_path / "part-0.parquet", events.take(slice(0, 50)))
        write_events(tmp_path / "part-1.parquet", events.take(slice(50, None)))
        data = open_data(f"events:{tmp_path}")
        assert len(data.events) == len(events)
        assert (data.items.index_of(data.events["video_id"]) >= 0).all()

    def test_tables_gathered_from_events_agree_with_the_true_ones(self, world) -> None:
        items, users = tables_of(simulate_logs(world))
        rows = world.items.index_of(items.video_id)
        for name in ("author_id", "tags", "duration_ms"):
            np.testing.assert_array_equal(getattr(items, name), getattr(world.items, name)[rows])
        assert np.abs(items.upload_ms - world.items.upload_ms[rows]).max() < 86_400_000
        np.testing.assert_array_equal(users.activity, world.users.activity[world.users.index_of(users.user_id)])

    def test_absent_and_empty_folders(self, tmp_path) -> None:
        with pytest.raises(EventError, match="no such"):
            open_data(f"events:{tmp_path / 'nowhere'}")
        with pytest.raises(EventError):
            open_data(f"events:{tmp_path}")


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("kind", "users", "items", "events", "tested"),
    [("ml-1m", 6_040, 3_416, 999_611, 6_040), ("amazon-beauty", 52_204, 57_289, 394_908, 50_498)],
)
def test_real_sequences_have_the_counts_of_their_readme(data_dir, kind, users, items, events, tested) -> None:
    data = open_data(f"{kind}:{data_dir / kind}")
    assert isinstance(data, LeaveOneOut)
    assert (data.n_users, data.n_items, data.n_events) == (users, items, events)
    assert (data.val_items >= 0).sum() == (data.test_items >= 0).sum() == tested

"""Event columns and event files: what goes in comes out, nulls stay nulls, and bad files give one clear error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contract.catalogue import Catalogue, UserTable, read_catalogue, read_users, write_catalogue, write_users
from contract.errors import EventError
from contract.events import COLUMN, EVENT_COLUMNS, LEAVES_DEVICE, Events, null_column
from contract.parquet import event_schema, read_events, write_events
from contract.vocabulary import MISSING_KEY, PXTR_HEADS, SIGNALS, TAGS_MAX, X_PXTR

BASE = {"user_id": [1, 2], "video_id": [3, 4]}
shared_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)

ids = st.integers(0, 2**64 - 2)
VALUES = {
    "id": ids,
    "i64": st.integers(-1, 2**62),
    "i32": st.integers(-1, 2**31 - 1),
    "i8": st.integers(-1, 1),
    "f32": st.floats(0, 1, width=32) | st.just(float("nan")),
    "text": st.text(max_size=8).filter(lambda t: "\x00" not in t),
    "tags": st.lists(ids, max_size=TAGS_MAX).map(lambda t: t + [int(MISSING_KEY)] * (TAGS_MAX - len(t))),
    "pxtr": st.lists(st.floats(0, 1, width=32) | st.just(float("nan")), min_size=X_PXTR, max_size=X_PXTR),
    "ints": st.none() | st.lists(st.integers(0, 300), max_size=5).map(lambda v: np.array(v, np.int32)),
}


@st.composite
def events(draw) -> Events:
    n = draw(st.integers(0, 6))
    names = draw(st.sets(st.sampled_from(sorted(COLUMN)))) | {"user_id", "video_id"}
    columns = {}
    for name in sorted(names):
        kind = COLUMN[name].kind
        rows = draw(st.lists(VALUES[kind], min_size=n, max_size=n))
        if kind in ("text", "ints"):
            columns[name] = rows
        else:
            empty = null_column(COLUMN[name], n)
            columns[name] = np.array(rows, dtype=empty.dtype).reshape(empty.shape)
    return Events(columns)


def assert_equal(one: Events, two: Events) -> None:
    assert len(one) == len(two)
    for column in EVENT_COLUMNS:
        left, right = one[column.name], two[column.name]
        assert left.dtype == right.dtype
        assert left.shape == right.shape
        if column.kind == "ints":
            for a, b in zip(left, right, strict=True):
                assert (a is None) == (b is None)
                if a is not None:
                    np.testing.assert_array_equal(a, b)
        else:
            np.testing.assert_array_equal(left, right, err_msg=column.name)


@given(events())
@shared_folder
def test_a_file_gives_back_what_was_written(tmp_path: Path, written: Events) -> None:
    assert_equal(read_events(write_events(tmp_path / "e.parquet", written)), written)


@given(events(), st.integers(0, 6), st.integers(0, 6))
def test_taking_and_joining_are_inverse(all_rows: Events, a: int, b: int) -> None:
    low, high = sorted((a, b))
    parts = [all_rows.take(slice(0, low)), all_rows.take(slice(low, high)), all_rows.take(slice(high, None))]
    assert_equal(Events.concat(parts), all_rows)


@given(st.binary(max_size=400))
@shared_folder
def test_no_bytes_but_an_event_file_are_read(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "bytes.parquet"
    path.write_bytes(data)
    with pytest.raises(EventError, match=r"bytes\.parquet"):
        read_events(path)


@given(st.floats(0, 0.999))
@shared_folder
def test_a_truncated_file_is_refused(tmp_path: Path, share: float) -> None:
    whole = write_events(tmp_path / "whole.parquet", Events(BASE)).read_bytes()
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(EventError, match="readable"):
        read_events(cut)


def test_left_out_columns_are_null_never_zero() -> None:
    found = Events(BASE)
    assert (found["like"] == -1).all()
    assert (found["play_time_ms"] == -1).all()
    assert np.isnan(found["propensity"]).all()
    assert (found["author_id"] == MISSING_KEY).all()
    assert found["remaining"].tolist() == [None, None]
    assert found.signals.shape == (2, len(SIGNALS))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"colour": [1, 2]}, "unknown"),
        ({"like": [1]}, "shape"),
        ({"tags": [[1], [2]]}, "shape"),
        ({"pxtr": np.zeros((2, X_PXTR + 1))}, "shape"),
        ({"like": ["yes", "no"]}, "convert"),
        ({"like": [300, 0]}, "convert"),
        ({"duration_ms": [2**40, 1]}, "convert"),
        ({"time_ms": [1.5, 2.0]}, "convert"),
        ({"time_ms": [float("nan"), 2.0]}, "convert"),
        ({"author_id": [-1, 2]}, "convert"),
        ({"user_id": [int(MISSING_KEY), 2]}, "null"),
    ],
)
def test_bad_columns_are_named(columns, message) -> None:
    with pytest.raises(EventError, match=message) as error:
        Events({**BASE, **columns})
    assert next(iter(columns)) in str(error.value)


def test_ids_are_required() -> None:
    with pytest.raises(EventError, match="absent"):
        Events({"user_id": [1]})
    with pytest.raises(EventError, match="nothing"):
        Events.concat([])


def test_whole_floats_and_booleans_are_integers() -> None:
    found = Events({**BASE, "time_ms": [1.0, 2.0], "like": [True, False]})
    assert found["time_ms"].tolist() == [1, 2]
    assert found["like"].tolist() == [1, 0]


def test_large_ids_in_lists_stay_exact() -> None:
    """numpy alone would make floats of them."""
    assert Events({"user_id": [2**63 + 1, 2], "video_id": (3, 2**64 - 2)})["user_id"].tolist() == [2**63 + 1, 2]


def test_with_columns_leaves_the_original_alone() -> None:
    before = Events(BASE)
    after = before.with_columns(like=[1, 0])
    assert before["like"].tolist() == [-1, -1]
    assert after["like"].tolist() == [1, 0]


def test_every_column_says_whether_it_leaves_the_device() -> None:
    assert all(column.leaves_device in LEAVES_DEVICE for column in EVENT_COLUMNS)
    assert COLUMN["volume"].leaves_device == COLUMN["landscape"].leaves_device == "opt_in"
    assert COLUMN["user_activity"].leaves_device == "never"
    assert len({column.name for column in EVENT_COLUMNS}) == len(EVENT_COLUMNS)


class TestFiles:
    def rewrite(self, path: Path, change) -> Path:
        """A well-formed file, changed as an Arrow table."""
        table = pq.read_table(write_events(path, Events({**BASE, "pxtr": np.full((2, X_PXTR), 0.5)})))
        changed = change(table)
        pq.write_table(changed, path)
        return path

    @pytest.mark.parametrize(
        ("metadata", "message"),
        [
            ({"schema": "kir-events/0", "pxtr_heads": ",".join(PXTR_HEADS)}, "schema"),
            ({"schema": "kir-events/1", "pxtr_heads": "click"}, "heads"),
            ({}, "schema"),
        ],
    )
    def test_other_versions_are_refused(self, tmp_path, metadata, message) -> None:
        path = self.rewrite(tmp_path / "e.parquet", lambda t: t.replace_schema_metadata(metadata))
        with pytest.raises(EventError, match=message):
            read_events(path)

    @pytest.mark.parametrize(
        ("name", "values", "message"),
        [
            ("like", pa.array(["a", "b"]), "like"),
            ("play_time_ms", pa.array([2**40, 1]), "play_time_ms"),
            ("user_id", pa.array([1, 2], pa.int64()), "user_id"),
            ("user_id", pa.array([None, 2], pa.uint64()), "null"),
            ("tags", pa.array([[1, None], [2]], pa.list_(pa.uint64())), "tags"),
            ("remaining", pa.array([[1, None], [2]], pa.list_(pa.int32())), "remaining"),
            ("pxtr", pa.array([[0.5], []], pa.list_(pa.float32())), "pxtr"),
        ],
    )
    def test_hostile_columns_are_refused(self, tmp_path, name, values, message) -> None:
        def change(table):
            place = table.column_names.index(name)
            return table.set_column(place, pa.field(name, values.type), values)

        with pytest.raises(EventError, match=message):
            read_events(self.rewrite(tmp_path / "e.parquet", change))

    def test_too_many_tags_are_cut_in_the_logs_order(self, tmp_path) -> None:
        values = pa.array([list(range(10_000)), None], pa.list_(pa.uint64()))
        path = self.rewrite(
            tmp_path / "e.parquet", lambda t: t.set_column(t.column_names.index("tags"), t.schema.field("tags"), values)
        )
        found = read_events(path)["tags"]
        assert found[0].tolist() == [0, 1, 2]
        assert (found[1] == MISSING_KEY).all()

    def test_a_column_of_a_later_version_is_ignored_and_an_absent_one_null(self, tmp_path) -> None:
        def change(table):
            return table.append_column("mood", pa.array([1, 2])).drop_columns(["like"])

        found = read_events(self.rewrite(tmp_path / "e.parquet", change))
        assert (found["like"] == -1).all()
        with pytest.raises(EventError, match="absent"):
            read_events(self.rewrite(tmp_path / "f.parquet", lambda t: t.drop_columns(["video_id"])))

    def test_folders_and_lists_of_files(self, tmp_path) -> None:
        with pytest.raises(EventError, match=r"no \*\.parquet"):
            read_events(tmp_path)
        with pytest.raises(EventError, match="exist"):
            read_events(tmp_path / "nothing.parquet")
        b = write_events(tmp_path / "b.parquet", Events({"user_id": [2], "video_id": [2]}))
        a = write_events(tmp_path / "a.parquet", Events({"user_id": [1], "video_id": [1]}))
        assert read_events(tmp_path)["user_id"].tolist() == [1, 2]
        assert read_events([b, a])["user_id"].tolist() == [2, 1]

    def test_a_failed_write_leaves_the_old_file(self, tmp_path, monkeypatch) -> None:
        path = write_events(tmp_path / "e.parquet", Events(BASE))

        def no_disk(*_args, **_kwargs):
            raise OSError("no space left")

        monkeypatch.setattr(pq, "write_table", no_disk)
        with pytest.raises(OSError, match="space"):
            write_events(path, Events({"user_id": [9], "video_id": [9]}))
        assert read_events(path)["user_id"].tolist() == [1, 2]

    def test_the_schema_names_every_column(self) -> None:
        assert event_schema().names == [column.name for column in EVENT_COLUMNS]


class TestTables:
    ITEMS = Catalogue(
        video_id=np.array([50, 7, 2**63], np.uint64),
        author_id=np.array([1, int(MISSING_KEY), 3], np.uint64),
        tags=np.array([[1, 2, 3], [4, int(MISSING_KEY), int(MISSING_KEY)], [int(MISSING_KEY)] * 3], np.uint64),
        duration_ms=np.array([1000, -1, 3000]),
        upload_ms=np.array([86_400_000, -1, 0]),
    )
    USERS = UserTable(np.array([9, 4], np.uint64), np.array([7, -1]), np.array([100, 0]))

    def test_round_trip(self, tmp_path) -> None:
        items = read_catalogue(write_catalogue(tmp_path / "c.parquet", self.ITEMS))
        users = read_users(write_users(tmp_path / "u.parquet", self.USERS))
        for table, expected in ((items, self.ITEMS), (users, self.USERS)):
            for name, values in vars(expected).items():
                if isinstance(values, np.ndarray) and not name.startswith("_"):
                    np.testing.assert_array_equal(getattr(table, name), values)
                    assert getattr(table, name).dtype == values.dtype

    def test_rows_of_ids(self) -> None:
        assert self.ITEMS.index_of(np.array([7, 8, 2**63, 50, 0], np.uint64)).tolist() == [1, -1, 2, 0, -1]
        empty = UserTable(np.empty(0, np.uint64), np.empty(0, int), np.empty(0, int))
        assert empty.index_of(np.array([1], np.uint64)).tolist() == [-1]

    def test_upload_age_in_whole_days(self) -> None:
        rows, day = np.array([0, 0, 0, 1, -1, 2]), 86_400_000
        times = np.array([3 * day, 3 * day - 1, 5, day, day, -1])
        assert self.ITEMS.upload_age_days(rows, times).tolist() == [2, 1, 0, -1, -1, -1]

    @pytest.mark.parametrize(
        ("ids", "numbers", "message"),
        [
            ([1, 1], [0, 0], "twice"),
            ([1], [0, 0], "shape"),
            ([int(MISSING_KEY)], [0], "null"),
            ([1], [0.5], "integers"),
        ],
    )
    def test_bad_tables_are_refused(self, ids, numbers, message) -> None:
        with pytest.raises(EventError, match=message):
            UserTable(np.array(ids, np.uint64), np.array(numbers), np.array(numbers))

    def test_bad_files_are_refused(self, tmp_path) -> None:
        path = write_users(tmp_path / "u.parquet", self.USERS)
        with pytest.raises(EventError, match="kind or version"):
            read_catalogue(path)
        table = pq.read_table(path)
        changes = {
            "absent": table.drop_columns(["activity"]),
            "type": table.set_column(1, "activity", pa.array(["a", "b"])),
            "nulls": table.set_column(1, "activity", pa.array([None, 1], pa.int32())),
        }
        for message, changed in changes.items():
            pq.write_table(changed, path)
            with pytest.raises(EventError, match=message):
                read_users(path)
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(EventError, match="readable"):
            read_users(path)
        with pytest.raises(EventError, match="exist"):
            read_users(tmp_path / "none.parquet")

"""State files that can't be used, disks that fail, processes that are killed: the session begins all the same."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge._state import VERSION
from tests.edge.state_phone import Phone, columns

HOUR_MS = 3_600_000


class TestFilesThatCanNotBeUsed:
    @pytest.fixture
    def used(self, plain: Phone) -> Phone:
        session = plain.start()
        plain.watch(session, 4)
        session.close()
        return plain

    def assert_begins_anew(self, phone: Phone, says: str) -> None:
        was = phone.path.read_bytes()
        session = phone.start()
        assert says in phone.state.problem
        assert (phone.state.set_aside, session.n_watched, session._number) == (1, 0, 0)
        assert phone.path.with_name(f"{phone.path.name}.bad").read_bytes() == was
        ids = phone.watch(session, 2)  # and the new file works
        session.close()
        assert columns(phone.start())["video_id"] == ids
        assert phone.state.set_aside == 0

    def test_noise(self, used: Phone) -> None:
        used.path.write_bytes(os.urandom(9_000))
        self.assert_begins_anew(used, "not a database")

    @pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
    def test_truncated(self, used: Phone, share: float) -> None:
        data = used.path.read_bytes()
        used.path.write_bytes(data[: int(len(data) * share)])
        self.assert_begins_anew(used, "")

    def test_a_page_overwritten(self, used: Phone) -> None:
        data = bytearray(used.path.read_bytes())
        data[3 * 4096 : 5 * 4096] = b"\xff" * 8192
        used.path.write_bytes(data)
        self.assert_begins_anew(used, "")

    def test_another_version(self, used: Phone) -> None:
        with sqlite3.connect(used.path) as db:
            db.execute(f"PRAGMA user_version = {VERSION + 1}")
        db.close()
        self.assert_begins_anew(used, "another version")

    def test_another_database(self, used: Phone) -> None:
        used.path.unlink()
        with sqlite3.connect(used.path) as db:
            db.execute("CREATE TABLE notes (text)")
        db.close()
        self.assert_begins_anew(used, "another version")

    def test_another_schema(self, used: Phone) -> None:
        with sqlite3.connect(used.path) as db:
            db.execute("CREATE TRIGGER t AFTER INSERT ON seen BEGIN DELETE FROM watched; END")
        db.close()
        self.assert_begins_anew(used, "another schema")

    def test_another_user(self, used: Phone) -> None:
        used.user_id = 6
        self.assert_begins_anew(used, "another user")

    @pytest.mark.parametrize(
        "change",
        [
            "UPDATE watched SET token = x'00' WHERE slot = 1",
            "DELETE FROM watched WHERE slot = 1",
            "UPDATE shown SET impression = '{}'",
            "UPDATE shown SET impression = replace(impression, '\"position\":', '\"position\":-')",
            "UPDATE shown SET feedback = '[]'",
            "UPDATE shown SET feedback = 'null'",
            "UPDATE shown SET item = 'text'",
            "UPDATE shown SET impression = zeroblob(300000)",
            "INSERT INTO outbox VALUES (1, 'no event')",
            "INSERT INTO outbox VALUES (2, x'ffff')",
            "INSERT INTO seen VALUES (9223372036854775807, 1)",
            "UPDATE seen SET video_id = 'text'",
        ],
    )
    def test_contents_that_were_not_written_here(self, used: Phone, change: str) -> None:
        with sqlite3.connect(used.path) as db:
            db.execute(change)
        db.close()
        self.assert_begins_anew(used, "can't be read")

    def test_rows_that_are_no_numbers_are_left_out(self, phone: Phone) -> None:
        first = phone.start()
        phone.watch(first, 2)
        first.close()
        with sqlite3.connect(phone.path) as db:
            row = np.full(first._reranker.rows.rows.shape[1], np.nan, "<f4").tobytes()  # type: ignore[union-attr]
            db.execute("UPDATE watched SET row = ? WHERE slot = 2", (row,))
        db.close()
        second = phone.start()
        assert second._reranker is not None
        assert second._reranker.rows.revision[:3].tolist() == [7, 7, -1]
        phone.page(second)
        assert second.next().chooser == "model"

    def test_only_the_last_bad_file_is_kept(self, used: Phone) -> None:
        for content in (b"first" * 100, b"second" * 100):
            used.path.write_bytes(content)
            used.start().close()
            assert used.path.with_name(f"{used.path.name}.bad").read_bytes() == content

    def test_an_empty_file_is_a_new_one(self, plain: Phone) -> None:
        plain.path.write_bytes(b"")
        plain.watch(plain.start(), 1)
        assert (plain.state.set_aside, plain.state.problem) == (0, "")

    def test_a_file_of_another_session_stays_with_it(self, plain: Phone) -> None:
        first = plain.start()
        ids = plain.watch(first, 2)
        holder = plain.state
        second = plain.start()
        assert "locked" in plain.state.problem
        assert (plain.state.set_aside, plain.state.is_open, second.n_watched) == (0, False, 0)
        plain.watch(second, 2)
        second.close()
        ids += plain.watch(first, 1)
        assert holder.failed == 0
        first.close()
        assert columns(plain.start())["video_id"] == ids

    def test_a_place_where_no_file_can_be(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        for path in (tmp_path / "file" / "below", tmp_path):
            phone = Phone(path)
            phone.watch(phone.start(), 1)
            assert not phone.state.is_open
            assert phone.state.problem
        assert (tmp_path / "file").exists()


class TestADiskThatFails:
    def test_a_full_disk_costs_nothing_and_is_made_up_for(self, plain: Phone) -> None:
        session = plain.start()
        db = plain.state._db
        assert db is not None
        full = db.execute("PRAGMA page_count").fetchone()[0]
        db.execute(f"PRAGMA max_page_count = {full}")
        ids = plain.watch(session, 30)
        assert plain.state.failed > 0
        assert "full" in str(session.last_error)
        db.execute("PRAGMA max_page_count = 10000")
        session.maintain()
        session.close()
        assert (plain.state.set_aside, plain.state.is_open) == (0, False)
        again = plain.start()
        assert (columns(again)["video_id"], again._number) == (ids, 30)
        assert [one.revision for one in again._history.impressions()] == [0] * 30

    def test_a_file_that_breaks_under_the_session_is_written_anew(
        self, plain: Phone, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        session = plain.start()
        ids = plain.watch(session, 3)

        def broken(steps: object) -> None:
            error = sqlite3.DatabaseError("database disk image is malformed")
            error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(plain.state, "write", broken)
            ids += plain.watch(session, 1)
        assert plain.state.set_aside >= 1
        ids += plain.watch(session, 1)
        session.close()
        again = plain.start()
        assert columns(again)["video_id"] == ids
        assert [one.impression.choice.video_id for one in again._history.impressions()] == ids
        assert again.page_request().exclude_video_ids == ids


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=30),
    cut=st.none() | st.floats(0, 1),
)
def test_whatever_the_file_holds_the_session_begins(
    tmp_path: Path, flips: list[tuple[float, int]], cut: float | None
) -> None:
    good = tmp_path / "good"
    if not good.exists():
        maker = Phone(good)
        session = maker.start()
        maker.watch(session, 5)
        session.close()
    data = bytearray(good.read_bytes())
    for place, value in flips:
        data[int(place * len(data))] = value
    phone = Phone(tmp_path / "fuzzed")
    for old in tmp_path.glob("fuzzed*"):
        old.unlink()
    phone.path.write_bytes(data if cut is None else data[: int(cut * len(data))])
    phone.n_pages = 50
    session = phone.start()
    phone.watch(session, 1)
    assert session.page_request().to_message().ByteSize() > 0
    session.close()


def kill(path: Path, kills: int, seed: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.edge.state_victim", str(path), str(kills), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_process_killed_at_any_point_leaves_what_was_saved(tmp_path: Path) -> None:
    told = kill(tmp_path / "state", 9, seed=1)
    assert told["wrong"] == []
    assert told["saved"] >= 6


@pytest.mark.slow
def test_a_hundred_and_fifty_kills(tmp_path: Path) -> None:
    told = kill(tmp_path / "state", 150, seed=2)
    assert told["wrong"] == []
    assert told["saved"] >= 100

"""What is fuzzed of the state file: its columns, changed by SQL inside a database that stays valid, and its bytes.

A flipped byte is nearly always SQLite's business ("malformed"); a changed column is read by `edge._stored`.
"""

from __future__ import annotations

import random
import sqlite3
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from contract.v1 import feedback_pb2
from edge import Chooser, EdgeSession, FakeClock, Feedback, FeedbackUploader, StateFile
from edge._keeper import NUMBER_END
from tests.edge.state_victim import Refusing
from tests.fuzz import mutations

Restart = Callable[[Path, FeedbackUploader], EdgeSession]
_TABLES = {  # name -> columns that a change may meet
    "about": ("name", "value"),
    "watched": ("slot", "token", "row", "dense_version", "rows_revision"),
    "shown": ("number", "item", "row", "impression", "feedback"),
    "seen": ("number", "video_id"),
    "outbox": ("number", "event"),
}
_IN_WAL, _BY_JOURNAL = b"\x02\x02", b"\x01\x01"  # at byte 18; SQLite takes no WAL database from memory
_PAGE_BYTES = 512  # the seed has to pass below SIZE_MAX
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # a file a time: a disk would be waited for, not the code
_INTEGERS = (-(2**63), -(2**53), -513, -1, 0, 1, 2, 3, 511, 512, 2**31, 2**53 - 1, 2**53, 2**63 - 1)
_FLOATS = ("nan", "inf", "-inf", "3.4e38", "-1", "1.5")
_CELLS = (
    *(b"\x00", b"\x02", b"\x7f", b"\x80", b"\xff", bytes(4)),
    *(struct.pack("<f", float(text)) for text in _FLOATS),
    *(number.to_bytes(8, "little", signed=True) for number in _INTEGERS),
)


class Database:
    """The shape of a state file, for `mutations.mutate`."""

    def parses(self, data: bytes) -> bool:
        """Whether SQLite reads it without a complaint."""
        try:
            db = _opened(data)
            sound: bool = db.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok"
            db.close()
        except (sqlite3.Error, ValueError, OverflowError):
            return False
        return sound

    def change(self, data: bytes, rng: random.Random) -> bytes:
        """One change by SQL; of every twelfth input, and of what is no database, its bytes."""
        if rng.random() < 1 / 12:
            return mutations.mutate_bytes(data, rng)
        try:
            db = _opened(data)
            db.execute("BEGIN")
            rng.choice((*[_set] * 12, _drop, _drop, _double, _null, _head))(db, rng)
            db.execute("COMMIT")
            changed = db.serialize()
            db.close()
        except (sqlite3.Error, ValueError, OverflowError, TypeError):  # what an earlier change left takes no other one
            return mutations.mutate_bytes(data, rng)
        return changed[:18] + _IN_WAL + changed[20:]


def _opened(data: bytes) -> sqlite3.Connection:
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.text_factory = lambda raw: raw.decode(errors="replace")
    db.deserialize(data[:18] + _BY_JOURNAL + data[20:])
    return db


def _place(db: sqlite3.Connection, rng: random.Random) -> tuple[str, str, int]:
    """A table, a column and the rowid of a row; of `about`, which has none, its name."""
    table = rng.choice(("watched", "watched", "shown", "shown", "shown", "seen", "outbox", "about"))
    rows = db.execute(f"SELECT {'name' if table == 'about' else 'rowid'} FROM {table} LIMIT 600").fetchall()
    if not rows:
        raise ValueError("an empty table")
    return table, rng.choice(_TABLES[table]), rng.choice(rows)[0]


def _key(table: str) -> str:
    return "name" if table == "about" else "rowid"


def _set(db: sqlite3.Connection, rng: random.Random) -> None:
    """Another value in a column, of its own kind or of another."""
    table, column, at = _place(db, rng)
    (old,) = db.execute(f"SELECT {column} FROM {table} WHERE {_key(table)} = ?", (at,)).fetchone()
    # A value that is kept for its type is no text any more, whatever the column was declared as.
    db.execute(f"UPDATE OR REPLACE {table} SET {column} = ? WHERE {_key(table)} = ?", (_value(column, old, rng), at))


def _value(column: str, old: Any, rng: random.Random) -> Any:
    anything = (None, 0, 2**53, 1.5, float("inf"), "", "x", "\x00", "9" * 5_000, b"", b"\xff" * 40, bytes(4_000))
    if rng.random() < 0.15:
        return rng.choice(anything)
    if column == "event" and isinstance(old, bytes):
        return mutations.mutate_message(feedback_pb2.FeedbackEvent, old, rng)
    if column in ("impression", "feedback") and isinstance(old, str) and old:
        return mutations.mutate_json(old.encode(), rng).decode(errors="replace")
    if isinstance(old, bytes):
        return _cells(old, rng)
    if isinstance(old, int):
        return rng.choice((rng.choice(_INTEGERS), old + 1, old - 1))
    return rng.choice(("kir-b", "", "x" * 5_000, str(rng.choice(_INTEGERS)), f"{old}x"))


def _cells(old: bytes, rng: random.Random) -> bytes:
    """A blob with some bytes of a number's width overwritten by those of an extreme one, or of another length."""
    if not old or rng.random() < 0.15:
        return mutations.mutate_bytes(old, rng)
    cell = rng.choice(_CELLS)
    at = rng.randrange(len(old))
    return (old[:at] + cell + old[at + len(cell) :])[: len(old)]


def _drop(db: sqlite3.Connection, rng: random.Random) -> None:
    table, _, at = _place(db, rng)
    db.execute(f"DELETE FROM {table} WHERE {_key(table)} = ?", (at,))


def _double(db: sqlite3.Connection, rng: random.Random) -> None:
    """The same once more, or many times, under other keys."""
    table, _, at = _place(db, rng)
    key, *rest = _TABLES[table]
    last = db.execute(f"SELECT max({key}) FROM {table}").fetchone()[0]
    for number in range(1, 1 + rng.choice((1, 1, 2, 40))):
        new = f"{last}{number}" if table == "about" else last + number
        columns = ", ".join(rest)
        db.execute(f"INSERT INTO {table} SELECT ?, {columns} FROM {table} WHERE {_key(table)} = ?", (new, at))


def _null(db: sqlite3.Connection, rng: random.Random) -> None:
    """Nothing where the schema promises something: written under another schema, and the promise put back."""
    table, column, at = _place(db, rng)
    (sql,) = db.execute("SELECT sql FROM sqlite_master WHERE name = ?", (table,)).fetchone()
    set_sql = "UPDATE sqlite_master SET sql = ? WHERE name = ?"
    db.execute("COMMIT")  # a schema is read again outside of a transaction alone
    for statement, values in (
        ("PRAGMA writable_schema = ON", ()),
        (set_sql, (sql.replace(" NOT NULL", ""), table)),
        ("PRAGMA writable_schema = RESET", ()),
        (f"UPDATE {table} SET {column} = NULL WHERE {_key(table)} = ?", (at,)),
        ("PRAGMA writable_schema = ON", ()),
        (set_sql, (sql, table)),
        ("PRAGMA writable_schema = RESET", ()),
    ):
        db.execute(statement, values)
    db.execute("BEGIN")


def _head(db: sqlite3.Connection, rng: random.Random) -> None:
    """What the file says of itself."""
    statement = rng.choice(
        (
            f"PRAGMA user_version = {rng.choice((-1, 0, 2, 2**31 - 1))}",
            "PRAGMA application_id = 7",
            "CREATE INDEX more ON seen (video_id)",
            "DROP TABLE outbox",
            "ALTER TABLE shown ADD COLUMN more",
            "CREATE VIEW more AS SELECT * FROM seen",
            "DELETE FROM about",
        )
    )
    db.execute(statement)


def restarted(engine: Any, page: bytes, path: Path, uploader: FeedbackUploader) -> EdgeSession:
    """A session of user 5 on a file, with a page."""
    phone = EdgeSession(5, engine, uploader=uploader, clock=FakeClock(), session_id=77, state=StateFile(path))
    assert phone.start() == ""
    phone.on_page(page)
    return phone


def seed(restart: Restart) -> bytes:
    """What a session of three videos leaves: a list with rows, impressions, ids shown, unsent events."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.db"
        phone = restart(path, Refusing())
        for _ in range(3):
            video_id = phone.next().video_id
            phone.maintain()
            phone.feedback(Feedback(video_id, 1_000, {"like": True}))
        phone.close()
        db = sqlite3.connect(path)
        for statement in ("PRAGMA journal_mode = DELETE", f"PRAGMA page_size = {_PAGE_BYTES}", "VACUUM"):
            db.execute(statement).fetchall()
        db.close()
        data = path.read_bytes()
        return data[:18] + _IN_WAL + data[20:]


def judge(restart: Restart, data: bytes) -> None:
    """Whatever the file holds, the session starts with what can be read of it or empty, the model chooses, late
    feedback of a kept impression is taken, and what is saved then can be read again.
    """
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        path = Path(folder) / "state.db"
        path.write_bytes(data)
        phone = restart(path, Refusing())
        late = [shown.impression.choice.video_id for shown in phone._history.impressions()[:2]]
        for video_id in late:
            phone.feedback(Feedback(video_id, 5, {"follow": True}))
        phone.maintain()
        if len(phone.pool):  # the file may say that all of the page was shown
            choice = phone.next()
            assert choice.chooser is Chooser.MODEL, choice.reason
            phone.maintain()
            phone.feedback(Feedback(choice.video_id, 1_000, {"like": True}))
        assert phone.page_request().to_message().ByteSize() > 0
        n_watched, keeper = phone.n_watched, phone._keeper
        assert keeper is not None
        spent = max(keeper.number, keeper._next_number) >= NUMBER_END  # counted past what is taken up again
        phone.close()
        assert phone.last_error is None, phone.last_error
        again = restart(path, Refusing())
        assert again._keeper is not None
        file = again._keeper._file
        assert spent or (file.set_aside, again.n_watched) == (0, n_watched), file.problem
        again.close()

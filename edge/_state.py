"""The file in which a session's state outlives the app: SQLite, one file per user, bounded and versioned.

WAL, because a save then costs one append and no reader ever meets half of one. synchronous=NORMAL: a commit waits for
no flush to the flash. A killed process loses nothing that was saved; a power cut may lose the last saves, but never the
file. Exclusive locking: one session per file, and no shared-memory file beside it.

Nothing here raises for what a file holds: a corrupt one, one of another version and one of another user are set aside
(`PATH.bad`, the last one kept), counted, and an empty file takes their place. Not thread-safe.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from contract.errors import InputError, KirError
from contract.features import SINCE_CAP_S

APPLICATION_ID = 0x4B495253  # "KIRS"
VERSION = 1  # of the schema: an older or newer file is set aside, since what it holds comes back within a session
KEEP_MS = SINCE_CAP_S * 1000  # the net can't tell older videos apart
FILE_BYTES_MAX = 32 * 1024 * 1024  # a full file holds about 2 MB
_BLOB_BYTES_MAX = 1024 * 1024
_PAGE_BYTES = 4096
_WAL_PAGES = 250  # about 1 MB, then it is folded into the file
_SCHEMA = {
    "about": "CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    "watched": (
        "CREATE TABLE watched (slot INTEGER PRIMARY KEY, token BLOB NOT NULL, row BLOB, dense_version TEXT NOT NULL,"
        " rows_revision INTEGER NOT NULL)"
    ),
    "shown": (
        "CREATE TABLE shown (number INTEGER PRIMARY KEY, item BLOB NOT NULL, row BLOB, impression TEXT NOT NULL,"
        " feedback TEXT NOT NULL)"
    ),
    "seen": "CREATE TABLE seen (number INTEGER PRIMARY KEY, video_id INTEGER NOT NULL)",
    "outbox": "CREATE TABLE outbox (number INTEGER PRIMARY KEY, event BLOB NOT NULL)",
}
# What says that the file itself is at fault; a full disk, a lock or a missing right may pass.
_BAD_CODES = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT, sqlite3.SQLITE_TOOBIG}


class BadState(KirError):
    """A state file that can't be used. Never leaves this room: the file is set aside."""


class StateFile:
    """Where a session keeps its state; hand it to `EdgeSession(state=…)`, which opens and closes it.

    keep_ms    a watched list whose newest video is older is not taken up again, nor an older impression
    outbox     feedback events kept until they are uploaded; above it the oldest goes and `dropped` counts it
    Public to read: path, set_aside (files renamed to PATH.bad), dropped, failed (saves that the system refused; the
    next one tries again), problem ("" or why there is no state, or why it began empty).
    Raises InputError for limits out of range, and nothing later.
    """

    def __init__(self, path: str | Path, *, keep_ms: int = KEEP_MS, outbox: int = 1000):
        if keep_ms < 0 or outbox < 1:
            raise InputError("state: keep_ms starts at 0, outbox at 1", got=(keep_ms, outbox))
        self.path = Path(path)
        self.keep_ms, self.outbox = keep_ms, outbox
        self.set_aside = self.dropped = self.failed = 0
        self.problem = ""
        self._db: sqlite3.Connection | None = None

    @property
    def is_open(self) -> bool:
        return self._db is not None

    def open(self, about: dict[str, str]) -> None:
        """Open the file, or make it. about: what it must have been made for (user, layout of the tokens).

        A file that does not hold that is set aside. When the system refuses (locked, read-only, no space), there is no
        state, `problem` says why, and the file stays.
        """
        self.close()
        for attempt in (1, 2):
            try:
                self._db = self._connect()
                if self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                    self._check(self._db, about)
                    self._set_up(self._db)
                else:
                    self._set_up(self._db)
                    self._make(self._db, about)
                return
            except (sqlite3.Error, OSError, BadState, UnicodeDecodeError) as error:
                self.close()
                self.problem = str(error)
                if attempt == 2 or not is_bad(error) or not self._move_aside():
                    return

    def _connect(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists() and self.path.stat().st_size > FILE_BYTES_MAX:
            raise BadState("a state file is never so large", got=self.path.stat().st_size, allowed=FILE_BYTES_MAX)
        # The session's thread may change (an executor's worker): one thread at a time is the caller's rule.
        db = sqlite3.connect(self.path, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _BLOB_BYTES_MAX)
            for pragma in ("trusted_schema = OFF", "cell_size_check = ON", "locking_mode = EXCLUSIVE"):
                db.execute(f"PRAGMA {pragma}").fetchall()
        except BaseException:
            db.close()
            raise
        return db

    def _check(self, db: sqlite3.Connection, about: dict[str, str]) -> None:
        """Raises BadState, or sqlite3.DatabaseError for a file that is none. Writes nothing: it may be another's."""
        found = db.execute("PRAGMA application_id").fetchone()[0], db.execute("PRAGMA user_version").fetchone()[0]
        if found != (APPLICATION_ID, VERSION):
            raise BadState("a state file of another version", got=found, allowed=(APPLICATION_ID, VERSION))
        if dict(db.execute("SELECT name, sql FROM sqlite_master LIMIT 20")) != _SCHEMA:
            raise BadState("a state file of another schema")
        damage = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if damage != "ok":
            raise BadState("a damaged state file", got=damage)
        stored = dict(db.execute("SELECT name, value FROM about LIMIT 20"))
        if any(stored.get(name) != value for name, value in about.items()):
            raise BadState("a state file of another user or token layout")

    def _set_up(self, db: sqlite3.Connection) -> None:
        for pragma in (
            f"page_size = {_PAGE_BYTES}",
            "journal_mode = WAL",
            "synchronous = NORMAL",
            f"wal_autocheckpoint = {_WAL_PAGES}",
            f"journal_size_limit = {_WAL_PAGES * _PAGE_BYTES}",
            f"max_page_count = {FILE_BYTES_MAX // _PAGE_BYTES}",
        ):
            db.execute(f"PRAGMA {pragma}").fetchall()

    def _make(self, db: sqlite3.Connection, about: dict[str, str]) -> None:
        db.execute("BEGIN IMMEDIATE")
        for table in _SCHEMA.values():
            db.execute(table)
        db.executemany("INSERT INTO about VALUES (?, ?)", about.items())
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {VERSION}")
        db.execute("COMMIT")

    def _move_aside(self) -> bool:
        """Rename the file and its log to .bad; False when the system refuses."""
        try:
            for end in ("-wal", "-journal", ""):  # the log first: alone it would be taken for the next file's
                bad = self.path.with_name(f"{self.path.name}.bad{end}")
                bad.unlink(missing_ok=True)
                if (old := self.path.with_name(self.path.name + end)).exists():
                    os.replace(old, bad)
        except OSError as error:
            self.problem = str(error)
            return False
        self.set_aside += 1
        return True

    def set_bad(self, reason: str, about: dict[str, str]) -> None:
        """What the file holds can't be used: set it aside and begin an empty one."""
        self.close()
        if self._move_aside():
            self.open(about)
        self.problem = reason

    def rows(self, query: str, limit: int) -> list[tuple[Any, ...]]:
        """At most so many rows of a SELECT. Raises sqlite3.Error, or BadState when it is not open."""
        if self._db is None:
            raise BadState("the state file is not open")
        return self._db.execute(f"{query} LIMIT {limit}").fetchall()

    def write(self, steps: Iterable[tuple[str, Sequence[Sequence[Any]]]]) -> None:
        """Statements with their rows, all in one transaction. Raises sqlite3.Error; nothing of it is saved then."""
        if self._db is None:
            return
        self._db.execute("BEGIN IMMEDIATE")
        try:
            for statement, values in steps:
                self._db.executemany(statement, values)
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def close(self) -> None:
        """Fold the log into the file and let go of it. Never raises."""
        if self._db is not None:
            try:
                self._db.close()
            except sqlite3.Error as error:
                self.problem = str(error)
            self._db = None


def is_bad(error: Exception) -> bool:
    """Whether the file itself is at fault, and not a full disk, a lock or a missing right, which may pass."""
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)  # absent: the module's own refusal of a value
        return code & 0xFF in _BAD_CODES or code == sqlite3.SQLITE_IOERR_SHORT_READ or code == sqlite3.SQLITE_ERROR
    return isinstance(error, BadState | UnicodeDecodeError)  # the latter: SQLite's complaint quotes what is no text

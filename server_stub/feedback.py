"""Feedback intake: checked, counted once, joined with the page log, told to the recommender, written as event files.

(session_id, seq, revision) is the idempotency key: a phone repeats a batch until it is answered, and nothing counts
twice. An event of an unknown page is kept, joined with the catalogue alone. What was answered and not yet written
when the process is killed is lost: at most `flush_ms` of events, and never more than `flush_events`; a stop writes all.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contract.errors import EventError, InputError, KirError
from contract.events import Events
from contract.parquet import read_events, write_events
from contract.v1 import feedback_pb2 as pb
from contract.vocabulary import NULL_INT, SIGNALS
from server_stub.feedback_columns import Row, events_of, row_of, signals_of, why_refused
from server_stub.page_log import PageLog, SentPage, read_pages, write_pages
from server_stub.recommender import Clock, Recommends, wall_clock_ms

EVENTS_PER_REQUEST_MAX = 5_000
REASONS_MAX = 20
KEYS_MAX = 500_000
BUFFER_MAX = 200_000
RESTORED_EVENTS_MAX = 200_000
log = logging.getLogger(__name__)

Key = tuple[int, int, int]


class IntakeFull(KirError):
    """Events can't be written and the buffer is full: the phone keeps them and tries again."""


@dataclass
class FeedbackIntake:
    """Thread-safe. directory: where `events-*.parquet` and `pages/` go; None = nothing is written.

    stats: accepted, duplicates, rejected, unjoined (no such page any more), written, positives.
    """

    recommender: Recommends
    page_log: PageLog
    directory: Path | None = None
    clock: Clock = wall_clock_ms
    buffer_max: int = BUFFER_MAX
    flush_events: int = 2_000
    stats: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._rows: list[Row] = []
        self._keys: OrderedDict[Key, None] = OrderedDict()

    @property
    def buffered(self) -> int:
        return len(self._rows)

    def report(self, request: pb.ReportFeedbackRequest) -> pb.ReportFeedbackResponse:
        """Take a batch. Raises InputError for too many events, IntakeFull when they can't be kept."""
        n = len(request.events)
        if n > EVENTS_PER_REQUEST_MAX:
            raise InputError("too many events in one report", got=n, allowed=EVENTS_PER_REQUEST_MAX)
        taken: list[Row] = []
        reasons: list[str] = []
        duplicates = 0
        with self._lock:
            if len(self._rows) + n > self.buffer_max:
                raise IntakeFull("events can't be written fast enough", got=len(self._rows), fix="try again later")
            for number, event in enumerate(request.events):
                sent = self.page_log.get(event.page_id)
                reason = why_refused(event, sent)
                key = (event.session_id, event.seq, event.revision)
                if reason:
                    reasons.append(f"event {number}: {reason}")
                elif key in self._keys:
                    duplicates += 1
                else:
                    self._remember(key)
                    taken.append(row_of(event, sent, self.recommender.catalogue))
                    self.stats["unjoined"] += sent is None
            if self.directory is not None:
                self._rows += taken
        for row in sorted(taken, key=lambda row: row["time_ms"]):
            self._tell(row)
        with self._lock:
            self.stats.update(accepted=len(taken), duplicates=duplicates, rejected=len(reasons))
        if len(self._rows) >= self.flush_events:
            self._flush_or_log()
        return pb.ReportFeedbackResponse(
            accepted=len(taken), duplicates=duplicates, rejected=len(reasons), reasons=reasons[:REASONS_MAX]
        )

    def _remember(self, key: Key) -> None:
        self._keys[key] = None
        while len(self._keys) > KEYS_MAX:
            self._keys.popitem(last=False)

    def _tell(self, row: Row) -> None:
        self.stats["positives"] += self.recommender.add_interaction(
            int(row["user_id"]),
            int(row["video_id"]),
            time_ms=int(row["time_ms"]),
            play_time_ms=int(row.get("play_time_ms", NULL_INT)),
            signals=signals_of(row),
        )

    def _flush_or_log(self) -> None:
        """The events are in the buffer, so the phone is not told; the next flush tries again."""
        try:
            self.flush()
        except OSError:
            log.exception("feedback could not be written")

    def flush(self) -> int:
        """Write buffered events and pages, one new part each; the number of events written.

        A part that can't be written stays in the buffer for the next flush; raises OSError then.
        """
        if self.directory is None:
            return 0
        with self._writing:
            name = f"{self.clock():015d}-{uuid.uuid4().hex[:8]}.parquet"
            pages = self.page_log.drain()
            if pages:
                try:
                    write_pages(self.directory / "pages" / f"pages-{name}", pages)
                except OSError:
                    self.page_log.put_back(pages)
                    raise
            with self._lock:
                rows = list(self._rows)
            if rows:
                write_events(self.directory / f"events-{name}", events_of(rows))
                with self._lock:
                    del self._rows[: len(rows)]
                self.stats["written"] += len(rows)
            return len(rows)

    def restore(self) -> int:
        """Take up where an earlier process stopped: sent pages, idempotency keys and interactions of the newest parts.

        Returns how many events were read back. An unreadable part is left alone and logged.
        """
        if self.directory is None or not self.directory.is_dir():
            return 0
        pages: list[SentPage] = []
        for path in sorted((self.directory / "pages").glob("pages-*.parquet"), reverse=True):
            if len(pages) >= self.page_log.pages_max:
                break
            pages = _readable(read_pages, path, []) + pages
        self.page_log.restore(pages)
        parts: list[Events] = []
        for path in sorted(self.directory.glob("events-*.parquet"), reverse=True):
            if sum(map(len, parts)) >= RESTORED_EVENTS_MAX:
                break
            found = _readable(read_events, path, None)
            parts += [found] if found is not None else []
        for part in reversed(parts):
            self._restore_part(part)
        return sum(map(len, parts))

    def _restore_part(self, part: Events) -> None:
        names = ("user_id", "video_id", "session_id", "seq", "revision", "time_ms", "play_time_ms", *SIGNALS)
        for values in zip(*(part[name].tolist() for name in names), strict=True):
            row: Row = dict(zip(names, values, strict=True))
            self._remember((row["session_id"], row["seq"], row["revision"]))
            self._tell(row)


def _readable(read: Callable[[Path], Any], path: Path, otherwise: Any) -> Any:
    try:
        return read(path)
    except EventError as error:
        log.warning("left alone: %s", error)
        return otherwise

"""Keeps a session's state on disk: what a restart needs, written when it changed and never at a swipe.

Saved: the watched list with its tokens and sparse rows as they stand, impressions that feedback may still come for,
ids shown, and feedback that was not uploaded. A swipe (`feedback`, `next`) only notes what there is to save; `maintain`
saves it, and hands events to the uploader once they are in the file. Never raises: a session without its state is still
a session. Not thread-safe.
"""

from __future__ import annotations

import sqlite3
from collections import OrderedDict, deque
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from google.protobuf.message import DecodeError

from contract.errors import KirError
from contract.events import COLUMN
from contract.v1 import feedback_pb2
from edge._history import SHOWN_MAX, KeptRows, Shown, WatchHistory
from edge._pool import CandidatePool
from edge._reranker import Reranker
from edge._slots import Slots
from edge._state import StateFile, is_bad
from edge._stored import (
    UNREADABLE,
    Floats,
    bytes_of,
    columns_of,
    feedback_text,
    impression_text,
    impressions_of,
    item_bytes,
    layout,
    revision_of,
    row_of,
    signed,
    unsigned,
)
from edge._telemetry import Telemetry
from edge._upload import FeedbackUploader

Event = feedback_pb2.FeedbackEvent
_WATCHED_MAX = 10_000  # above any L; what a file may make us read
NUMBER_END = 2**53
_OPT_IN = [name for name in Event.DESCRIPTOR.fields_by_name if COLUMN[name].leaves_device == "opt_in"]
_UNSAVED_MAX = 8  # feedbacks
_Slot = tuple[bytes, Floats | None, str, int]  # token, row, dense_version, rows_revision


@dataclass(eq=False)
class _Waiting:
    """A feedback event in the outbox. number: its row in the file; ticket: the uploader's, None before it was
    offered, 0 when it was not taken.
    """

    event: Event
    number: int
    ticket: int | None = None


class Keeper:
    """The state of one session. number: the user's running number of the next impression, over all sessions."""

    def __init__(
        self,
        file: StateFile,
        user_id: int,
        history: WatchHistory,
        pool: CandidatePool,
        uploader: FeedbackUploader | None,
        telemetry: Telemetry,
    ):
        self.number = 0
        self._file, self._user_id, self._history, self._pool = file, user_id, history, pool
        self._uploader, self._telemetry = uploader, telemetry
        self._about = {"user_id": str(user_id), "layout": layout()}
        self._slots: Slots | None = None  # as saved, and the list's capacity
        self._capacity = 0
        self._dirty: OrderedDict[int, Shown] = OrderedDict()  # impressions to save, by their number
        self._told: OrderedDict[int, Shown] = OrderedDict()  # saved ones of which more was observed
        self._seen: list[tuple[int, int]] = []
        self._unsaved = 0  # feedbacks since the last save
        self._outbox: deque[_Waiting] = deque()
        self._next_number = 0  # of the outbox
        self._filed = (0, 0)  # numbers [first, end) of the outbox in the file

    # -- from the file

    def restore(self, now_ms: int, opted_in: bool) -> None:
        """Open the file and take up what it holds. now_ms: wall time; opted_in: whether opt_in fields may leave."""
        self._file.open(self._about)
        if not self._file.is_open:
            return
        try:
            parts = self._read(opted_in)
        except (*UNREADABLE, sqlite3.Error, DecodeError) as error:
            self._file.set_bad(f"what the state file holds can't be read: {error!r}", self._about)
            return
        capacity, columns, slots, shown, seen, outbox = parts
        for one in shown:
            if now_ms - one.impression.shown_at_ms <= self._file.keep_ms:
                one.listed_at_ms = min(one.impression.shown_at_ms, now_ms)  # the clock may have gone back since
                self._history.show(one)
        newest_ms = int(columns["shown_at_ms"].max(initial=-1))
        if newest_ms >= now_ms - self._file.keep_ms:
            self._take_list(capacity, columns, slots, max(0, newest_ms - now_ms))
        self._pool.remember(unsigned(video_id) for _, video_id in seen)
        self.number = max([number for number, _ in seen] + [int(one.item["number"]) for one in shown], default=-1) + 1
        self._outbox.extend(_Waiting(event, number) for number, event in outbox)
        if outbox:
            self._next_number = outbox[-1][0] + 1
            self._filed = (outbox[0][0], self._next_number)
        self.send()

    def _read(self, opted_in: bool) -> tuple[Any, ...]:
        rows = self._file.rows
        stored = rows("SELECT slot, token, row, dense_version, rows_revision FROM watched ORDER BY slot", _WATCHED_MAX)
        if [slot for slot, *_ in stored] != list(range(len(stored))):
            raise ValueError("a slot of the watched list is absent")
        slots: list[_Slot] = [
            (token, row_of(row), str(version), revision_of(n)) for _, token, row, version, n in stored
        ]
        stored_shown = rows("SELECT item, row, impression, feedback FROM shown ORDER BY number", SHOWN_MAX)
        shown = impressions_of(self._user_id, stored_shown)
        seen = [
            (int(number), int(video_id))
            for number, video_id in rows("SELECT number, video_id FROM seen ORDER BY number", self._pool.config.seen)
        ]
        outbox = []
        for number, data in rows("SELECT number, event FROM outbox ORDER BY number", self._file.outbox):
            event = Event.FromString(data)
            if not opted_in:  # the user may have changed their mind since
                for name in _OPT_IN:
                    event.ClearField(name)
            outbox.append((int(number), event))
        numbers = [number for number, _ in (*seen, *outbox)] + [int(one.item["number"]) for one in shown]
        if any(not 0 <= number < NUMBER_END for number in numbers):
            raise ValueError("a running number out of range")
        columns = columns_of([token for token, *_ in slots[1:]])
        capacity = int(rows("SELECT value FROM about WHERE name = 'capacity'", 1)[0][0]) if slots else 2
        if not max(2, len(slots) - 1) <= capacity < _WATCHED_MAX or capacity % 2:
            raise ValueError("a watched list of another length")
        return capacity, columns, slots, shown, seen, outbox

    def _take_list(self, capacity: int, columns: dict[str, Any], slots: list[_Slot], back_ms: int) -> None:
        """back_ms: how far the clock went back. What it says of the time between is nothing, so the newest video is of
        now, and the others stand to it as they stood.
        """
        at_ms = columns["shown_at_ms"]
        at_ms[at_ms >= 0] = (at_ms[at_ms >= 0] - back_ms).clip(0)
        version = slots[0][2] if slots else ""
        rows = [(row if of == version else None, revision) for _, row, of, revision in slots]
        self._history.restore(capacity, columns, KeptRows(version, rows) if version else None)

    # -- into memory, at a swipe and at a feedback

    def shown(self, shown: Shown) -> None:
        """An impression, to be saved later."""
        number = int(shown.item["number"])
        self._dirty[number] = shown
        self._seen.append((number, signed(shown.impression.choice.video_id)))
        self.number = number + 1
        for waiting in (self._dirty, self._told):
            if len(waiting) > SHOWN_MAX:  # a disk that stays full must not fill the memory
                waiting.popitem(last=False)
        del self._seen[: -self._pool.config.seen]

    def feedback(self, shown: Shown, event: Event | None) -> None:
        """What was observed of an impression, and the event that reports it. Both are saved before it is sent."""
        number = int(shown.item["number"])
        self._unsaved += 1
        if number not in self._dirty:
            self._told[number] = shown
        if event is not None:
            self._outbox.append(_Waiting(event, self._next_number))
            self._next_number += 1

    def send(self) -> None:
        """Hand new events to the uploader; those that it did not take go at the next start."""
        if self._uploader is None:
            return
        new = list(takewhile(lambda waiting: waiting.ticket is None, reversed(self._outbox)))
        for waiting in reversed(new):
            waiting.ticket = self._uploader.offer(waiting.event)

    # -- into the file

    @property
    def overdue(self) -> bool:
        """Whether so much is unsaved that it can't wait for a `maintain` that may never come."""
        return self._unsaved >= _UNSAVED_MAX

    def save(self, reranker: Reranker | None) -> None:
        """Write what changed, in one transaction, then send what is to be sent. What can't be written now is written
        with the next save, and sent all the same.
        """
        self._unsaved = 0
        self._trim_outbox()
        if self._file.is_open:
            self._write(reranker)
        self.send()

    def _write(self, reranker: Reranker | None) -> None:
        try:
            slots = Slots.of(self._history.watched, reranker)
            steps = [*self._list_steps(slots), *self._shown_steps(), *self._outbox_steps()]
        except Exception as error:  # what an app handed in is no value: without it the others can be saved
            self._file.failed += 1
            self._telemetry.swallowed(error)
            self._dirty.clear()
            self._told.clear()
            return
        if not steps:
            return
        try:
            with self._telemetry.span("save"):
                self._file.write(steps)
        except (sqlite3.Error, KirError, OverflowError, UnicodeDecodeError) as error:
            self._file.failed += 1
            self._telemetry.swallowed(error)
            if is_bad(error):
                self._begin_anew(str(error))
            return
        self._slots, self._capacity = slots, self._history.watched.capacity
        self._filed = self._first_waiting(), self._next_number
        self._dirty.clear()
        self._told.clear()
        self._seen.clear()

    def _begin_anew(self, reason: str) -> None:
        """The file broke under us: what is in memory goes into a new one, with the next save."""
        self._file.set_bad(reason, self._about)
        self._slots, self._capacity = None, 0
        self._told.clear()
        self._dirty = OrderedDict((int(one.item["number"]), one) for one in self._history.impressions())
        self._seen = [(number, signed(one.impression.choice.video_id)) for number, one in self._dirty.items()]
        self._filed = (0, 0)

    def _list_steps(self, slots: Slots) -> list[tuple[str, list[Any]]]:
        was, changed = self._slots, slots.changed(self._slots)
        steps: list[tuple[str, list[Any]]] = []
        if changed:
            rows = [slots.values(slot) for slot in changed]
            steps.append(("INSERT OR REPLACE INTO watched VALUES (?, ?, ?, ?, ?)", rows))
        if self._capacity != (capacity := self._history.watched.capacity):
            steps.append(("INSERT OR REPLACE INTO about VALUES ('capacity', ?)", [(str(capacity),)]))
        if was is None or len(slots) < len(was):
            steps.append(("DELETE FROM watched WHERE slot >= ?", [(len(slots),)]))
        return steps

    def _shown_steps(self) -> list[tuple[str, list[Any]]]:
        steps: list[tuple[str, list[Any]]] = []
        if self._told:
            told = [(feedback_text(one), number) for number, one in self._told.items()]
            steps.append(("UPDATE shown SET feedback = ? WHERE number = ?", told))
        if not self._dirty:
            return steps
        shown = [
            (number, item_bytes(one.item), bytes_of(one.row_R), impression_text(one), feedback_text(one))
            for number, one in self._dirty.items()
        ]
        return [
            *steps,
            ("INSERT OR REPLACE INTO shown VALUES (?, ?, ?, ?, ?)", shown),
            ("DELETE FROM shown WHERE number < ?", [(self.number - SHOWN_MAX,)]),
            ("INSERT OR REPLACE INTO seen VALUES (?, ?)", list(self._seen)),
            ("DELETE FROM seen WHERE number < ?", [(self.number - self._pool.config.seen,)]),
        ]

    def _trim_outbox(self) -> None:
        """Events that the uploader is done with go, and the oldest above the bound."""
        settled = 0 if self._uploader is None else self._uploader.settled
        while self._outbox and 0 < (self._outbox[0].ticket or 0) <= settled:
            self._outbox.popleft()
        while len(self._outbox) > self._file.outbox:
            self._outbox.popleft()
            self._file.dropped += 1

    def _first_waiting(self) -> int:
        return self._outbox[0].number if self._outbox else self._next_number

    def _outbox_steps(self) -> list[tuple[str, list[Any]]]:
        first, end = self._filed
        unfiled = takewhile(lambda waiting: waiting.number >= end, reversed(self._outbox))
        new = [(waiting.number, waiting.event.SerializeToString()) for waiting in unfiled]
        steps: list[tuple[str, list[Any]]] = []
        if new:
            steps.append(("INSERT OR REPLACE INTO outbox VALUES (?, ?)", new))
        if first < end and self._first_waiting() > first:
            steps.append(("DELETE FROM outbox WHERE number < ?", [(self._first_waiting(),)]))
        return steps

    def close(self, reranker: Reranker | None) -> None:
        """The last save; the file is let go of."""
        self.save(reranker)
        self._file.close()

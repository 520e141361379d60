"""What the session has shown and what came back: impressions, the watched list, and feedback that is late or amended.

Not thread-safe.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from contract.checks import INT32_MAX
from contract.vocabulary import NULL_INT, SIGNALS
from contract.watched import Change, WatchedList
from edge._types import Feedback, Outcome
from edge._wire import Impression, WatchedEntry

SHOWN_MAX = 512
OBSERVED = ("play_time_ms", "has_next", "profile_stay_ms", "comment_stay_ms")


@dataclass(eq=False)
class Shown:
    """One impression and what is known of it.

    item          its columns in the watched list, without feedback; row_R: its sparse row there, None without a
                  fitting page
    listed_at_ms  when it was shown, as the watched list tells it; None: as the impression does
    token_F       its token before any feedback, as `PageFeatures.tokens_nF`; of the same version
    dense_version, rows_revision   what row_R belongs to
    signals       everything observed so far, as play_time_ms … are; told_at: by which revision, for each name
    revision      of the newest feedback, -1 before the first
    """

    impression: Impression
    item: Mapping[str, Any]
    row_R: NDArray[np.float32] | None = None
    dense_version: str = ""
    rows_revision: int = -1
    listed_at_ms: int | None = None
    token_F: NDArray[np.float32] | None = None
    signals: dict[str, bool] = field(default_factory=dict)
    play_time_ms: int = NULL_INT
    has_next: bool | None = None
    profile_stay_ms: int | None = None
    comment_stay_ms: int | None = None
    revision: int = -1
    told_at: dict[str, int] = field(default_factory=dict)

    def merge(self, feedback: Feedback, revision: int) -> bool:
        """Take in what a feedback observed; what it does not tell stays as it was. Returns whether that was news.

        Of two that tell the same thing the higher revision stands, and the first of equal ones, in whatever order they
        come.
        """
        told_at, news = self.told_at, False
        for name, value in feedback.signals.items():
            if revision > told_at.get(name, -1):
                self.signals[name], told_at[name], news = value, revision, True
        for name in OBSERVED:
            value = getattr(feedback, name)
            if value is not None and revision > told_at.get(name, -1):
                setattr(self, name, value)
                told_at[name], news = revision, True
        return news

    def columns(self) -> dict[str, Any]:
        """What was observed so far as FEEDBACK_COLUMNS of the watched list."""
        signals, profile, comment = self.signals, self.profile_stay_ms, self.comment_stay_ms
        return {
            "play_time_ms": self.play_time_ms,
            "signals": [int(signals[name]) if name in signals else NULL_INT for name in SIGNALS],
            "profile_stay_ms": NULL_INT if profile is None else profile,
            "comment_stay_ms": NULL_INT if comment is None else comment,
        }

    def whole(self, feedback: Feedback) -> Feedback:
        """The feedback with all that was observed so far, as an event tells it: the last revision stands for all."""
        play_time_ms = None if self.play_time_ms < 0 else self.play_time_ms
        return replace(
            feedback,
            play_time_ms=play_time_ms,
            signals=dict(self.signals),
            has_next=self.has_next,
            profile_stay_ms=self.profile_stay_ms,
            comment_stay_ms=self.comment_stay_ms,
        )


class Applied(NamedTuple):
    """What a feedback did. change: of the watched list, when there is one; shown: None for a video never shown;
    observed: all feedback columns of the video now.
    """

    outcome: Outcome
    shown: Shown | None = None
    revision: int = 0
    change: Change | None = None
    observed: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class KeptRows:
    """Sparse rows of a watched list that an earlier session left: (row [Rw] or None, rows_revision) per slot from 0."""

    dense_version: str
    slots: Sequence[tuple[NDArray[np.float32] | None, int]]


class WatchHistory:
    """The watched list of a session, and the last SHOWN_MAX impressions that feedback may still come for.

    kept_rows: of the list as an earlier session left it, until a model takes them.
    """

    def __init__(self, capacity: int):
        self.watched = WatchedList(capacity)
        self.kept_rows: KeptRows | None = None
        self._shown: OrderedDict[int, Shown] = OrderedDict()

    def impressions(self) -> list[Shown]:
        """Those that feedback may still come for, oldest first."""
        return list(self._shown.values())

    def restore(self, capacity: int, columns: Mapping[str, NDArray[Any]], rows: KeptRows | None) -> None:
        """The list as an earlier session left it, into an empty history. Raises InputError when it can't be one."""
        self.watched = WatchedList(capacity)
        self.watched.restore(columns)
        self.kept_rows = rows

    def show(self, shown: Shown) -> None:
        self._shown[shown.impression.choice.video_id] = shown
        if len(self._shown) > SHOWN_MAX:
            self._shown.popitem(last=False)

    def apply(self, feedback: Feedback) -> Applied:
        """Merge a feedback. The list must have room: evict first when `needs_room`.

        The first feedback of an impression appends, in the order in which feedback arrives; every other one amends one
        of the last items, an older revision with what no newer one told. Older items go to the log only, and what
        tells nothing new changes nothing here. So the order of one impression's revisions does not matter.
        """
        shown = self._shown.get(feedback.video_id)
        if shown is None:
            return Applied(Outcome.UNKNOWN)
        first = shown.revision < 0
        revision = min(shown.revision + 1, INT32_MAX) if feedback.revision is None else feedback.revision
        news = shown.merge(feedback, revision)
        if revision <= shown.revision and not news:
            return Applied(Outcome.STALE, shown, revision)
        shown.revision = max(shown.revision, revision)
        observed = shown.columns()
        if not first:
            amended = self.watched.amend(feedback.video_id, observed)
            return Applied(Outcome.LOGGED if amended is None else Outcome.AMENDED, shown, revision, amended, observed)
        at_ms = feedback.shown_at_ms if feedback.shown_at_ms is not None else shown.listed_at_ms
        observed["shown_at_ms"] = shown.impression.shown_at_ms if at_ms is None else at_ms
        change = self.watched.append(shown.item, observed)
        return Applied(Outcome.APPENDED, shown, revision, change, observed)

    def needs_room(self, feedback: Feedback) -> bool:
        """Whether this feedback appends and the list is full."""
        if self.watched.n_watched < self.watched.capacity:
            return False
        shown = self._shown.get(feedback.video_id)
        return shown is not None and shown.revision < 0

    def entries(self) -> list[WatchedEntry]:
        """The list as a page request tells it, oldest first."""
        columns = self.watched.columns(1)
        like, long_view = SIGNALS.index("like"), SIGNALS.index("long_view")
        return [
            WatchedEntry(int(video_id), int(play), int(signals[like]), int(signals[long_view]), int(at))
            for video_id, play, signals, at in zip(
                columns["video_id"], columns["play_time_ms"], columns["signals"], columns["shown_at_ms"], strict=True
            )
        ]

    def resized(self, capacity: int) -> WatchedList:
        """The list for a model with another L: itself, or a new one with the newest L - 1 videos at most."""
        if capacity == self.watched.capacity:
            return self.watched
        resized = WatchedList(capacity)
        resized.restore(self.watched.columns(max(1, self.watched.length - (capacity - 1))))
        return resized

"""Replaying a log into the states a phone would have had: which videos were in the watched list at each choice.

Shape legend: n events (impressions) sorted by user and time, W windows, L capacity of the watched list, m targets.

The replay follows `contract.watched.WatchedList`: what has been watched is appended before the next choice, and when
the list is full the oldest L/2 go after that choice. Between two evictions the list only grows, so the choices of that
stretch share one window: its tokens are encoded once, causally, and each target sees the first `n_visible` of them.
Every impression is a target exactly once, with the state of its swipe and not a later one. A test replays logs through
`WatchedList` itself, step by step, and compares.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.errors import InputError
from contract.events import Events
from contract.history import HistoryIndex
from contract.user_profile import profiles_at
from contract.vocabulary import MISSING_KEY, NULL_INT

SESSION_BREAK_MS = 30 * 60_000  # only where a log has no session ids

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Windows:
    """token_WL: event of each slot 1 … L, -1 = unused. Targets ascend in (window, event); every event is one target.

    target_window, n_visible  int64 [n], of event i: its window, and how many of its tokens were known at its choice
    gap_ms                    int64 [n], of event i as a token: to the video before it in the list, -1 = none
    run                       int64 [n], how many events just before event i belong to the same session
    """

    token_WL: Ints
    target_window: Ints
    n_visible: Ints
    gap_ms: Ints
    run: Ints

    @property
    def n_windows(self) -> int:
        return len(self.token_WL)


def in_order(events: Events) -> Ints:
    """Index that sorts by user and time. Events without time stay where the file has them, behind the one before."""
    user, time_ms = events["user_id"], events["time_ms"]
    by_user = np.argsort(user, kind="stable")
    filled = time_ms[by_user].copy()
    starts = np.flatnonzero(np.diff(user[by_user], prepend=user[by_user][:1] + np.uint64(1)))
    known = np.where(filled >= 0, np.arange(len(filled)), -1)
    first = np.repeat(starts, np.diff([*starts, len(filled)]))
    before = np.maximum(np.maximum.accumulate(known), first)
    return by_user[np.lexsort((filled[before], user[by_user]))]


def first_revisions(events: Events) -> tuple[Ints, Ints]:
    """Amended impressions count once: index of each one's first revision (what the next swipe knew), and of its last
    (the label). Rows without session and number stand for themselves."""
    session, seq, revision = events["session_id"], events["seq"], events["revision"]
    n = len(events)
    alone = (session == MISSING_KEY) | (seq < 0)
    order = np.lexsort((revision, np.where(alone, np.arange(n), seq), events["user_id"], session, alone))
    a, b = order[:-1], order[1:]
    same = ~alone[a] & ~alone[b] & (session[a] == session[b]) & (seq[a] == seq[b])
    same &= events["user_id"][a] == events["user_id"][b]
    group = np.cumsum(np.concatenate([[0], ~same])) if n else np.zeros(0, np.int64)
    first, last = np.unique(group, return_index=True)[1], len(group) - 1 - np.unique(group[::-1], return_index=True)[1]
    found = np.stack([order[first], order[last]])
    return tuple(found[:, np.argsort(found[0], kind="stable")])  # type: ignore[return-value]


def replay(events: Events, capacity: int) -> Windows:
    """Windows of events that `in_order` has sorted. capacity: L, even.

    Feedback of j is known at the choice of i only if time_j < time_i and time_j + play_time_j <= time_i; where a time
    is null, the order of the file stands. Feedback that is not known yet holds up what came after it, as the list is
    filled in order.
    """
    if capacity < 2 or capacity % 2:
        raise InputError("watched-list capacity L must be an even number from 2", got=capacity)
    time_ms = events["time_ms"]
    done_ms = np.where(time_ms >= 0, time_ms + np.maximum(events["play_time_ms"], 0), -1)
    bounds = np.flatnonzero(np.diff(events["user_id"])) + 1
    state = _Replay(capacity, time_ms.tolist(), done_ms.tolist())
    for first, end in zip([0, *bounds], [*bounds, len(events)], strict=True):
        state.one_user(int(first), int(end))
    token_WL = np.full((len(state.windows), capacity), -1, np.int64)
    for row, tokens in zip(token_WL, state.windows, strict=True):
        row[: len(tokens)] = tokens
    same_user = np.concatenate([[False], events["user_id"][1:] == events["user_id"][:-1]])[: len(events)]
    return Windows(
        token_WL=token_WL,
        target_window=np.array(state.target_window, np.int64),
        n_visible=np.array(state.n_visible, np.int64),
        gap_ms=_gaps(time_ms, same_user),
        run=_runs(events, same_user),
    )


class _Replay:
    def __init__(self, capacity: int, time_ms: list[int], done_ms: list[int]):
        self.capacity, self.time_ms, self.done_ms = capacity, time_ms, done_ms
        self.windows: list[list[int]] = []
        self.target_window: list[int] = []
        self.n_visible: list[int] = []

    def one_user(self, first: int, end: int) -> None:
        time_ms, done_ms, capacity = self.time_ms, self.done_ms, self.capacity
        watched: list[int] = []
        self.windows.append(watched)
        pending = first
        for i in range(first, end):
            now = time_ms[i]
            while pending < i and (now < 0 or (time_ms[pending] < now and done_ms[pending] <= now)):
                if len(watched) == capacity:
                    watched = self._evict(watched)
                watched.append(pending)
                pending += 1
            self.target_window.append(len(self.windows) - 1)
            self.n_visible.append(len(watched))
            if len(watched) == capacity and i + 1 < end:
                watched = self._evict(watched)

    def _evict(self, watched: list[int]) -> list[int]:
        kept = watched[self.capacity // 2 :]
        self.windows.append(kept)
        return kept


def page_starts(events: Events, windows: Windows) -> Ints:
    """Of each event the first of its page, [n]: a run of one page_id of one user; where a log has none, a session."""
    index, page = np.arange(len(events)), events["page_id"]
    if not len(index):
        return index
    same = np.concatenate([[False], (events["user_id"][1:] == events["user_id"][:-1]) & (page[1:] == page[:-1])])
    starts: Ints = np.where(page == "", index - windows.run, np.maximum.accumulate(np.where(same, 0, index)))
    return starts


def _profiles(events: Events, windows: Windows) -> dict[str, NDArray[Any]]:
    """`contract.user_profile` of each event, as of its page."""
    first, of = np.unique(page_starts(events, windows), return_inverse=True)
    index = HistoryIndex.from_events(events, every=True)
    found = profiles_at(index, events["user_id"][first], events["time_ms"][first], first)
    return {name: column[of] for name, column in found.items()}


def visible_at_page(events: Events, windows: Windows) -> Ints:
    """n_visible [n] of a phone that reranks once, when the page arrives: of each event's window the tokens that were
    known at the first choice of its page.
    """
    index, first = np.arange(len(events)), page_starts(events, windows)
    if not len(index):
        return index
    n_known = windows.n_visible[first]
    last_known = np.where(n_known > 0, windows.token_WL[windows.target_window[first], n_known - 1], -1)
    found = np.empty(len(index), np.int64)
    for rows in np.array_split(index, -(-len(index) // 100_000)):
        token_rL = windows.token_WL[windows.target_window[rows]]
        found[rows] = ((token_rL >= 0) & (token_rL <= last_known[rows, None])).sum(axis=1)
    return found


def _gaps(time_ms: Ints, same_user: NDArray[np.bool_]) -> Ints:
    """What `WatchedList` works out when it appends: time since the video before, null for the first of a user."""
    before = np.concatenate([[NULL_INT], time_ms[:-1]])[: len(time_ms)]
    known = same_user & (time_ms >= 0) & (before >= 0) & (time_ms >= before)
    return np.where(known, time_ms - before, NULL_INT)


def _runs(events: Events, same_user: NDArray[np.bool_]) -> Ints:
    session, time_ms = events["session_id"], events["time_ms"]
    before, time_before = np.roll(session, 1), np.roll(time_ms, 1)
    close = (time_ms >= 0) & (time_before >= 0) & (time_ms - time_before < SESSION_BREAK_MS)
    together = np.where((session == MISSING_KEY) & (before == MISSING_KEY), close, session == before) & same_user
    index = np.arange(len(session))
    return index - np.maximum.accumulate(np.where(together, 0, index)) if len(index) else index


def columns_of(events: Events, windows: Windows) -> dict[str, NDArray[Any]]:
    """Raw columns for `contract.features`, [n + 2]: the events, then a start token (-2), then nothing (-1).

    One set serves tokens and candidates: a window's slots and a target are rows of it.
    """
    columns = {
        "video_id": events["video_id"],
        "author_id": events["author_id"],
        "user_id": events["user_id"],
        "tags": events["tags"],
        "pxtr": events["pxtr"],
        "signals": events.signals,
        "gap_ms": windows.gap_ms,
        "shown_at_ms": events["time_ms"],
        **_profiles(events, windows),
        "start": np.zeros(len(events), np.bool_),
        "number": np.arange(len(events), dtype=np.int64),  # users side by side: differences within one are right
        "swipe_index": np.where(events["position"] >= 0, events["position"], events["seq"]),
        **{
            name: events[name]
            for name in (
                "duration_ms", "play_time_ms", "upload_age_days", "server_position", "user_activity",
                "user_register_days", "hour", "network", "decoder", "buffered_ms",
                "profile_stay_ms", "comment_stay_ms", "volume", "landscape",
            )
        },
    }  # fmt: skip
    nulls: dict[str, Any] = dict.fromkeys(("video_id", "author_id", "user_id", "tags"), MISSING_KEY)
    nulls |= {"recent_authors": MISSING_KEY, "user_profile": np.nan}
    nulls |= {"pxtr": np.nan, "volume": np.nan, "start": False}
    found = {}
    for name, column in columns.items():
        null = np.full((2, *column.shape[1:]), nulls.get(name, NULL_INT))
        found[name] = np.concatenate([column, null.astype(column.dtype)])
    found["start"][-2] = True
    return found

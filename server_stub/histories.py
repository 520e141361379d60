"""Every user's histories in real time, positives and all impressions: the bundle's, then feedback as it comes.

A request's own watched list is laid over the stored history for that request alone, so that a phone whose feedback is
still queued, and a user the server has never seen, get recommendations from what they just watched.
"""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from contract.catalogue import Catalogue
from contract.errors import InputError
from contract.events import Events
from contract.history import KUAIFORMER_HISTORY, RANKER_HISTORY, HistoryIndex, UserHistory, is_positive
from contract.vocabulary import MISSING_KEY, NULL_INT, SIGNALS, TAGS_MAX

JOINED = ("author_id", "tags", "duration_ms", "music_id", "kind")  # columns that the catalogue tells
SEEN_MAX = 1000
USERS_MAX = 200_000


@dataclass(frozen=True)
class Interaction:
    """One watched video. signals: name -> 0 | 1, left-out = not observed; times in Unix ms, -1 = unknown."""

    video_id: int
    time_ms: int = NULL_INT
    play_time_ms: int = NULL_INT
    signals: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = sorted(set(self.signals) - set(SIGNALS))
        if unknown:
            raise InputError("unknown feedback signal", got=unknown, allowed=SIGNALS)

    @property
    def positive(self) -> bool:
        return bool(is_positive(self.signals.get("long_view", NULL_INT), self.signals.get("like", NULL_INT)))

    @property
    def feedback(self) -> dict[str, Any]:
        """As a history holds it (`contract.history.FEEDBACK`)."""
        signals = np.array([self.signals.get(name, NULL_INT) for name in SIGNALS], np.int8)
        return {"play_time_ms": self.play_time_ms, "signals": signals}


class UserView(NamedTuple):
    """What a request's models read of a user: positives for retrieval, every impression for the ranker."""

    positives: UserHistory
    impressions: UserHistory


def item_columns(
    catalogue: Catalogue, video_ids: NDArray[np.uint64], now_ms: int = NULL_INT
) -> dict[str, NDArray[Any]]:
    """video_id, upload_age_days and JOINED of n videos; nulls for those the catalogue lacks."""
    video_ids = np.asarray(video_ids, np.uint64)
    n, rows = len(video_ids), catalogue.index_of(video_ids)
    columns: dict[str, NDArray[Any]] = {
        "video_id": video_ids,
        "author_id": np.full(n, MISSING_KEY),
        "tags": np.full((n, TAGS_MAX), MISSING_KEY),
        "duration_ms": np.full(n, NULL_INT, np.int32),
        "music_id": np.full(n, MISSING_KEY),
        "kind": np.full(n, MISSING_KEY),
        "upload_age_days": catalogue.upload_age_days(rows, np.full(n, now_ms, np.int64)),
    }
    known = rows >= 0
    for name in JOINED:
        columns[name][known] = getattr(catalogue, name)[rows[known]]
    return columns


@dataclass
class _User:
    """new: positives appended since the history was read from the log; new_impressions likewise."""

    history: UserHistory
    impressions: UserHistory
    new: int = 0
    new_impressions: int = 0
    recorded: OrderedDict[tuple[int, int], bool] = field(default_factory=OrderedDict)  # (video, time) -> in the history


class Histories:
    """Thread-safe.

    The users touched last are kept in memory, at most `users_max`; the log's are built when first asked for.
    capacity, impressions: positives and impressions kept of each user, at least what the models read
    (`hold_at_least`).
    """

    def __init__(
        self,
        log: Events | None = None,
        *,
        capacity: int = KUAIFORMER_HISTORY,
        impressions: int = RANKER_HISTORY,
        users_max: int = USERS_MAX,
    ):
        self.capacity, self.impressions = capacity, impressions
        told = log if log is not None and len(log) else None
        self._index = None if told is None else HistoryIndex.from_events(told)
        self._every = None if told is None else HistoryIndex.from_events(told, every=True)
        self._users: OrderedDict[int, _User] = OrderedDict()
        self._users_max = users_max
        self._lock = threading.Lock()

    def hold_at_least(self, capacity: int, impressions: int = 1) -> None:
        """Keep longer histories from now on, for models that read more: read again from the log, and what came since
        appended."""
        with self._lock:
            if capacity <= self.capacity and impressions <= self.impressions:
                return
            self.capacity = max(capacity, self.capacity)
            self.impressions = max(impressions, self.impressions)
            for user_id, user in self._users.items():
                longer = self._read(user_id)
                longer.history.take_latest(user.history, user.new)
                longer.impressions.take_latest(user.impressions, user.new_impressions)
                user.history, user.impressions = longer.history, longer.impressions

    def _read(self, user_id: int) -> _User:
        def of(index: HistoryIndex | None, capacity: int) -> UserHistory:
            return index.user_history(user_id, capacity) if index else UserHistory(capacity)

        return _User(of(self._index, self.capacity), of(self._every, self.impressions))

    def popularity(self) -> dict[int, int]:
        """Video -> positives in the log the server started with."""
        if self._index is None:
            return {}
        ids, counts = np.unique(self._index.columns["video_id"], return_counts=True)
        return dict(zip(ids.tolist(), counts.tolist(), strict=True))

    def record(self, user_id: int, interaction: Interaction, catalogue: Catalogue) -> bool:
        """Add one interaction; True when it became part of the history. The same (video, time) counts once.

        A later amendment that makes it positive adds it; one that takes the like back leaves it, also
        after a restart: the event files are read again.
        """
        key = (interaction.video_id, interaction.time_ms)
        with self._lock:
            user = self._user(user_id, keep=True)
            seen = key in user.recorded or _in_log(self._every, user_id, key)
            known = user.recorded.get(key, False) or _in_log(self._index, user_id, key)
            appended = interaction.positive and not known
            if appended:
                _append(user.history, [interaction], catalogue)
                user.new += 1
            if not seen:
                _append(user.impressions, [interaction], catalogue)
                user.new_impressions += 1
            elif key in user.recorded:
                user.impressions.amend(interaction.video_id, interaction.feedback)
            user.recorded[key] = known or appended
            while len(user.recorded) > SEEN_MAX:
                user.recorded.popitem(last=False)
            return appended

    def seen(self, user_id: int) -> NDArray[np.uint64]:
        """Videos this user reported since the server started, the last SEEN_MAX: uint64."""
        with self._lock:
            user = self._users.get(user_id)
            return np.array([video for video, _ in user.recorded] if user else [], np.uint64)

    def view(self, user_id: int, watched: Iterable[Interaction], catalogue: Catalogue) -> UserView:
        """Copies of the user's histories with the request's watched list laid over them, oldest first.

        A watched video that a history already holds is not added to it again.
        """
        with self._lock:
            user = self._user(user_id, keep=False)
            view = UserView(copy.deepcopy(user.history), copy.deepcopy(user.impressions))
        watched = list(watched)
        _append_new(view.positives, [w for w in watched if w.positive], catalogue)
        _append_new(view.impressions, watched, catalogue)
        return view

    def _user(self, user_id: int, keep: bool) -> _User:
        """The user, from memory or from the log. Those without any history are remembered only when `keep` says so."""
        user = self._users.get(user_id)
        if user is None:
            user = self._read(user_id)
        if keep or len(user.impressions):
            self._users[user_id] = user
            self._users.move_to_end(user_id)
            while len(self._users) > self._users_max:
                self._users.popitem(last=False)
        return user


def _in_log(index: HistoryIndex | None, user_id: int, key: tuple[int, int]) -> bool:
    """Whether the log the server started with holds (video, time) of this user: event files may be part of it."""
    if index is None:
        return False
    place = int(np.searchsorted(index.user_id, np.uint64(user_id)))
    if place == len(index.user_id) or int(index.user_id[place]) != user_id:
        return False
    rows = slice(int(index.offsets[place]), int(index.offsets[place + 1]))
    same = index.columns["video_id"][rows] == np.uint64(key[0])
    return bool((same & (index.time_ms[rows] == key[1])).any())


def _append_new(history: UserHistory, interactions: list[Interaction], catalogue: Catalogue) -> None:
    held = set(history.columns()["video_id"].tolist())
    _append(history, list({i.video_id: i for i in interactions if i.video_id not in held}.values()), catalogue)


def _append(history: UserHistory, interactions: list[Interaction], catalogue: Catalogue) -> None:
    columns = item_columns(catalogue, np.array([i.video_id for i in interactions], np.uint64))
    for place, interaction in enumerate(interactions):
        item = {name: columns[name][place] for name in ("video_id", *JOINED)}
        history.append({**item, **interaction.feedback}, interaction.time_ms)

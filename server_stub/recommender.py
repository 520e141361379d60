"""The real-time recommender: add an interaction, ask for recommendations. No gRPC needed.

    recommender = Recommender.from_bundle("bundle/")
    recommender.add_interaction(user_id=7, video_id=42, signals={"like": 1})
    recommender.recommend(user_id=7, k=20).video_id

What a user does counts at the next call: feedback enters the stored history, the caller's `watched` list is laid over
it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from contract.catalogue import Catalogue
from contract.errors import InputError
from contract.history import RANKER_HISTORY
from contract.keys import key_of_id
from contract.user_profile import AUTHORS_MAX, unknown_profile, user_profile
from contract.vocabulary import MISSING_KEY, NULL_INT
from server_stub.histories import Histories, Interaction, UserView, item_columns

if TYPE_CHECKING:
    from server_stub.bundle import Models

Ids = NDArray[np.uint64]
Floats = NDArray[np.float32]
Clock = Callable[[], int]

NO_HISTORY = "no_history"  # nothing positive known: popular items
SHORT = "short"  # retrieval found too few: filled up with popular items
REPEATS = "repeats"  # so few are left that reported videos come again


def wall_clock_ms() -> int:
    """Unix milliseconds."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True)
class Recommendation:
    """n videos in the server's order, the best first.

    items    video_id, upload_age_days and what the catalogue tells (`histories.JOINED`)
    pxtr     float32 [n, X], NaN where the ranker gave none
    value    float32 [n], the fused value that ordered them
    retrieval float32 [n], the best inner product, NaN for popular items
    reason   "" or why not (only) retrieval: no_history | short | repeats
    user_activity, user_register_days, hour: what the ranker was told, -1 = unknown
    user_profile float32 [P], recent_authors uint64 [AUTHORS_MAX]: `contract.user_profile`, of the history as it is
    """

    items: Mapping[str, NDArray[Any]]
    pxtr: Floats
    value: Floats
    retrieval: Floats
    reason: str = ""
    user_activity: int = NULL_INT
    user_register_days: int = NULL_INT
    hour: int = NULL_INT
    retrieval_version: str = ""
    ranker_version: str = ""
    user_profile: Floats = field(default_factory=unknown_profile)
    recent_authors: Ids = field(default_factory=lambda: np.full(AUTHORS_MAX, MISSING_KEY))

    @property
    def video_id(self) -> Ids:
        return self.items["video_id"]

    def __len__(self) -> int:
        return len(self.video_id)


class Recommends(Protocol):
    """What pages need of a recommender; `server_stub.testing.FakeRecommender` is the fake."""

    @property
    def catalogue(self) -> Catalogue: ...

    def add_interaction(
        self,
        user_id: int,
        video_id: int,
        *,
        time_ms: int = NULL_INT,
        play_time_ms: int = NULL_INT,
        signals: Mapping[str, int] | None = None,
    ) -> bool: ...

    def recommend(
        self,
        user_id: int,
        k: int = 20,
        *,
        watched: Iterable[Interaction] = (),
        exclude: Iterable[int] = (),
        now_ms: int | None = None,
        hour: int = NULL_INT,
    ) -> Recommendation: ...


class Recommender:
    """Retrieval, ranking and real-time histories of one bundle. Thread-safe.

    pool: how many videos retrieval hands to the ranker (at least k).
    """

    def __init__(self, models: Models, histories: Histories, *, pool: int = 200, clock: Clock = wall_clock_ms):
        if pool < 1:
            raise InputError("pool must be at least 1", got=pool)
        self._models = models
        self._histories = histories
        histories.hold_at_least(models.retrieval.length, models.ranker.history_length)
        self._pool = pool
        self._clock = clock
        self._popular = popular_items(models, histories)

    @staticmethod
    def from_bundle(
        root: str | Path, *, pool: int = 200, clock: Clock = wall_clock_ms, threads: int = 1
    ) -> Recommender:
        """Load BUNDLE, every hash checked. Raises InputError, IntegrityError, VersionMismatch."""
        from server_stub.bundle import load_histories, load_models, read_index

        index = read_index(root)
        models = load_models(index, threads=threads)
        return Recommender(models, Histories(load_histories(index)), pool=pool, clock=clock)

    @property
    def models(self) -> Models:
        return self._models

    @property
    def catalogue(self) -> Catalogue:
        return self._models.catalogue

    def swap(self, models: Models) -> None:
        """Replace retrieval, ranker and catalogue whole; a call under way finishes with what it began with."""
        self._histories.hold_at_least(models.retrieval.length, models.ranker.history_length)
        popular = popular_items(models, self._histories)
        self._models, self._popular = models, popular

    def add_interaction(
        self,
        user_id: int,
        video_id: int,
        *,
        time_ms: int = NULL_INT,
        play_time_ms: int = NULL_INT,
        signals: Mapping[str, int] | None = None,
    ) -> bool:
        """Tell what a user watched; True when it is a positive (long_view or like) and so changes retrieval.

        time_ms -1 = now. Raises InputError for ids outside 64 bits or unknown signals.
        """
        when = self._clock() if time_ms < 0 else time_ms
        interaction = Interaction(key_of_id(video_id), when, play_time_ms, dict(signals or {}))
        return self._histories.record(key_of_id(user_id), interaction, self.catalogue)

    def recommend(
        self,
        user_id: int,
        k: int = 20,
        *,
        watched: Iterable[Interaction] = (),
        exclude: Iterable[int] = (),
        now_ms: int | None = None,
        hour: int = NULL_INT,
    ) -> Recommendation:
        """Up to k videos in the ranker's order; fewer only when the catalogue has no more.

        watched and exclude never come back; videos reported before come back only when nothing else is left.
        Raises InputError for k < 1 or ids outside 64 bits.
        """
        if k < 1:
            raise InputError("k must be at least 1", got=k)
        models, popular = self._models, self._popular
        now = self._clock() if now_ms is None else now_ms
        user_key, watched = key_of_id(user_id), list(watched)
        banned = np.array([*(w.video_id for w in watched), *exclude], np.uint64)
        view = self._histories.view(user_key, watched, models.catalogue)
        ids, scores, reason = self._retrieve(models, popular, view, user_key, k, banned)
        place = int(models.users.index_of(np.array([user_key], np.uint64))[0])
        empty = Recommendation(
            items=item_columns(models.catalogue, ids, now),
            pxtr=np.zeros((0, 0), np.float32),
            value=np.zeros(0, np.float32),
            retrieval=scores,
            reason=reason,
            user_activity=int(models.users.activity[place]) if place >= 0 else NULL_INT,
            user_register_days=int(models.users.register_days[place]) if place >= 0 else NULL_INT,
            hour=hour,
            retrieval_version=models.retrieval.version,
            ranker_version=models.ranker.version,
            **profile_of(view),
        )
        return _ranked(models, empty, user_key, view, k)

    def _retrieve(
        self, models: Models, popular: Ids, view: UserView, user_key: int, k: int, banned: Ids
    ) -> tuple[Ids, Floats, str]:
        """(ids, retrieval scores, reason), enough for k where the catalogue has them."""
        size = max(k, self._pool)
        avoid = np.concatenate([banned, self._histories.seen(user_key)])
        if len(view.positives):
            found = models.retrieval.search(models.retrieval.encode(view.positives, user_key), size, avoid)
            ids, scores, reason = found.video_id, found.score, ""
        else:
            ids, scores, reason = np.zeros(0, np.uint64), np.zeros(0, np.float32), NO_HISTORY
        if len(ids) < k:
            wanted = size if reason == NO_HISTORY else k
            more = popular[~np.isin(popular, np.concatenate([avoid, ids]))][: wanted - len(ids)]
            reason = reason or SHORT
            if len(ids) + len(more) < k:
                again = popular[~np.isin(popular, np.concatenate([banned, ids, more]))][: k - len(ids) - len(more)]
                reason = REPEATS if len(again) else reason
                more = np.concatenate([more, again])
            ids = np.concatenate([ids, more])
            scores = np.concatenate([scores, np.full(len(more), np.nan, np.float32)])
        return ids, scores, reason


def profile_of(view: UserView) -> dict[str, NDArray[Any]]:
    """What a page tells of the user's last impressions: `user_profile` [P], `recent_authors` [AUTHORS_MAX]."""
    length = min(RANKER_HISTORY, view.impressions.capacity)
    columns = {name: column[None] for name, column in view.impressions.columns(length).items()}
    return {name: value[0] for name, value in user_profile(columns).items()}


def _ranked(models: Models, pool: Recommendation, user_key: int, view: UserView, k: int) -> Recommendation:
    user: dict[str, NDArray[Any]] = {
        "user_id": np.array([user_key], np.uint64),
        "user_activity": np.array([pool.user_activity], np.int32),
        "user_register_days": np.array([pool.user_register_days], np.int32),
        "hour": np.array([pool.hour], np.int32),
        "tab": np.array([NULL_INT], np.int32),  # no request names one
    }
    pxtr_nX = models.ranker.pxtr(user, view.impressions, pool.items)
    order, value_n = models.ranker.order(pxtr_nX, pool.items["duration_ms"])
    top = order[:k]
    return replace(
        pool,
        items={name: column[top] for name, column in pool.items.items()},
        pxtr=pxtr_nX[top],
        value=value_n[top].astype(np.float32),
        retrieval=pool.retrieval[top],
    )


def popular_items(models: Models, histories: Histories) -> Ids:
    """All retrievable items, the most often watched long or liked first, ties to the newer upload, then the smaller
    id."""
    counts = histories.popularity()
    ids = np.sort(models.retrieval.item_ids)
    rows = models.catalogue.index_of(ids)
    positives = np.array([counts.get(int(video), 0) for video in ids], np.int64)
    order = np.lexsort((ids, -models.catalogue.upload_ms[rows], -positives))
    return ids[order]

"""What a page tells of its user beside who it is: statistics and a sequence of the last impressions, as of the page.

Statistics: how often the last impressions were watched long and liked, the mean watched share of a minute, and how much
of the history there is. Sequence: authors of the last positives, whose rows come with the page and are averaged.
Server and training read the same history, what was known when the page was made (`contract.history`).

Shapes: n pages, L history, P statistics.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.history import RANKER_HISTORY, HistoryIndex, is_positive
from contract.vocabulary import MISSING_KEY, SIGNALS, WATCH_TIME_CAP_MS

PROFILE = ("long_view", "like", "watch_share", "filled")  # filled: entries over RANKER_HISTORY
AUTHORS_MAX = 8
READ = ("video_id", "author_id", "play_time_ms", "signals")  # columns of a history that are read
_CHUNK = 20_000


def unknown_profile() -> NDArray[np.float32]:
    """float32 [P], nothing known."""
    return np.full(len(PROFILE), np.nan, np.float32)


def user_profile(history: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """`user_profile` float32 [n, P] (NaN = nothing seen) and `recent_authors` uint64 [n, AUTHORS_MAX], newest first.

    history: READ columns [n, L, …], right-aligned, nulls in the padding.
    """
    there_nL = history["video_id"] != MISSING_KEY
    long_view_nL, like_nL = (history["signals"][..., SIGNALS.index(name)] for name in ("long_view", "like"))
    play_nL = history["play_time_ms"]
    profile_nP = np.stack(
        [
            _mean(long_view_nL == 1, long_view_nL >= 0),
            _mean(like_nL == 1, like_nL >= 0),
            _mean(np.minimum(play_nL, WATCH_TIME_CAP_MS) / WATCH_TIME_CAP_MS, play_nL >= 0),
            np.minimum(there_nL.sum(axis=1) / RANKER_HISTORY, 1.0),
        ],
        axis=1,
    ).astype(np.float32)
    authors_nL = history["author_id"]
    told_nL = there_nL & is_positive(long_view_nL, like_nL) & (authors_nL != MISSING_KEY)
    place_nL = np.cumsum(told_nL[:, ::-1], axis=1)[:, ::-1] - 1  # 0 = the newest
    rows, slots = np.nonzero(told_nL & (place_nL < AUTHORS_MAX))
    recent = np.full((len(there_nL), AUTHORS_MAX), MISSING_KEY)
    recent[rows, place_nL[rows, slots]] = authors_nL[rows, slots]
    return {"user_profile": profile_nP, "recent_authors": recent}


def _mean(values_nL: NDArray[Any], known_nL: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Mean of the known entries of each row, NaN without any."""
    count_n = known_nL.sum(axis=1)
    total_n = np.where(known_nL, values_nL, 0).sum(axis=1, dtype=np.float64)
    mean_n: NDArray[np.float64] = np.divide(total_n, count_n, out=np.full(len(count_n), np.nan), where=count_n > 0)
    return mean_n


def profiles_at(
    index: HistoryIndex, user_ids: NDArray[np.uint64], time_ms: NDArray[np.int64], event: NDArray[np.int64]
) -> dict[str, NDArray[Any]]:
    """`user_profile` of each user as of each time, from an index of every impression; n of each.

    Without a time what stands before row `event` of the log counts.
    """
    start, end = index.bounds(user_ids, np.maximum(time_ms, 0))
    first, last = index.bounds_in_log_order(user_ids, event)
    timed = time_ms >= 0
    start, end = np.where(timed, start, first), np.where(timed, end, last)
    parts = []
    for at in range(0, max(len(start), 1), _CHUNK):
        place_nL = index.windows(start[at : at + _CHUNK], end[at : at + _CHUNK], RANKER_HISTORY)
        columns = {name: index.columns[name][place_nL] for name in READ} if len(index) else _nothing(place_nL.shape)
        for name, null in (("video_id", MISSING_KEY), ("play_time_ms", -1), ("signals", -1)):
            columns[name][place_nL < 0] = null
        parts.append(user_profile(columns))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _nothing(shape: tuple[int, ...]) -> dict[str, NDArray[Any]]:
    found: dict[str, NDArray[Any]] = {name: np.full(shape, MISSING_KEY) for name in ("video_id", "author_id")}
    return {**found, "play_time_ms": np.full(shape, -1), "signals": np.full((*shape, len(SIGNALS)), -1)}

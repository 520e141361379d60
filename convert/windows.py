"""Held-out inputs for verification: windows of real events, laid out as a swipe would be; synthetic without data.

The buckets take turns; every third window is padded, one in eight has nothing watched, one in eight a full list.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from contract.errors import InputError
from contract.events import Events
from contract.features import Columns
from contract.history import HistoryIndex
from contract.user_profile import profiles_at
from contract.vocabulary import DECODERS, MISSING_KEY, NETWORKS, PXTR_HEADS, SIGNALS, TAGS_MAX
from contract.watched import WatchedList
from convert.phone import Rows, Sample, whole_inputs
from convert.source import KirSource

HELD_OUT_SHARE = 0.2  # of the log, latest in time
LEAST_HELD_OUT = 100  # events after training's end, below which the last fifth is taken, seen or not
CANDIDATE_COLUMNS = ("video_id", "author_id", "tags", "duration_ms", "upload_age_days", "pxtr")
WATCHED_FROM_LOG = (
    "video_id", "author_id", "tags", "duration_ms", "pxtr", "play_time_ms", "profile_stay_ms", "comment_stay_ms",
    "volume", "landscape",
)  # fmt: skip
START_MS = 1_700_000_000_000


def make_windows(
    source: KirSource, events: Events, n: int, seed: int = 0, *, held_out: bool = True
) -> Iterator[Sample]:
    """Samples at random held-out impressions (`held_out_from`); held_out=False: of all before them, to calibrate on.

    Raises InputError when there are too few events.
    """
    L, buckets = int(source.capacities["L"]), [0, *sorted(source.capacities["N"])]
    order = np.lexsort((events["time_ms"], events["user_id"]))
    log = events.take(order)
    if len(np.unique(log["video_id"])) < 2:
        raise InputError("too few events to verify with", got=f"{len(log)} events", fix="give a longer log with --data")
    rng = np.random.default_rng([seed, 0xC0 if held_out else 0xCA])
    rows = Rows(source.spec, source.tables, source.decoded_tables())
    index = HistoryIndex.from_events(log, every=True)
    first_of_user = np.searchsorted(log["user_id"], log["user_id"])
    late = np.flatnonzero(chosen_part(log["time_ms"], held_out, source.trained_until_ms))
    seen = late - first_of_user[late]
    for number in range(n):
        if number % 8 == 5 and (seen >= L).any():
            at, n_watched = int(rng.choice(late[seen >= L])), L
        else:
            at = int(rng.choice(late))
            n_watched = 0 if number % 8 == 0 else min(int(at - first_of_user[at]), int(rng.integers(1, L + 1)))
        below, bucket = buckets[number % (len(buckets) - 1) :][:2]
        size = (below + bucket + 1) // 2 if number // (len(buckets) - 1) % 3 == 1 else bucket
        profile = profiles_at(index, log["user_id"][at : at + 1], log["time_ms"][at : at + 1], np.array([at]))
        yield window(source, rows, log, at, n_watched, size, profile, rng)


def held_out_from(time_ms: NDArray[np.int64], trained_until_ms: int | None) -> int:
    """The first time that is held out: training's end where it lies in the log's last fifth, else that fifth's begin.

    So what a variant is judged on was not trained on, unless training went on up to the log's end (`told_part`).
    Raises InputError where no event has a time (NULL_INT; a log's summary of older days).
    """
    known = time_ms[time_ms >= 0]
    if not len(known):
        raise InputError("no event of the log has a time, so none is the latest", got=f"{len(time_ms)} events")
    fifth = math.ceil(np.quantile(known, 1.0 - HELD_OUT_SHARE))
    untouched = trained_until_ms is not None and np.count_nonzero(known >= trained_until_ms) >= LEAST_HELD_OUT
    return max(fifth, trained_until_ms or 0) if untouched else fifth


def chosen_part(time_ms: NDArray[np.int64], held_out: bool, trained_until_ms: int | None = None) -> NDArray[np.bool_]:
    """The events from `held_out_from` on, or those of them before it.

    Events without a time are history to both and chosen by neither.
    """
    last: NDArray[np.bool_] = time_ms >= held_out_from(time_ms, trained_until_ms)
    chosen: NDArray[np.bool_] = (time_ms >= 0) & (last == held_out)
    if not chosen.any():
        known = np.count_nonzero(time_ms >= 0)
        raise InputError("too few events before the last ones to calibrate on", got=f"{known} events with a time")
    return chosen


def told_part(time_ms: NDArray[np.int64], trained_until_ms: int | None) -> str:
    """What `held_out_from` chose, for whoever reads the report."""
    start = held_out_from(time_ms, trained_until_ms)
    share = np.count_nonzero(time_ms >= start) / np.count_nonzero(time_ms >= 0)
    if trained_until_ms is None:
        return f"the last {share:.0%}"
    return f"the last {share:.0%}, " + ("after training's end" if start >= trained_until_ms else "seen in training")


def window(
    source: KirSource,
    rows: Rows,
    log: Events,
    at: int,
    n_watched: int,
    size: int,
    profile: Columns,
    rng: np.random.Generator,
) -> Sample:
    """One sample: what the user of event `at` had watched before it, and `size` candidates from it on."""
    watched = WatchedList(int(source.capacities["L"]))
    signals = log.signals
    for number, i in enumerate(range(at - n_watched, at)):
        watched.append({**watched_item(log, i, signals), "number": number})
    candidates = candidates_at(log, at, size, rng)
    columns = {name: log[name][candidates] for name in CANDIDATE_COLUMNS}
    columns["server_position"] = np.arange(len(candidates), dtype=np.int32)
    columns["buffered_ms"] = rng.integers(-1, 10_000, len(candidates), dtype=np.int32)
    one = slice(at, at + 1)
    user = {name: log[name][one] for name in ("user_id", "user_activity", "user_register_days", "hour")}
    user |= profile
    swipe = {
        "network": rng.integers(0, len(NETWORKS), 1, dtype=np.int32),
        "decoder": rng.integers(0, len(DECODERS), 1, dtype=np.int32),
        "swipe_index": np.array([n_watched], np.int32),
    }
    blocks = (("user_rows", user), ("candidate_rows", columns), ("watched_rows", watched.columns()))
    sample = whole_inputs(
        source.spec,
        source.capacities,
        user=user,
        candidates=columns,
        swipe=swipe,
        watched=watched,
        rows={block: rows.block(block, of) for block, of in blocks if source.spec.width(block)},
        now_ms=int(log["time_ms"][at]),
        number=n_watched,
    )
    return replace(sample, labels=outcomes(log, at, candidates))


def watched_item(log: Events, i: int, signals: NDArray[np.int8]) -> dict[str, object]:
    """Event i as `WatchedList.append` takes it."""
    item = {name: log[name][i] for name in WATCHED_FROM_LOG}
    return {**item, "signals": signals[i], "shown_at_ms": log["time_ms"][i]}


def outcomes(log: Events, at: int, candidates: NDArray[np.int64]) -> NDArray[np.float32]:
    """Whether the user of event `at` watched each candidate long; NaN for what others were shown."""
    long_view = log["long_view"][candidates]
    known = (log["user_id"][candidates] == log["user_id"][at]) & (long_view >= 0)
    return np.where(known, long_view, np.nan).astype(np.float32)


def candidates_at(log: Events, at: int, size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Row numbers of `size` impressions of different videos: what this user saw next, filled up with others' videos."""
    same_user = np.flatnonzero(log["user_id"][at : at + size] == log["user_id"][at]) + at
    pool = np.concatenate([same_user, rng.permutation(len(log))[: 50 * size]])
    _, first = np.unique(log["video_id"][pool], return_index=True)
    return rng.permutation(pool[np.sort(first)[:size]])


def synthetic_events(source: KirSource, seed: int = 0, n_users: int = 24) -> Events:
    """A log over the ids that the model's tables know, for a checkpoint that comes without data."""
    rng = np.random.default_rng([seed, 0x5E])
    L, N = int(source.capacities["L"]), max(source.capacities["N"])
    per_user = 2 * L + N
    n = n_users * per_user

    def ids(table: str, many: int, shape: tuple[int, ...]) -> NDArray[np.uint64]:
        known = source.tables.keys.get(table, np.zeros(1, np.uint64))[1:]
        known = known if len(known) > 1 else np.arange(1, many + 1, dtype=np.uint64)
        return rng.choice(known, shape)

    videos = np.unique(ids("video", 4 * N, (max(4 * N, 200),)))
    videos = np.union1d(videos, np.arange(1, 2 * N + 1, dtype=np.uint64))  # some that the tables do not know
    tags = ids("tag", 40, (len(videos), TAGS_MAX))
    tags[rng.random(tags.shape) < 0.4] = MISSING_KEY
    tags = np.sort(tags, axis=1)
    author = ids("author", 60, (len(videos),))
    duration = rng.integers(4_000, 200_000, len(videos), dtype=np.int32)
    pick = rng.integers(0, len(videos), n)
    play = (duration[pick] * rng.gamma(1.2, 0.5, n)).astype(np.int32)
    time_ms = START_MS + np.cumsum(rng.integers(2_000, 90_000, (n_users, per_user)), axis=1)
    pxtr = rng.beta(1.0, 8.0, (n, len(PXTR_HEADS))).astype(np.float32)
    pxtr[rng.random(n) < 0.1] = np.nan
    return Events(
        {
            "user_id": np.repeat(ids("user", n_users, (n_users,)), per_user),
            "video_id": videos[pick],
            "time_ms": time_ms.reshape(-1),
            "author_id": author[pick],
            "tags": tags[pick],
            "duration_ms": duration[pick],
            "upload_age_days": rng.integers(-1, 400, n, dtype=np.int32),
            "pxtr": pxtr,
            "play_time_ms": play,
            **{name: rng.choice(np.array([-1, 0, 1], np.int8), n, p=[0.1, 0.8, 0.1]) for name in SIGNALS},
            "user_activity": np.repeat(rng.integers(-1, 8, n_users, dtype=np.int32), per_user),
            "user_register_days": np.repeat(rng.integers(-1, 1000, n_users, dtype=np.int32), per_user),
            "hour": rng.integers(0, 24, n, dtype=np.int32),
        }
    )

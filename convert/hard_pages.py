"""Held-out inputs that no log holds: the smallest and the fullest page, and one of values that nobody should send.

Verification runs them beside real windows, for a graph that agrees on ordinary pages may still part on the edges:
an all-masked list, no padding anywhere, features at both ends of their clamps. Nobody rated these pages, so they count
for parity and ranking and for no outcome.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from contract.events import Events
from contract.history import HistoryIndex
from contract.user_profile import profiles_at
from contract.vocabulary import MISSING_KEY, SIGNALS
from convert.phone import Rows, Sample
from convert.source import KirSource
from convert.windows import window

INT32_MAX = int(np.iinfo(np.int32).max)
USER = np.uint64(0x9E3779B97F4A7C15)  # no table knows it


def hard_samples(source: KirSource, log: Events, seed: int = 0) -> Iterator[Sample]:
    """For each candidate bucket: as few candidates as it may get, nothing watched; everything full; and the same with
    extreme values."""
    rng = np.random.default_rng([seed, 0xBAD])
    L, buckets = int(source.capacities["L"]), sorted(source.capacities["N"])
    rows = Rows(source.spec, source.tables, source.decoded_tables())
    plain = one_user(log, 2 * L + 2 * max(buckets), rng)
    fewest = [below + 1 for below in [0, *buckets[:-1]]]
    smallest, fullest = [(size, 0) for size in fewest], [(size, L) for size in buckets]
    for events, pages in ((plain, smallest + fullest), (extreme(plain, rng), fullest)):
        index = HistoryIndex.from_events(events, every=True)
        user, now_ms = events["user_id"][L : L + 1], events["time_ms"][L : L + 1]
        profile = profiles_at(index, user, now_ms, np.array([L]))
        for size, n_watched in pages:
            sample = window(source, rows, events, L, n_watched, size, profile, rng)
            yield replace(sample, labels=np.full(sample.n_candidates, np.nan, np.float32))


def one_user(log: Events, n: int, rng: np.random.Generator) -> Events:
    """n impressions of different videos (as far as the log has them) as one user's session, five seconds apart."""
    first = rng.permutation(np.unique(log["video_id"], return_index=True)[1])
    taken = log.take(np.resize(first, n))
    start_ms = max(int(log["time_ms"].max()), 0)
    return taken.with_columns(user_id=np.full(n, USER), time_ms=start_ms + 5_000 * np.arange(n))


def extreme(log: Events, rng: np.random.Generator) -> Events:
    """Values at both ends of what a column can hold, ids that no table knows, and every impression at one moment."""
    n = len(log)
    ends = np.where(np.arange(n) % 2 == 0, 0, INT32_MAX).astype(np.int32)
    pxtr = np.resize(np.array([0.0, 1.0, np.nan], np.float32), log["pxtr"].shape)
    tags = np.full(log["tags"].shape, MISSING_KEY)
    ids = rng.integers(1, 1 << 62, n, dtype=np.uint64)
    return log.with_columns(
        video_id=ids,
        author_id=ids,
        tags=tags,
        time_ms=np.full(n, log["time_ms"][0]),
        duration_ms=ends,
        upload_age_days=ends[::-1],
        play_time_ms=np.roll(ends, 1),
        pxtr=rng.permuted(pxtr, axis=0),
        user_activity=ends,
        user_register_days=ends,
        hour=np.full(n, 23, np.int32),
        **{name: (np.arange(n) % 3 - 1).astype(np.int8) for name in SIGNALS},
    )

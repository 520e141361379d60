"""Past-only aggregates of a log: what a gradient-boosted ranker reads of user, video, and the two together.

Every figure comes from impressions before the day (or the cut) of the row it describes: smoothed rates of long_view,
counts, and how far users deviate from the videos' rates with this author, tag, duration or tab.

Shapes: n rows to describe, p earlier impressions, A aggregates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from contract.buckets import DURATION_BOUNDS_MS, bounded_bucket
from contract.vocabulary import MISSING_KEY

if TYPE_CHECKING:
    from contract.events import Events

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ITEM_PRIOR, USER_PRIOR, PAIR_PRIOR = 20.0, 5.0, 3.0  # impressions at the mean that are added to every rate
CATEGORICAL = ("tab", "tag", "activity")


class Keys:
    """Small numbers for the ids of earlier and described impressions together: `past` [p], `rows` [n]."""

    def __init__(self, past: NDArray[Any], rows: NDArray[Any]):
        both = np.unique(np.concatenate([past, rows]), return_inverse=True)[1].astype(np.int64)
        self.past, self.rows, self.n = both[: len(past)], both[len(past) :], int(both.max(initial=-1)) + 1

    def __mul__(self, other: Keys) -> Keys:
        return Keys(self.past * other.n + other.past, self.rows * other.n + other.rows)

    def rate(self, values_p: Floats, prior: float, weight: float) -> tuple[Floats, Floats]:
        """Shrunk mean of the values by key, of the described rows; and how many there were, log1p."""
        count = np.bincount(self.past, minlength=self.n)
        mean = (np.bincount(self.past, values_p, minlength=self.n) + weight * prior) / (count + weight)
        return mean[self.rows], np.log1p(count[self.rows])


def aggregates(past: Events, rows: Events) -> tuple[NDArray[np.float32], list[str]]:
    """[n, A] and the names. Impressions of `past` without an observed long_view are left out. NaN = not known."""
    past = past.take(np.flatnonzero(past["long_view"] >= 0))
    seen = past["long_view"].astype(np.float64)
    base = float(seen.mean()) if len(seen) else 0.0

    def both(column: str) -> Keys:
        return Keys(past[column], rows[column])

    video, user, author = both("video_id"), both("user_id"), both("author_id")
    tag = Keys(past["tags"][:, 0], rows["tags"][:, 0])
    lengths = [bounded_bucket(log["duration_ms"], DURATION_BOUNDS_MS) for log in (past, rows)]
    duration, tab = Keys(*lengths), both("tab")
    found: dict[str, NDArray[Any]] = {}

    def add(name: str, keys: Keys, values: Floats, prior: float, weight: float, counted: bool = True) -> Floats:
        found[name], count = keys.rate(values, prior, weight)
        if counted:
            found[f"{name}_n"] = count
        return found[name]

    add("video", video, seen, base, ITEM_PRIOR)
    add("author", author, seen, base, ITEM_PRIOR)
    add("tag_rate", tag, seen, base, ITEM_PRIOR, counted=False)
    add("duration_rate", duration, seen, base, ITEM_PRIOR, counted=False)
    add("user", user, seen, base, USER_PRIOR)
    # what is left once the video's own rate is taken off: taste, not exposure
    rate_p = Keys(past["video_id"], past["video_id"]).rate(seen, base, ITEM_PRIOR)[0]
    rest = seen - rate_p
    add("user_rest", user, rest, 0.0, USER_PRIOR, counted=False)
    for name, keys in (("author", author), ("tag", tag), ("duration", duration), ("video", video), ("tab", tab)):
        add(f"user_{name}", user * keys, rest, 0.0, PAIR_PRIOR)
    timed = past["tab"] >= 0
    add("tab_rate", Keys(past["tab"][timed], rows["tab"]), seen[timed], base, ITEM_PRIOR, counted=False)
    recent = seen[timed] - Keys(past["tab"][timed], past["tab"][timed]).rate(seen[timed], base, ITEM_PRIOR)[0]
    add("video_recent", Keys(past["video_id"][timed], rows["video_id"]), recent, 0.0, ITEM_PRIOR)
    add("user_recent", Keys(past["user_id"][timed], rows["user_id"]), recent, 0.0, USER_PRIOR)
    liked = past["like"] == 1
    add("video_like", video, liked.astype(np.float64), float(liked.mean()) if len(liked) else 0.0, 50.0, counted=False)
    add("user_like", user, liked.astype(np.float64), float(liked.mean()) if len(liked) else 0.0, 20.0, counted=False)
    first_tag = rows["tags"][:, 0]
    found["tag"] = np.where(first_tag == MISSING_KEY, np.nan, first_tag.astype(np.float64))
    found |= {"tab": rows["tab"], "activity": rows["user_activity"], "hour": rows["hour"]}
    for name in ("duration_ms", "upload_age_days", "user_register_days"):
        found[name] = np.where(rows[name] >= 0, rows[name], np.nan)
    return np.stack([column.astype(np.float32) for column in found.values()], axis=1), list(found)


def by_day(events: Events, day_of: Ints, days: Sequence[int]) -> tuple[NDArray[np.float32], Ints]:
    """Aggregates of the impressions of each day from those before it: [n, A], and their rows in the log [n]."""
    parts, rows = [], []
    for day in days:
        mine = np.flatnonzero(day_of == day)
        parts.append(aggregates(events.take(np.flatnonzero(day_of < day)), events.take(mine))[0])
        rows.append(mine)
    return np.concatenate(parts), np.concatenate(rows)

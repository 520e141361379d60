"""A log cut for incremental training: old days, one new day, the day after as the test, and old positives kept aside.

The last day is the test, the one before it is new, those before are old. Nobody trains on what some users liked on the
last old day: it tells whether old days are kept. In the simulator all users and videos are there from the start, so a
share of them is hidden from the old days.

Shapes: E events.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from contract.errors import InputError
from contract.events import Events
from contract.history import is_positive

if TYPE_CHECKING:
    from training.readers import LogData
    from training.retrieval_split import Queries, RetrievalSplit

HELD_SHARE = 0.5  # of the users: their positives of the last old day are asked about, and trained on by no arm


@dataclass(frozen=True, eq=False)
class NewDayData:
    """old, kept aside, new, test: events of each part; new_ms, test_ms, aside_ms: where those days begin, counted with
    utc_offset_hours."""

    old: LogData
    aside: LogData
    new: LogData
    test: LogData
    aside_ms: int
    new_ms: int
    test_ms: int
    utc_offset_hours: float = 0.0

    def joined(self, *parts: LogData) -> LogData:
        return self.old._replace(events=Events.concat([part.events for part in parts]))

    @cached_property
    def test_split(self) -> RetrievalSplit:
        """`val`: positives of the test day; histories up to and with the new day."""
        return self._split(self.joined(self.old, self.new, self.test), self.test_ms)

    @cached_property
    def old_split(self) -> RetrievalSplit:
        """`val`: old positives kept aside; histories up to the day before."""
        from training.days import split_at

        kept = self.old._replace(events=split_at(self.old.events, self.aside_ms, self.utc_offset_hours)[0])
        return self._split(self.joined(kept, self.aside), self.aside_ms)

    def _split(self, data: LogData, cut_ms: int) -> RetrievalSplit:
        from training.retrieval_split import split_of

        return split_of(data, "new days", cut_ms=cut_ms, utc_offset_hours=self.utc_offset_hours)

    def groups(self) -> dict[str, tuple[RetrievalSplit, Queries]]:
        """What is asked, by name. New items and users: a positive on the new day, none before."""
        queries = self.test_split.chosen("val")
        item = self.test_split.items.video_id[queries.item]
        user = np.where(queries.user >= 0, self.test_split.index.user_id[np.maximum(queries.user, 0)], 0)
        new_item, new_user = _first_seen(self, "video_id", item), _first_seen(self, "user_id", user)
        found = {
            "next day": (self.test_split, queries),
            "new items": (self.test_split, queries.take(new_item)),
            "new users": (self.test_split, queries.take(new_user)),
            "the rest": (self.test_split, queries.take(~new_item & ~new_user)),
            "old days": (self.old_split, self.old_split.chosen("val")),
        }
        return {name: (split, asked) for name, (split, asked) in found.items() if len(asked)}


def cut_new_day(data: LogData, *, hide: float, utc_offset_hours: float = 0.0, seed: int = 0) -> NewDayData:
    """Cut a log of four days or more. hide: share of users, and of videos, without events before the new day.

    Raises InputError for a shorter log or a share outside [0, 1).
    """
    from training.days import DAY_MS, days_of

    if not 0.0 <= hide < 1.0:
        raise InputError("--hide is a share of users and videos", got=hide, allowed="0 to below 1")
    events, day_E = data.events, days_of(data.events, utc_offset_hours)
    days = np.unique(day_E[day_E >= 0])
    if len(days) < 4:
        raise InputError("incremental training is judged on four days or more", got=f"{len(days)} days")
    last_old, new, test = (int(day) for day in days[-3:])
    random = np.random.default_rng(seed)
    videos, users = np.unique(data.items.video_id), np.unique(events["user_id"])
    late = [random.choice(ids, int(hide * len(ids)), replace=False) for ids in (videos, users)]
    hidden_E = np.isin(events["video_id"], late[0]) | np.isin(events["user_id"], late[1])
    asked = random.choice(users, int(HELD_SHARE * len(users)), replace=False)
    old_E = (day_E < new) & ~hidden_E
    aside_E = old_E & (day_E == last_old) & np.isin(events["user_id"], asked)

    def part(rows_E: NDArray[np.bool_]) -> LogData:
        return data._replace(events=events.take(np.flatnonzero(rows_E)))

    aside_ms, new_ms, test_ms = (day * DAY_MS - int(utc_offset_hours * 3_600_000) for day in (last_old, new, test))
    parts = part(old_E & ~aside_E), part(aside_E), part(day_E == new), part(day_E == test)
    return NewDayData(*parts, aside_ms, new_ms, test_ms, utc_offset_hours)


def _first_seen(data: NewDayData, column: str, ids: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Whether each id has a positive on the new day and none before."""
    liked = [_liked(part.events, column) for part in (data.new, data.old)]
    return np.isin(ids, liked[0]) & ~np.isin(ids, liked[1])


def _liked(events: Events, column: str) -> NDArray[np.uint64]:
    found: NDArray[np.uint64] = np.unique(events[column][is_positive(events["long_view"], events["like"])])
    return found

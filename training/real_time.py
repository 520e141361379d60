"""The setting "real-time feedback": histories go on through the days that are scored, as a server's do.

Impression i may also read the user's earlier impressions j of those days, where `time_j < time_i` and
`time_j + play_time_j <= time_i`: rows of one time, exact copies among them, never see each other. As a history is read
in its order, what comes after a video that still plays waits for it (in KuaiRand-Pure's last two days that costs 0.5 %
of the pairs that the rule allows). What was before the cut counts from when it was known.

    ranked = evaluate_ranker(checkpoint, events, cut_ms, live=True)[1]       # real-time, past only, item rate
    gains = slices(*map(within_user.evaluate, ranked[:2])); print(slices_table(gains))

Shapes: n impressions, U users.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.events import Events
from contract.history import HistoryIndex
from contract.stats import Interval
from training.ranker_data import live_bounds
from training.retrieval_result import difference_text
from training.within_user import METRICS, WithinUserResult, difference, same_impressions

AT_LEAST = (1, 3, 6, 12)  # impressions of a user in the window; 1 = everyone


def live_index(events: Events, late: NDArray[np.bool_]) -> HistoryIndex:
    """Every impression that may ever be read, known no earlier than its play ended. late: bool [n], the scored days.

    An impression of those days whose end nobody told (no play time, no known_at_ms) is never known, so it is left out.
    """
    time_ms, play_ms, known_ms = events["time_ms"], events["play_time_ms"], events["known_at_ms"]
    ended_ms = np.where((time_ms >= 0) & (play_ms >= 0), time_ms + play_ms, np.int64(-1))
    known_ms = np.maximum(known_ms, ended_ms)
    return HistoryIndex.from_events(
        events.with_columns(known_at_ms=known_ms), every=True, among=~late | (known_ms >= 0)
    )


def entries_within(events: Events, late: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many impressions of the scored days each of them may read: int64, one for each late impression."""
    index = live_index(events, late)
    start, end = live_bounds(index, events)
    before = np.append(0, np.cumsum(late[index.event]))
    found: NDArray[np.int64] = (before[end] - before[start])[late]
    return found


def told_live(events: Events, late: NDArray[np.bool_]) -> str:
    """The setting in words, for the protocol."""
    reads = int((entries_within(events, late) > 0).sum())
    return (
        "REAL-TIME feedback: labels up to the cut only, histories up to each impression, what was shown before it and "
        f"played to its end by then ({reads} of {int(late.sum())} impressions read one or more of these days)"
    )


@dataclass(frozen=True)
class Slice:
    """Users with at least so many impressions in the window, and real-time − past only over them, by METRICS."""

    at_least: int
    users: int
    impressions: int
    difference: Mapping[str, Interval]

    def to_dict(self) -> dict[str, Any]:
        counts = {"at_least": self.at_least, "users": self.users, "impressions": self.impressions}
        return {**counts, "difference": {name: one.to_json() for name, one in self.difference.items()}}


def slices(
    live: WithinUserResult, frozen: WithinUserResult, at_least: Sequence[int] = AT_LEAST, *, seed: int = 0
) -> list[Slice]:
    """live − frozen, paired, over users with at least so many impressions; slices without users are left out.

    Raises InputError when the impressions differ.
    """
    same_impressions(live, frozen)
    found = []
    count = np.unique(live.scored.user_id, return_counts=True)[1]
    for number in at_least:
        kept = count >= number
        if kept.any():
            apart = difference(live.users.take(kept), frozen.users.take(kept), seed=seed)
            found.append(Slice(number, int(kept.sum()), int(count[kept].sum()), apart))
    return found


def slices_table(found: Sequence[Slice]) -> str:
    """One line a slice."""
    rows = [["real-time − past only", "users", "impressions", *METRICS]]
    for one in found:
        name = "all users" if one.at_least <= 1 else f"users with ≥ {one.at_least}"
        apart = [one.difference[metric] for metric in METRICS]
        cells = [difference_text(metric) + " *" * metric.excludes_zero for metric in apart]
        rows.append([name, str(one.users), str(one.impressions), *cells])
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    head = "the same checkpoint, paired, 95 % intervals, users drawn whole; * excludes 0"
    return "\n".join([head, *(f"  {line}" for line in lines)])

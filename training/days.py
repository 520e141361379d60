"""Days of a log and the cut between what is trained on and what is held out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from contract.errors import EventError, InputError
from contract.events import Events

DAY_MS, HOUR_MS = 86_400_000, 3_600_000


def days_of(events: Events, utc_offset_hours: float = 0.0) -> NDArray[np.int64]:
    """Day number of each impression where its users live: int64 [n], -1 = no time.

    Around midnight the log's own hour decides: KuaiRand files an impression under the hour in which it was written, up
    to an hour after it was shown, and its published protocols count days so.
    """
    local_ms = events["time_ms"] + int(utc_offset_hours * 3_600_000)
    day, hour = local_ms // DAY_MS, local_ms % DAY_MS // HOUR_MS
    apart = np.where(events["hour"] >= 0, events["hour"] - hour, 0)
    day = day + (apart < -12) - (apart > 12)
    return np.where(events["time_ms"] < 0, np.int64(-1), day)


def cut_before_last_days(events: Events, days: int, utc_offset_hours: float = 0.0) -> int:
    """Unix milliseconds at which the last `days` days of the log begin.

    Raises InputError when nothing would be left before them, EventError for a log without times or of one day alone.
    """
    found = np.unique(days_of(events, utc_offset_hours))
    found = found[found >= 0]
    if not len(found):
        raise EventError("the log has no times, so nothing can be held out", fix="hold out 0 days")
    first, most = int(found[-1]) - days + 1, int(found[-1] - found[0])
    if days < 1 or (not (found < first).any() and not (events["time_ms"] < 0).any()):
        if not most:
            fix = "hold out 0 days to train, name the first millisecond by --from-ms to evaluate"
            raise EventError("the log is of one day, so no day of it can be held out", got=f"{days} held out", fix=fix)
        raise InputError("can't hold out so many days", got=days, allowed=f"1 … {most}")
    return first * DAY_MS - int(utc_offset_hours * 3_600_000)


def held_out(events: Events, cut_ms: int, utc_offset_hours: float = 0.0) -> NDArray[np.bool_]:
    """Impressions from the cut on: bool [n]. A cut at midnight goes by `days_of`, any other by the time alone."""
    day, rest = divmod(cut_ms + int(utc_offset_hours * 3_600_000), DAY_MS)
    late: NDArray[np.bool_] = events["time_ms"] >= cut_ms if rest else days_of(events, utc_offset_hours) >= day
    return late


def split_at(events: Events, cut_ms: int, utc_offset_hours: float = 0.0) -> tuple[Events, Events]:
    """What lies before the cut, impressions without a time included, and what comes from it on (`held_out`)."""
    late = held_out(events, cut_ms, utc_offset_hours)
    return events.take(np.flatnonzero(~late)), events.take(np.flatnonzero(late))

"""What a log reader gives, and the tables of an event file that came without them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from contract.catalogue import Catalogue, UserTable
from contract.events import Events
from contract.vocabulary import NULL_INT


class LogData(NamedTuple):
    """events sorted stably by (user_id, time_ms); the items and users they refer to, others may be there too."""

    events: Events
    items: Catalogue
    users: UserTable


def tables_of(events: Events) -> tuple[Catalogue, UserTable]:
    """Catalogue and users as far as the events tell (last row of each id); upload_ms is right to a day."""
    last = _last_rows(events["video_id"])
    time_ms, age_days = events["time_ms"][last], events["upload_age_days"][last].astype(np.int64)
    upload_ms = np.where((time_ms >= 0) & (age_days >= 0), np.maximum(time_ms - age_days * 86_400_000, 0), NULL_INT)
    items = Catalogue(
        video_id=events["video_id"][last],
        author_id=events["author_id"][last],
        tags=events["tags"][last],
        duration_ms=events["duration_ms"][last],
        upload_ms=upload_ms,
        music_id=events["music_id"][last],
        kind=events["kind"][last],
    )
    last = _last_rows(events["user_id"])
    users = UserTable(
        user_id=events["user_id"][last],
        activity=events["user_activity"][last],
        register_days=events["user_register_days"][last],
    )
    return items, users


def _last_rows(ids: NDArray[np.uint64]) -> NDArray[np.int64]:
    _, from_end = np.unique(ids[::-1], return_index=True)
    return len(ids) - 1 - from_end

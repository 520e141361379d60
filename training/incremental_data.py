"""Old and new events side by side: what incremental training reads, what it trains on, and what it replays.

A checkpoint says up to when it was trained. Positives shown since then are new; earlier ones are the histories in front
of them, and a share of them is trained on again, so that the old days are not forgotten.

Shapes: P places (positives of both), U users, N items.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from contract.catalogue import Catalogue
from contract.errors import InputError
from contract.events import Events
from training.days import cut_before_last_days, held_out
from training.readers import LogData
from training.readers.log_data import tables_of
from training.retrieval_split import RetrievalSplit, split_of
from training.segments import SegmentBatch, SegmentData


@dataclass(frozen=True, eq=False)
class NewDays:
    """A split of old and new events, and which of its places are which.

    split     of both; `val` from the new days' cut on, where there is one
    new_P     bool [P]  trained on: from `since_ms` on (`days.held_out`) and before the cut
    old_P     bool [P]  before `since_ms`: histories, and what is replayed
    left_out  events given as new that are older; those in `old` count
    between   events of `old` that the checkpoint has not seen and that are older than the new ones: trained on as well
    source    where the histories come from, in words
    """

    split: RetrievalSplit
    since_ms: int
    new_P: NDArray[np.bool_]
    old_P: NDArray[np.bool_]
    left_out: int
    between: int
    source: str

    def only(self, keep_P: NDArray[np.bool_]) -> RetrievalSplit:
        """The split with these places alone as targets; all the others are still histories."""
        return replace(self.split, row_P=np.where(keep_P, self.split.row_P, np.int64(-1)))

    def told(self) -> str:
        """What is trained on and what is not, for a person."""
        since = datetime.fromtimestamp(self.since_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")
        user_P = self.split.index.user_P
        text = f"{self.new_P.sum()} positives of {len(np.unique(user_P[self.new_P]))} users since {since} UTC; "
        text += f"histories: {self.old_P.sum()} earlier positives, {self.source}"
        text += f"; {self.left_out} events given as new are older and left out" if self.left_out else ""
        text += f"; {self.between} events of the old log came since as well and count as new" if self.between else ""
        return text


def join_days(
    new: LogData,
    old: LogData | None,
    since_ms: int,
    name: str,
    *,
    holdout_days: int = 0,
    utc_offset_hours: float = 0.0,
) -> NewDays:
    """Put new events behind old ones. The last `holdout_days` days are held out as `val`; 0 = all are trained on.

    old: histories and replay; what it has between `since_ms` and the first of the new events (days that were held out
    when the checkpoint was trained) counts as new. None = what `new` itself has.
    Raises InputError when `new` has no positive since then, or none is left before the days held out.
    """
    recent = held_out(new.events, since_ms, utc_offset_hours)
    if not recent.any():
        raise InputError(
            "these events are from before the checkpoint's training ended",
            got=f"latest {int(new.events['time_ms'].max(initial=-1))} ms",
            allowed=f"from {since_ms} ms",
            fix="give the events that came since",
        )
    before = new if old is None else old
    unseen = held_out(before.events, since_ms, utc_offset_hours)
    also_new = unseen & (before.events["time_ms"] < new.events["time_ms"][recent].min()) & (old is not None)
    events = Events.concat([_chosen(before, ~unseen | also_new).events, _chosen(new, recent).events])
    items = joined_catalogue(new.items, *([] if old is None else [old.items]), tables_of(events)[0])
    cut_ms = cut_before_last_days(events, holdout_days, utc_offset_hours) if holdout_days else None
    if cut_ms is not None and cut_ms <= since_ms:
        raise InputError("no new day is left before those held out", got=f"--holdout-days {holdout_days}")
    joined = LogData(events, items, new.users)
    split = split_of(joined, name, cut_ms=cut_ms, holdout_days=0, utc_offset_hours=utc_offset_hours)
    since_P = held_out(events, since_ms, utc_offset_hours)[split.index.event]
    trained_P = np.zeros(len(split.index), bool)
    trained_P[split.train_places()] = True
    new_P = trained_P & since_P
    if not new_P.any():
        raise InputError(
            "no positive (long_view or like) since the checkpoint's training ended",
            got=f"{int(recent.sum())} events",
            allowed=f"from {since_ms} ms" + (f" to {cut_ms} ms" if cut_ms is not None else ""),
        )
    source = "from --data" if old is not None else "from --events alone: pass --data with the old log for all of them"
    left_out = 0 if old is None else int((~recent).sum())
    return NewDays(split, since_ms, new_P, ~since_P, left_out, int(also_new.sum()), source)


def joined_catalogue(*parts: Catalogue) -> Catalogue:
    """All items; where several parts have one, the first says what it is."""
    kept: list[Catalogue] = []
    for part in parts:
        known = np.zeros(len(part), bool)
        for one in kept:
            known |= one.index_of(part.video_id) >= 0
        kept.append(Catalogue(**{name: getattr(part, name)[~known] for name in Catalogue.__dataclass_fields__}))
    columns = {name: [getattr(part, name) for part in kept] for name in Catalogue.__dataclass_fields__}
    return Catalogue(**{name: np.concatenate(parts) for name, parts in columns.items()})


def _chosen(data: LogData, rows: NDArray[np.bool_]) -> LogData:
    return data._replace(events=data.events.take(np.flatnonzero(rows)))


class WithReplay:
    """Batches of the new positives, and among them, at random places, batches of old ones.

    replay: old batches beside each new one; at most every old positive once a pass.
    """

    def __init__(self, new: SegmentData, old: SegmentData | None, replay: float):
        self.new, self.old = new, old
        self.n_old = 0 if old is None else min(round(replay * new.steps_per_epoch), old.steps_per_epoch)
        self.steps_per_epoch = new.steps_per_epoch + self.n_old

    def batches(self, epoch: int, seed: int) -> Iterator[SegmentBatch]:
        """`steps_per_epoch` batches, for the same (epoch, seed) the same."""
        is_old = np.arange(self.steps_per_epoch) < self.n_old
        new = self.new.batches(epoch, seed)
        old = self.old.batches(epoch, seed) if self.old is not None and self.n_old else iter(())
        for take_old in np.random.default_rng((seed, epoch, 1)).permutation(is_old):
            yield next(old if take_old else new)

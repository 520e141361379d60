"""How many items of some data a checkpoint knows: those that have a row of their own in its table of videos.

`kir evaluate` says so where the checkpoint was trained on data of another kind, or knows few of the items: its figures
are then those of the default row and of the items' content. Ids are compared as numbers: two data sets may share
numbers and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.checkpoint import Checkpoint

FEW = 0.5  # share of the items below which it is said whatever the data are called
TABLE = "video"


@dataclass(frozen=True)
class KnownItems:
    """known of items have a row; trained_on, asked: kinds of data as `--data` names them, "" where a checkpoint says
    none."""

    known: int
    items: int
    trained_on: str
    asked: str

    @property
    def share(self) -> float:
        return self.known / self.items if self.items else 0.0

    @property
    def line(self) -> str:
        """One line for a person; "" where there is nothing to say."""
        few, other = self.share < FEW, bool(self.trained_on) and self.trained_on != self.asked
        if not few and not other:
            return ""
        about = f"trained on {self.trained_on}, asked about {self.asked}: " if other else ""
        known = f"the checkpoint has rows for {self.known:,} of {self.items:,} items of these data ({self.share:.0%})"
        return f"{'CAUTION' if few else 'note'}: {about}{known}"

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "share": self.share}


def known_items(checkpoint: Checkpoint, video_id: NDArray[np.uint64], data: str) -> KnownItems | None:
    """Of the items `video_id` (uint64, repeats count once) of data named `data`; None for a spec without the table."""
    if TABLE not in checkpoint.tables.keys:
        return None
    ids = np.unique(video_id)
    known = int((checkpoint.tables.slots(TABLE, ids) > 0).sum())
    trained_on = str(checkpoint.config["training"].get("data") or "")
    return KnownItems(known, len(ids), *(name.partition(":")[0] for name in (trained_on, data)))

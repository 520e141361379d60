"""KuaiFormer with the windows that the server keeps, as a scorer: what its shorter tails and fewer windows cost.

Every user is taken to have been answered after each of their positives, so that the windows are where
`contract.window_plan.WindowPlan` has moved them by then.

Shapes: B users, K interests, D width, L history.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from contract.window_plan import WindowPlan
from training.devices import to_device
from training.retrieval_eval import KuaiFormerScorer

if TYPE_CHECKING:
    from training.kuaiformer import KuaiFormer
    from training.retrieval_rank import Ids
    from training.retrieval_split import RetrievalSplit
    from training.tables import SparseTables


class ServedScorer(KuaiFormerScorer):
    """A KuaiFormer with compressed windows. Raises InputError for one without."""

    def __init__(self, net: KuaiFormer, tables: SparseTables, name: str = "kuaiformer, windows kept"):
        super().__init__(net, tables, name)
        self.plan = WindowPlan(net.config.windows, net.config.latest)

    def interests(self, split: RetrievalSplit, user: Ids, end: Ids) -> torch.Tensor:
        """float32 [B, K, D] of histories [start(user), end), the protocol's last places of them, with what stands for
        each after so many positives."""
        n_B, start = end - split.start(user), np.maximum(split.start(user), end - split.history)
        states = self.plan.after_each(int(n_B.max(initial=0)))
        groups: dict[tuple[int, tuple[int, ...]], list[int]] = {}
        for row, n in enumerate(n_B):
            groups.setdefault(states[n], []).append(row)
        found: torch.Tensor | None = None
        for (tail, sizes), rows in groups.items():
            answered = self._answered(start[rows], end[rows], max(tail, 1), sizes)
            found = answered.new_zeros(len(user), *answered.shape[1:]) if found is None else found
            found[torch.tensor(rows)] = answered
        assert found is not None, "a batch has users"
        return found

    def _answered(self, start: Ids, end: Ids, tail: int, sizes: tuple[int, ...]) -> torch.Tensor:
        early, encoder = sum(sizes), self.net.encoder
        length = early + tail
        slots, mask_BL = self._history.window(np.maximum(start, end - length), end, length)
        slots, mask_BL = to_device((slots, mask_BL), next(self.net.parameters()).device)
        rows = self.tables.rows(self.net.spec, "history_rows", slots)
        kept = encoder.compressed(rows[:, :early], mask_BL[:, :early], sizes) if sizes else None
        answered: torch.Tensor = encoder.behind(kept, rows[:, early:], mask_BL[:, early:])[:, 0]
        return answered

"""A factorisation machine (Rendle, ICDM 2010) over user, video, author, tab and duration bucket: the published peer.

Trained on every impression before the cut, those without a time first in the same epoch's shuffle; a missing field is a
value of its own.

Shapes: n impressions, F fields, E width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from contract.buckets import DURATION_BOUNDS_MS, bounded_bucket

if TYPE_CHECKING:
    from contract.events import Events

WIDTH, EPOCHS, BATCH = 16, 8, 1024
RATE, DECAY = 0.5, 1e-6  # of Adagrad
FIELDS = ("user_id", "video_id", "author_id", "tab", "duration")


class FactorisationMachine(nn.Module):
    """bias + Σ w_f + ½((Σ v_f)² − Σ v_f²): indices [n, F] into one table of all fields -> logits [n]."""

    def __init__(self, rows: int, width: int = WIDTH):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(()))
        self.weight = nn.Embedding(rows, 1)
        self.vector = nn.Embedding(rows, width)
        nn.init.zeros_(self.weight.weight)
        nn.init.normal_(self.vector.weight, std=0.05)

    def forward(self, index_nF: Tensor) -> Tensor:
        v_nFE = self.vector(index_nF)
        pairs_n = 0.5 * (v_nFE.sum(1) ** 2 - (v_nFE**2).sum(1)).sum(1)
        logits: Tensor = self.bias + self.weight(index_nF).sum((1, 2)) + pairs_n
        return logits


def field_indices(earlier: Events, later: Events) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Rows of one table for both logs, [·, F] each, and its size. Values that `earlier` lacks share a row of their
    field, which stands for any unknown one and is never trained."""
    parts: list[list[NDArray[Any]]] = [[], []]
    size = 0
    for name in FIELDS:
        if name == "duration":
            values = [bounded_bucket(log["duration_ms"], DURATION_BOUNDS_MS) for log in (earlier, later)]
        else:
            values = [log[name] for log in (earlier, later)]
        known = np.unique(values[0])
        for side, column in zip(parts, values, strict=True):
            place = np.minimum(np.searchsorted(known, column), len(known) - 1)
            side.append(size + np.where(known[place] == column, place + 1, 0))
        size += len(known) + 1
    first, second = (np.stack(columns, axis=1).astype(np.int64) for columns in parts)
    return first, second, size


def fm_scores(
    events: Events, cut_ms: int, *, seed: int = 0, epochs: int = EPOCHS, utc_offset_hours: float = 0.0
) -> NDArray[np.float64]:
    """Chances of long_view of the impressions from `cut_ms` on, in the log's order."""
    from training.days import split_at

    earlier, later = split_at(events, cut_ms, utc_offset_hours)
    earlier = earlier.take(np.flatnonzero(earlier["long_view"] >= 0))
    index_nF, later_nF, size = field_indices(earlier, later)
    label_n = torch.from_numpy(earlier["long_view"].astype(np.float32))
    index = torch.from_numpy(index_nF)
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = FactorisationMachine(size)
        with torch.no_grad():
            model.bias.fill_(float(torch.logit(label_n.mean().clamp(1e-4, 1 - 1e-4))))
        optimizer = torch.optim.Adagrad(model.parameters(), lr=RATE, initial_accumulator_value=0.1, weight_decay=DECAY)
        for _ in range(epochs):
            for rows in np.array_split(rng.permutation(len(earlier)), max(1, len(earlier) // BATCH)):
                picked = torch.from_numpy(rows)
                loss = F.binary_cross_entropy_with_logits(model(index[picked]), label_n[picked])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        with torch.no_grad():
            return torch.sigmoid(model(torch.from_numpy(later_nF))).numpy().astype(np.float64)

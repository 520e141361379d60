"""A model's scores with what was watched of late added: what a baseline gains by the prior that KuaiFormer has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from contract.errors import InputError

if TYPE_CHECKING:
    from training.retrieval_split import RetrievalSplit


class WithPrior:
    """A scorer plus `weight` times `training.recency`'s prior as of the split's cut.

    half_life_days: of the counts. Its unit is that of the scorer's scores, so `weight` is chosen for each model.
    """

    def __init__(self, scorer: Any, weight: float, half_life_days: float = 1.0):
        self.name = f"{scorer.name}+prior"
        self._scorer, self._weight, self._half_life = scorer, weight, half_life_days
        self._split: RetrievalSplit | None = None
        self._prior_N = np.zeros(0, np.float32)

    def refresh(self) -> None:
        """As `training.retrieval_rank.Scorer`."""
        if hasattr(self._scorer, "refresh"):
            self._scorer.refresh()

    def scores(self, split: RetrievalSplit, user: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.float32]:
        """As `training.retrieval_rank.Scorer`. Raises InputError for data without times."""
        from training.recency import recency_of

        if self._split is not split:
            self._split, self._prior_N = split, np.float32(self._weight) * recency_of(split, self._half_life).now_N
        found: NDArray[np.float32] = self._scorer.scores(split, user, end) + self._prior_N
        return found


def prior_weights(words: list[str]) -> dict[str, float]:
    """{"SASRec": 0.5} of "SASRec=0.5". Raises InputError."""
    found = {}
    for word in words:
        name, _, weight = word.partition("=")
        try:
            found[name] = float(weight)
        except ValueError:
            raise InputError("--prior takes NAME=WEIGHT", got=word, fix="as --prior SASRec=0.5") from None
    return found

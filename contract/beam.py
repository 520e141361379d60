"""ListReward and the adaptive beam search over it (KIR, CIKM 2022, section 5, Eq. 4 to 6, Algorithm 1).

    LR(P) = Σ_i s_i · r_i        s_1 = 1, s_i = Π_{j<i} h_j

r_i is the value of the video in place i given what is placed before it, h_j the probability that the user watches on
after place j. Each step expands every kept list by every unused candidate and keeps the best k of all of them; the
search stops once the kept rewards are so close that going on would hardly change who stands first.

Shapes: k lists kept, m candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.checks import INT32_MAX, check_number, check_whole
from contract.errors import InputError
from contract.golden import fused_values

Floats = NDArray[np.floating]
# Lists of candidates, all of one length -> rewards r and survivals h of each candidate in the next place, [lists, m].
Expand = Callable[[Sequence[tuple[int, ...]]], tuple[Floats, Floats]]

_FLOAT32_MAX = float(np.finfo(np.float32).max)
STABLE, EXHAUSTED, DEPTH, TIME = "stable", "exhausted", "depth", "time"


@dataclass(frozen=True)
class ListReward:
    """What a place of a list is worth, as data of a model: r = Σ value[task] · sigmoid(score), h = P(survival).

    value     task -> weight; the α and β of Eq. 4
    survival  the task whose probability discounts what comes after (Eq. 5)
    """

    value: Mapping[str, float]
    survival: str = "has_next"

    @staticmethod
    def from_json(data: Any, tasks: Sequence[str], where: object = "list_reward") -> ListReward:
        """{"value": {task: weight}, "survival": task}, checked against the model's tasks. Raises InputError."""
        what = "list_reward is {value: {task: weight}, survival: task} with the model's tasks and finite weights"
        wrong = InputError(what, where=where, got=data, allowed=tuple(tasks))
        if (
            not isinstance(data, Mapping)
            or set(data) != {"value", "survival"}
            or not isinstance(data["value"], Mapping)
        ):
            raise wrong
        value, survival = data["value"], data["survival"]
        numbers = all(
            isinstance(w, int | float) and not isinstance(w, bool) and abs(w) <= _FLOAT32_MAX for w in value.values()
        )
        if not value or not numbers or set(value) - set(tasks) or survival not in tuple(tasks):
            raise wrong
        return ListReward(dict(value), str(survival))

    def places(self, scores_kmT: Floats, tasks: Sequence[str]) -> tuple[Floats, Floats]:
        """Rewards r and survivals h [k, m] of logits [k, m, T]; `tasks` names the T columns."""
        weights_T = np.array([self.value.get(task, 0.0) for task in tasks], np.float32)
        value_km = fused_values(scores_kmT.reshape(-1, len(weights_T)), weights_T).reshape(scores_kmT.shape[:2])
        return value_km, 1.0 / (1.0 + np.exp(-scores_kmT[..., tuple(tasks).index(self.survival)]))


@dataclass(frozen=True)
class BeamPlan:
    """beams: k. depth: most places that are looked ahead. stability: t of Eq. 6. shown: n, videos that are decided now.

    One beam is greedy: a single list is always stable, so the search ends when `shown` places are filled.
    """

    beams: int = 2
    depth: int = 4
    stability: float = 0.95
    shown: int = 1

    def __post_init__(self) -> None:
        for name in ("beams", "depth", "shown"):
            check_whole(f"beam search: {name}", getattr(self, name), 1, INT32_MAX)
        check_number("beam search: stability", self.stability, 0.0, 1.0)
        if self.depth < self.shown:
            raise InputError("beam search: depth", got=self.depth, allowed=f"from shown, {self.shown}, on")


@dataclass(frozen=True)
class BeamResult:
    """items: the best list, as far as it was searched; reward: its LR; steps: places that were searched; stability: of
    the last step; ended: stable | exhausted (no candidate left) | depth | time."""

    items: tuple[int, ...]
    reward: float
    steps: int
    stability: float
    ended: str


def beam_search(
    expand: Expand,
    m: int,
    plan: BeamPlan,
    *,
    allowed: NDArray[np.bool_] | None = None,
    out_of_time: Callable[[], bool] | None = None,
) -> BeamResult:
    """Search lists of the candidates 0 … m − 1. Ties go to the list kept earlier, then to the smaller index.

    allowed      bool [m], which candidates may stand first (all of them may follow); None = all
    out_of_time  asked before every step but the first; the best list so far is the answer then
    Raises InputError when nothing may be shown or a value is not finite.
    """
    first = np.ones(m, bool) if allowed is None else allowed
    if m < 1 or not first.any():
        raise InputError("no candidate to choose from", got=m)
    lists: list[tuple[int, ...]] = [()]
    reward_k, survive_k = np.zeros(1), np.ones(1)
    stability, ended = 1.0, EXHAUSTED
    for step in range(min(m, plan.depth)):
        if step and out_of_time is not None and out_of_time():
            ended = TIME
            break
        value_km, go_on_km = expand(lists)
        total_km = reward_k[:, None] + survive_k[:, None] * value_km
        if not np.isfinite(total_km).all() or not np.isfinite(go_on_km).all():
            raise InputError("a list's reward is not finite", where=f"step {step + 1}")
        open_km = np.ones(total_km.shape, bool) if step else first[None].copy()
        for row, items in enumerate(lists):
            open_km[row, list(items)] = False
        ranked = np.where(open_km, total_km, -np.inf).ravel()
        kept = np.argsort(-ranked, kind="stable")[: min(plan.beams, int(open_km.sum()))]
        rows, columns = np.divmod(kept, m)
        reward_k, survive_k = ranked[kept], survive_k[rows] * go_on_km[rows, columns]
        lists = [(*lists[row], int(column)) for row, column in zip(rows, columns, strict=True)]
        stability = stability_of(reward_k)
        if step + 1 >= plan.shown and stability > plan.stability:
            ended = STABLE
            break
    else:
        ended = EXHAUSTED if m <= plan.depth else DEPTH
    return BeamResult(lists[0], float(reward_k[0]), len(lists[0]), stability, ended)


def stability_of(rewards: Floats) -> float:
    """min / max (Eq. 6). Equal rewards are stable whatever they are; a negative one among unequal ones is not."""
    low, high = float(rewards.min()), float(rewards.max())
    if low == high:
        return 1.0
    return low / high if low >= 0 else 0.0


def list_reward(values: Sequence[float], survivals: Sequence[float]) -> float:
    """LR of one list from its r and h, place by place (Eq. 4 and 5)."""
    total, s = 0.0, 1.0
    for value, survival in zip(values, survivals, strict=True):
        total += s * value
        s *= survival
    return total

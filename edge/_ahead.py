"""Looking ahead: `contract.beam` over the remaining candidates of a tier, scored by the `place` graph.

Several pages in the tier are one set of candidates: a placed candidate is its key and value (`placed_kv`), whatever
page it came with, so a step runs `place` once per page, all with the same lists. The first step has nothing placed and
takes the scores that `swipe` gave for NextOne.

Legend: m remaining candidates of the tier in server order, k lists, V width of placed_kv.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from contract.beam import BeamPlan, BeamResult, ListReward, beam_search
from contract.errors import InputError
from contract.vocabulary import MASK_VALUE
from edge._engine import Engine
from edge._pool import PooledPage
from edge._reranker import Reranker
from edge._types import DeviceState

Floats = NDArray[np.float32]

NO_LIST_REWARD, NO_PLACE_GRAPH, PLAN_ABOVE_CAPACITY = "no_list_reward", "no_place_graph", "plan_above_capacity"


def unfit_plan(engine: Engine, plan: BeamPlan) -> tuple[str, InputError | None]:
    """Why this model can't search by this plan, with an error that names the numbers; ("", None) when it can.

    The first place needs no slot, so that P slots reach P + 1 places. Any number of beams will do: lists go through
    the graph as many at a time as it holds.
    """
    where = engine.dense_version
    if engine.list_reward is None:
        what = "the model has no list_reward: published before it, or for NextOne alone"
        return NO_LIST_REWARD, InputError(what, where=where)
    if engine.manifest.buckets("place") != engine.buckets:
        return NO_PLACE_GRAPH, InputError("the model has no place graph", where=where, allowed=engine.buckets)
    if not engine.beams or plan.depth > engine.placed + 1:
        what = "the plan is above what the place graph holds"
        allowed = {"depth": engine.placed + 1}
        return PLAN_ABOVE_CAPACITY, InputError(what, where=where, got={"depth": plan.depth}, allowed=allowed)
    return "", None


class Expand:
    """`contract.beam.Expand` of one swipe: lists of column numbers -> r and h of every candidate placed next [k, m]."""

    def __init__(
        self,
        reranker: Reranker,
        reward: ListReward,
        tier: Sequence[PooledPage],
        device: DeviceState,
        scores_mT: Floats,
    ):
        self._engine, self._reward = reranker.engine, reward
        self._tasks = reranker.engine.manifest.tasks
        self._scores_mT = scores_mT
        self._scored = [(page.remaining, page.scored) for page in tier if page.scored]
        self._reranker, self._device = reranker, device

    def __call__(self, lists: Sequence[tuple[int, ...]]) -> tuple[Floats, Floats]:
        """Raises what the engine raises, FloatingPointError for scores that are no numbers."""
        scores_kmT = self._scores_mT[None] if lists == [()] else self._scores(lists)
        if not np.isfinite(scores_kmT).all():
            raise FloatingPointError("the place graph gave scores that are no numbers")
        value_km, survive_km = self._reward.places(scores_kmT, self._tasks)
        return value_km, survive_km

    @cached_property
    def _place(self) -> list[tuple[Sequence[int], Callable[[Floats, Floats], Floats]]]:
        """Made when something is placed: most searches by a low t end with the first step."""
        return [(remaining, self._reranker.placer(page, self._device)) for remaining, page in self._scored]

    @cached_property
    def _kv_mV(self) -> Floats:
        return np.concatenate([page.state.placed_kv[0, remaining] for remaining, page in self._scored])

    def _scores(self, lists: Sequence[tuple[int, ...]]) -> Floats:
        beams = self._engine.beams
        parts = [self._scores_of_few(lists[at : at + beams]) for at in range(0, len(lists), beams)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _scores_of_few(self, lists: Sequence[tuple[int, ...]]) -> Floats:
        beams, slots = self._engine.beams, self._engine.placed
        placed = np.zeros((1, beams, slots, self._kv_mV.shape[1]), np.float32)
        mask = np.full((1, beams, slots), MASK_VALUE, np.float32)
        for row, items in enumerate(lists):  # beams without a list stay empty: their scores are thrown away
            placed[0, row, : len(items)] = self._kv_mV[list(items)]
            mask[0, row, : len(items)] = 0.0
        parts = [place(placed, mask)[: len(lists), remaining] for remaining, place in self._place]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def search(
    reranker: Reranker,
    tier: Sequence[PooledPage],
    device: DeviceState,
    scores_mT: Floats,
    plan: BeamPlan,
    allowed_m: NDArray[np.bool_] | None = None,
    out_of_time: Callable[[], bool] | None = None,
) -> BeamResult:
    """The best list that the plan finds, of numbers of the tier's remaining candidates.

    scores_mT: logits with nothing placed, from `swipe`, after `Reranker.device`; allowed_m: who may stand first.
    Raises what the engine raises, FloatingPointError for scores that are no numbers, InputError as `unfit_plan`.
    """
    _, error = unfit_plan(reranker.engine, plan)
    reward = reranker.engine.list_reward
    if error is not None or reward is None:
        raise error or InputError("the model has no list_reward")
    expand = Expand(reranker, reward, tier, device, scores_mT)
    return beam_search(expand, len(scores_mT), plan, allowed=allowed_m, out_of_time=out_of_time)

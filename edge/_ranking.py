"""The order of the candidates that are left, without showing one, and how a feedback moved them.

Immutable values; safe to share between threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edge._choice import Decision, Situation, choose
from edge._policy import NEXT_ONE
from edge._pool import PooledPage
from edge._reranker import Reranker
from edge._types import Choice, Chooser


@dataclass(frozen=True)
class Ranking:
    """Candidates from the next to the last.

    video_ids  the first is what NextOne shows within the policy's limits; the others follow by value, which knows no
               limits. Without a model all stand in the server's order, oldest page first
    values     fused value of each, in the same order; None when the model did not rank
    chooser, reason   who ranked, and why not the model, as of `Choice`
    """

    video_ids: Sequence[int]
    values: Sequence[float] | None
    chooser: Chooser
    reason: str = ""

    @staticmethod
    def of(choice: Choice) -> Ranking:
        """The ranking that a choice was the first of."""
        return _ranking(choice, choice.video_id)


def _ranking(found: Choice | Decision, first: int) -> Ranking:
    """Ties keep the order of `considered`, as argmax does."""
    values_N = found.values_N
    order = list(range(len(found.considered)))
    if values_N is not None:
        order.sort(key=lambda n: -float(values_N[n]))
    order.sort(key=lambda n: found.considered[n] != first)
    values = None if values_N is None else [float(values_N[n]) for n in order]
    return Ranking([found.considered[n] for n in order], values, found.chooser, found.reason)


def rank(tier: Sequence[PooledPage], reranker: Reranker | None, now: Situation) -> tuple[Ranking, Exception | None]:
    """The ranking of a tier now, and what the engine said if it failed. Costs a swipe; never raises."""
    decision = choose(tier, reranker, replace(now, policy=replace(now.policy, mode=NEXT_ONE)))
    return _ranking(decision, decision.page.video_ids[decision.index]), decision.error


@dataclass(frozen=True)
class Move:
    """A candidate's place in two rankings, from 1. before: 0 when the first ranking had not got it."""

    video_id: int
    before: int
    after: int
    value_before: float | None = None
    value: float | None = None


def moves(before: Ranking | None, after: Ranking) -> list[Move]:
    """Every candidate of `after` in its order, with its place and value in `before`."""
    old = {} if before is None else {video_id: place for place, video_id in enumerate(before.video_ids)}
    found = []
    for place, video_id in enumerate(after.video_ids):
        was = old.get(video_id, -1)
        value_before = before.values[was] if before is not None and before.values and was >= 0 else None
        found.append(Move(video_id, was + 1, place + 1, value_before, after.values[place] if after.values else None))
    return found

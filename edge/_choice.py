"""The next video: the first of the best list, or the best candidate now, or the server's first. Never raises.

Each falls back to the one after it, with the reason. Not thread-safe.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from contract.beam import BeamPlan
from contract.errors import InputError
from contract.finite import all_finite
from edge._ahead import search, unfit_plan
from edge._policy import BEAM, LIMITS, About, ChoicePolicy, Limits, Mask, limits_now
from edge._pool import PooledPage
from edge._reranker import Reranker
from edge._types import Chooser, DeviceState, Reason, Search

Floats = NDArray[np.float32]
TimerNs = Callable[[], int]


@dataclass(eq=False, slots=True)
class Situation:
    """What a choice depends on beside the candidates.

    swipe_index: videos shown in this session; number: the user's running number, over all sessions; recent: author and
    tags of shown videos, the newest last.
    """

    now_ms: int
    device: DeviceState
    swipe_index: int
    number: int
    policy: ChoicePolicy
    recent: Sequence[About]
    timer_ns: TimerNs


@dataclass(eq=False, slots=True)
class Decision:
    """What was chosen: candidate `index` of `page`. error: what the engine said, for the log; began_ns: when
    features began, by the timer.
    """

    page: PooledPage
    index: int
    chooser: Chooser
    reason: str
    considered: Sequence[int]
    scores_NT: Floats | None = None
    values_N: Floats | None = None
    began_ns: int = 0
    features_us: float = 0.0
    engine_us: float = 0.0
    error: Exception | None = None
    search: Search | None = None
    relaxed: Sequence[str] = ()
    value: float | None = None
    best_value: float | None = None

    @property
    def searched(self) -> str:
        """What events add to the model's variant: an A/B must know which choices looked ahead."""
        return "+beam" if self.search is not None and not self.search.problem else ""


def choose(tier: Sequence[PooledPage], reranker: Reranker | None, now: Situation) -> Decision:
    """One of the tier's remaining candidates, none of them empty.

    NextOne is the highest fused value, ties to the earlier page and then to the server's order. Without a model, or
    when it fails or gives values that are no numbers, the server's order decides. A beam search that can't be, or
    fails, leaves NextOne's choice and `search.problem`. All keep to the policy's limits while these leave anyone.
    """
    start = now.timer_ns()
    considered = [page.video_ids[index] for page in tier for index in page.remaining]
    failed = None
    try:
        limits = limits_now(now.policy, tier, now.recent, now.device)
    except Exception as error:  # what the app handed in can't be read: a video without limits rather than none
        failed, every_N = error, np.ones(len(considered), bool)
        limits = Limits(every_N, every_N, LIMITS)

    def by_server(reason: str, error: Exception | None = failed) -> Decision:
        page, index = _place(tier, int(np.argmax(limits.allowed_N)))
        return Decision(page, index, Chooser.SERVER_ORDER, reason, considered, error=error, relaxed=limits.relaxed)

    if reranker is None or tier[0].scored is None:
        return by_server(tier[0].reason)
    try:
        begin = now.timer_ns()
        make_ready(reranker, now)
        ready = now.timer_ns()
        scores_NT = scores_of(reranker, tier, now.device)
        done = now.timer_ns()
    except Exception as error:  # whatever the engine says, a swipe shows a video; the session keeps the error
        return by_server(str(Reason.ENGINE_ERROR), error)
    if not all_finite(scores_NT):
        return by_server(str(Reason.NON_FINITE_SCORES))
    values_N = reranker.values(scores_NT)
    best = int(values_N.argmax() if limits.free else np.where(limits.allowed_N, values_N, -np.inf).argmax())
    ahead = None
    if now.policy.mode == BEAM:
        ahead = look_ahead(tier, reranker, now, scores_NT, now.policy.plan, limits.allowed_N, started_ns=start)
        best = best if ahead.first is None else ahead.first
    page, index = _place(tier, best)
    value = values_N.item(best)
    return Decision(
        page,
        index,
        Chooser.MODEL,
        "",
        considered,
        scores_NT,
        values_N,
        begin,
        (ready - begin) / 1e3,
        (done - ready) / 1e3,
        (ahead.error if ahead else None) or failed,
        ahead.search if ahead else None,
        limits.relaxed,
        value,
        value if limits.free and ahead is None else max(value, float(values_N[limits.but_preload_N].max())),
    )


def _place(tier: Sequence[PooledPage], number: int) -> tuple[PooledPage, int]:
    """Page and index of the tier's remaining candidate of that number."""
    for page in tier:
        if number < len(page.remaining):
            return page, page.remaining[number]
        number -= len(page.remaining)
    raise IndexError(number)


def make_ready(reranker: Reranker, now: Situation) -> None:
    """Keys and values up to date, and what depends on now filled in. Raises what the engine raises."""
    reranker.refresh()
    reranker.device(now.now_ms, now.device, now.swipe_index, now.number)


def scores_of(reranker: Reranker, tier: Sequence[PooledPage], device: DeviceState) -> Floats:
    """Logits [N, T] of the tier's remaining candidates, nothing placed, after `make_ready`."""
    parts = [
        reranker.scores(page.scored, device).take(page.remaining, axis=0) for page in tier if page.scored is not None
    ]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


class Ahead(NamedTuple):
    """A search, the number of the candidate that its list begins with, and what went wrong."""

    search: Search
    first: int | None = None
    error: Exception | None = None


def look_ahead(
    tier: Sequence[PooledPage],
    reranker: Reranker,
    now: Situation,
    scores_NT: Floats,
    plan: BeamPlan,
    allowed_N: Mask,
    *,
    started_ns: int | None = None,
) -> Ahead:
    """The search of one swipe. allowed_N: who may stand first (anyone may follow). Never raises.

    started_ns: when the policy's budget began; None: no budget.
    """
    problem, unfit = unfit_plan(reranker.engine, plan)
    if problem:
        return Ahead(Search(problem=problem), error=unfit)
    end_ns = np.inf
    if started_ns is not None and now.policy.budget_ms is not None:
        end_ns = started_ns + now.policy.budget_ms * 1e6
    begin = now.timer_ns()
    try:
        found = search(reranker, tier, now.device, scores_NT, plan, allowed_N, lambda: now.timer_ns() >= end_ns)
    except FloatingPointError as error:
        return Ahead(Search(problem=str(Reason.NON_FINITE_SCORES)), error=error)
    except Exception as error:  # NextOne stands; the next swipe tries again
        return Ahead(Search(problem=str(Reason.ENGINE_ERROR)), error=error)
    search_us = (now.timer_ns() - begin) / 1e3
    ids = [page.video_ids[index] for page in tier for index in page.remaining]
    items = tuple(ids[item] for item in found.items)
    done = Search(items, found.reward, found.steps, found.stability, found.ended, search_us)
    return Ahead(done, found.items[0])


def search_now(
    tier: Sequence[PooledPage],
    reranker: Reranker | None,
    now: Situation,
    plan: BeamPlan,
    first: Collection[int] | None,
) -> Ahead:
    """A search without a choice and without a budget. first: video ids that may stand first; None: those within the
    policy's limits. Raises InputError when none of them is left, and nothing else.
    """
    if reranker is None or tier[0].scored is None:
        return Ahead(Search(problem=tier[0].reason))
    allowed_N = limits_now(now.policy, tier, now.recent, now.device).allowed_N
    if first is not None:
        allowed_N = np.array([page.video_ids[i] in first for page in tier for i in page.remaining], bool)
        if not allowed_N.any():
            raise InputError("none of these candidates is left", got=sorted(first))
    try:
        make_ready(reranker, now)
        scores_NT = scores_of(reranker, tier, now.device)
    except Exception as error:  # as in a swipe
        return Ahead(Search(problem=str(Reason.ENGINE_ERROR)), error=error)
    return look_ahead(tier, reranker, now, scores_NT, plan, allowed_N)


def values_now(
    tier: Sequence[PooledPage], reranker: Reranker | None, now: Situation
) -> tuple[Floats | None, Exception | None]:
    """Fused values [N] of a tier's remaining candidates, as a swipe of now would find them; None, and what went wrong,
    when it could not.
    """
    if reranker is None:
        return None, None
    try:
        make_ready(reranker, now)
        values_N = reranker.values(scores_of(reranker, tier, now.device))
    except Exception as error:  # as in a swipe
        return None, error
    return (values_N if np.isfinite(values_N).all() else None), None

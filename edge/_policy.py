"""How a session chooses: what may be shown, and how far it looks ahead before it shows one.

Limits give way in one order when nothing else is left: the topic gap first (a topic that comes again is noticed least),
then the author gap with the topic gap back in force, then both. Preloading gives way last, and only when no candidate
is preloaded: a stall costs more than a repetition.

Legend: N remaining candidates of the tier, in server order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from contract.beam import BeamPlan
from contract.checks import INT32_MAX, check_flag, check_number, check_whole
from contract.errors import InputError
from contract.vocabulary import MISSING_KEY
from edge._pool import PooledPage
from edge._types import DeviceState

NEXT_ONE, BEAM = "next_one", "beam"
MODES = (NEXT_ONE, BEAM)
GAP_MAX = 64
LIMITS = TOPIC, AUTHOR, PRELOADED = "topic", "author", "preloaded"

Mask = NDArray[np.bool_]
_EVERY: Mask = np.ones(1024, bool)
_EVERY.flags.writeable = False
About = tuple[int, frozenset[int]]  # author and tags of a shown video


@dataclass(frozen=True)
class ChoicePolicy:
    """One policy of a session, fixed for its life.

    mode             "next_one": the best candidate now; "beam": the first of the best list that `plan` finds
    plan             beams k, depth and stability t of the search; deeper than the model's P + 1: NextOne, with the
                     problem told, since the next model may hold it
    budget_ms        no step of the search begins later than this after the choice began (0: the first alone); None: no
                     limit. A step is not broken off
    author_gap       not the same author within so many videos (0: off); topic_gap: no tag in common with them
    preloaded_only   only candidates of which the player has `buffered_min_ms` at least, as DeviceState tells
    Raises InputError for values out of range.
    """

    mode: str = NEXT_ONE
    plan: BeamPlan = field(default_factory=BeamPlan)
    budget_ms: float | None = 20.0
    author_gap: int = 0
    topic_gap: int = 0
    preloaded_only: bool = False
    buffered_min_ms: int = 1

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InputError("policy: unknown mode", got=self.mode, allowed=MODES)
        if not isinstance(self.plan, BeamPlan):
            raise InputError("policy: plan", got=type(self.plan).__name__, allowed="BeamPlan")
        check_number("policy: budget_ms", self.budget_ms, 0.0, np.inf, optional=True)
        for name in ("author_gap", "topic_gap"):
            check_whole(f"policy: {name}", getattr(self, name), 0, GAP_MAX)
        check_flag("policy: preloaded_only", self.preloaded_only)
        check_whole("policy: buffered_min_ms", self.buffered_min_ms, 1, INT32_MAX)

    @property
    def remembers(self) -> int:
        """Shown videos that the gaps look back on."""
        return max(self.author_gap, self.topic_gap)


@dataclass(eq=False, slots=True)
class Limits:
    """allowed_N: what may be shown now; but_preload_N: what might be, if it were preloaded; relaxed: limits that gave
    way, in that order; free: there is no limit, all are allowed."""

    allowed_N: Mask
    but_preload_N: Mask
    relaxed: tuple[str, ...] = ()
    free: bool = False


def limits_now(
    policy: ChoicePolicy, tier: Sequence[PooledPage], recent: Sequence[About], device: DeviceState
) -> Limits:
    """What of the tier may be shown. recent: the videos shown last, the newest at the end."""
    n = 0
    for page in tier:
        n += len(page.remaining)
    every_N = _EVERY[:n] if n <= len(_EVERY) else np.ones(n, bool)
    if not (policy.author_gap or policy.topic_gap or policy.preloaded_only):
        return Limits(every_N, every_N, free=True)
    author_N, topic_N = _other_authors(policy, tier, recent, every_N), _other_topics(policy, tier, recent, every_N)
    diverse_N, relaxed = _diverse(every_N, author_N, topic_N)
    if not policy.preloaded_only:
        return Limits(diverse_N, diverse_N, relaxed)
    told, least_ms = device.buffered_ms, policy.buffered_min_ms
    ready_N = np.array([told.get(page.video_ids[i], -1) >= least_ms for page in tier for i in page.remaining], bool)
    if not ready_N.any():
        return Limits(diverse_N, diverse_N, (*relaxed, PRELOADED))
    allowed_N, relaxed = _diverse(ready_N, author_N, topic_N)
    return Limits(allowed_N, diverse_N, relaxed)


def _diverse(ready_N: Mask, author_N: Mask, topic_N: Mask) -> tuple[Mask, tuple[str, ...]]:
    both_N, by_author_N, by_topic_N = ready_N & author_N & topic_N, ready_N & author_N, ready_N & topic_N
    if both_N.any():
        return both_N, ()
    if by_author_N.any():
        return by_author_N, (TOPIC,)
    if by_topic_N.any():
        return by_topic_N, (AUTHOR,)
    return ready_N, (TOPIC, AUTHOR)


def _other_authors(policy: ChoicePolicy, tier: Sequence[PooledPage], recent: Sequence[About], every_N: Mask) -> Mask:
    seen = {author for author, _ in recent[-policy.author_gap :]} if policy.author_gap else set()
    if not seen:
        return every_N
    authors_N = np.concatenate([page.page.candidates.author_id[page.remaining] for page in tier])
    return ~np.isin(authors_N, np.array(sorted(seen), np.uint64))


def _other_topics(policy: ChoicePolicy, tier: Sequence[PooledPage], recent: Sequence[About], every_N: Mask) -> Mask:
    """A candidate without tags shares none."""
    seen = {tag for _, tags in recent[-policy.topic_gap :] for tag in tags} if policy.topic_gap else set()
    if not seen:
        return every_N
    tags_NM = np.concatenate([page.page.candidates.tags[page.remaining] for page in tier])
    repeated_NM: Mask = np.isin(tags_NM, np.array(sorted(seen), np.uint64))
    other_N: Mask = ~np.logical_or.reduce(repeated_NM, axis=1)
    return other_N


def about(page: PooledPage, index: int) -> About:
    """Author and tags of a candidate."""
    candidates = page.page.candidates
    return int(candidates.author_id[index]), frozenset(candidates.tags[index].tolist()) - {int(MISSING_KEY)}

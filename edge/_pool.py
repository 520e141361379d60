"""The candidate pool: pages on the phone, what of them is left to show, and when to ask for more.

Soft TTL: time to ask for a new page. Hard TTL: the page is cleared when one with something new arrives; until then its
candidates are the last tier. Both in time, as the page says, and in swipes, as the app says: feedback makes a page old
as well. Times are monotonic milliseconds. Not thread-safe.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from contract.checks import INT32_MAX, check_whole
from contract.errors import InputError, PoolExhausted
from contract.page import Page
from edge._reranker import ScoredPage


@dataclass(frozen=True)
class PoolConfig:
    """max_pages: kept at once; max_candidates: over all of them; prefetch_below: ask when fewer fresh candidates are
    left; seen: ids kept.

    soft_ttl_swipes, hard_ttl_swipes: videos shown since a page arrived, beside its own TTLs in time; 0: no such limit.
    Raises InputError for values out of range.
    """

    max_pages: int = 2
    max_candidates: int = 200
    prefetch_below: int = 6
    seen: int = 1000
    soft_ttl_swipes: int = 0
    hard_ttl_swipes: int = 0

    def __post_init__(self) -> None:
        for name in ("max_pages", "max_candidates", "prefetch_below", "seen"):
            check_whole(f"pool: {name}", getattr(self, name), 1, INT32_MAX)
        for name in ("soft_ttl_swipes", "hard_ttl_swipes"):
            check_whole(f"pool: {name}", getattr(self, name), 0, INT32_MAX)
        soft, hard = self.soft_ttl_swipes, self.hard_ttl_swipes
        if 0 < hard < soft:
            allowed = "0, or soft_ttl_swipes up to hard_ttl_swipes"
            raise InputError("pool: TTLs in swipes out of range", got=(soft, hard), allowed=allowed)


@dataclass(eq=False)
class PooledPage:
    """A page in the pool.

    remaining: indices not shown, in server order; scored: None when no model can score it; swipes: videos shown since
    it arrived.
    """

    page: Page
    arrived_ms: int
    remaining: list[int]
    video_ids: Sequence[int]
    scored: ScoredPage | None = None
    reason: str = ""
    config: PoolConfig = PoolConfig()
    swipes: int = 0

    def soft_expired(self, now_ms: int) -> bool:
        too_many = 0 < self.config.soft_ttl_swipes <= self.swipes
        return too_many or now_ms - self.arrived_ms >= self.page.soft_ttl_ms

    def hard_expired(self, now_ms: int) -> bool:
        too_many = 0 < self.config.hard_ttl_swipes <= self.swipes
        return too_many or now_ms - self.arrived_ms >= self.page.hard_ttl_ms


# Fused values of a page's remaining candidates, as of now; None when the model can't tell.
Values = Callable[[PooledPage], NDArray[np.float32] | None]


class CandidatePool:
    """Pages in order of arrival. A video is in the pool once, and never after it was shown (the last `seen` ids).

    evicted: candidates that left unshown, by reason: "expired" (hard TTL), "replaced" (max_pages), "surplus"
    (max_candidates).
    """

    def __init__(self, config: PoolConfig = PoolConfig()):
        self.config = config
        self.pages: list[PooledPage] = []
        self.evicted = {"expired": 0, "replaced": 0, "surplus": 0}
        self._seen: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return sum(len(page.remaining) for page in self.pages)

    def add(self, page: Page, now_ms: int, scored: ScoredPage | None, reason: str, values: Values | None = None) -> int:
        """Take in a page; returns how many of its candidates are new to show. Expired and surplus pages go.

        A page with nothing new changes nothing: what is held, expired or not, is all there is to show.
        A video that an older page holds as well stays in the new page only: its pXTR and rows are fresher.
        values: what the model thinks of the candidates of a scored page, asked when there are too many.
        """
        ids = scored.video_ids if scored is not None else page.candidates.video_id.tolist()
        remaining = self.new_among(ids)
        if not remaining:
            return 0
        self._drop([p for p in self.pages if p.hard_expired(now_ms)], "expired")
        fresh = {ids[i] for i in remaining}
        for old in self.pages:
            old.remaining = [i for i in old.remaining if old.video_ids[i] not in fresh]
        self.pages = [p for p in self.pages if p.remaining]
        self._drop(self.pages[: max(0, len(self.pages) - (self.config.max_pages - 1))], "replaced")
        self.pages.append(PooledPage(page, now_ms, remaining, ids, scored, reason, self.config))
        self._cut(values)
        return len(remaining)

    def new_among(self, video_ids: Sequence[int]) -> list[int]:
        """Which of these, by place, were not shown lately."""
        return [i for i, video_id in enumerate(video_ids) if video_id not in self._seen]

    def _drop(self, pages: Sequence[PooledPage], reason: str) -> None:
        self.evicted[reason] += sum(len(page.remaining) for page in pages)
        self.pages = [page for page in self.pages if page not in pages]

    def _cut(self, values: Values | None) -> None:
        """Keep max_candidates. Pages that no model can score go first, from the end of the server's order, the oldest
        page before the others; then the lowest values of all pages, ties as before. Without values the server's order
        decides there too.
        """
        surplus = len(self) - self.config.max_candidates
        if surplus <= 0:
            return
        self.evicted["surplus"] += surplus
        scored = [page for page in self.pages if page.scored is not None]
        for page in [page for page in self.pages if page.scored is None]:
            surplus -= _cut_end(page, surplus)
        told = [values(page) for page in scored] if values is not None and surplus else [None]
        if any(value is None for value in told):
            for page in scored:
                surplus -= _cut_end(page, surplus)
        elif surplus:
            worth = [
                (float(value), number, -place)
                for number, values_N in enumerate(told)
                for place, value in enumerate(values_N if values_N is not None else ())
            ]
            for _, number, place in sorted(sorted(worth)[:surplus], key=lambda one: one[2]):
                del scored[number].remaining[-place]  # from the end, so that the places before it stay
        self.pages = [p for p in self.pages if p.remaining]

    def clear(self) -> None:
        """Forget every page and what was seen."""
        self.pages = []
        self._seen.clear()

    def tier(self, now_ms: int) -> list[PooledPage]:
        """The pages to choose from now, oldest first: fresh ones that the model can score, else fresh, else expired.

        Pages of one tier are either all scored by the same model or all not. Raises PoolExhausted when nothing is left.
        """
        fresh = [p for p in self.pages if not p.hard_expired(now_ms)]
        for pages in (fresh, self.pages):
            scored = [p for p in pages if p.scored is not None]
            if scored or pages:
                return scored or pages
        raise PoolExhausted("nothing is left to show", fix="fetch a page, then swipe again")

    def shown(self, page: PooledPage, index: int) -> None:
        """A candidate was shown: it leaves the pool and is not let in again."""
        page.remaining.remove(index)
        for held in self.pages:
            held.swipes += 1
        self._remember(page.video_ids[index])
        if not page.remaining:
            self.pages = [p for p in self.pages if p.remaining]

    def remember(self, video_ids: Iterable[int]) -> None:
        """Videos shown, in order: not let in again while they are among the last `seen`."""
        for video_id in video_ids:
            self._remember(video_id)

    def _remember(self, video_id: int) -> None:
        self._seen[video_id] = None
        if len(self._seen) > self.config.seen:
            self._seen.popitem(last=False)

    def unscore(self, reason: str) -> None:
        """The model that scored these pages is gone: their candidates stay in server order."""
        for page in self.pages:
            page.scored, page.reason = None, reason

    def wants_page(self, now_ms: int) -> bool:
        """Whether to ask the server: few fresh candidates left, or the newest page is past its soft TTL."""
        fresh = sum(len(p.remaining) for p in self.pages if not p.hard_expired(now_ms))
        return fresh < self.config.prefetch_below or self.pages[-1].soft_expired(now_ms)

    def excluded(self, now_ms: int) -> list[int]:
        """Ids that the server need not send: those shown, and those in the pool that are still fresh."""
        held = [p.video_ids[i] for p in self.pages if not p.soft_expired(now_ms) for i in p.remaining]
        return [*self._seen, *held]


def _cut_end(page: PooledPage, surplus: int) -> int:
    """Drop up to so many of a page's last candidates; returns how many."""
    kept = max(0, len(page.remaining) - max(0, surplus))
    dropped = len(page.remaining) - kept
    del page.remaining[kept:]
    return dropped

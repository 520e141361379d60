"""What the pool's pages tell of their videos, for a person to read. Immutable values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from contract.vocabulary import MISSING_KEY, PXTR_HEADS
from edge._pool import CandidatePool, PooledPage


@dataclass(frozen=True)
class Facts:
    """What a page tells of a video; a title is not among it. Unknown: None, no tags, no predictions, place 0.

    place: on its page as the server sent it, from 1, of `of`; pxtr: head -> probability, what the ranker gave
    """

    video_id: int
    author_id: int | None = None
    duration_ms: int | None = None
    age_days: int | None = None
    tags: tuple[int, ...] = ()
    place: int = 0
    of: int = 0
    pxtr: tuple[tuple[str, float], ...] = ()


def facts_of(pool: CandidatePool) -> dict[int, Facts]:
    """Facts of all videos on the pool's pages, shown ones too; a newer page knows better."""
    return {facts.video_id: facts for page in pool.pages for facts in _facts_of_page(page)}


def _facts_of_page(page: PooledPage) -> list[Facts]:
    c = page.page.candidates
    return [
        Facts(
            video_id=video_id,
            author_id=int(c.author_id[n]),
            duration_ms=int(c.duration_ms[n]) if c.duration_ms[n] > 0 else None,
            age_days=int(c.upload_age_days[n]) if c.upload_age_days[n] >= 0 else None,
            tags=tuple(int(tag) for tag in c.tags[n] if tag != MISSING_KEY),
            place=n + 1,
            of=len(c),
            pxtr=tuple((h, float(p)) for h, p in zip(PXTR_HEADS, c.pxtr[n], strict=True) if not np.isnan(p)),
        )
        for n, video_id in enumerate(page.video_ids)
    ]

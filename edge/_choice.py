"""NextOne: the best of the remaining candidates now, or the server's first, with the reason. Never raises.

Not thread-safe.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge._pool import PooledPage
from edge._reranker import Reranker
from edge._types import Chooser, DeviceState, Reason

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Decision:
    """What was chosen: candidate `index` of `page`. error: what the engine said, for the log."""

    page: PooledPage
    index: int
    chooser: Chooser
    reason: str
    considered: Sequence[int]
    scores_NT: Floats | None = None
    values_N: Floats | None = None
    features_us: float = 0.0
    engine_us: float = 0.0
    error: Exception | None = None


def choose(
    tier: Sequence[PooledPage],
    reranker: Reranker | None,
    *,
    now_ms: int,
    device: DeviceState,
    swipe_index: int,
    avoid_authors: Collection[int] = (),
) -> Decision:
    """One of the tier's remaining candidates, none of them empty.

    The model's choice is the highest fused value, ties to the earlier page and then to the server's order.
    Without a model, or when it fails or gives values that are no numbers, the server's order decides. Authors to avoid
    are passed over while anyone else is left.
    """
    places = [(page, index) for page in tier for index in page.remaining]
    considered = [page.video_ids[index] for page, index in places]
    allowed = np.ones(len(places), bool)
    if avoid_authors:
        allowed = np.array([int(page.page.candidates.author_id[i]) not in avoid_authors for page, i in places])
        allowed |= not allowed.any()
    server_choice = int(np.argmax(allowed))

    def by_server(reason: str, error: Exception | None = None) -> Decision:
        page, index = places[server_choice]
        return Decision(page, index, Chooser.SERVER_ORDER, reason, considered, error=error)

    if reranker is None or tier[0].scored is None:
        return by_server(tier[0].reason)
    start = time.perf_counter_ns()
    try:
        reranker.refresh()
        reranker.device(now_ms, device, swipe_index)
        ready = time.perf_counter_ns()
        parts = [reranker.scores(page.scored, device)[page.remaining] for page in tier if page.scored is not None]
        scores_NT = parts[0] if len(parts) == 1 else np.concatenate(parts)
    except Exception as error:  # whatever the engine says, a swipe shows a video; the session keeps the error
        return by_server(str(Reason.ENGINE_ERROR), error)
    done = time.perf_counter_ns()
    if not np.isfinite(scores_NT).all():
        return by_server(str(Reason.NON_FINITE_SCORES))
    values_N = reranker.values(scores_NT)
    best = int(np.argmax(np.where(allowed, values_N, -np.inf) if avoid_authors else values_N))
    page, index = places[best]
    return Decision(
        page, index, Chooser.MODEL, "", considered, scores_NT, values_N, (ready - start) / 1e3, (done - ready) / 1e3
    )

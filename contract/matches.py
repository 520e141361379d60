"""What a candidate shares with an entry of the user's history: the ranker's pairwise features, trained and served.

Shapes: … any leading axes, M candidates, h history entries, K kinds of match.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract import buckets
from contract.vocabulary import MISSING_KEY

MATCHES = ("video", "author", "tag", "duration", "music", "kind")
K_MATCHES = len(MATCHES)


def match_flags(candidates: Mapping[str, NDArray[Any]], history: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    """1 where the two share it, else 0: float32 [..., M, h, K] in the order of MATCHES. A null matches nothing.

    candidates: video_id, author_id, music_id, kind, duration_ms [..., M] and tags [..., M, TAGS_MAX]; history likewise
    with h for M.
    One tag in common is enough; durations match by bucket (`buckets.DURATION_BOUNDS_MS`).
    """
    shape = (*candidates["video_id"].shape, history["video_id"].shape[-1], K_MATCHES)
    found = np.zeros(shape, np.float32)
    for place, name in ((0, "video_id"), (1, "author_id"), (4, "music_id"), (5, "kind")):
        found[..., place] = _same(candidates[name], history[name], MISSING_KEY)
    theirs, mine = candidates["tags"], history["tags"]
    for i in range(theirs.shape[-1]):
        for j in range(mine.shape[-1]):
            if (i and (theirs[..., i] == MISSING_KEY).all()) or (j and (mine[..., j] == MISSING_KEY).all()):
                continue
            np.maximum(found[..., 2], _same(theirs[..., i], mine[..., j], MISSING_KEY), out=found[..., 2])
    lengths = [
        buckets.bounded_bucket(side["duration_ms"], buckets.DURATION_BOUNDS_MS) for side in (candidates, history)
    ]
    found[..., 3] = _same(lengths[0], lengths[1], -1)
    return found


def _same(theirs: NDArray[Any], mine: NDArray[Any], null: Any) -> NDArray[np.bool_]:
    """[..., M] and [..., h] -> [..., M, h]."""
    equal: NDArray[np.bool_] = (theirs[..., :, None] == mine[..., None, :]) & (theirs != null)[..., :, None]
    return equal

"""What a candidate shares with an entry: against a loop over sets, and nulls match nothing."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.buckets import DURATION_BOUNDS_MS
from contract.matches import MATCHES, match_flags
from contract.vocabulary import MISSING_KEY, NULL_INT, TAGS_MAX

NULL = int(MISSING_KEY)


def columns(seed: int, *shape: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 4, (5, *shape, TAGS_MAX)).astype(np.uint64)
    ids[rng.random(ids.shape) < 0.3] = MISSING_KEY
    duration_ms = rng.choice([NULL_INT, 0, 2_999, 3_000, 100_000, 500_000], shape)
    names = ("video_id", "author_id", "music_id", "kind")
    return {name: ids[place, ..., 0] for place, name in enumerate(names)} | {"tags": ids[4], "duration_ms": duration_ms}


def slowly(candidate: dict, entry: dict) -> list[float]:
    def bucket(ms: int) -> int:
        return sum(int(ms) >= bound for bound in DURATION_BOUNDS_MS)

    tags = [{int(tag) for tag in side["tags"]} - {NULL} for side in (candidate, entry)]
    lengths = [int(side["duration_ms"]) for side in (candidate, entry)]

    def same(name: str) -> float:
        return float(int(candidate[name]) == int(entry[name]) != NULL)

    return [
        same("video_id"),
        same("author_id"),
        float(bool(tags[0] & tags[1])),
        float(min(lengths) >= 0 and bucket(lengths[0]) == bucket(lengths[1])),
        same("music_id"),
        same("kind"),
    ]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 6))
def test_flags_are_what_a_loop_finds(seed, m, h):
    mine, theirs = columns(seed, m), columns(seed + 1, h)
    flags = match_flags(mine, theirs)
    assert flags.shape == (m, h, len(MATCHES))
    assert flags.dtype == np.float32
    for i in range(m):
        for j in range(h):
            one, other = ({name: column[at] for name, column in side.items()} for side, at in ((mine, i), (theirs, j)))
            assert flags[i, j].tolist() == slowly(one, other)


def test_leading_axes_stand_side_by_side():
    mine, theirs = columns(0, 3, 4), columns(1, 3, 5)
    together = match_flags(mine, theirs)
    assert together.shape == (3, 4, 5, len(MATCHES))
    for b in range(3):
        one, other = ({name: column[b] for name, column in side.items()} for side in (mine, theirs))
        np.testing.assert_array_equal(together[b], match_flags(one, other))

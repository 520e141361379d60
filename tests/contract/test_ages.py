"""Both ages in one pass equal the two feature functions, bit for bit, over whatever a watched list holds."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from contract.ages import Ages
from contract.features import since_watched, videos_behind
from contract.watched import WatchedList

L = 4
NOW_MS, NUMBER = 1_760_000_000_000, 100_000
times = st.just(-1) | st.integers(NOW_MS - 10**9, NOW_MS + 10**6) | st.integers(0, 2**62)
numbers = st.just(-1) | st.integers(NUMBER - 2_000, NUMBER + 5) | st.integers(0, 2**40)


@given(st.lists(st.tuples(times, numbers), max_size=3 * L), st.sampled_from([1, 2, NOW_MS]))
def test_both_ages_are_those_of_the_feature_functions(shown: list[tuple[int, int]], now_ms: int) -> None:
    watched, ages, out = WatchedList(L), Ages(L + 1), np.full((2, L + 1), 7.0, np.float32)
    for time_ms, number in [(0, 0), *shown]:
        watched.evict_if_full()
        watched.append({"shown_at_ms": time_ms, "number": number})
        ages.write(now_ms, NUMBER, watched.at, out)
        n = watched.length
        want = np.zeros((2, L + 1), np.float32)  # nothing behind the list
        since_watched(now_ms, watched.columns()["shown_at_ms"], want[0, :n])
        videos_behind(NUMBER, watched.columns()["number"], want[1, :n])
        np.testing.assert_array_equal(out, want)


def test_a_restored_list_has_its_ages() -> None:
    watched, again = WatchedList(L), WatchedList(L)
    for number in range(3):
        watched.append({"shown_at_ms": NOW_MS - number * 1_000, "number": number})
    again.restore({name: column.copy() for name, column in watched.columns(1).items()})
    np.testing.assert_array_equal(again.at, watched.at)

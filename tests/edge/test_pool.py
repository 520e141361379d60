"""The candidate pool: TTL tiers, de-duplication, what was seen, and when to ask for more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from contract.errors import InputError, PoolExhausted
from edge._pool import CandidatePool, PoolConfig, PooledPage, Values
from edge._reranker import ScoredPage
from tests.edge.tiny_page import make_page

SOFT_MS, HARD_MS = 1_000, 5_000


def scored_of(ids: Sequence[int]) -> ScoredPage:
    """Stands for a page that a model can score: the pool looks at its ids only."""
    return ScoredPage(state=None, features=None, video_ids=list(ids))  # type: ignore[arg-type]


def add(
    pool: CandidatePool,
    ids: Sequence[int],
    now_ms: int = 0,
    scored: bool = True,
    page_id: str = "p",
    values: Values | None = None,
    **ttl: Any,
) -> int:
    page = make_page(
        ids, page_id=page_id, status="no_live_version", **{"soft_ttl_ms": SOFT_MS, "hard_ttl_ms": HARD_MS, **ttl}
    )
    return pool.add(page, now_ms, scored_of(ids) if scored else None, "" if scored else "why", values)


def left(pages: Sequence[PooledPage]) -> list[int]:
    return [page.video_ids[i] for page in pages for i in page.remaining]


@pytest.fixture
def pool() -> CandidatePool:
    return CandidatePool(PoolConfig(prefetch_below=3))


class TestTiers:
    def test_fresh_pages_in_order_of_arrival(self, pool: CandidatePool) -> None:
        add(pool, [1, 2])
        add(pool, [3, 4], 10)
        assert left(pool.tier(20)) == [1, 2, 3, 4]

    def test_what_the_model_can_score_comes_first(self, pool: CandidatePool) -> None:
        add(pool, [1, 2], scored=False)
        add(pool, [3, 4], 10)
        assert left(pool.tier(20)) == [3, 4]
        for index in (0, 1):
            pool.shown(pool.tier(20)[0], index)
        assert left(pool.tier(20)) == [1, 2]

    def test_expired_candidates_are_the_last_tier(self, pool: CandidatePool) -> None:
        add(pool, [1, 2])
        add(pool, [3], HARD_MS - 1, scored=False)
        assert left(pool.tier(HARD_MS - 1)) == [1, 2]
        assert left(pool.tier(HARD_MS)) == [3]
        pool.shown(pool.tier(HARD_MS)[0], 0)
        assert left(pool.tier(HARD_MS)) == [1, 2]

    def test_a_soft_ttl_takes_nothing_away(self, pool: CandidatePool) -> None:
        add(pool, [1, 2, 3, 4])
        assert left(pool.tier(SOFT_MS + 1)) == [1, 2, 3, 4]

    def test_hard_expired_pages_go_when_the_new_page_arrives(self, pool: CandidatePool) -> None:
        add(pool, [1, 2])
        assert left(pool.tier(HARD_MS * 3)) == [1, 2]
        add(pool, [3], HARD_MS * 3)
        assert left(pool.tier(HARD_MS * 3)) == [3]

    def test_an_empty_pool_is_exhausted(self, pool: CandidatePool) -> None:
        with pytest.raises(PoolExhausted, match="nothing is left"):
            pool.tier(0)
        add(pool, [1])
        pool.shown(pool.tier(0)[0], 0)
        with pytest.raises(PoolExhausted):
            pool.tier(0)
        add(pool, [2])
        assert left(pool.tier(0)) == [2]

    def test_pages_lose_their_scores_with_their_model(self, pool: CandidatePool) -> None:
        add(pool, [1, 2])
        pool.unscore("version_mismatch")
        add(pool, [3])
        assert left(pool.tier(0)) == [3]
        assert pool.pages[0].reason == "version_mismatch"


class TestDuplicates:
    def test_the_newer_page_keeps_a_video(self, pool: CandidatePool) -> None:
        add(pool, [1, 2, 3])
        assert add(pool, [3, 4], 10) == 2
        assert [left([page]) for page in pool.pages] == [[1, 2], [3, 4]]

    def test_a_page_that_is_all_in_the_new_one_goes(self, pool: CandidatePool) -> None:
        add(pool, [1, 2])
        add(pool, [2, 1, 5], 10)
        assert [left([page]) for page in pool.pages] == [[2, 1, 5]]

    def test_what_was_shown_is_not_let_in_again(self, pool: CandidatePool) -> None:
        add(pool, [1, 2])
        pool.shown(pool.pages[0], 0)
        assert add(pool, [1, 7]) == 1
        assert left(pool.pages) == [2, 7]

    def test_a_page_of_seen_videos_adds_nothing(self, pool: CandidatePool) -> None:
        add(pool, [1])
        pool.shown(pool.pages[0], 0)
        assert add(pool, [1]) == 0
        assert pool.pages == []

    @pytest.mark.parametrize("config", [PoolConfig(), PoolConfig(max_pages=1)])
    def test_a_page_with_nothing_new_takes_no_candidate_away(self, config: PoolConfig) -> None:
        pool = CandidatePool(config)
        add(pool, [1, 2, 3, 4], page_id="a")
        for index in (0, 1):
            pool.shown(pool.pages[0], index)
        assert add(pool, [1, 2], 10, page_id="b") == 0
        assert left(pool.tier(20)) == [3, 4]
        assert add(pool, [1, 2], HARD_MS, page_id="c") == 0  # what is left has expired by now, and is all there is
        assert left(pool.tier(HARD_MS)) == [3, 4]
        assert not any(pool.evicted.values())
        assert add(pool, [5], HARD_MS, page_id="d") == 1
        assert (left(pool.pages), pool.evicted["expired"]) == ([5], 2)

    def test_with_two_pages_held_neither_goes_for_a_page_with_nothing_new(self, pool: CandidatePool) -> None:
        add(pool, [1, 2])
        add(pool, [3, 4], 1)
        pool.shown(pool.pages[0], 0)
        pool.shown(pool.pages[1], 0)
        assert add(pool, [1, 3], 2) == 0
        assert left(pool.tier(3)) == [2, 4]

    def test_the_seen_list_is_bounded(self) -> None:
        pool = CandidatePool(PoolConfig(seen=2))
        add(pool, [1, 2, 3])
        for index in (0, 1, 2):
            pool.shown(pool.pages[0], index)
        assert add(pool, [1, 2, 3]) == 1  # the oldest of three was forgotten
        assert left(pool.pages) == [1]


class TestLimits:
    def test_two_pages_at_most(self, pool: CandidatePool) -> None:
        for number in range(4):
            add(pool, [10 * number + 1, 10 * number + 2], number)
        assert left(pool.pages) == [21, 22, 31, 32]

    def test_one_page_at_most(self) -> None:
        pool = CandidatePool(PoolConfig(max_pages=1))
        add(pool, [1, 2])
        add(pool, [3], 1)
        assert left(pool.pages) == [3]

    def test_the_count_limit_takes_from_the_end_of_the_oldest(self) -> None:
        pool = CandidatePool(PoolConfig(max_candidates=5))
        add(pool, [1, 2, 3, 4])
        add(pool, [5, 6, 7], 1)
        assert left(pool.pages) == [1, 2, 5, 6, 7]
        add(pool, [8, 9, 10, 11, 12, 13], 2)
        assert left(pool.pages) == [8, 9, 10, 11, 12]

    @pytest.mark.parametrize("name", ["max_pages", "max_candidates", "prefetch_below", "seen"])
    def test_limits_start_at_one(self, name: str) -> None:
        with pytest.raises(InputError, match=name):
            PoolConfig(**{name: 0})

    @given(
        st.lists(
            st.tuples(st.lists(st.integers(1, 30), min_size=1, max_size=8, unique=True), st.integers(0, 4)), max_size=12
        )
    )
    def test_a_video_stands_once_and_never_after_it_was_shown(self, pages: list[tuple[list[int], int]]) -> None:
        pool, shown, now_ms = CandidatePool(PoolConfig(max_candidates=10)), [], 0
        for ids, swipes in pages:
            now_ms += 700
            add(pool, ids, now_ms)
            for _ in range(min(swipes, len(pool))):
                page = pool.tier(now_ms)[0]
                shown.append(page.video_ids[page.remaining[0]])
                pool.shown(page, page.remaining[0])
            held = left(pool.pages)
            assert len(held) == len(set(held)) == len(pool) <= 10
            assert not set(held) & set(shown)
        assert len(shown) == len(set(shown))


def worth(page: PooledPage) -> NDArray[np.float32]:
    """Stands for the model: a video is worth its id modulo 10, in tenths."""
    return np.array([page.video_ids[i] % 10 / 10 for i in page.remaining], np.float32)


class TestQualityEviction:
    def pool(self, n: int) -> CandidatePool:
        return CandidatePool(PoolConfig(max_candidates=n))

    def test_the_lowest_values_of_all_pages_go_first(self) -> None:
        pool = self.pool(5)
        add(pool, [9, 1, 8, 4])
        add(pool, [12, 17, 13], 1, values=worth)
        assert left(pool.pages) == [9, 8, 4, 17, 13]
        assert pool.evicted == {"expired": 0, "replaced": 0, "surplus": 2}

    def test_ties_go_from_the_end_of_the_older_page(self) -> None:
        pool = self.pool(3)
        add(pool, [5, 15, 25])
        add(pool, [35, 45], 1, values=worth)
        assert left(pool.pages) == [5, 35, 45]

    def test_what_no_model_can_score_goes_before_what_it_can(self) -> None:
        pool = self.pool(4)
        add(pool, [1, 2, 3], scored=False)
        add(pool, [10, 11, 12], 1, values=worth)
        assert left(pool.pages) == [1, 10, 11, 12]

    def test_both_rules_one_after_the_other(self) -> None:
        pool = self.pool(2)
        add(pool, [1, 2, 3], scored=False)
        add(pool, [19, 10, 15], 1, values=worth)
        assert left(pool.pages) == [19, 15]

    def test_a_page_alone_may_be_too_large(self) -> None:
        pool = self.pool(3)
        assert add(pool, [1, 9, 3, 8, 5], values=worth) == 3
        assert left(pool.pages) == [9, 8, 5]

    def test_a_model_that_can_not_tell_leaves_it_to_the_servers_order(self) -> None:
        pool = self.pool(3)
        add(pool, [1, 2])
        add(pool, [9, 8], 1, values=lambda page: None)
        assert left(pool.pages) == [1, 9, 8]

    def test_a_pool_with_room_asks_nothing(self) -> None:
        pool = self.pool(5)
        add(pool, [1, 2, 3, 4, 5], values=lambda page: pytest.fail("asked"))

    @given(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=9, unique=True), min_size=1, max_size=4))
    def test_what_stays_is_worth_no_less_than_what_went(self, pages: list[list[int]]) -> None:
        pool = CandidatePool(PoolConfig(max_pages=9, max_candidates=6))
        for number, ids in enumerate(pages):
            before = {*left(pool.pages), *ids}
            add(pool, ids, number, values=worth)
            kept = left(pool.pages)
            assert len(kept) == min(6, len(before))
            gone = before - set(kept)
            if gone:
                assert min(v % 10 for v in kept) >= max(v % 10 for v in gone)
            assert all(page.remaining == sorted(page.remaining) for page in pool.pages)


class TestTtlInSwipes:
    def pool(self) -> CandidatePool:
        return CandidatePool(PoolConfig(prefetch_below=1, soft_ttl_swipes=2, hard_ttl_swipes=3))

    def show(self, pool: CandidatePool, n: int) -> None:
        for _ in range(n):
            page = pool.tier(0)[0]
            pool.shown(page, page.remaining[0])

    def test_the_soft_one_asks_for_a_page(self) -> None:
        pool = self.pool()
        add(pool, range(1, 9))
        self.show(pool, 1)
        assert not pool.wants_page(0)
        self.show(pool, 1)
        assert pool.wants_page(0)
        assert pool.excluded(0) == [1, 2]  # the server may send the rest again, with fresh predictions

    def test_the_hard_one_makes_a_page_the_last_tier_and_clears_it_at_the_next(self) -> None:
        pool = self.pool()
        add(pool, range(1, 9))
        self.show(pool, 2)
        add(pool, [20, 21], 1)
        self.show(pool, 1)
        assert left(pool.tier(1)) == [20, 21]  # of the old one three were shown, of the new one's life one
        assert left(pool.pages) == [4, 5, 6, 7, 8, 20, 21]
        add(pool, [30], 2)
        assert left(pool.pages) == [20, 21, 30]
        assert pool.evicted["expired"] == 5

    def test_off_by_default(self, pool: CandidatePool) -> None:
        add(pool, range(1, 200))
        self.show(pool, 150)
        assert not pool.pages[0].soft_expired(0)
        assert not pool.pages[0].hard_expired(0)

    @pytest.mark.parametrize("limits", [{"soft_ttl_swipes": -1}, {"soft_ttl_swipes": 5, "hard_ttl_swipes": 4}])
    def test_limits_are_checked(self, limits: dict[str, int]) -> None:
        with pytest.raises(InputError, match="swipes"):
            PoolConfig(**limits)


def test_more_than_two_pages(pool: CandidatePool) -> None:
    pool = CandidatePool(PoolConfig(max_pages=3))
    for number in range(5):
        add(pool, [10 * number + 1, 10 * number + 2], number)
    assert left(pool.tier(5)) == [21, 22, 31, 32, 41, 42]
    assert pool.evicted["replaced"] == 4


class TestAsking:
    def test_when_few_are_left(self, pool: CandidatePool) -> None:
        assert pool.wants_page(0)
        add(pool, [1, 2, 3, 4])
        assert not pool.wants_page(0)
        pool.shown(pool.pages[0], 0)
        assert not pool.wants_page(0)
        pool.shown(pool.pages[0], 1)
        assert pool.wants_page(0)

    def test_when_the_newest_page_is_past_its_soft_ttl(self, pool: CandidatePool) -> None:
        add(pool, range(1, 9))
        assert not pool.wants_page(SOFT_MS - 1)
        assert pool.wants_page(SOFT_MS)
        add(pool, range(11, 19), SOFT_MS)
        assert not pool.wants_page(SOFT_MS)

    def test_expired_candidates_do_not_count_as_left(self, pool: CandidatePool) -> None:
        add(pool, range(1, 9))
        add(pool, [20], HARD_MS - 1, soft_ttl_ms=HARD_MS)
        assert not pool.wants_page(HARD_MS - 1)
        assert pool.wants_page(HARD_MS)

    def test_what_need_not_be_sent(self, pool: CandidatePool) -> None:
        add(pool, [1, 2, 3])
        pool.shown(pool.pages[0], 1)
        assert pool.excluded(0) == [2, 1, 3]
        assert pool.excluded(SOFT_MS) == [2]  # the server may send stale ones again, with fresh predictions

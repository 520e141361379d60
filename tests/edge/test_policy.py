"""What a policy lets stand: gaps and preloading against a slow reading of their words, and the order of giving way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.errors import InputError
from contract.vocabulary import MISSING_KEY
from edge import ChoicePolicy, Chooser, DeviceState, EdgeSession, FakeClock, SessionConfig
from edge._policy import AUTHOR, LIMITS, PRELOADED, TOPIC, Limits, about, limits_now
from edge._pool import PooledPage
from tests.edge.tiny_page import candidates_of, make_page, page_bytes

BUFFER = {"buffered_min_ms": 500, "preloaded_only": True}


def pooled(authors: list[int], tags: list[list[int]], first: int = 1, remaining: list[int] | None = None) -> PooledPage:
    """A page of videos first, first + 1, … with these authors and tags, no model behind it."""
    n = len(authors)
    columns = candidates_of(range(first, first + n))
    tags_NM = np.full(columns.tags.shape, MISSING_KEY)
    for row, own in enumerate(tags):
        tags_NM[row, : len(own)] = own
    page = make_page(range(first, first + n), status="no_live_version")
    page = replace(page, candidates=replace(columns, author_id=np.array(authors, np.uint64), tags=tags_NM))
    rest = list(range(n)) if remaining is None else remaining
    return PooledPage(page, 0, rest, columns.video_id.tolist())


def shown_ids(tier: list[PooledPage], limits: Limits) -> list[int]:
    ids = [page.video_ids[i] for page in tier for i in page.remaining]
    return [v for v, allowed in zip(ids, limits.allowed_N, strict=True) if allowed]


class TestPolicy:
    @pytest.mark.parametrize(
        ("wrong", "what"),
        [
            ({"mode": "greedy"}, "mode"), ({"budget_ms": -1.0}, "budget_ms"),
            ({"budget_ms": float("nan")}, "budget_ms"), ({"author_gap": -1}, "author_gap"),
            ({"topic_gap": 65}, "topic_gap"), ({"buffered_min_ms": 0}, "buffered"),
        ],
    )  # fmt: skip
    def test_values_out_of_range(self, wrong: dict[str, Any], what: str) -> None:
        with pytest.raises(InputError, match=what):
            ChoicePolicy(**wrong)

    def test_it_remembers_what_its_gaps_need(self) -> None:
        assert ChoicePolicy().remembers == 0
        assert ChoicePolicy(author_gap=3, topic_gap=5).remembers == 5


class TestLimits:
    def limits(
        self, tier: list[PooledPage], recent: list[Any], told: dict[int, int] | None = None, **kw: Any
    ) -> Limits:
        return limits_now(ChoicePolicy(**kw), tier, recent, DeviceState(buffered_ms=told or {}))

    def test_none_without_a_policy(self) -> None:
        found = self.limits([pooled([1, 1], [[5], [5]])], [(1, frozenset({5}))])
        assert found.allowed_N.tolist() == [True, True]
        assert found.relaxed == ()

    def test_a_gap_looks_back_so_far_and_no_further(self) -> None:
        tier = [pooled([1, 2, 3], [[], [], []])]
        recent = [(1, frozenset()), (2, frozenset())]
        assert shown_ids(tier, self.limits(tier, recent, author_gap=1)) == [1, 3]
        assert shown_ids(tier, self.limits(tier, recent, author_gap=2)) == [3]

    def test_any_shared_tag_is_the_same_topic_and_no_tag_is_none(self) -> None:
        tier = [pooled([1, 2, 3, 4], [[5, 6], [7], [], [8, 5]])]
        assert shown_ids(tier, self.limits(tier, [(9, frozenset({5}))], topic_gap=1)) == [2, 3]
        assert shown_ids(tier, self.limits(tier, [(9, frozenset())], topic_gap=1)) == [1, 2, 3, 4]

    def test_the_order_in_which_they_give_way(self) -> None:
        gaps = {"author_gap": 1, "topic_gap": 1}
        recent = [(1, frozenset({5}))]
        cases = [
            ([pooled([1, 1, 2, 2], [[5], [6], [5], [6]])], [4], ()),
            ([pooled([1, 1, 2], [[5], [6], [5]])], [3], (TOPIC,)),  # another author, the topic again
            ([pooled([1, 1], [[5], [6]])], [2], (AUTHOR,)),
            ([pooled([1, 1], [[5], [5]])], [1, 2], (TOPIC, AUTHOR)),
        ]
        for tier, ids, relaxed in cases:
            found = self.limits(tier, recent, **gaps)
            assert (shown_ids(tier, found), found.relaxed) == (ids, relaxed)

    def test_only_what_is_preloaded_long_enough(self) -> None:
        tier = [pooled([1, 2, 3], [[], [], []])]
        found = self.limits(tier, [], {1: 499, 2: 500}, **BUFFER)
        assert shown_ids(tier, found) == [2]
        assert found.but_preload_N.tolist() == [True, True, True]
        assert found.relaxed == ()

    def test_nothing_preloaded_is_said(self) -> None:
        tier = [pooled([1, 2], [[], []])]
        found = self.limits(tier, [(1, frozenset())], {1: 10}, author_gap=1, **BUFFER)
        assert (shown_ids(tier, found), found.relaxed) == ([2], (PRELOADED,))

    def test_gaps_give_way_before_preloading_does(self) -> None:
        tier = [pooled([1, 2], [[], []])]
        found = self.limits(tier, [(1, frozenset())], {1: 900}, author_gap=1, **BUFFER)
        assert (shown_ids(tier, found), found.relaxed) == ([1], (AUTHOR,))
        assert found.but_preload_N.tolist() == [False, True]

    def test_only_what_is_left_of_two_pages_counts(self) -> None:
        tier = [pooled([1, 2, 1], [[], [], []], remaining=[1, 2]), pooled([1, 3], [[], []], first=11)]
        assert shown_ids(tier, self.limits(tier, [(1, frozenset())], author_gap=1)) == [2, 12]

    @settings(max_examples=150, deadline=None)
    @given(
        st.lists(st.tuples(st.integers(1, 4), st.sets(st.integers(5, 8), max_size=3)), min_size=1, max_size=7),
        st.lists(st.tuples(st.integers(1, 4), st.frozensets(st.integers(5, 8), max_size=3)), max_size=5),
        st.integers(0, 3), st.integers(0, 3), st.booleans(), st.sets(st.integers(1, 7)),
    )  # fmt: skip
    def test_as_the_words_say(
        self, videos: Any, recent: Any, author_gap: int, topic_gap: int, preloaded_only: bool, loaded: set[int]
    ) -> None:
        tier = [pooled([a for a, _ in videos], [sorted(t) for _, t in videos])]
        told = dict.fromkeys(loaded, 1000)
        gaps = {"author_gap": author_gap, "topic_gap": topic_gap, "preloaded_only": preloaded_only}
        found = self.limits(tier, recent, told, **gaps)
        authors = {a for a, _ in recent[len(recent) - author_gap :]} if author_gap else set()
        topics = {t for _, tags in recent[max(0, len(recent) - topic_gap) :] for t in tags} if topic_gap else set()
        if author_gap > len(recent):
            authors = {a for a, _ in recent}
        ids = list(range(1, len(videos) + 1))
        other = [v for v, (a, _) in zip(ids, videos, strict=True) if a not in authors]
        fresh = [v for v, (_, tags) in zip(ids, videos, strict=True) if not tags & topics]
        pool = [v for v in ids if v in loaded] if preloaded_only else ids
        pool = pool or ids
        tries = ([v for v in pool if v in other and v in fresh], [v for v in pool if v in other])
        want = next(kept for kept in (*tries, [v for v in pool if v in fresh], pool) if kept)
        assert shown_ids(tier, found) == want
        assert (PRELOADED in found.relaxed) == (preloaded_only and not loaded & set(ids))


class TestInASession:
    def session(self, **policy: Any) -> EdgeSession:
        made = EdgeSession(5, clock=FakeClock(), config=SessionConfig(policy=ChoicePolicy(**policy)))
        made.start()
        return made

    def test_no_topic_twice_in_a_row_while_another_is_left(self) -> None:
        ids = (101, 106, 116, 122, 127)  # two topics: ids % 5
        session = self.session(topic_gap=1)
        session.on_page(page_bytes(ids))
        choices = [session.next() for _ in ids]
        page = session_page(ids)
        kept = {v: about(page, i)[1] for i, v in enumerate(ids)}
        for before, after in pairwise(choices):
            assert after.relaxed == ((TOPIC,) if kept[before.video_id] & kept[after.video_id] else ())
        assert [choice.video_id for choice in choices] != list(ids)

    def test_the_servers_order_keeps_to_what_is_preloaded(self) -> None:
        session = self.session(preloaded_only=True)
        session.on_page(page_bytes(range(101, 105)))
        choice = session.next(DeviceState(buffered_ms={103: 800}))
        assert (choice.video_id, choice.chooser, choice.relaxed) == (103, Chooser.SERVER_ORDER, ())
        assert (choice.value, choice.best_value) == (None, None)
        again = session.next(DeviceState())
        assert (again.video_id, again.relaxed) == (101, (PRELOADED,))

    def test_what_can_not_be_read_stops_no_swipe(self) -> None:
        session = self.session(preloaded_only=True)
        session.on_page(page_bytes(range(101, 105)))
        told: dict[int, object] = {101: 5_000}
        device = DeviceState(buffered_ms=told)  # type: ignore[arg-type]
        told[101] = "long"  # the app's own mapping, changed behind its back
        choice = session.next(device)
        assert (choice.video_id, choice.relaxed) == (101, LIMITS)
        assert isinstance(session.last_error, TypeError)

    def test_what_was_shown_long_ago_is_forgotten(self) -> None:
        session = self.session(author_gap=3)
        session.on_page(page_bytes(range(101, 109)))
        kept = []
        for _ in range(6):
            session.next()
            session.maintain()
            kept.append(len(session._recent))
        assert kept == [1, 2, 3, 3, 3, 3]
        off = self.session()
        off.on_page(page_bytes(range(101, 109)))
        off.next()
        off.maintain()
        assert off._recent == []


def session_page(ids: Sequence[int]) -> PooledPage:
    page = make_page(ids, status="no_live_version")
    return PooledPage(page, 0, list(range(len(ids))), page.candidates.video_id.tolist())

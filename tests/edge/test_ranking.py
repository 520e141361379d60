"""The order of what is left: the same that the choices then follow, and how a feedback moved it."""

from __future__ import annotations

import dataclasses

import pytest

from contract.errors import PoolExhausted
from edge import ChoicePolicy, Chooser, EdgeSession, FakeClock, Ranking, SessionConfig
from edge._engine import Engine
from edge._ranking import moves
from tests.edge.test_explain import WIFI, Open, started, watch
from tests.edge.tiny_page import page_bytes


class TestRanking:
    def test_its_first_is_the_next_choice_and_its_order_the_choices(self, session: EdgeSession) -> None:
        session.on_page(page_bytes(range(101, 109)))
        watch(session, 2)
        ranking = session.ranking(WIFI)
        assert len(session.pool) == 6
        assert session.position == 2
        choice = session.next(WIFI)
        assert choice.values_N is not None
        assert ranking.video_ids[0] == choice.video_id
        assert ranking.values == sorted(choice.values_N.tolist(), reverse=True)
        assert ranking == Ranking.of(choice)

    def test_without_a_model_it_is_the_servers_order(self, clock: FakeClock) -> None:
        session = EdgeSession(5, clock=clock)
        session.start()
        session.on_page(page_bytes([104, 101, 103]))
        assert session.ranking() == Ranking([104, 101, 103], None, Chooser.SERVER_ORDER, "no_model")

    def test_ties_keep_the_servers_order(self, published: Open) -> None:
        model = published("kir-a")
        manifest = dataclasses.replace(model.manifest, fusion={})
        session = started(dataclasses.replace(model, manifest=manifest))
        session.on_page(page_bytes([104, 101, 103]))
        assert session.ranking().video_ids == [104, 101, 103]

    def test_the_first_keeps_to_the_policys_limits(self, published: Open) -> None:
        policy = ChoicePolicy(author_gap=1)  # three videos in a row have one author
        session = started(published("kir-a"), config=SessionConfig(policy=policy))
        session.on_page(page_bytes(range(102, 110)))
        shown = session.next(WIFI)
        ranking = session.ranking(WIFI)
        assert ranking.values is not None
        assert ranking.video_ids[0] // 3 != shown.video_id // 3
        assert list(ranking.values[1:]) == sorted(ranking.values[1:], reverse=True)
        assert session.next(WIFI).video_id == ranking.video_ids[0]

    def test_a_beam_is_ranked_by_next_one(self, published: Open) -> None:
        session = started(published("kir-a"), config=SessionConfig(policy=ChoicePolicy(mode="beam")))
        session.on_page(page_bytes(range(101, 109)))
        ranking = session.ranking(WIFI)
        assert ranking.values == sorted(ranking.values or [], reverse=True)

    def test_a_failing_engine_ranks_by_the_server(self, session: EdgeSession, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*args: object) -> None:
            raise RuntimeError("no more tensors")

        session.on_page(page_bytes([104, 101, 103]))
        monkeypatch.setattr(Engine, "swipe", fail)
        ranking = session.ranking()
        assert (ranking.video_ids, ranking.reason) == ([104, 101, 103], "engine_error")
        assert "no more tensors" in str(session.last_error)

    def test_an_empty_pool(self, session: EdgeSession) -> None:
        with pytest.raises(PoolExhausted):
            session.ranking()

    def test_moves_tell_both_places_and_values(self) -> None:
        before = Ranking([1, 2, 3], [0.9, 0.5, 0.1], Chooser.MODEL)
        after = Ranking([3, 4, 1], [0.8, 0.7, 0.6], Chooser.MODEL)
        told = [(m.video_id, m.before, m.after, m.value_before, m.value) for m in moves(before, after)]
        assert told == [(3, 3, 1, 0.1, 0.8), (4, 0, 2, None, 0.7), (1, 1, 3, 0.9, 0.6)]
        by_server = Ranking([2, 1], None, Chooser.SERVER_ORDER)
        assert [(m.before, m.value_before, m.value) for m in moves(before, by_server)] == [
            (2, 0.5, None),
            (1, 0.9, None),
        ]
        assert [m.before for m in moves(None, after)] == [0, 0, 0]

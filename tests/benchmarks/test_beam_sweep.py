"""The reranker's arms on the tiny model, and the sweep over k and t: what it counts, against a search of its own."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import cli
from benchmarks.beam_sweep import BEAMS, EVERY, STABILITIES, sweep_beams
from benchmarks.closed_loop import PRELOADED, SessionPlan, live_session
from benchmarks.closed_loop_runs import edge_choosers
from benchmarks.edge_arm import EdgeChooser, deepest_plan
from contract.errors import InputError, KirError
from contract.page import Page
from contract.vocabulary import SIGNALS
from edge import ChoicePolicy, Engine, InstalledModel
from tests.edge import tiny_model
from tests.edge.tiny_page import make_page


class Session:
    """Plays five seconds of everything and goes on."""

    def __init__(self) -> None:
        self.now_ms, self.done, self.shown = 1_735_700_000_000, False, []

    def step(self, item: int) -> Any:
        self.shown.append(item)
        self.now_ms += 5_000
        return SimpleNamespace(play_time_ms=5_000, signals=np.zeros(len(SIGNALS), np.int8), has_next=True)


class World:
    config = SimpleNamespace(drift=1.0)
    users = SimpleNamespace(user_id=np.array([5, 6, 7], np.uint64))

    def session(self, user: int, seed: int, start_ms: int) -> Session:
        return Session()


def plan(user: int, first: int) -> SessionPlan:
    pages: list[Page] = [make_page(range(at, at + 8), page_id=f"p{at}") for at in (first, first + 50)]
    items = [page.candidates.video_id.astype(np.int64) for page in pages]
    return SessionPlan(0, user, 7 + user, 1_735_700_000_000, pages, items)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(InstalledModel.open_published(tiny_model.shared_cdn() / "models" / "kir-a"))


def without(engine: Engine, **changes: Any) -> Engine:
    manifest = dataclasses.replace(engine.manifest, **changes)
    return Engine(dataclasses.replace(engine.installed, manifest=manifest))


class TestArms:
    def test_the_deepest_plan_is_what_the_place_graph_holds(self, engine: Engine) -> None:
        found = deepest_plan(engine)
        assert found is not None
        assert (found.beams, found.depth, found.stability) == (tiny_model.K, tiny_model.P + 1, 0.95)

    def test_a_model_that_can_not_search_has_none(self, engine: Engine) -> None:
        graphs = tuple(graph for graph in engine.manifest.graphs if graph.name != "place")
        for changes in ({"list_reward": None}, {"graphs": graphs}):
            assert deepest_plan(without(engine, **changes)) is None
        with pytest.raises(InputError, match="can't search lists"):
            sweep_beams(World(), without(engine, list_reward=None), [plan(0, 100)])

    @pytest.mark.parametrize("arm", ["one_shot", "per_swipe", "beam", "preloaded"])
    def test_every_arm_shows_what_it_is_asked_for(self, engine: Engine, arm: str) -> None:
        session, one = Session(), plan(1, 100)
        chooser = edge_choosers(World(), engine)(one, arm)
        assert live_session(session, one, chooser).videos == 4 + 8
        assert set(session.shown[:4]) <= set(range(100, 108))
        assert sorted(session.shown[4:]) == list(range(150, 158))

    def test_the_arms_are_not_one_by_another_name(self, engine: Engine) -> None:
        shown = {}
        for arm in ("per_swipe", "beam", "preloaded"):
            session, one = Session(), plan(1, 100)
            live_session(session, one, edge_choosers(World(), engine)(one, arm))
            shown[arm] = tuple(session.shown)
        assert len(set(shown.values())) == 3

    def test_a_player_holds_the_next_of_the_servers_order(self, engine: Engine) -> None:
        session, one = Session(), plan(1, 100)
        chooser = edge_choosers(World(), engine)(one, "preloaded")
        live_session(session, one, chooser)
        left = list(range(100, 108))
        for video_id in session.shown[:4]:
            assert video_id in left[:PRELOADED]
            left.remove(video_id)
        assert chooser.device([1, 4, 6, 7]).buffered_ms.keys() == {151, 154, 156}

    def test_a_search_that_fails_is_no_arm(self, engine: Engine) -> None:
        """A fallback would look like a beam without worth."""
        broken = without(engine, list_reward=None)
        chooser = EdgeChooser(broken, 5, 1, 1_735_700_000_000, True, policy=ChoicePolicy("beam"))
        with pytest.raises(KirError, match="no_list_reward"):
            live_session(Session(), plan(1, 100), chooser)


@pytest.fixture(scope="module")
def swept(engine: Engine) -> Any:
    return sweep_beams(World(), engine, [plan(user, 100 * user + 100) for user in range(3)])


class TestSweep:
    def test_every_third_state_with_enough_left(self, swept: Any) -> None:
        """12 swipes a session: 3, 6, 9 have at least three candidates left, 12 has one."""
        assert EVERY == 3
        assert (swept.n_states, swept.depth) == (9, 3)

    def test_every_k_and_t_has_a_row(self, swept: Any) -> None:
        assert [(row["beams"], row["stability"]) for row in swept.plans] == [(k, t) for k in BEAMS for t in STABILITIES]

    def test_rows_say_what_the_searches_did(self, swept: Any) -> None:
        rows = {(row["beams"], row["stability"]): row for row in swept.plans}
        assert (rows[2, 1.0]["steps"], rows[4, 1.0]["steps"]) == (3.0, 3.0)
        assert (rows[4, 1.0]["same_first"], rows[4, 1.0]["given_up"]) == (1.0, 0.0)
        assert rows[1, 0.8]["steps"] == 1.0
        assert rows[1, 1.0]["steps"] == 3.0
        steps = [rows[2, t]["steps"] for t in STABILITIES]
        assert steps == sorted(steps)
        assert all(row["search_us"]["count"] == 9 for row in rows.values())

    def test_the_difference_is_paired(self, swept: Any) -> None:
        lists = swept.lists
        assert lists["beam - greedy"]["mean"] == pytest.approx(lists["beam"] - lists["greedy"])
        assert lists["beam - greedy"]["low"] <= lists["beam - greedy"]["mean"] <= lists["beam - greedy"]["high"]
        assert lists["other_list"] >= lists["other_first"]

    def test_its_table_and_json(self, swept: Any) -> None:
        text = str(swept)
        assert len(text.splitlines()) == 3 + len(BEAMS) * len(STABILITIES)
        assert swept.to_json()["n_states"] == 9

    def test_nothing_to_search(self, engine: Engine) -> None:
        with pytest.raises(InputError, match="no state"):
            sweep_beams(World(), engine, [])


def test_the_sweep_is_of_one_demos_model() -> None:
    args = SimpleNamespace(worlds=2, sweep=True, work=None)
    with pytest.raises(InputError, match="--work"):
        cli._run_closed_loop(args)  # type: ignore[arg-type]

"""The fakes that users' tests stand on keep the promises of the real parts."""

from __future__ import annotations

import numpy as np
import pytest

from contract.errors import InputError
from contract.page import CANDIDATES_MAX
from contract.specs import kir_spec
from contract.vocabulary import MISSING_KEY, X_PXTR
from server_stub.config import ServerConfig
from server_stub.histories import Interaction
from server_stub.recommender import Recommends
from server_stub.testing import FakeRecommender, InProcessServer, fake_backend, fake_catalogue, fake_tables


class TestFakeRecommender:
    def test_is_a_recommender(self) -> None:
        fake: Recommends = FakeRecommender()
        assert len(fake.recommend(1, 5)) == 5

    def test_same_question_same_answer(self) -> None:
        first, second = FakeRecommender().recommend(3, 10), FakeRecommender().recommend(3, 10)
        np.testing.assert_array_equal(first.video_id, second.video_id)
        np.testing.assert_array_equal(first.pxtr, second.pxtr)

    def test_users_get_other_videos(self) -> None:
        fake = FakeRecommender()
        assert fake.recommend(1, 3).video_id.tolist() != fake.recommend(2, 3).video_id.tolist()

    def test_pxtr_are_probabilities(self) -> None:
        pxtr = FakeRecommender().recommend(3, 200).pxtr
        assert pxtr.shape == (200, X_PXTR)
        assert ((pxtr > 0) & (pxtr < 1)).all()

    def test_watched_excluded_and_reported_do_not_come(self) -> None:
        fake = FakeRecommender()
        fake.add_interaction(3, 1005)
        found = fake.recommend(3, 200, watched=[Interaction(1006)], exclude=[1007])
        assert len(found) == 197
        assert not np.isin(found.video_id, [1005, 1006, 1007]).any()
        assert len(fake.recommend(4, 200)) == 200

    def test_positives_are_told(self) -> None:
        fake = FakeRecommender()
        assert fake.add_interaction(1, 5, signals={"like": 1})
        assert not fake.add_interaction(1, 5, signals={"like": 0})
        with pytest.raises(InputError):
            fake.add_interaction(1, 5, signals={"joy": 1})

    def test_fails_once(self) -> None:
        fake = FakeRecommender(fail=RuntimeError("now"))
        with pytest.raises(RuntimeError, match="now"):
            fake.recommend(1)
        assert len(fake.recommend(1)) == 20


class TestFakeParts:
    def test_catalogue(self) -> None:
        items = fake_catalogue(50)
        assert len(np.unique(items.video_id)) == 50
        assert set((items.tags != MISSING_KEY).sum(axis=1).tolist()) == {1, 2}

    def test_tables_cover_the_catalogue(self) -> None:
        items, spec = fake_catalogue(50), kir_spec()
        tables = fake_tables(spec, items)
        assert {name: table.width for name, table in tables.items()} == spec.tables
        assert (tables["video"].slots(items.video_id) > 0).all()
        assert (tables["author"].slots(items.author_id) > 0).all()

    def test_dense_versions_differ_in_their_rows(self) -> None:
        backend = fake_backend(("a", "b"))
        key = np.array([1000], np.uint64)
        rows = [backend.store.get(name, "video", key)[1] for name in ("a", "b")]
        assert backend.current == "b"
        assert not np.array_equal(*rows)

    def test_no_version_is_a_server_before_its_first_release(self) -> None:
        backend = fake_backend(())
        assert (backend.current, backend.store.versions()) == ("", [])


class TestInProcessServer:
    def test_ports_are_the_kernels(self) -> None:
        with InProcessServer() as first, InProcessServer() as second:
            ports = {s.server.grpc_port for s in (first, second)} | {s.server.http_port for s in (first, second)}
            assert len(ports) == 4
            assert 0 not in ports

    def test_set_current(self) -> None:
        with InProcessServer(backend=fake_backend(("a", "b"))) as server:
            server.set_current("a")
            assert server.server.health()["current"] == "a"

    def test_a_failing_block_stops_the_server_all_the_same(self) -> None:
        server = InProcessServer()
        with pytest.raises(ZeroDivisionError), server:
            raise ZeroDivisionError
        assert not server._thread.is_alive()

    def test_flush_without_a_directory(self) -> None:
        with InProcessServer(ServerConfig(http_port=None)) as server:
            assert server.flush() == 0
            assert server.server.http_port is None

    def test_a_page_may_be_as_large_as_the_contract(self) -> None:
        config = ServerConfig(page_size=CANDIDATES_MAX, page_size_max=CANDIDATES_MAX)
        assert config.page_size == CANDIDATES_MAX

"""What an app hands to a session, checked where it comes in; and waiting for a page."""

from __future__ import annotations

from typing import Any

import pytest

from contract.errors import InputError, PoolExhausted, ServerUnavailable
from edge import (
    Chooser,
    DeviceState,
    EdgeSession,
    FakePageClient,
    SessionConfig,
)
from tests.edge.tiny_page import page_bytes


class TestWhatIsHandedIn:
    @pytest.mark.parametrize(
        ("values", "words"),
        [
            ({"watched_capacity": 10**9}, "watched_capacity"),
            ({"watched_capacity": 51}, "even"),
            ({"watched_capacity": "50"}, "watched_capacity"),
            ({"page_size": -1}, "page_size"),
            ({"page_size": "20"}, "page_size"),
            ({"row_encoding": "int4"}, "row_encoding.*int8"),
            ({"pool": None}, "pool.*PoolConfig"),
            ({"policy": "beam"}, "policy.*ChoicePolicy"),
            ({"opted_in": "no"}, "opted_in.*True, False"),
            ({"retry_ms": -5}, "retry_ms"),
        ],
    )
    def test_a_configuration_is_checked(self, values: dict[str, Any], words: str) -> None:
        with pytest.raises(InputError, match=words):
            SessionConfig(**values)

    @pytest.mark.parametrize(
        ("values", "words"),
        [
            ({"user_id": "1"}, "user_id"),
            ({"user_id": -1}, "user_id"),
            ({"user_id": 2**64}, "user_id"),
            ({"user_id": None}, "user_id"),
            ({"session_id": -1}, "session_id"),
            ({"store": "cache"}, "store.*ModelStore"),
            ({"pages": "host:1"}, "pages.*PageSource"),
            ({"uploader": 5}, "uploader"),
            ({"state": "x"}, "state.*StateFile"),
            ({"trace": "x.json"}, "trace.*Trace"),
            ({"config": {}}, "config.*SessionConfig"),
        ],
    )
    def test_the_parts_of_a_session_are_checked(self, values: dict[str, Any], words: str) -> None:
        with pytest.raises(InputError, match=words):
            EdgeSession(**{"user_id": 1, **values})

    def test_what_is_no_device_state_costs_no_swipe_and_is_told(self, session: EdgeSession) -> None:
        session.on_page(page_bytes(range(101, 109)))
        session.next(DeviceState(network=6))
        choice = session.next("wifi")  # type: ignore[arg-type]
        assert (choice.chooser, choice.reason) == (Chooser.MODEL, "")
        assert "device; got 'wifi'" in str(session.last_error)
        session.maintain()
        assert session._device == DeviceState(network=6)

    def test_what_is_no_feedback_is_refused(self, session: EdgeSession) -> None:
        with pytest.raises(InputError, match="allowed: Feedback"):
            session.feedback({"video_id": 1})  # type: ignore[arg-type]

    def test_close_closes_all_that_can_be_closed(self, session: EdgeSession, monkeypatch: pytest.MonkeyPatch) -> None:
        """What can't be noted must not leave threads and files open; a second call does nothing."""
        session.on_page(page_bytes(range(101, 109)))
        session.next()
        closed: list[str] = []
        monkeypatch.setattr(session, "_note", lambda: 1 / 0)
        monkeypatch.setattr(session._intake, "close", lambda: closed.append("pages"))
        session.close()
        session.close()
        assert closed == ["pages"]
        assert isinstance(session.last_error, ZeroDivisionError)

    def test_maintain_never_raises(self, session: EdgeSession, monkeypatch: pytest.MonkeyPatch) -> None:
        session.on_page(page_bytes(range(101, 109)))
        session.next()
        monkeypatch.setattr(session, "_note", lambda: 1 / 0)
        session.maintain()
        assert isinstance(session.last_error, ZeroDivisionError)


class TestWaiting:
    def test_who_waits_in_a_loop_does_not_spin_while_the_server_is_down(self) -> None:
        """After a failed fetch a wait lasts as long as the pause, and then asks again."""
        pages = FakePageClient([ServerUnavailable("down"), ServerUnavailable("down"), page_bytes(range(101, 109))])
        session = EdgeSession(1, pages=pages, config=SessionConfig(retry_ms=50))
        rounds = 0
        while rounds < 1000:
            try:
                session.next()
                break
            except PoolExhausted:
                rounds += 1
                session.wait_page(10.0)
        assert len(pages.requests) == 3
        assert rounds <= 4
        session.close()

    def test_a_session_without_a_source_waits_for_nothing(self) -> None:
        assert not EdgeSession(1).wait_page(30.0)

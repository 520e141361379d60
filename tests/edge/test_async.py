"""The asyncio session: the same choices, one driving thread, swipes that go on while a page or a model is awaited."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from contract.errors import InputError, PageError, PoolExhausted, ServerError, ServerUnavailable
from contract.v1 import page_pb2
from edge import (
    AsyncEdgeSession,
    BeamPlan,
    DeviceState,
    EdgeSession,
    FakeClock,
    FakePageClient,
    Feedback,
    InstalledModel,
    ModelStore,
    Outcome,
    PageRequest,
)
from tests.edge.tiny_model import point_at
from tests.edge.tiny_page import page_bytes

Open = Callable[[str], InstalledModel]
WAIT_S = 30


class SlowPages(FakePageClient):
    """Holds every answer back until `gate` opens."""

    def __init__(self, answers: list[bytes]):
        super().__init__(answers)
        self.gate, self.entered = threading.Event(), threading.Event()

    def get_page(self, request: PageRequest) -> page_pb2.Page:
        self.entered.set()
        assert self.gate.wait(WAIT_S)
        return super().get_page(request)


async def test_the_choices_are_those_of_the_plain_session(published: Open) -> None:
    plain = EdgeSession(5, published("kir-a"), clock=FakeClock(), session_id=77)
    plain.start()
    plain.on_page(page_bytes(range(101, 109)))
    want = []
    for _ in range(8):
        want.append(plain.next().video_id)
        plain.maintain()
        plain.feedback(Feedback(want[-1], 2_000))
    inner = EdgeSession(5, published("kir-a"), clock=FakeClock(), session_id=77)
    async with AsyncEdgeSession(inner) as session:
        assert session.dense_version == "kir-a"
        await session.on_page(page_bytes(range(101, 109)))
        assert (await session.look_ahead(BeamPlan(beams=2, depth=2))).problem == ""
        got = []
        for _ in range(8):
            got.append((await session.next(DeviceState())).video_id)
            await session.maintain()
            assert await session.feedback(Feedback(got[-1], 2_000)) is Outcome.APPENDED
        assert session.position == 8
        with pytest.raises(PoolExhausted):
            await session.next()
    assert got == want
    assert session.metrics.snapshot()["kir.edge.swipes"] == 8


def public(session: object) -> set[str]:
    return {name for name in dir(session) if not name.startswith("_")}


def test_every_public_member_of_the_session_is_there(session: EdgeSession) -> None:
    """Calls as coroutines with the same parameters, what is only read as it is."""
    phone = AsyncEdgeSession(session)
    assert public(phone) == public(session)
    for name in public(session):
        plain = getattr(session, name)
        if inspect.ismethod(plain):
            call = getattr(phone, name)
            assert inspect.iscoroutinefunction(call), name
            assert inspect.signature(call) == inspect.signature(plain), name
        elif name != "config":
            assert getattr(phone, name) == plain, name
    assert phone.config is session.config


async def test_what_is_read_and_asked_is_the_sessions(published: Open, clock: FakeClock) -> None:
    inner = EdgeSession(5, published("kir-a"), clock=clock, session_id=77)
    async with AsyncEdgeSession(inner) as phone:
        await phone.on_page(page_bytes(range(101, 109)))
        best = (await phone.ranking()).video_ids[0]
        choice = await phone.next()
        assert choice.video_id == best
        assert (await phone.explain(best)).video_id == best
        await phone.feedback(Feedback(best, 2_000))
        assert (await phone.page_request()).watched_ids == [best]
        assert (phone.n_watched, len(phone.pool), phone.last_error) == (1, 7, None)
        await phone.offer(published("kir-b"))
        assert (await phone.on_page(page_bytes(range(201, 204), "kir-b"))).activated == "kir-b"
        with pytest.raises(InputError, match="no model scores"):
            await phone.explain(best)


async def test_one_thread_drives_the_session(session: EdgeSession, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: set[int] = set()
    whole = EdgeSession.next

    def spied(self: EdgeSession, device: DeviceState | None = None) -> object:
        threads.add(threading.get_ident())
        return whole(self, device)

    monkeypatch.setattr(EdgeSession, "next", spied)
    async with AsyncEdgeSession(session) as phone:
        await phone.on_page(page_bytes(range(101, 109)))
        choices = await asyncio.gather(*(phone.next() for _ in range(8)))
    assert sorted(choice.video_id for choice in choices) == list(range(101, 109))
    assert [choice.position for choice in choices] == list(range(8))
    assert len(threads) == 1
    assert threading.get_ident() not in threads


async def test_swipes_go_on_while_a_page_is_awaited(published: Open, clock: FakeClock) -> None:
    pages = SlowPages([page_bytes(range(201, 205), page_id="p2")])
    async with AsyncEdgeSession(EdgeSession(5, published("kir-a"), pages, clock=clock)) as phone:
        await phone.on_page(page_bytes(range(101, 103)))
        fetch = asyncio.create_task(phone.fetch_page())
        await asyncio.to_thread(pages.entered.wait, WAIT_S)
        assert {(await phone.next()).video_id for _ in range(2)} == {101, 102}
        assert not fetch.done()
        pages.gate.set()
        assert (await fetch).added == 4
        assert (await phone.next()).page_id == "p2"


async def test_waiting_for_a_prefetched_page_holds_up_no_swipe(published: Open, clock: FakeClock) -> None:
    pages = SlowPages([page_bytes(range(201, 205), page_id="p2")])
    async with AsyncEdgeSession(EdgeSession(5, published("kir-a"), pages, clock=clock)) as phone:
        assert not await phone.wait_page(0.01)  # nothing is on its way
        await phone.on_page(page_bytes(range(101, 103)))
        await phone.maintain()  # few are left: asks
        waiting = asyncio.create_task(phone.wait_page(WAIT_S))
        await phone.next()
        assert not await phone.wait_page(0.01)
        pages.gate.set()
        assert await waiting
        assert len(phone._session.pool) == 5


async def test_an_update_is_offered_and_takes_over(tmp_path: Path, cdn: Path, clock: FakeClock) -> None:
    store = ModelStore(tmp_path / "cache", cdn)
    async with AsyncEdgeSession(EdgeSession(5, store, clock=clock)) as phone:
        assert phone.dense_version == ""
        assert await phone.update() == "kir-a"
        assert await phone.update() is None
        assert (await phone.on_page(page_bytes(range(101, 105)))).activated == "kir-a"
        point_at(cdn, "kir-b")
        assert await phone.update() == "kir-b"
        assert (await phone.next()).dense_version == "kir-a"


async def test_errors_are_the_sessions(session: EdgeSession) -> None:
    phone = AsyncEdgeSession(session)
    with pytest.raises(ServerError, match="no page source"):
        await phone.fetch_page()
    with pytest.raises(PageError):
        await phone.on_page(b"\xff")
    with pytest.raises(PoolExhausted):
        await phone.next()
    await phone.close()
    await phone.close()
    with pytest.raises(InputError, match="closed"):
        await phone.next()


async def test_a_server_that_is_gone(published: Open, clock: FakeClock) -> None:
    pages = FakePageClient([ServerUnavailable("gone")])
    async with AsyncEdgeSession(EdgeSession(5, published("kir-a"), pages, clock=clock)) as phone:
        with pytest.raises(ServerUnavailable):
            await phone.fetch_page()
        assert phone.metrics.snapshot()["kir.edge.fetch.failures"] == 1

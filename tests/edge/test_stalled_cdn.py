"""A CDN that stops in mid-file: only the update waits for it. Swipes, takeovers, starts and other stores go on.

No clock is read: the CDN goes on when the test says so, and everything else must have returned before.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edge import AsyncEdgeSession, Chooser, EdgeSession, FakeClock, FakePageClient, HttpSource, ModelStore
from tests.edge.test_store import manifest_of
from tests.edge.tiny_model import point_at
from tests.edge.tiny_page import page_bytes
from tests.edge.web_cdn import Cdn

REPOSITORY = Path(__file__).resolve().parents[2]
WAIT_S = 120  # the longest that a download, or a test, waits for the other
WAITING_FOR_THE_CDN = (
    "import sys\nfrom edge import HttpSource, ModelStore\n"
    f"store = ModelStore(sys.argv[1], HttpSource(sys.argv[2], timeout_s={WAIT_S}), unsigned=True)\n"
    "print(store.update())"
)


@pytest.fixture
def web(cdn: Path) -> Iterator[Cdn]:
    with Cdn(cdn) as server:
        yield server


def store_on(cache: Path, web: Cdn) -> ModelStore:
    return ModelStore(cache, HttpSource(web.url, timeout_s=WAIT_S), unsigned=True, keep=2)


@pytest.fixture
def store(web: Cdn, tmp_path: Path) -> ModelStore:
    """kir-a is active."""
    made = store_on(tmp_path / "cache", web)
    made.activate(str(made.update()))
    return made


def stall(web: Cdn, version: str, after: int = 2) -> None:
    """From here on the CDN's current version stops in the third graph."""
    point_at(web.root, version)
    web.stall_after = after


@pytest.fixture
def pool(web: Cdn) -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as threads:
        yield threads
        web.go_on.set()  # a test that failed has left an update behind


def whole(store: ModelStore, version: str) -> None:
    assert store.activate(version).dense_version == store.active().dense_version == version


def test_swipes_takeover_and_close_while_another_thread_updates(
    store: ModelStore, web: Cdn, pool: ThreadPoolExecutor
) -> None:
    point_at(web.root, "kir-b")
    pages = FakePageClient([page_bytes(range(101, 103)), page_bytes(range(201, 209), "kir-b", page_id="p2")])
    session = EdgeSession(5, store, pages, clock=FakeClock())
    assert session.start() == ""
    session.fetch_page()
    assert session.update() == "kir-b"
    stall(web, "kir-pxtr")
    update = pool.submit(store.update)
    assert web.stalled.wait(WAIT_S)
    assert [session.next().dense_version for _ in range(2)] == ["kir-a", "kir-a"]
    session.maintain()
    assert session.wait_page(WAIT_S)  # a page of the offered model: it takes over
    choice = session.next()
    session.maintain()
    session.close()
    assert (choice.chooser, choice.dense_version) == (Chooser.MODEL, "kir-b")
    assert session.last_error is None
    assert store.active_version() == "kir-b"
    assert not update.done()
    web.go_on.set()
    assert update.result(WAIT_S) == "kir-pxtr"
    whole(store, "kir-pxtr")


def test_a_takeover_within_a_swipe_writes_nothing(store: ModelStore, web: Cdn) -> None:
    point_at(web.root, "kir-b")
    pages = FakePageClient([page_bytes([101]), page_bytes(range(201, 209), "kir-b", page_id="p2")])
    session = EdgeSession(5, store, pages, clock=FakeClock())
    session.start()
    session.fetch_page()
    session.update()
    session.next()
    session.maintain()
    assert session._intake._prefetcher is not None
    assert session._intake._prefetcher.wait(WAIT_S)
    assert session.next().dense_version == "kir-b"  # the page was taken in here
    assert store.active_version() == "kir-a"
    session.maintain()
    assert store.active_version() == "kir-b"


async def test_an_async_session_swipes_while_it_updates(store: ModelStore, web: Cdn) -> None:
    point_at(web.root, "kir-b")
    async with AsyncEdgeSession(EdgeSession(5, store, clock=FakeClock())) as phone:
        assert await phone.update() == "kir-b"
        stall(web, "kir-pxtr")
        update = asyncio.create_task(phone.update())
        assert await asyncio.to_thread(web.stalled.wait, WAIT_S)
        report = await phone.on_page(page_bytes(range(201, 209), "kir-b"))
        choice = await phone.next()
        await phone.maintain()
        assert (report.activated, choice.dense_version, store.active_version()) == ("kir-b", "kir-b", "kir-b")
        assert not update.done()
        web.go_on.set()
        assert await asyncio.wait_for(update, WAIT_S) == "kir-pxtr"


@pytest.mark.parametrize("same_store", [True, False])
def test_another_session_starts_rolls_back_and_activates(
    store: ModelStore, web: Cdn, pool: ThreadPoolExecutor, same_store: bool
) -> None:
    point_at(web.root, "kir-b")
    whole(store, str(store.update()))
    stall(web, "kir-pxtr")
    update = pool.submit(store.update)
    assert web.stalled.wait(WAIT_S)
    other = store if same_store else ModelStore(store.cache, keep=2)
    session = EdgeSession(6, other, clock=FakeClock())
    assert (session.start(), session.dense_version) == ("", "kir-b")
    assert other.rollback().dense_version == "kir-a"
    assert other.activate("kir-b").dense_version == "kir-b"
    session.maintain()
    assert not update.done()
    web.go_on.set()
    assert update.result(WAIT_S) == "kir-pxtr"


def test_two_processes_on_one_cache(store: ModelStore, web: Cdn, pool: ThreadPoolExecutor) -> None:
    """Another process is in mid-download: this one starts, swipes, prunes; its own update waits, and has all then."""
    stall(web, "kir-b")
    command = [sys.executable, "-c", WAITING_FOR_THE_CDN, str(store.cache), web.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as process:
        assert web.stalled.wait(WAIT_S)
        session = EdgeSession(5, store, clock=FakeClock())
        assert session.start() == ""
        session.on_page(page_bytes(range(101, 109)))
        assert session.next().dense_version == "kir-a"
        session.maintain()
        whole(store, "kir-a")
        mine = pool.submit(store.update)
        assert process.poll() is None
        assert not mine.done()
        web.go_on.set()
        told, _ = process.communicate(timeout=WAIT_S)
    assert (told.strip(), mine.result(WAIT_S)) == ("kir-b", "kir-b")
    whole(store, "kir-b")
    asked = [path for path, _ in web.log if path.startswith("models/kir-b/") and path.endswith(".tflite")]
    assert len(asked) == len(set(asked))


def test_two_updates_of_one_store_fetch_each_file_once(store: ModelStore, web: Cdn, pool: ThreadPoolExecutor) -> None:
    stall(web, "kir-b")
    updates = [pool.submit(which.update) for which in (store, store, store_on(store.cache, web))]
    assert web.stalled.wait(WAIT_S)
    web.go_on.set()
    assert [update.result(WAIT_S) for update in updates] == ["kir-b"] * 3
    asked = [path for path, _ in web.log if path.startswith("models/kir-b/") and path.endswith(".tflite")]
    assert len(asked) == len(set(asked))


def test_nothing_that_is_being_downloaded_is_dropped(store: ModelStore, web: Cdn, pool: ThreadPoolExecutor) -> None:
    """Blobs that no record names yet, and the part: other stores prune, activate and keep two only."""
    point_at(web.root, "kir-pxtr")
    store.update()
    stall(web, "kir-b")
    update = pool.submit(store.update)
    assert web.stalled.wait(WAIT_S)
    others = {entry.sha256 for v in store.versions() for entry in manifest_of(web.root, v).files.values()}
    arrived = {path.name for path in (store.cache / "blobs").iterdir()} - others
    deadline = time.monotonic() + WAIT_S  # the CDN stops once it has sent, which is before the phone has written
    while not (parts := [path.name for path in (store.cache / "parts").iterdir()]) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(arrived) == 2
    assert len(parts) == 1
    other = ModelStore(store.cache, keep=2)
    other.prune()
    whole(other, "kir-a")
    assert arrived <= {path.name for path in (store.cache / "blobs").iterdir()}
    assert [path.name for path in (store.cache / "parts").iterdir()] == parts
    assert not update.done()
    web.go_on.set()
    assert update.result(WAIT_S) == "kir-b"
    whole(store, "kir-b")

"""A phone as a process of its own: the edge runtime against a live server and CDN, swiped by a viewer.

    python -m benchmarks.phone CONFIG.json RESULT.json          (`kir demo` writes the config and reads the result)

CONFIG: server "host:port", cdn URL, root (path of root.json), cache folder, user_ids, swipes per user, viewer (see
benchmarks.viewer), seed, and optionally think_s (pause between swipes) and until_version (with started_file): go on
until so many swipes were made with that dense version, taking it up as a phone would.
RESULT: latencies in microseconds per swipe and stage, page sizes, who chose, and a log of what happened.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.edge_arm import signals_of
from benchmarks.viewer import make_viewer
from contract.errors import KirError, PoolExhausted
from edge import (
    DeviceState,
    EdgeSession,
    FakeClock,
    Feedback,
    FeedbackClient,
    FeedbackUploader,
    ModelStore,
    PageClient,
    PageRequest,
    SessionConfig,
)

PAGE_WAIT_S = 10.0
PATIENCE_S = 120.0
CHECK_EVERY = 4  # swipes between two looks at the CDN's pointer
THINK_S = 0.005  # a video lasts seconds; without a pause no prefetch could keep up
STARTED_AFTER = 8  # swipes after which a phone that waits for a version says that it is under way


class MeasuredPages:
    """A PageClient that keeps sizes and round trips."""

    def __init__(self, client: PageClient):
        self._client = client
        self.n_bytes: list[int] = []
        self.round_trip_us: list[float] = []

    def get_page(self, request: PageRequest) -> Any:
        start = time.perf_counter()
        page = self._client.get_page(request)
        self.round_trip_us.append((time.perf_counter() - start) * 1e6)
        self.n_bytes.append(page.ByteSize())
        return page


class Phone:
    """One process, several users one after the other; the downloaded model is kept between them."""

    def __init__(self, config: dict[str, Any]):
        self.config = config
        self.store = ModelStore(config["cache"], config["cdn"], root=config["root"])
        self.client = PageClient(config["server"], deadline_s=10.0)
        self.pages = MeasuredPages(self.client)
        self.sink = FeedbackClient(config["server"])
        self.world = self._world()
        self.samples_us: list[float] = []
        self.page_arrival_us: list[float] = []
        self.stages: list[dict[str, float]] = []
        self.choosers: Counter[str] = Counter()
        self.versions: Counter[str] = Counter()
        self.log: list[str] = []
        self.uploaded = 0
        self._offered = ""

    def _world(self) -> Any:
        if self.config["viewer"]["kind"] != "sim":
            return None
        from training.simulator import SimConfig, World

        return World(SimConfig(**self.config["viewer"]["world"]))

    def run(self) -> dict[str, Any]:
        if not self.store.active_version():  # a first start has nothing running that a change could disturb
            version = self.store.update()
            assert version is not None
            self.store.activate(version)
            self.log.append(f"first start: model {version} downloaded from the CDN, verified, activated")
        for number, user_id in enumerate(self.config["user_ids"]):
            self._one_user(int(user_id), number)
        self.client.close()
        self.sink.close()
        return {
            "samples_us": self.samples_us,
            "stages": self.stages,
            "page_arrival_us": self.page_arrival_us,
            "page_round_trip_us": self.pages.round_trip_us,
            "page_bytes": self.pages.n_bytes,
            "choosers": dict(self.choosers),
            "versions": dict(self.versions),
            "log": self.log,
            "feedback_sent": self.uploaded,
        }

    def _one_user(self, user_id: int, number: int) -> None:
        start_ms = int(self.config["viewer"]["start_ms"]) + number * 1_000
        clock = FakeClock(wall_ms=start_ms)
        viewer = make_viewer(self.config["viewer"], user_id, self.config["seed"] + number, self.world)
        session_config = SessionConfig(page_size=self.config.get("page_size", 0))
        uploader = FeedbackUploader(self.sink)
        session = EdgeSession(user_id, self.store, self.pages, uploader, clock=clock, config=session_config)
        session.start()
        self._first_page(session)
        feedback: Feedback | None = None
        swipes = 0
        deadline = time.monotonic() + PATIENCE_S
        self._offered = ""
        while not self._enough(session, swipes, deadline):
            shown = self._swipe(session, feedback, user_id, swipes)
            swipes += 1
            response = viewer.watch(shown)
            clock.advance(max(0, viewer.now_ms - clock.wall_ms()))
            feedback = Feedback(
                shown, int(response.play_time_ms), signals_of(response.signals), has_next=response.has_next
            )
            if "until_version" in self.config:
                self._live(session, user_id, swipes)
            time.sleep(self.config.get("think_s", THINK_S))
        if feedback is not None:
            session.feedback(feedback)
        self.uploaded += swipes
        session.close()

    def _enough(self, session: EdgeSession, swipes: int, deadline: float) -> bool:
        wanted = self.config.get("until_version")
        if wanted is None:
            return swipes >= self.config["swipes"]
        if time.monotonic() > deadline:
            raise TimeoutError(f"dense version {wanted} did not become active in {PATIENCE_S:.0f} s")
        return self.versions[wanted] >= self.config["swipes"]

    def _first_page(self, session: EdgeSession) -> None:
        request = session.page_request()
        page = self.pages.get_page(request)
        start = time.perf_counter()
        session.on_page(page, request)
        self.page_arrival_us.append((time.perf_counter() - start) * 1e6)

    def _swipe(self, session: EdgeSession, feedback: Feedback | None, user_id: int, number: int) -> int:
        """Feedback in, next video out: the time that a swipe waits. Then what need not be waited for."""
        version = session.dense_version
        start = time.perf_counter()
        if feedback is not None:
            session.feedback(feedback)
        try:
            choice = session.next(DeviceState(network=6, decoder=1))
        except PoolExhausted:
            if not session.wait_page(PAGE_WAIT_S):
                session.fetch_page()
            choice = session.next(DeviceState(network=6, decoder=1))
            start = float("nan")  # a wait for the network is no swipe latency; it is told in the log
            self.log.append(f"user {user_id}, swipe {number}: the pool was empty, waited for a page")
        total_us = (time.perf_counter() - start) * 1e6
        if feedback is not None and total_us == total_us:
            self.samples_us.append(total_us)
            stages = {k: v for k, v in choice.stages_us.items() if k != "total"}
            self.stages.append({"feedback + watch": total_us - choice.stages_us["total"], **stages})
        self.choosers[choice.reason or str(choice.chooser)] += 1
        self.versions[choice.dense_version] += 1
        watched = session.n_watched
        session.maintain()
        if session.n_watched < watched:
            self.log.append(
                f"user {user_id}, swipe {number}: watched list full at {watched}, the oldest half went, "
                f"{session.n_watched} rebuilt after the choice was shown"
            )
        if session.dense_version != version:
            self.log.append(
                f"user {user_id}, swipe {number}: page boundary, {session.dense_version} took over from {version}"
            )
        return choice.video_id

    def _live(self, session: EdgeSession, user_id: int, swipes: int) -> None:
        """While waiting for a version: tell that swipes go on, look at the CDN now and then."""
        if swipes == STARTED_AFTER:
            Path(self.config["started_file"]).touch()
        if swipes % CHECK_EVERY or self._offered:
            return
        try:
            version = session.update()
        except KirError as error:
            self.log.append(f"user {user_id}, swipe {swipes}: no update, the running model stays: {error}")
            return
        if version is not None:
            self._offered = version
            self.log.append(f"user {user_id}, swipe {swipes}: {version} downloaded; waits for a page that fits")


def main(argv: list[str]) -> int:
    config = json.loads(Path(argv[0]).read_text())
    result = Phone(config).run()
    Path(argv[1]).write_text(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The phone's part of `kir bench edge`, in a process that holds what a phone holds: numpy, LiteRT and the edge.

    python -m benchmarks.edge_swiper CACHE PAGES N BUCKET

With torch and TensorFlow in its process a swipe takes a fifth to a third longer, which no phone would see. A line on
stdin, {"swipes": 100, "calls": 20, "compared": 5}, is one turn: so many swipes, as many with a state file, as many
with Python's collector at work, `calls` of the two graphs of a swipe alone and of the whole net, all in LiteRT, and
swipes whose candidates the whole net scores as well. A line on stdout answers, times in µs. {"soak": 10000} swipes on,
with the collector. CACHE is a ModelStore's with an active model and all its files, PAGES a folder of pages of N
candidates.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from benchmarks.edge_cold import resident_mib
from contract.errors import KirError
from contract.features import dense_block
from edge import (
    Choice,
    DeviceState,
    EdgeSession,
    Engine,
    FakeClock,
    Feedback,
    ModelStore,
    PoolConfig,
    SessionConfig,
    StateFile,
)

START_MS = 1_760_000_000_000
WATCH_MS = 8_000
DEVICE = DeviceState(network=6, decoder=1)
WHOLE = "whole"
TENTHS = 10  # of a soak


class Swiper:
    """A session that swipes without end over pages of n candidates, with a state file when `state` names one.

    Raises KirError when the model does not choose.
    """

    def __init__(self, engine: Engine, pages: Sequence[bytes], n: int, state: Path | None = None):
        pool = PoolConfig(max_pages=1, prefetch_below=1, seen=1)
        self.clock = FakeClock(wall_ms=START_MS)
        file = None if state is None else StateFile(state)
        self.session = EdgeSession(1, engine, clock=self.clock, config=SessionConfig(pool=pool), state=file)
        self.session.start()
        assert self.session._reranker is not None
        # Two parts of a feedback, timed from outside: its token's features, and the run of `watch` with its inputs.
        self._features = _Stopwatch(self.session._reranker, "appended")
        self._watch = _Stopwatch(engine, "watch")
        self._pages, self._n, self._number = pages, n, 0
        self._feedback: Feedback | None = None
        self.choice: Choice
        self.swipe_us: list[float] = []
        self.page_us: list[float] = []
        self.stages: dict[str, list[float]] = defaultdict(list)

    def page(self) -> None:
        data = self._pages[self._number % len(self._pages)]
        self._number += 1
        start = time.perf_counter_ns()
        self.session.on_page(data)
        self.page_us.append((time.perf_counter_ns() - start) / 1e3)

    def swipe(self, then: Callable[[], None] | None = None) -> None:
        """One swipe, timed; a page before it when a third of the last one is gone. then: called before `maintain`."""
        if len(self.session.pool) <= self._n * 2 // 3:
            self.page()
        self.clock.advance(WATCH_MS + 1_000)
        start = time.perf_counter_ns()
        if self._feedback is not None:
            self.session.feedback(self._feedback)
        taken = time.perf_counter_ns()
        choice = self.session.next(DEVICE)
        end = time.perf_counter_ns()
        if choice.reason:
            raise KirError("the model did not choose", where=choice.page_id, got=str(self.session.last_error))
        if self._feedback is not None:
            self.swipe_us.append((end - start) / 1e3)
            features_us, watch_us = self._features.taken_us(), self._watch.taken_us()
            self.stages["feedback: features"].append(features_us)
            self.stages["feedback: engine"].append(watch_us)
            self.stages["feedback: rest"].append((taken - start) / 1e3 - features_us - watch_us)
            for name, value in choice.stages_us.items():
                if name != "total":
                    self.stages[name].append(value)
        self.choice = choice
        if then is not None:
            then()
        self.session.maintain()
        self._features.taken_us(), self._watch.taken_us()  # an eviction's are no swipe's
        liked = self._number % 3 == 0
        self._feedback = Feedback(choice.video_id, play_time_ms=WATCH_MS, signals={"like": liked, "long_view": True})

    def compared(self) -> tuple[list[float], list[float]]:
        """A swipe: fused values of its candidates, and those of the whole net on the inputs of that very moment."""
        found: list[tuple[list[float], list[float]]] = []
        self.swipe(then=lambda: found.append(self._both()))
        return found[0]

    def _both(self) -> tuple[list[float], list[float]]:
        reranker, last = self.session._reranker, self.session._last
        assert reranker is not None
        assert last is not None
        scored, values_N = last[0].scored, self.choice.values_N
        assert scored is not None
        assert values_N is not None
        watched, spec, memory = reranker.watched, reranker.engine.spec, reranker.cache.memory
        dense = np.zeros((watched.length, spec.width("watched_dense")), np.float32)
        dense_block(spec, "watched_dense", watched.columns(), dense)
        buffered = reranker._swipe.candidates(DEVICE, scored.video_ids, scored.state.bucket)
        now = {"memory_mask": memory.memory_mask, "since": memory.since, "behind": memory.behind}
        now |= {"watched_rows": reranker.rows.rows[: watched.length], "watched_dense": dense}
        now |= {"swipe_dense": reranker._swipe.swipe_dense, "candidate_swipe": buffered[0, : len(scored.video_ids)]}
        whole_N = reranker.values(reranker.engine.reference_scores({**scored.features.blocks, **now}))
        place = {video_id: at for at, video_id in enumerate(scored.video_ids)}
        theirs = whole_N[[place[video_id] for video_id in self.choice.considered]]
        return values_N.tolist(), theirs.tolist()

    def taken(self) -> dict[str, Any]:
        """What was timed since the last call."""
        found: dict[str, Any] = {
            "swipe_us": self.swipe_us[:],
            "page_us": self.page_us[:],
            "stages_us": dict(self.stages),
        }
        self.swipe_us.clear()
        self.page_us.clear()
        self.stages = defaultdict(list)
        return found


class _Stopwatch:
    """Stands before a method of an object and sums up its time, at half a microsecond a call."""

    def __init__(self, owner: object, name: str):
        self._call, self._ns = getattr(owner, name), 0
        setattr(owner, name, self._timed)

    def _timed(self, *args: Any) -> Any:
        start = time.perf_counter_ns()
        try:
            return self._call(*args)
        finally:
            self._ns += time.perf_counter_ns() - start

    def taken_us(self) -> float:
        """Since the last call of this."""
        found, self._ns = self._ns / 1e3, 0
        return found


class SwiperProcess:
    """A running `python -m benchmarks.edge_swiper`; a context manager. Raises KirError when it fails."""

    def __init__(self, cache: Path, pages: Path, n: int, bucket: str):
        command = [sys.executable, "-m", "benchmarks.edge_swiper", str(cache), str(pages), str(n), bucket]
        here = Path(__file__).resolve().parent.parent
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, cwd=here, stdin=pipe, stdout=pipe, stderr=pipe, text=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, **request: int) -> dict[str, Any]:
        """One turn. Returns its times."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        except (OSError, ValueError):
            self._process.kill()
            last = self._process.communicate()[1].strip().splitlines()[-1:]
            raise KirError("the swiping process failed", got="".join(last)) from None
        return answer


def timed(call: Callable[[], Any], calls: int) -> list[float]:
    """µs of each call, after one that is not timed."""
    call()
    found = []
    for _ in range(calls):
        start = time.perf_counter_ns()
        call()
        found.append((time.perf_counter_ns() - start) / 1e3)
    return found


def graph_calls(engine: Engine, bucket: str) -> dict[str, Callable[[], Any]]:
    """The graphs of a swipe as shipped, invoked alone; the whole net with inputs set and outputs read."""
    runners = {key: engine.load_graph(*key.split("/")) for key in ("watch/T1", f"swipe/{bucket}")}
    for runner in runners.values():
        runner.run()
    whole, key = engine.load_graph(WHOLE, bucket), f"{WHOLE}/{bucket}"
    manifest = engine.installed.manifest
    case = np.load(engine.installed.paths[manifest.golden.tensors[key]])
    feeds = {tensor.name: case[tensor.name] for tensor in manifest.graph(WHOLE, bucket).inputs}
    return {name: runner.invoke for name, runner in runners.items()} | {WHOLE: lambda: whole.run(feeds)}


def soak(swiper: Swiper, swipes: int) -> dict[str, Any]:
    """Resident memory after each tenth, and the times of the first and the last one."""
    tenth = max(swipes // TENTHS, 1)
    memory, times = [], []
    swiper.taken()
    for _ in range(TENTHS):
        for _ in range(tenth):
            swiper.swipe()
        memory.append(resident_mib())
        times.append(swiper.taken()["swipe_us"])
    warm = times[0][tenth // TENTHS :]
    return {"swipes": tenth * TENTHS, "resident_mib": memory, "first_us": warm, "last_us": times[-1]}


def turn(
    plain: Swiper, stateful: Swiper, calls: dict[str, Callable[[], Any]], request: dict[str, int]
) -> dict[str, Any]:
    """One turn of all arms. The collector is off where its time is not asked for: it is the app's own business."""
    gc.collect()
    gc.disable()
    for swiper in (plain, stateful):
        for _ in range(request["swipes"]):
            swiper.swipe()
    found = plain.taken() | {"swipe_state_us": stateful.taken()["swipe_us"]}
    gc.enable()
    for _ in range(request["swipes"]):
        plain.swipe()
    found["swipe_collected_us"] = plain.taken()["swipe_us"]
    gc.disable()
    found["calls_us"] = {name: timed(call, request["calls"]) for name, call in calls.items()}
    slates = [plain.compared() for _ in range(request["compared"])]
    plain.taken()
    found["swipe_values"], found["whole_values"] = ([pair[side] for pair in slates] for side in (0, 1))
    return found


def main(argv: list[str]) -> int:
    cache, folder, n, bucket = Path(argv[0]), Path(argv[1]), int(argv[2]), argv[3]
    installed = ModelStore(cache).active()
    pages = [path.read_bytes() for path in sorted(folder.iterdir())]
    state = folder.with_name(f"{folder.name}.state")
    plain = Swiper(Engine(installed), pages, n)
    stateful = Swiper(Engine(installed), pages, n, state)
    calls = graph_calls(plain.session._reranker.engine, bucket)  # type: ignore[union-attr]  # it has started
    for swiper in (plain, stateful):
        for _ in range(swiper.session._history.watched.capacity + 10):  # past the first eviction
            swiper.swipe()
        swiper.taken()
    for line in sys.stdin:
        request = json.loads(line)
        if "soak" in request:
            gc.enable()
            print(json.dumps(soak(plain, request["soak"])), flush=True)
            continue
        print(json.dumps(turn(plain, stateful, calls, request)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What is measured on a device, in a process of its own there: one published version, one question.

    python probe.py SETTINGS.json RESULT.json        (`kir bench --serial …` pushes, runs and pulls)

It imports numpy, LiteRT, `edge` and `contract`, and nothing else of this project. SETTINGS: mode "graphs" (one variant
of every graph), "session" (a whole EdgeSession) or "replay" (golden cases); model: a version directory; runs, warmup,
threads, variant, graphs (names; [] = all), cpus to stay on ([] = any), timed (false: no clock is read for a result).
RESULT is one document, written aside and renamed, `error` in it when it could not be. Times are nanoseconds of
`perf_counter_ns`: where the guest's clock counts instructions, they are instructions.
"""

from __future__ import annotations

import base64
import gc
import importlib.metadata
import io
import json
import os
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from contract.errors import KirError, NoModelError
from contract.files import replacing
from contract.golden import GoldenSession, PageStep
from contract.manifest import Graph, Manifest, Variant
from contract.stats import percentiles

WATCH_MS = 8_000  # how long each video is watched, in the session's own time
PACKAGES = ("ai-edge-litert", "numpy", "protobuf", "grpcio")
QUANTILES = 101  # of a distribution, for plots


class NoDelegate(KirError):
    """Told to whoever asked as DelegateMissing."""


def main(argv: list[str]) -> int:
    """0: the result is there; 3: the reason is there."""
    settings = json.loads(Path(argv[0]).read_text())
    modes: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
        "graphs": measure_graphs, "session": measure_session, "replay": replay_golden,
    }  # fmt: skip
    unpinned = _pin(settings["cpus"])
    try:
        result = modes[settings["mode"]](settings)
    except (KirError, OSError, MemoryError) as error:
        told = {key: str(getattr(error, key, "") or "") for key in ("what", "where", "got", "fix")}
        result = {"error": {"type": type(error).__name__, **told, "text": str(error)}}
    result |= {
        "peak_rss_kb": peak_rss_kb(),
        "cpus": sorted(os.sched_getaffinity(0)),
        "unpinned": unpinned,
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
    }
    with replacing(argv[1]) as file:
        file.write(json.dumps(result).encode())
    return 3 if "error" in result else 0


def _pin(cpus: list[int]) -> str:
    """Stay on these cores; why not, where the system does not let a process choose ("" = done, or none named)."""
    try:
        if cpus:
            os.sched_setaffinity(0, cpus)
    except OSError as error:
        return str(error)
    return ""


def peak_rss_kb() -> int:
    """Largest resident memory of this process so far (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    raise RuntimeError("/proc/self/status tells no VmHWM")


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""  # a packed runtime may leave metadata out


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# -- graphs


def measure_graphs(settings: dict[str, Any]) -> dict[str, Any]:
    """Every graph that has the variant: load, first call, steady calls per thread count, delegation, outputs."""
    folder = Path(settings["model"])
    manifest = Manifest.from_bytes((folder / "manifest.json").read_bytes())
    wanted = [
        (graph, variant)
        for graph in manifest.graphs
        for variant in graph.variants
        if variant.name == settings["variant"] and (not settings["graphs"] or graph.name in settings["graphs"])
    ]
    if wanted:  # the library's own start is the session's cold start, not the first graph's
        _load((folder / wanted[0][1].file).read_bytes(), 1)
    return {"graphs": [_measure_graph(folder, manifest, *pair, settings) for pair in wanted]}


def _measure_graph(
    folder: Path, manifest: Manifest, graph: Graph, variant: Variant, settings: dict[str, Any]
) -> dict[str, Any]:
    key = f"{graph.name}/{graph.bucket}"
    _tell(f"{key} {variant.name}")
    content = (folder / variant.file).read_bytes()
    golden = _golden(folder, manifest, key)
    feeds = {t.name: golden.get(t.name, np.zeros(t.shape, t.dtype)) for t in graph.inputs}
    threads: dict[str, Any] = {}
    outputs: list[dict[str, Any]] = []
    for count in settings["threads"]:
        start = time.perf_counter_ns()
        interpreter = _load(content, count)
        loaded = time.perf_counter_ns()
        if not _delegates(interpreter):
            raise NoDelegate(
                "graph runs without XNNPACK", where=f"{key} {variant.name}",
                fix="is /sys/devices/system/cpu readable there?",
            )  # fmt: skip
        for detail in interpreter.get_input_details():
            interpreter.set_tensor(detail["index"], np.ascontiguousarray(feeds[detail["name"]], np.float32))
        begin = time.perf_counter_ns()
        interpreter.invoke()
        first = time.perf_counter_ns() - begin
        outputs.append({d["name"]: interpreter.get_tensor(d["index"]) for d in interpreter.get_output_details()})
        if settings["timed"]:
            steady = _steady(interpreter.invoke, settings["warmup"], settings["runs"])
            threads[str(count)] = {"load": loaded - start, "first": first, "steady": _summary(steady)}
    return {
        "graph": key,
        "variant": variant.name,
        "ships": variant.name == graph.ship,
        "bytes": len(content),
        "threads": threads,
        "delegate": _delegation(content, interpreter),
        "outputs": {name: base64.b64encode(value.tobytes()).decode() for name, value in outputs[0].items()},
        "threads_equal": all(np.array_equal(out[name], outputs[0][name]) for out in outputs for name in outputs[0]),
    }


def _load(content: bytes, threads: int) -> Interpreter:
    try:
        interpreter = Interpreter(model_content=content, num_threads=threads)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise NoModelError("graph does not load", got=str(error)) from None
    return interpreter


def _delegates(interpreter: Interpreter) -> int:
    return sum(op["op_name"] == "DELEGATE" for op in interpreter._get_ops_details())


def _delegation(content: bytes, interpreter: Interpreter) -> dict[str, Any]:
    """Operators of the file, and those that XNNPACK left out: unfused, each that it takes is a delegate of its own."""
    apart = Interpreter(model_content=content, num_threads=1, experimental_disable_delegate_node_fusion=True)
    apart.allocate_tensors()
    nodes = apart._get_ops_details()
    taken = {int(n) for node in nodes if node["op_name"] == "DELEGATE" for n in node["outputs"]}
    plain = [node for node in nodes if node["op_name"] != "DELEGATE"]
    operators: dict[str, int] = defaultdict(int)
    left_out: dict[str, int] = defaultdict(int)
    for node in plain:
        operators[node["op_name"]] += 1
        if not taken & {int(n) for n in node["outputs"]}:
            left_out[node["op_name"]] += 1
    return {"partitions": _delegates(interpreter), "operators": dict(operators), "left_out": dict(left_out)}


def _steady(call: Callable[[], Any], warmup: int, runs: int) -> list[int]:
    for _ in range(warmup):
        call()
    samples = []
    gc.disable()  # a collection is no part of an inference
    try:
        for _ in range(runs):
            start = time.perf_counter_ns()
            call()
            samples.append(time.perf_counter_ns() - start)
    finally:
        gc.enable()
    return samples


def _summary(samples: list[int]) -> dict[str, Any]:
    """Percentiles in nanoseconds, and a distribution to plot."""
    quantiles = np.percentile(samples, np.linspace(0, 100, QUANTILES)) if samples else np.zeros(0)
    return {**percentiles(samples), "quantiles": [round(float(value), 1) for value in quantiles]}


def _golden(folder: Path, manifest: Manifest, key: str) -> dict[str, Any]:
    file = manifest.golden.tensors.get(key)
    if file is None:
        return {}
    with np.load(folder / file, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


# -- a session


class MemoryPages:
    """A page source that parses bytes held in memory, one after the other without end."""

    def __init__(self, pages: list[bytes]):
        self._pages, self._next = pages, 0

    def get_page(self, request: Any) -> Any:
        from contract.v1 import page_pb2

        data = self._pages[self._next % len(self._pages)]
        self._next += 1
        return page_pb2.Page.FromString(data)


def measure_session(settings: dict[str, Any]) -> dict[str, Any]:
    """A whole EdgeSession over the golden session's pages: cold start, then swipes by stage.

    fetch: bytes in memory → checked page; merge: sparse rows and features into blocks; page, swipe: their graphs;
    watch: feedback taken in, with its graph; choose: the rest of `next`; total: feedback in → next video out.
    """
    start = time.perf_counter_ns()
    from edge import DeviceState, EdgeSession, FakeClock, Feedback, InstalledModel, PoolConfig, SessionConfig, Trace

    imported = time.perf_counter_ns()
    installed = InstalledModel.open_published(settings["model"])
    file = installed.manifest.golden.session
    if not file:
        raise NoModelError("the version has no golden session", where=installed.dense_version)
    golden = GoldenSession.from_bytes(installed.read(file))
    pages = [step.page for step in golden.steps if isinstance(step, PageStep)]
    trace = Trace(io.StringIO(), capacity=10**6)
    clock = FakeClock(wall_ms=golden.steps[0].at_ms)
    config = SessionConfig(pool=PoolConfig(max_pages=1, prefetch_below=1, seen=1))
    began = time.perf_counter_ns()
    session = EdgeSession(
        golden.user_id, installed, MemoryPages(pages), clock=clock, config=config, session_id=0, trace=trace
    )
    session.start()
    ready = time.perf_counter_ns()
    session.fetch_page()
    device = DeviceState(network=6, decoder=1)
    choice = session.next(device)
    chosen = time.perf_counter_ns()
    page_size = len(session.pool) + 1
    found: dict[str, list[int]] = defaultdict(list)
    capacity = int(installed.manifest.capacities["L"])
    warm = len(trace.events())
    for number in range(capacity + settings["warmup"] + settings["runs"]):  # past the first eviction
        if number == capacity + settings["warmup"]:
            found.clear()
            warm = len(trace.events())
        if choice.reason:
            raise KirError(
                "the model did not choose", where=choice.page_id, got=f"{choice.reason} {session.last_error}"
            )
        session.maintain()
        if len(session.pool) <= page_size * 2 // 3:
            session.pool.clear()
            session.fetch_page()
        clock.advance(WATCH_MS + 1_000)
        liked = number % 3 == 0
        feedback = Feedback(choice.video_id, play_time_ms=WATCH_MS, signals={"like": liked, "long_view": True})
        begin = time.perf_counter_ns()
        session.feedback(feedback)
        taken = time.perf_counter_ns()
        choice = session.next(device)
        end = time.perf_counter_ns()
        engine = int(choice.stages_us["engine"] * 1e3)
        for stage, value in (
            ("watch", taken - begin), ("swipe", engine), ("choose", end - taken - engine), ("total", end - begin),
        ):  # fmt: skip
            found[stage].append(value)
    for stage, values in page_stages(trace.events()[warm:]).items():
        found[stage] = values
    cold = {"imports": imported - start, "load": ready - began, "first_choice": chosen - ready}
    order = ("fetch", "merge", "page", "watch", "swipe", "choose", "total")
    stages = {name: _summary(found[name]) for name in order if name in found}
    timed = settings["timed"]
    return {
        "session": {
            "watched": session.n_watched,
            "candidates": page_size,
            "variants": {f"{g.name}/{g.bucket}": g.ship for g in installed.manifest.graphs},
            "swipes": settings["runs"],
            "stages": stages if timed else {},
            "cold_start": {**cold, "total": sum(cold.values())} if timed else {},
        }
    }


def page_stages(events: list[dict[str, Any]]) -> dict[str, list[int]]:
    """Nanoseconds of a page's stages, from a trace's spans: one value a page."""
    names = {"fetch": "fetch", "decode": "fetch", "rows": "merge", "page_graph": "page"}
    found: dict[str, list[int]] = defaultdict(list)
    for event in events:
        stage = names.get(str(event["name"]))
        if stage is None or event.get("ph") != "X":
            continue
        value = round(float(event["dur"]) * 1e3)
        if event["name"] == "decode" and found["fetch"]:
            found["fetch"][-1] += value  # what was fetched is decoded next
        else:
            found[stage].append(value)
    return dict(found)


# -- golden cases


def replay_golden(settings: dict[str, Any]) -> dict[str, Any]:
    """Golden tensors and the golden session, through a real EdgeSession."""
    from edge import replay

    return {"replay": replay(settings["model"]).to_dict()}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What reranking on the device costs the server: pages, bytes and CPU per 100 swipes, by page size and refresh rule.

    kir bench load --work demo-out --sessions 40        (after `kir demo --out demo-out`; a few minutes)

The same simulated sessions are lived through by every arm, over sockets, against a server process that is started anew
for each arm, since what a user watched changes the next page. Without reranking the phone takes no model, so pages
bring no rows: what a page of a model without sparse rows (pXTR only) weighs. A reranker wants fresh candidates, so its
pages are refreshed earlier: `server order, half` shows what that alone costs and brings. Watch time stands beside the
load, as cost without benefit says little.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.load_session import RULES, LoadArm, Meter, Traffic, Visit, live, visits_of
from benchmarks.stats import Interval, cluster_bootstrap_mean, machine
from contract.errors import InputError
from contract.rows import FLOAT16
from edge import Engine, FeedbackClient, PageClient, PageRequest

PAGE_SIZES = (6, 12, 20)
BASE, CONTROL = LoadArm(False, "whole"), LoadArm(False, "half")
BYTES = ("request_bytes", "page_bytes", "row_bytes", "feedback_bytes", "answer_bytes")


class LoadServer(Protocol):
    """A running server."""

    @property
    def grpc_address(self) -> str:
        """host:port."""

    def cpu_ms(self) -> float:
        """Processor time that it took so far; NaN where nobody can tell."""


Servers = Callable[[], AbstractContextManager[LoadServer]]


def arms_of(engine: Engine) -> list[LoadArm]:
    """Server order by both simple rules, the model by all; float16 rows where the model takes rows."""
    arms = [BASE, CONTROL, *(LoadArm(True, rule) for rule in RULES)]
    return [*arms, LoadArm(True, "half", FLOAT16)] if engine.spec.tables else arms


@dataclass(frozen=True)
class Load:
    """One arm at one page size: what each session took, and the server's processor time over all of them."""

    page_size: int
    arm: LoadArm
    sessions: tuple[Traffic, ...]
    cpu_ms: float

    def per_100(self, name: str) -> float:
        """Of a field of Traffic, or cpu_ms, per 100 swipes."""
        whole = self.cpu_ms if name == "cpu_ms" else sum(getattr(one, name) for one in self.sessions)
        return 100.0 * whole / max(sum(one.swipes for one in self.sessions), 1)

    @property
    def watch_s(self) -> np.ndarray:
        return np.array([one.watch_ms for one in self.sessions]) / 1000.0

    def gain(self, base: Load, users: np.ndarray) -> Interval:
        """Watch time of a session − the base's, seconds, paired; 95 %, users drawn whole."""
        return cluster_bootstrap_mean(self.watch_s - base.watch_s, users)

    def to_dict(self, base: Load, users: np.ndarray) -> dict[str, Any]:
        names = ("pages", *BYTES, "cpu_ms")
        return {
            "page_size": self.page_size,
            "arm": self.arm.name,
            "rerank": self.arm.rerank,
            "refresh": self.arm.rule,
            "rows": self.arm.encoding if any(one.row_bytes for one in self.sessions) else "none",
            "sessions": len(self.sessions),
            "swipes": sum(one.swipes for one in self.sessions),
            "ran_dry": sum(one.dry for one in self.sessions),
            "per_100_swipes": {name: self.per_100(name) for name in names},
            "watch_s": float(self.watch_s.mean()),
            "swipes_per_session": float(np.mean([one.swipes for one in self.sessions])),
            "watch_s_against_server_whole": self.gain(base, users).to_json(),
        }


def measure_load(
    world: Any,
    engine: Engine,
    servers: Servers,
    *,
    page_sizes: Sequence[int] = PAGE_SIZES,
    sessions: int = 40,
    seed: int = 0,
    log: Callable[[str], object] = print,
) -> tuple[dict[str, Any], str]:
    """Every arm at every page size. Returns result and table. Raises InputError for sizes or sessions below 1."""
    if sessions < 1 or not page_sizes or min(page_sizes) < 1:
        raise InputError("--sessions and --page-sizes start at 1", got=(sessions, list(page_sizes)))
    visits = visits_of(world, sessions, seed)
    found = [_measure(world, engine, servers, arm, size, visits, log) for size in page_sizes for arm in arms_of(engine)]
    users = np.array([visit.user_index for visit in visits])
    base_of = {one.page_size: one for one in found if one.arm == BASE}
    protocol = _protocol(world, engine, len(visits))
    rows = [one.to_dict(base_of[one.page_size], users) for one in found]
    result = {
        "benchmark": "load",
        "protocol": protocol,
        "dense_version": engine.dense_version,
        "machine": machine(),
        "rows": rows,
    }
    return result, "\n".join([*protocol, *_table(rows)])


def _measure(
    world: Any, engine: Engine, servers: Servers, arm: LoadArm, size: int, visits: Sequence[Visit],
    log: Callable[[str], object],
) -> Load:  # fmt: skip
    with servers() as server:
        pages, sink = PageClient(server.grpc_address, deadline_s=20.0), FeedbackClient(server.grpc_address)
        try:
            pages.get_page(PageRequest(user_id=0, session_id=0, page_size=size))  # what only the first page costs
            before_ms = server.cpu_ms()
            lived = tuple(live(world, visit, arm, size, engine, Meter(pages, sink)) for visit in visits)
            cpu_ms = server.cpu_ms() - before_ms
        finally:
            pages.close()
            sink.close()
    load = Load(size, arm, lived, cpu_ms)
    log(f"page size {size}, {arm.name}: {load.per_100('pages'):.1f} pages per 100 swipes")
    return load


def _protocol(world: Any, engine: Engine, n: int) -> list[str]:
    mode = "sparse rows" if engine.spec.tables else "pXTR only, no rows"
    return [
        f"protocol: {n} simulated sessions of different users (drift {world.config.drift:g}), until they leave, the "
        f"same for every arm; model {engine.dense_version}, {mode}; one server process an arm, over sockets",
        "bytes of messages, without HTTP/2, TLS and TCP; CPU is the server process's, user and system, 10 ms steps",
        *(f"refresh '{rule}': {text}" for rule, text in RULES.items()),
        "server order: no model on the phone, so pages without rows, as a model that reads pXTR only gets them",
    ]


def _table(rows: Sequence[dict[str, Any]]) -> list[str]:
    head = ["page", "arm", "rows", "pages", "page KB", "of it rows", "request KB", "feedback KB", "server CPU ms",
            "swipes", "watch s", "− server order, whole"]  # fmt: skip
    table = [head]
    for row in rows:
        per = row["per_100_swipes"]
        apart = Interval(**row["watch_s_against_server_whole"])
        kilobytes = [
            f"{per[name] / 1000:.1f}" for name in ("page_bytes", "row_bytes", "request_bytes", "feedback_bytes")
        ]
        cpu = "–" if np.isnan(per["cpu_ms"]) else f"{per['cpu_ms']:.0f}"
        told = "" if row["arm"] == BASE.name else f"{apart.mean:+.1f} [{apart.low:+.1f}, {apart.high:+.1f}]"
        table.append([
            str(row["page_size"]), row["arm"], row["rows"], f"{per['pages']:.1f}", *kilobytes, cpu,
            f"{row['swipes_per_session']:.1f}", f"{row['watch_s']:.1f}", told + " *" * apart.excludes_zero,
        ])  # fmt: skip
    widths = [max(len(line[place]) for line in table) for place in range(len(head))]
    left = {1, 2, len(head) - 1}
    lines = []
    for line in table:
        cells = [
            cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    dry = sum(row["ran_dry"] for row in rows)
    notes = ["pages, KB and CPU are per 100 swipes; swipes and watch seconds per session; * the interval excludes zero"]
    return [*lines, *notes, *([f"{dry} sessions ended for want of videos"] if dry else [])]


def run_load(work: Path | None, page_sizes: Sequence[int], sessions: int, seed: int = 0) -> tuple[dict[str, Any], str]:
    """With the models and the world of a demo's folder. Raises InputError where there is none."""
    from benchmarks.closed_loop_runs import demo_of
    from benchmarks.server_process import ServerProcess
    from edge import InstalledModel

    paths, world = demo_of(work)
    engine = Engine(InstalledModel.open_published(paths.cdn))

    def server() -> ServerProcess:
        return ServerProcess(paths.bundle, paths.cdn, paths.work / "bench", ["--client-clock"])

    return measure_load(world, engine, server, page_sizes=page_sizes, sessions=sessions, seed=seed)

"""The whole loop on this machine: events → train → convert → verify → publish → serve → swipe → feedback.

    kir demo --out demo-out                                    (simulator; about four minutes on two cores)
    kir demo --out demo-out --data kuairand:PATH               (real logs in KuaiRand's official layout)

Real processes and sockets: `kir serve`, and phones with the edge runtime alone. Passes through one change of the model
and one eviction of the watched list, and ends with OUT/report.html and OUT/report.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import loop
from benchmarks.demo_parts import (
    CLOSED_LOOP_NOTE,
    REPLAY_NOTE,
    claim_folder,
    headline,
    phone_result,
    rate,
    swipe_summary,
    train_and_convert_first,
    train_and_convert_second,
    train_server_models,
    two_workers,
)
from benchmarks.loop import Log, LoopConfig, LoopPaths, Stopwatch
from benchmarks.report import write_report
from benchmarks.server_process import ServerProcess
from benchmarks.stats import machine
from contract.errors import InputError, KirError

SIM = "sim"
EVENTS_WAIT_S = 20.0


@dataclass(frozen=True)
class DemoConfig:
    """What the demo is told; `quick` shrinks everything for a smoke test.

    sessions: per seed in the closed loop; phones: users that swipe; swipes: of each
    """

    out: Path
    data: str = SIM
    seed: int = 0
    seeds: int = 5
    sessions: int = 60
    phones: int = 4
    swipes: int = 50
    page_size: int = 20
    quick: bool = False

    def __post_init__(self) -> None:
        for name in ("seeds", "sessions", "phones", "swipes", "page_size"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} starts at 1", got=getattr(self, name))


def run_demo(config: DemoConfig, log: Log = print) -> Path:
    """Run it all; returns the report page. Raises KirError when a step fails: nothing after it is faked."""
    config = replace(config, out=config.out.resolve())  # the processes that it starts run elsewhere
    if config.quick:
        config = replace(config, sessions=8, seeds=2, phones=2, swipes=25)
    return Demo(config, log).run()


class Demo:
    """One run. Steps fill `result`, which becomes report.json."""

    def __init__(self, config: DemoConfig, log: Log):
        self.config, self.log = config, log
        self.paths = LoopPaths(config.out)
        self.watch = Stopwatch(log)
        self.world: Any = None
        self.loop = self._loop_config()
        self.result: dict[str, Any] = {"format": "kir-demo/1", "data": config.data, "quick": config.quick}
        self.result["machine"] = machine()
        self.result["command"] = " ".join(["kir", *sys.argv[1:]])

    def _loop_config(self) -> LoopConfig:
        base = LoopConfig(seed=self.config.seed, utc_offset_hours=0.0 if self.config.data == SIM else 8.0)
        if self.config.quick:
            return replace(base, ranker_seconds=4, kuaiformer_seconds=4, kir_seconds=8, tune_seconds=3, kir_epochs=1)
        return base

    def run(self) -> Path:
        if self.config.data != SIM and not Path(self.config.data.partition(":")[2]).exists():
            raise InputError("no such file or folder", where=f"--data {self.config.data}")
        claim_folder(self.config.out)
        with self.watch.stage("events"):
            events, items, users = self._events()
        with self.watch.stage("rolling pXTR: rankers that saw earlier days only"):
            events = loop.prepare_data(self.paths, events, items, users, self.loop)
        self._train_and_convert()
        with self.watch.stage("server bundle, then the pointer on the CDN"):
            self._release_first()
        flags = ["--client-clock", "--events", str(self.paths.feedback), "--page-size", str(self.config.page_size)]
        flags += ["--utc-offset-min", str(int(self.loop.utc_offset_hours * 60))]
        with ServerProcess(self.paths.bundle, self.paths.cdn, self.config.out, flags) as server:
            with self.watch.stage("phones swipe over gRPC"):
                first = self._phone(server, "phones", self._phone_users(events, users), {})
            with self.watch.stage("feedback → next version, while a phone goes on swiping"):
                second = self._second_version(server, events, users)
            self.result["swipe"] = swipe_summary(first, second)
            if self.config.data == SIM:
                with self.watch.stage("closed loop in the simulator, and its control"):
                    self._closed_loop(server)
        if self.config.data != SIM:
            with self.watch.stage("replay of the logs' last day"):
                self._replay(events)
        self.result["stages"] = self.watch.stages
        page = write_report(self.config.out, self.result)
        self.log(f"report: {page}   ({self.watch.total_seconds:.0f} s)")
        return page

    # -- data and models

    def _events(self) -> tuple[Any, Any, Any]:
        from training.readers import LogData

        if self.config.data == SIM:
            from training.simulator import SimConfig, World, simulate_logs

            size = {"n_users": 80, "n_items": 500, "days": 4} if self.config.quick else {}
            self.world = World(SimConfig(seed=self.config.seed, **size))
            events, items, users = simulate_logs(self.world), self.world.items, self.world.users
        else:
            from training.readers import LogData, open_data

            data = open_data(self.config.data)
            if not isinstance(data, LogData):
                allowed = "kuairand:PATH, events:PATH"
                raise InputError("the demo needs impressions with feedback", got=self.config.data, allowed=allowed)
            events, items, users = data
        seen = {name: rate(events[name]) for name in ("long_view", "like")}
        self.result["events"] = {
            "impressions": len(events),
            "users": len(np.unique(events["user_id"])),
            "videos": len(items),
            "long_view": seen["long_view"],
            "like": seen["like"],
        }
        self.log(f"   {len(events):,} impressions, long_view {seen['long_view']:.3f}, like {seen['like']:.4f}")
        return events, items, users

    def _train_and_convert(self) -> None:
        """Server models in one process, the reranker and its conversion in another: threads gain small nets little."""
        name = "train: KuaiFormer + ranker │ reranker → TFLite, verified (two processes)"
        with self.watch.stage(name), two_workers() as pool:
            server = pool.submit(train_server_models, self.paths, self.loop)
            reranker = pool.submit(train_and_convert_first, self.paths, self.loop)
            self.result["training"] = server.result()
            kir, conversion = reranker.result()
        self.result["training"]["KIR"] = kir
        self.result["conversion"] = {"versions": [conversion]}
        for model, metrics in self.result["training"].items():
            self.log(f"   {model}: " + headline(metrics))

    def _release_first(self) -> None:
        from convert.bundle import write_bundle
        from convert.publish import publish
        from convert.trust_keys import make_keys

        bundle = write_bundle(
            self.paths.bundle,
            retrieval=self.paths.checkpoint("kuaiformer"),
            ranker=self.paths.checkpoint("ranker"),
            kir=[self.paths.checkpoint("kir-1")],
            catalogue=self.paths.catalogue,
            users=self.paths.users,
            histories=self.paths.events,
            overwrite=True,
        )
        make_keys(self.paths.keys)
        published = publish(self.paths.model("kir-1"), self.paths.cdn, keys=self.paths.keys)
        self.log(f"   bundle {bundle.n_bytes / 2**20:.1f} MiB; {published.dense_version} is current, signed")

    # -- serving and swiping

    def _phone_users(self, events: Any, users: Any) -> list[int]:
        rng = np.random.default_rng([self.config.seed, 0xF0])
        known = np.intersect1d(np.unique(events["user_id"]), users.user_id)
        return [int(u) for u in rng.choice(known, size=min(self.config.phones, len(known)), replace=False)]

    def _viewer(self) -> dict[str, Any]:
        if self.world is not None:
            after_ms = self.world.config.start_ms + self.world.config.days * loop.DAY_MS + 10 * 3_600_000
            return {"kind": "sim", "world": asdict(self.world.config), "start_ms": after_ms}
        return {"kind": "scripted", "start_ms": self._last_time_ms + 3_600_000}

    def _phone(self, server: ServerProcess, name: str, user_ids: list[int], more: dict[str, Any]) -> dict[str, Any]:
        process, result = self._start_phone(server, name, user_ids, more)
        return phone_result(process, result)

    def _start_phone(
        self, server: ServerProcess, name: str, user_ids: list[int], more: dict[str, Any]
    ) -> tuple[subprocess.Popen[bytes], Path]:
        folder = self.config.out / "phone"
        folder.mkdir(exist_ok=True)
        config = {
            "server": server.grpc_address,
            "cdn": server.http_url,
            "root": str(self.paths.root_json),
            "cache": str(folder / "cache"),
            "user_ids": user_ids,
            "swipes": self.config.swipes,
            "page_size": self.config.page_size,
            "seed": self.config.seed,
            "viewer": self._viewer(),
            **more,
        }
        (folder / f"{name}.json").write_text(json.dumps(config))
        result = folder / f"{name}-result.json"
        result.unlink(missing_ok=True)
        command = [sys.executable, "-m", "benchmarks.phone", str(folder / f"{name}.json"), str(result)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        here = Path(__file__).resolve().parent.parent
        log = (folder / f"{name}.log").open("wb")
        with log:
            process = subprocess.Popen(
                command, cwd=here, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        return process, result

    def _second_version(self, server: ServerProcess, events: Any, users: Any) -> dict[str, Any]:
        """Train on the last day and the feedback, release rows first, pointer last; a phone takes it up alive."""
        from contract.events import Events
        from contract.parquet import write_events

        feedback = self._wait_for_feedback()
        self.log(f"   {len(feedback):,} impressions came back from the phones")
        last_day = loop.split_last_day(events, self.loop.utc_offset_hours)[1]
        tune = self.config.out / "data" / "tune.parquet"
        write_events(tune, Events.concat([last_day, feedback]))
        with two_workers() as pool:
            kir, conversion = pool.submit(train_and_convert_second, self.paths, self.loop, tune).result()
        version = conversion["dense_version"]
        user = self._phone_users(events, users)[:1]
        started = self.config.out / "phone" / "update-started"
        started.unlink(missing_ok=True)
        more = {"until_version": version, "swipes": 12, "seed": self.config.seed + 1000}
        more |= {"think_s": 0.05, "started_file": str(started)}
        process, result = self._start_phone(server, "update", user, more)
        try:
            self._release_second(process, started)
        except BaseException:
            process.kill()
            raise
        self.result["training"]["KIR, next version"] = kir
        self.result["conversion"]["versions"].append(conversion)
        found = phone_result(process, result)
        for line in found["log"]:
            self.log(f"   {line}")
        return found

    def _release_second(self, phone: subprocess.Popen[bytes], started: Path) -> None:
        """Rows on the server, then the pointer: once the phone swipes with the old version."""
        from convert.bundle import add_rows
        from convert.publish import publish

        while not started.exists() and phone.poll() is None:
            time.sleep(0.05)
        add_rows(self.paths.bundle, self.paths.checkpoint("kir-2"))
        publish(self.paths.model("kir-2"), self.paths.cdn, keys=self.paths.keys)

    def _wait_for_feedback(self) -> Any:
        """The server writes feedback in parts; the first one is a matter of seconds."""
        from contract.parquet import read_events

        deadline = time.monotonic() + EVENTS_WAIT_S
        while not list(self.paths.feedback.glob("*.parquet")):
            if time.monotonic() > deadline:
                raise KirError("the server wrote no feedback", where=self.paths.feedback, fix="see server.log")
            time.sleep(0.2)
        time.sleep(0.5)
        return read_events(self.paths.feedback)

    # -- what it was worth

    def _closed_loop(self, server: ServerProcess) -> None:
        from benchmarks.closed_loop_runs import closed_loops

        c = self.config
        found = closed_loops(
            self.world,
            self.paths.cdn,
            server.grpc_address,
            seeds=c.seeds,
            sessions=c.sessions,
            page_size=c.page_size,
        )
        self.result["closed_loop"] = {name: one.to_json() for name, one in found.items()}
        self.result["closed_loop"]["note"] = CLOSED_LOOP_NOTE
        for one in found.values():
            self.log("   " + str(one).replace("\n", "\n   "))

    def _replay(self, events: Any) -> None:
        from benchmarks.log_replay import replay_log, within_user
        from edge import InstalledModel
        from training.checkpoint import load_checkpoint
        from training.days import cut_before_last_days

        installed = InstalledModel.open_published(self.paths.cdn / "models" / self._version("kir-1"))
        start_ms = cut_before_last_days(events, 1, self.loop.utc_offset_hours)
        found = replay_log(events, installed, load_checkpoint(self.paths.checkpoint("kir-1")).tables, start_ms=start_ms)
        found["within_user"] = within_user(self.result["training"]["ranker"])
        found["note"] = REPLAY_NOTE
        self.result["replay"] = found
        for row in found["sizes"]:
            self.log(f"   pages of {row['size']}: {row['pages']}, per-swipe − logged {row['ndcg_gain']['mean']:+.4f}")

    def _version(self, name: str) -> str:
        return str(json.loads((self.paths.checkpoint(name) / "config.json").read_text())["version"])

    @property
    def _last_time_ms(self) -> int:
        from contract.parquet import read_events

        return int(read_events(self.paths.events)["time_ms"].max())

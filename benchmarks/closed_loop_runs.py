"""`kir bench closed-loop`: the closed loop with more sessions on a demo's models, or in several worlds trained anew.

kir bench closed-loop --work demo-out --sessions 100
kir bench closed-loop --work demo-out --sessions 40 --seeds 1 --sweep      beams k and stability t as well
kir bench closed-loop --worlds 5 --json docs/results/closed-loop.json      (about four minutes a world)
"""

from __future__ import annotations

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.beam_sweep import BeamSweep, sweep_beams
from benchmarks.closed_loop import ARMS, PLAIN_ARMS, PRELOADED, ClosedLoopResult, SessionPlan, run_closed_loop
from benchmarks.demo import DemoConfig, run_demo
from benchmarks.edge_arm import EdgeChooser, deepest_plan
from benchmarks.loop import LoopPaths
from benchmarks.server_process import ServerProcess
from benchmarks.sim_pages import PageSource, plan_sessions
from benchmarks.stats import Interval, machine, t_interval
from contract.errors import InputError
from contract.vocabulary import NETWORKS
from edge import ChoicePolicy, Engine, InstalledModel

WIFI = NETWORKS.index("wifi")


def closed_loops(
    world: Any, model: Path, grpc_address: str, *, seeds: int, sessions: int, page_size: int, sweep: bool = False
) -> dict[str, Any]:
    """The world as it is and its control (drift 0: no mood, no fatigue), over the same pages of the live server.

    model: a published version's directory. The two worlds run in a process each. sweep: the beam's k and t as well, in
    the world as it is; Raises InputError then for a model that can't search lists.
    """
    installed = InstalledModel.open_published(model)
    with PageSource(grpc_address, installed.dense_version, installed.spec_fingerprint) as source:
        plans = plan_sessions(world, source, sessions, seeds, page_size, world.config.days)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        drifts = {"world": world.config.drift, "control": 0.0}
        jobs = {name: pool.submit(_live, asdict(world.config), drift, model, plans) for name, drift in drifts.items()}
        found: dict[str, Any] = {name: job.result() for name, job in jobs.items()}
    found["world"] = found["world"].against_control(found["control"], plans)
    if sweep:  # alone, since it takes times
        found["sweep"] = _sweep(world, installed, plans)
    return found


def _sweep(world: Any, installed: InstalledModel, plans: list[SessionPlan]) -> BeamSweep:
    return sweep_beams(world, Engine(installed), plans)


def _live(config: dict[str, Any], drift: float, model: Path, plans: list[SessionPlan]) -> ClosedLoopResult:
    from training.simulator import SimConfig, World

    world, engine = World(SimConfig(**{**config, "drift": drift})), Engine(InstalledModel.open_published(model))
    return run_closed_loop(
        world, plans, edge_choosers(world, engine), arms=PLAIN_ARMS if deepest_plan(engine) is None else ARMS
    )


def edge_choosers(world: Any, engine: Engine) -> Any:
    """(plan, arm) -> the reranker's arms, on one engine that serves them one after the other."""
    users, plan_ahead = world.users.user_id, deepest_plan(engine)
    policies = {"preloaded": ChoicePolicy(preloaded_only=True)}
    if plan_ahead is not None:
        policies["beam"] = ChoicePolicy("beam", plan_ahead, budget_ms=None)  # the machine's load must not choose

    def chooser(plan: SessionPlan, arm: str) -> EdgeChooser:
        ids = (int(users[plan.user_index]), plan.session_seed, plan.start_ms)
        policy, preloaded = policies.get(arm, ChoicePolicy()), PRELOADED if arm == "preloaded" else 0
        return EdgeChooser(engine, *ids, arm != "one_shot", WIFI, policy, preloaded)

    return chooser


def demo_of(work: Path | None) -> tuple[LoopPaths, Any]:
    """The paths and the simulated world of a finished demo. Raises InputError where there is none."""
    from training.simulator import SimConfig, World

    config_file = None if work is None else work / "phone" / "phones.json"
    if work is None or config_file is None or not config_file.is_file():
        fix = "run `kir demo --out DIR` first"
        raise InputError("--work names no folder of a finished demo", got=str(work), fix=fix)
    viewer = json.loads(config_file.read_text())["viewer"]
    if viewer["kind"] != "sim":
        raise InputError("this demo ran on real logs", where=work, fix="run the demo without --data")
    return LoopPaths(work.resolve()), World(SimConfig(**viewer["world"]))


def run_work(
    work: Path | None, seeds: int, sessions: int, page_size: int, sweep: bool = False
) -> tuple[dict[str, Any], str]:
    """Again with the models of a demo's folder. Returns the result and its tables."""
    paths, world = demo_of(work)
    with ServerProcess(paths.bundle, paths.cdn, paths.work / "bench", ["--client-clock"]) as server:
        size = {"seeds": seeds, "sessions": sessions, "page_size": page_size}
        found = closed_loops(world, paths.cdn, server.grpc_address, **size, sweep=sweep)
    result = {"benchmark": "closed-loop", "machine": machine(), **{name: one.to_json() for name, one in found.items()}}
    return result, "\n\n".join(str(one) for one in found.values())


def run_worlds(out: Path, n_worlds: int, sessions: int, page_size: int) -> tuple[dict[str, Any], str]:
    """The whole demo in n worlds, seeds 0, 1, …; the interval is over worlds, each with models of its own."""
    runs = []
    for seed in range(n_worlds):
        config = DemoConfig(out=out / f"world-{seed}", seed=seed, seeds=1, sessions=sessions, page_size=page_size)
        report = run_demo(config)
        runs.append(json.loads(report.with_suffix(".json").read_text())["closed_loop"])
    summary = {name: _over_worlds([run[name] for run in runs]) for name in ("world", "control")}
    result = {"benchmark": "closed-loop-worlds", "machine": machine(), "worlds": runs, "summary": summary}
    return result, "\n\n".join(_table(name, rows) for name, rows in summary.items())


def _over_worlds(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Per comparison: each world's mean gain in seconds and relative, and the interval over worlds."""
    rows = {}
    for name in runs[0]["gains"]:
        seconds = [run["gains"][name]["watch_s"]["mean"] for run in runs]
        relative = [run["gains"][name]["relative"] for run in runs]
        rows[name] = {
            "watch_s": t_interval(seconds).to_json(),
            "relative": float(np.mean(relative)),
            "per_world": seconds,
        }
    return rows


def _table(name: str, rows: dict[str, Any]) -> str:
    lines = [f"{name}: gain in session watch time over worlds, 95 % interval"]
    for comparison, row in rows.items():
        each = " ".join(f"{value:+.1f}" for value in row["per_world"])
        lines.append(f"{comparison:<24} {Interval(**row['watch_s'])} s  ({row['relative']:+.1%})  each: {each}")
    return "\n".join(lines)

"""What a published model costs on a device: every variant of its graphs, a whole session, memory, operators, parity.

    kir bench --serial host --model cdn                  # this machine
    kir bench --serial 127.0.0.1:5555 --model cdn        # an emulated arm64 device: parity, memory, instructions
    kir bench --model cdn --html report                  # the phone that is connected

Correctness first: golden cases are replayed there before anything is timed, and every variant's outputs are compared
with this machine's. Each variant, the session and the replay are a process of their own, so that peak memory is theirs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.device.benchmark_model import run_benchmark
from benchmarks.device.device import DeviceCrashed
from benchmarks.device.parity import parity, parity_to_host
from benchmarks.device.phone_state import PhoneState, cores_of, mask_of, phone_state
from benchmarks.device.result import FORMAT, graph_rows, in_unit, session_block
from benchmarks.device.target import Log, Target, open_target
from benchmarks.stats import machine
from contract.errors import InputError, VerificationFailed
from contract.manifest import Manifest
from edge import InstalledModel

TIMEOUT_S = 1800.0  # an emulated device takes hundreds of times a phone's time
MOST_THREADS = 64  # no phone has more cores; LiteRT ends its process where a system refuses it a hundred thousand
PROFILED = 100  # runs of each graph under the profiler
RUNS = {"us": 200, "instructions": 15, "none": 1}
CANNOT_START = (126, 127)  # a shell's words for a file that is no program here
REPEATS = {"device": 3}
COOLDOWN_S = {"device": 30.0}
THREADS: dict[str, tuple[int, ...]] = {"us": (1, 2, 4), "instructions": (1,), "none": (1,)}


@dataclass(frozen=True)
class Plan:
    """What to measure. Zero, empty and None stand for what suits the kind of device.

    model: a published version's directory, or a CDN's; variants: names, () = all; threads: counts; runs: timed calls;
    repeats: of everything timed, with cooldown_s between; pin: "none", "big" or a hexadecimal mask; binary: the user's
    `benchmark_model`. Raises InputError for values out of range.
    """

    model: Path
    variants: tuple[str, ...] = ()
    threads: tuple[int, ...] = ()
    runs: int = 0
    repeats: int = 0
    cooldown_s: float | None = None
    pin: str = ""
    binary: Path | None = None
    warmup: int = field(default=20)

    def __post_init__(self) -> None:
        if self.runs < 0 or self.repeats < 0 or any(count < 1 for count in self.threads):
            got = {"--runs": self.runs, "--repeats": self.repeats, "--threads": self.threads}
            raise InputError("counts start at 1", got=got)
        if max(self.threads, default=1) > MOST_THREADS:
            raise InputError("--threads has more than a graph can use", got=self.threads, allowed=f"1 … {MOST_THREADS}")
        if self.cooldown_s is not None and self.cooldown_s < 0:
            raise InputError("--cooldown-s is a time", got=self.cooldown_s)
        if self.binary is not None and not self.binary.is_file():
            raise InputError("--benchmark-binary is no file", got=str(self.binary))


@dataclass(frozen=True)
class _Job:
    """A plan made definite for a target."""

    target: Target
    model: str
    manifest: Manifest
    variants: tuple[str, ...]
    threads: tuple[int, ...]
    runs: int
    warmup: int
    cores: Sequence[int]

    def ask(self, mode: str, **changes: Any) -> dict[str, Any]:
        settings = {
            "mode": mode, "model": self.model, "graphs": [], "threads": self.threads, "runs": self.runs,
            "warmup": self.warmup if self.target.unit == "us" else 2, "cpus": self.cores,
            "timed": self.target.timed, "variant": "", **changes,
        }  # fmt: skip
        return self.target.ask("probe.py", settings, timeout_s=TIMEOUT_S)


def measure_device(target: Target, plan: Plan, command: str, log: Log = lambda line: None) -> dict[str, Any]:
    """The result document. Raises VerificationFailed when golden cases do not replay there, and the device's errors."""
    installed = InstalledModel.open_published(plan.model)
    installed.verify()
    job = _job(target, plan, installed)
    before = _state(target)
    log(f"{target.device.serial}: replaying golden cases")
    replayed = job.ask("replay")
    if not replayed["replay"]["ok"]:
        bad = [line for line in replayed["replay"]["cases"] if not line["ok"]]
        got = ", ".join(f"{line['case']}: {line['problem']}" for line in bad) or "no golden cases"
        raise VerificationFailed("golden cases do not replay there", where=target.device.serial, got=got)
    if plan.binary is not None:
        _send_binary(job, plan.binary)
    repeats = plan.repeats or REPEATS.get(target.kind, 1)
    cooldown_s = COOLDOWN_S.get(target.kind, 0.0) if plan.cooldown_s is None else plan.cooldown_s
    rounds = []
    for number in range(repeats):
        if number and cooldown_s:
            log(f"cooling down for {cooldown_s:g} s")
            time.sleep(cooldown_s)
        rounds.append(_round(job, f"{number + 1} of {repeats}", log))
    graphs = graph_rows([one["graphs"] for one in rounds], target.unit)
    _add_parity(job, installed, graphs, rounds[0]["outputs"], log)
    peak = {"golden replay": replayed["peak_rss_kb"]}
    for one in rounds:
        peak |= {name: max(peak.get(name, 0), value) for name, value in one["peak_rss_kb"].items()}
    result: dict[str, Any] = {
        "benchmark": "device",
        "format": FORMAT,
        "kind": target.kind,
        "unit": target.unit,
        "wall_time": "measured" if target.kind in ("host", "device") else "meaningless",
        "command": command,
        "machine": machine(),
        "device": {
            "serial": target.device.serial,
            "properties": dict(target.properties),
            "python": replayed["python"],
            "packages": replayed["packages"],
            "cores": replayed["cpus"],
            "pinned": "" if replayed["unpinned"] else mask_of(list(job.cores)),
            "remarks": [f"not pinned to cores: {replayed['unpinned']}"] if replayed["unpinned"] else [],
        },
        "model": {
            "dense_version": installed.dense_version,
            "capacities": dict(installed.manifest.capacities),
            "spec_fingerprint": installed.spec_fingerprint,
            "files": {file: entry.sha256 for file, entry in sorted(installed.manifest.files.items())},
        },
        "settings": {
            "variants": job.variants, "threads": job.threads, "runs": job.runs, "repeats": repeats,
            "cooldown_s": cooldown_s,
        },
        "graphs": graphs,
        "session": session_block([one["session"] for one in rounds], target.unit),
        "peak_rss_kb": peak,
        "replay": replayed["replay"],
        "operators": _operators(job, log),
    }  # fmt: skip
    if plan.binary is not None:
        result["benchmark_model"] = _binary(job, result["device"]["remarks"], log)
    _add_state(result, before, _state(target))
    result["problems"] = _problems(graphs)
    return result


def _job(target: Target, plan: Plan, installed: InstalledModel) -> _Job:
    have = list(dict.fromkeys(v.name for graph in installed.manifest.graphs for v in graph.variants))
    unknown = sorted(set(plan.variants) - set(have))
    if unknown:
        raise InputError("the model has no such variant", got=unknown, allowed=have)
    threads = plan.threads or THREADS[target.unit]
    if target.unit == "instructions" and threads != (1,):
        raise InputError("instructions are counted on one thread", got=threads, allowed=(1,))
    if plan.binary is not None and target.unit != "us":
        raise InputError("benchmark_model tells wall time", got=target.kind, allowed="host, device")
    pin = plan.pin or ("big" if target.kind == "device" else "none")
    model = target.place(f"models/{installed.dense_version}")
    target.device.push(next(iter(installed.paths.values())).parent, model)
    return _Job(
        target, model, installed.manifest, plan.variants or tuple(have), threads, plan.runs or RUNS[target.unit],
        plan.warmup, cores_of(pin, target.device),
    )  # fmt: skip


def _round(job: _Job, number: str, log: Log) -> dict[str, Any]:
    """Everything timed, once."""
    graphs: list[dict[str, Any]] = []
    peak: dict[str, int] = {}
    for variant in job.variants:
        log(f"round {number}: graphs, {variant}")
        found = job.ask("graphs", variant=variant)
        graphs += found["graphs"]
        peak[f"graphs {variant}"] = found["peak_rss_kb"]
    log(f"round {number}: a session")
    session = job.ask("session")
    peak["session"] = session["peak_rss_kb"]
    outputs = {(row["graph"], row["variant"]): row.pop("outputs") for row in graphs}
    return {"graphs": graphs, "session": session["session"], "peak_rss_kb": peak, "outputs": outputs}


def _add_parity(
    job: _Job, installed: InstalledModel, graphs: list[dict[str, Any]], outputs: Mapping[Any, Any], log: Log
) -> None:
    """Put `parity` into each row, and `parity.host` where the device is not this machine."""
    for row in graphs:
        graph = installed.manifest.graph(*row["graph"].split("/"))
        row["parity"] = parity(installed, graph, graph.variant(row["variant"]), outputs[row["graph"], row["variant"]])
    if job.target.device.serial == "host":
        return
    log("the same graphs here, for parity")
    rows = {(row["graph"], row["variant"]): row for row in graphs}
    with open_target("host") as here:
        host = _job(here, Plan(Path(next(iter(installed.paths.values()))).parent), installed)
        for variant in job.variants:
            for found in host.ask("graphs", variant=variant, timed=False, threads=[1])["graphs"]:
                key = found["graph"], found["variant"]
                tolerance = rows[key]["parity"]["tolerance"]
                rows[key]["parity"]["host"] = parity_to_host(found["outputs"], outputs[key], tolerance)


def _operators(job: _Job, log: Log) -> dict[str, Any]:
    """Cost by operator of the graphs that a swipe runs; or why it can't be told."""
    if not job.target.timed:
        return {"not_available": "wall time of an emulated device means nothing"}
    swipe = f"swipe/N{job.manifest.buckets('swipe')[-1]}"
    files = {
        f"{graph.name}/{graph.bucket} {variant.name}": f"{job.model}/{variant.file}"
        for graph in job.manifest.graphs
        for variant in graph.variants
        if f"{graph.name}/{graph.bucket}" in (swipe, "watch/T1") and variant.name in job.variants
    }
    log("operators")
    runs = min(PROFILED, job.runs)
    settings = {"files": files, "runs": runs, "warmup": 2, "cpus": list(job.cores)}
    try:
        found = job.target.ask("op_profile.py", settings, timeout_s=TIMEOUT_S)
    except DeviceCrashed as error:  # it reaches into the library; a build with other structures may end it
        return {"not_available": str(error)}
    if "not_available" in found:
        return {"not_available": found["not_available"]}
    scale = in_unit(job.target.unit) * 1e3  # from microseconds
    graphs = {
        name: [{**{k: v for k, v in row.items() if k != "us"}, "mean": row["us"] * scale} for row in rows]
        for name, rows in found["graphs"].items()
    }
    return {"source": found["source"], "graphs": graphs}


def _send_binary(job: _Job, binary: Path) -> None:
    """The user's `benchmark_model` onto the device, and whether it starts there: before minutes of measuring."""
    there = job.target.place("benchmark_model")
    job.target.device.push(binary, there)
    job.target.device.run(["chmod", "755", there], timeout_s=30.0)
    ran = job.target.device.run([there, "--help"], timeout_s=60.0)
    if ran.returncode in CANNOT_START:
        last = ran.stderr.strip().splitlines() or ["no word"]
        raise InputError("--benchmark-binary does not start there", where=job.target.device.serial, got=last[-1])


def _binary(job: _Job, remarks: list[str], log: Log) -> list[dict[str, Any]]:
    """The user's `benchmark_model` on every graph that a swipe runs."""
    there = job.target.place("benchmark_model")
    mask = mask_of(list(job.cores))
    if mask and job.target.device.run(["taskset", mask, "true"], timeout_s=30.0).returncode:
        remarks.append("taskset is not available: benchmark_model ran on any core")
        mask = ""
    found = []
    swipe = f"swipe/N{job.manifest.buckets('swipe')[-1]}"
    for graph in job.manifest.graphs:
        for variant in graph.variants:
            key = f"{graph.name}/{graph.bucket}"
            if key in (swipe, "watch/T1") and variant.name in job.variants:
                log(f"benchmark_model: {key} {variant.name}")
                for count in job.threads:
                    run = run_benchmark(
                        job.target.device, there, f"{job.model}/{variant.file}", threads=count, runs=job.runs, mask=mask
                    )
                    found.append({"graph": key, "variant": variant.name, "threads": count, **run.to_dict()})
    return found


def _state(target: Target) -> PhoneState | None:
    return phone_state(target.device) if target.kind == "device" else None


def _add_state(result: dict[str, Any], before: PhoneState | None, after: PhoneState | None) -> None:
    if before is None or after is None:
        return
    remarks = [f"before: {line}" for line in before.remarks()] + [f"after: {line}" for line in after.remarks()]
    result["device"]["state"] = {"before": before.to_dict(), "after": after.to_dict()}
    result["device"]["state_lines"] = {"before": before.line(), "after": after.line()}
    result["device"]["remarks"] += remarks


def _problems(graphs: list[dict[str, Any]]) -> list[str]:
    """What makes the run a failure, one line each."""
    found = []
    for row in graphs:
        name, seen = f"{row['graph']} {row['variant']}", row["parity"]
        if not row["threads_equal"]:
            found.append(f"{name}: another answer on another number of threads")
        allowed = f"allowed {seen['tolerance']:.1e}"
        if seen["ok"] is False:
            found.append(f"{name}: {seen['max_abs']:.1e} from its golden outputs, {allowed}")
        if seen.get("host", {}).get("ok") is False:
            found.append(f"{name}: {seen['host']['max_abs']:.1e} from this machine, {allowed}")
    return found

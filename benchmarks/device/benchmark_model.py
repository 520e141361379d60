"""`benchmark_model`, a binary of LiteRT that the user brings: what it is called with, and what it prints.

Google builds it for Android (C++); the wheel's own `litert-benchmark` is Python and prints the newer shape. The parser
reads every shape that these builds are known to print: without a prefix or with INFO:, VERBOSE: or logcat's; with CRLF;
numbers in scientific form; old builds without percentiles; LiteRT 2.x's block in milliseconds; operator tables; memory;
what a delegate took. All times are microseconds here.
Source: tflite/tools/benchmark and litert/tools/benchmark_litert_model.h of LiteRT, and public logs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.device.device import Device, DeviceError

TIMEOUT_S = 300.0
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|nan|-nan|inf|-inf"
# "07-08 15:34:26.202 I/tflite  ( 5395): ", "07-08 15:34:26.202  5395  5395 I tflite  : ", "I tflite  : ", "I/tflite: "
_LOGCAT = r"(?:\d\d-\d\d \d\d:\d\d:\d\d\.\d+\s+(?:\d+\s+\d+\s+)?)?[VDIWEF](?:/|\s+)[\w.\-]+\s*(?:\(\s*\d+\))?\s*:\s"
_LEVEL = r"(?:INFO|VERBOSE|WARNING|ERROR):\s"
_SOURCE = r"\[[\w./-]+:\d+\]\s?"
_PREFIX = re.compile(rf"^(?:{_LOGCAT})?(?:{_LEVEL})?(?:{_SOURCE})?")
_PAIR = re.compile(rf"(\w+)=({NUMBER})")
_TIMINGS = re.compile(
    rf"Inference timings in us: Init: ({NUMBER}), First inference: ({NUMBER}), Warmup \(avg\): ({NUMBER}), "
    rf"Inference \(avg\): ({NUMBER})"
)
_MEMORY = re.compile(
    rf"(Memory footprint delta from the start of the tool|Peak memory footprint) \(MB\): init=({NUMBER}) "
    rf"overall=({NUMBER})"
)
_PEAK = re.compile(rf"Overall peak memory footprint \(MB\) via periodic monitoring: ({NUMBER})")
_SIZE = re.compile(rf"The input model file size \(MB\): ({NUMBER})")
_INITIALISED = re.compile(rf"Initialized session in ({NUMBER})\s*ms")
_REPLACING = re.compile(
    r"Replacing (\d+) out of (\d+) node\(s\) with delegate \(([^)]*)\) node, yielding (\d+) partitions"
)
_APPLIED = re.compile(
    r"Explicitly applied (.+?) delegate, and the model graph will be (completely|partially) executed by the delegate"
    r"(?: w/ (\d+) delegate kernels)?"
)
_NOT_APPLIED = re.compile(r"the model graph will not be executed by the delegate")
_NEWER = re.compile(
    rf"(Model initialization|Warmup \((?:first|avg)\)|Inference \((?:avg|min|max|median|std|p\d+)\)|"
    rf"Init footprint|Overall footprint|Peak memory|Throughput|Fully accelerated):\s+({NUMBER}|True|False)"
    rf"\s*(ms|us|MB|MB/s)?(?:\s*\((\d+) runs\))?"
)
_SECTION = re.compile(r"Profiling Info for (.+?):")
_TABLE = re.compile(r"=+ ?(Run Order|Top by Computation Time|Summary by node type) ?=+")
_OPERATOR = re.compile(
    rf"^\s*(\S.*?)\s+({NUMBER})\s+({NUMBER})(?:\s+({NUMBER}))?\s+({NUMBER})%\s+({NUMBER})%\s+({NUMBER})\s+(\d+)"
    rf"(?:\s+(\S.*?))?\s*$"
)


@dataclass(frozen=True)
class OperatorTime:
    """A row of "Run Order". mean_us: of a run; share: of all operators'."""

    kind: str
    name: str
    mean_us: float
    share: float
    calls: int


@dataclass(frozen=True)
class BenchmarkRun:
    """What one run printed; None or empty where it did not say.

    steady: count, first, curr, min, max, avg, std, p5, median, p95 of the measured runs, as far as told; warmup: of
    those before. delegates: delegate -> (nodes taken, nodes in all, partitions); partly: the delegate left operators.
    """

    init_us: float | None = None
    first_us: float | None = None
    warmup_avg_us: float | None = None
    avg_us: float | None = None
    warmup: Mapping[str, float] = field(default_factory=dict)
    steady: Mapping[str, float] = field(default_factory=dict)
    model_mb: float | None = None
    memory_init_mb: float | None = None
    memory_overall_mb: float | None = None
    memory_peak_mb: float | None = None
    delegates: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    explicit: str = ""
    partly: bool | None = None
    operators: tuple[OperatorTime, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class BenchmarkUnreadable(DeviceError):
    """`benchmark_model` printed no result."""


def lines_of(text: str) -> Iterator[str]:
    """Lines without what a log puts before them."""
    for line in text.replace("\r", "").split("\n"):
        yield _PREFIX.sub("", line, count=1)


def parse_benchmark(text: str, where: str = "benchmark_model") -> BenchmarkRun:
    """Read what a run printed. Raises BenchmarkUnreadable when no measured figure is there."""
    found: dict[str, Any] = {"delegates": {}, "operators": []}
    counts: list[dict[str, float]] = []
    table, starting = "", False
    for line in lines_of(text):
        if _SECTION.search(line):
            starting, table = "Initialization" in line, ""  # what a start costs is no operator
        elif heading := _TABLE.search(line):
            table = "" if starting else heading.group(1)
        elif table == "Run Order" and (row := _OPERATOR.match(line)):
            found["operators"].append(_operator(row))
        elif re.search(r"(?:^|\s)count=\d", line):
            counts.append({name: float(value) for name, value in _PAIR.findall(line)})
        else:
            _read_line(line, found)
    if counts and len(counts) > 1:
        found["warmup"] = counts[0]
    if counts:
        found["steady"] = counts[-1]
        found.setdefault("avg_us", counts[-1].get("avg", counts[-1].get("curr")))
    found["steady"] = {**found.get("newer", {}), **found.get("steady", {})}
    found.pop("newer", None)
    if found.get("avg_us") is None:
        raise BenchmarkUnreadable("no timings in its output", where=where, got=text.strip()[-200:] or "nothing")
    return BenchmarkRun(**{**found, "operators": tuple(found["operators"])})


def parse_result_json(text: str, where: str = "litert-benchmark --result_json") -> BenchmarkRun:
    """Read what the wheel's `litert-benchmark --result_json FILE` wrote: milliseconds there, to a hundredth.

    Raises BenchmarkUnreadable when it is no such file.
    """
    try:
        told = json.loads(text)
        latency = told["latency"]
        us = {name.removesuffix("_ms"): float(value) * 1e3 for name, value in latency.items() if name.endswith("_ms")}
        return BenchmarkRun(
            init_us=us["init"],
            first_us=us["warmup_first"],
            warmup_avg_us=us["warmup_avg"],
            avg_us=us["avg"],
            warmup={"count": float(latency["num_warmup_runs"]), "avg": us["warmup_avg"]},
            steady={
                "count": float(latency["num_runs"]),
                **{name: us[name] for name in ("min", "max", "avg", "median", "std", "p5", "p95")},
            },
            model_mb=float(told["model_size_mb"]),
            partly=not told["fully_accelerated"],
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        got = f"{type(error).__name__}: {error}"
        raise BenchmarkUnreadable("no result of litert-benchmark", where=where, got=got) from None


def _operator(row: re.Match[str]) -> OperatorTime:
    """Columns: node type, [start,] first, avg ms, %, cdf %, mem KB, times called, name; older builds print a start."""
    kind, mean_ms, share, calls, name = row.group(1, 4, 5, 8, 9) if row.group(4) else row.group(1, 3, 5, 8, 9)
    return OperatorTime(kind, (name or "").strip(), float(mean_ms) * 1e3, float(share) / 100, int(calls))


def _read_line(line: str, found: dict[str, Any]) -> None:
    """What one line tells, into `found`."""
    if match := _TIMINGS.search(line):
        names = ("init_us", "first_us", "warmup_avg_us", "avg_us")
        found.update(zip(names, map(float, match.groups()), strict=True))
    elif match := _MEMORY.search(line):
        found["memory_init_mb"], found["memory_overall_mb"] = float(match.group(2)), float(match.group(3))
    elif match := _PEAK.search(line):
        found["memory_peak_mb"] = float(match.group(1))
    elif match := _SIZE.search(line):
        found["model_mb"] = float(match.group(1))
    elif match := _INITIALISED.search(line):
        found.setdefault("init_us", float(match.group(1)) * 1e3)
    elif match := _REPLACING.search(line):
        taken, total, name, partitions = match.groups()
        found["delegates"][name] = (int(taken), int(total), int(partitions))
    elif match := _APPLIED.search(line):
        found["explicit"], found["partly"] = match.group(1), match.group(2) == "partially"
    elif _NOT_APPLIED.search(line):
        found["explicit"], found["partly"] = "none", True
    elif match := _NEWER.search(line):
        _read_newer(match, found)


def _read_newer(match: re.Match[str], found: dict[str, Any]) -> None:
    """LiteRT 2.x's block. Its times are milliseconds; the deviation comes without a unit, in milliseconds too."""
    name, value, unit, runs = match.groups()
    if name == "Fully accelerated":
        found.setdefault("partly", value == "False")
        return
    number = float(value)
    us = number if unit == "us" else number * 1e3
    whole = {
        "Model initialization": "init_us", "Warmup (first)": "first_us", "Warmup (avg)": "warmup_avg_us",
    }  # fmt: skip
    memory = {
        "Init footprint": "memory_init_mb", "Overall footprint": "memory_overall_mb", "Peak memory": "memory_peak_mb",
    }  # fmt: skip
    if name in whole:
        found[whole[name]] = us
    elif name in memory:
        found[memory[name]] = number
    elif name.startswith("Inference"):
        steady = found.setdefault("newer", {})
        key = name[len("Inference (") : -1]
        steady[key] = us
        if key == "avg":
            found["avg_us"] = us
            if runs:
                steady["count"] = float(runs)


def run_benchmark(
    device: Device, binary: str, model: str, *, threads: int, runs: int, mask: str = "", profile: bool = True
) -> BenchmarkRun:
    """Run a pushed binary on a pushed model. mask: hexadecimal, for `taskset`; "" = anywhere.

    Raises BenchmarkUnreadable when it failed or printed nothing of use.
    """
    flags = [
        f"--graph={model}", f"--num_threads={threads}", f"--num_runs={runs}", "--warmup_runs=5",
        "--report_peak_memory_footprint=true", *(["--enable_op_profiling=true"] if profile else []),
    ]  # fmt: skip
    pinned = ["taskset", mask] if mask else []
    ran = device.run([*pinned, binary, *flags], timeout_s=TIMEOUT_S)
    text = f"{ran.stdout}\n{ran.stderr}"
    if ran.returncode:
        raise BenchmarkUnreadable(
            "the binary failed", where=f"{device.serial}: {Path(binary).name}", got=f"{ran.returncode}: {text[-300:]}"
        )
    return parse_benchmark(text, f"{device.serial}: {Path(binary).name}")

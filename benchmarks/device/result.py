"""The document of a device benchmark: rounds merged, nanoseconds in the unit of the kind, and its table.

unit "us": wall time in microseconds (kinds host and device). "instructions": arm64 instructions (an emulated device
whose clock counts them). "none": an emulated device whose wall time means nothing; nothing timed stands in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from contract.files import replacing

FORMAT = "kir-device-bench/1"
PERCENTILES = ("p50", "p90", "p95", "p99", "max", "mean")
PAGE_STAGES: tuple[str, ...] = ("fetch", "merge", "page")
SWIPE_STAGES: tuple[str, ...] = ("watch", "swipe", "choose")
STAGES = (*PAGE_STAGES, *SWIPE_STAGES, "total")
WORDS = {"us": "µs", "instructions": "instructions", "none": ""}
TITLES = {
    "host": "this machine, wall time: compare ratios, and no phone",
    "emulated-arm64": "emulated arm64 device (Linux, real adbd): parity, memory, instructions; wall time means nothing",
    "android-emulator": "Android's own emulator, no phone: parity and memory; wall time means nothing",
    "device": "a real device, wall time",
}


def save_result(path: Path, result: Mapping[str, Any]) -> None:
    """One line of JSON, written aside and renamed."""
    with replacing(path) as file:
        file.write((json.dumps(result, default=float) + "\n").encode())


def in_unit(unit: str) -> float:
    """What a nanosecond of the probe is in the unit."""
    return 1e-3 if unit == "us" else 1.0


def merged(rounds: Sequence[Mapping[str, Any]], unit: str) -> dict[str, Any]:
    """Summaries of the same thing over rounds, medians of each figure; rounds_p50: every round's own."""
    scale = in_unit(unit)
    found: dict[str, Any] = {
        name: float(np.median([one[name] for one in rounds])) * scale for name in PERCENTILES if name in rounds[0]
    }
    found["count"] = sum(int(one["count"]) for one in rounds)
    found["rounds_p50"] = [one["p50"] * scale for one in rounds if "p50" in one]
    quantiles = [one["quantiles"] for one in rounds if one.get("quantiles")]
    found["quantiles"] = [round(value, 3) for value in np.median(quantiles, axis=0) * scale] if quantiles else []
    return found


def graph_rows(rounds: Sequence[Sequence[Mapping[str, Any]]], unit: str) -> list[dict[str, Any]]:
    """One row a graph and variant, `threads` merged over rounds."""
    rows = []
    for same in zip(*rounds, strict=True):
        row = {**same[0], "threads_equal": all(one["threads_equal"] for one in same)}
        row["threads"] = {
            count: {
                "load": _median([one["threads"][count]["load"] for one in same], unit),
                "first": _median([one["threads"][count]["first"] for one in same], unit),
                "steady": merged([one["threads"][count]["steady"] for one in same], unit),
            }
            for count in same[0]["threads"]
        }
        rows.append(row)
    return rows


def session_block(rounds: Sequence[Mapping[str, Any]], unit: str) -> dict[str, Any]:
    """The session's stages and cold start, merged over rounds."""
    block = dict(rounds[0])
    told = [stage for stage in rounds[0]["stages"] if all(stage in one["stages"] for one in rounds)]
    block["stages"] = {stage: merged([one["stages"][stage] for one in rounds], unit) for stage in told}
    block["cold_start"] = {
        name: _median([one["cold_start"][name] for one in rounds], unit) for name in rounds[0]["cold_start"]
    }
    return block


def _median(values: Sequence[float], unit: str) -> float:
    return float(np.median(values)) * in_unit(unit)


def swipe_over_whole(result: Mapping[str, Any]) -> float | None:
    """What a swipe runs (watch/T1 and the largest swipe, as shipped) over the whole net in float32; one thread."""
    p50 = {
        (row["graph"], row["variant"]): row["threads"]["1"]["steady"]["p50"]
        for row in result["graphs"]
        if "1" in row["threads"]
    }
    shipped = {row["graph"]: row["variant"] for row in result["graphs"] if row["ships"]}
    whole = [key for key in p50 if key[0].startswith("whole/") and key[1] == "float32"]
    swipes = sorted((g for g in shipped if g.startswith("swipe/")), key=lambda g: int(g.partition("/N")[2]))
    if not whole or not swipes:
        return None
    half = [(graph, shipped[graph]) for graph in ("watch/T1", swipes[-1]) if graph in shipped]
    largest = max(whole, key=lambda key: int(key[0].partition("/N")[2]))
    if len(half) < 2 or any(key not in p50 for key in half):
        return None
    return float(sum(p50[key] for key in half) / p50[largest])


def figure(value: float | None, unit: str) -> str:
    """A time or a count, for a table."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if unit == "instructions" or value >= 1000 else f"{value:.1f}"


def parity_words(parity: Mapping[str, Any]) -> str:
    """ "ok 3e-08", "exact", "FAILS 1e-01"; "2e-02 of float32" where golden outputs are another variant's."""
    told = []
    if parity["max_abs"] is not None:
        compared = parity["ok"] is not None
        told.append(_verdict(parity) if compared else f"{parity['max_abs']:.0e} of {parity['reference']}")
    if "host" in parity:
        told.append(f"to host {_verdict(parity['host'])}")
    return ", ".join(told) or "–"


def _verdict(found: Mapping[str, Any]) -> str:
    if found["max_abs"] == 0:
        return "exact"
    return f"{'ok' if found['ok'] else 'FAILS'} {found['max_abs']:.0e}"


def device_table(result: Mapping[str, Any]) -> str:
    """For a terminal: graphs, session, memory, operators, device, and the comparison when there is one."""
    unit, device = result["unit"], result["device"]
    properties = device["properties"]
    lines = [
        f"{result['model']['dense_version']} on {properties.get('model', device['serial'])} "
        f"({properties.get('abi', '?')}, {device['serial']}; kind: {result['kind']})",
        TITLES[result["kind"]] + (f"; in {WORDS[unit]}" if unit != "none" else ""),
        "",
        *_graph_lines(result, unit),
        *_session_lines(result["session"], unit),
        "",
        "peak RSS, MiB: " + ", ".join(f"{name} {kb / 1024:.1f}" for name, kb in result["peak_rss_kb"].items()),
        *_operator_lines(result["operators"], unit),
    ]
    half = swipe_over_whole(result)
    if half is not None:
        lines.append(f"watch/T1 + swipe, as shipped, over the whole net in float32: {half:.2f}")
    pinned = f"pinned to cores {device['cores']}" if device["pinned"] else f"free on cores {device['cores']}"
    lines.append(f"{pinned}; LiteRT {device['packages'].get('ai-edge-litert', 'unknown')}, Python {device['python']}")
    for when, line in device.get("state_lines", {}).items():
        lines.append(f"{when}: {line}")
    lines += [f"  note: {remark}" for remark in device.get("remarks", [])]
    lines += _binary_lines(result.get("benchmark_model", []))
    if "compare" in result:
        from benchmarks.device.compare import compare_lines

        lines += ["", *compare_lines(result["compare"])]
    lines += [f"  FAILS {problem}" for problem in result["problems"]]
    return "\n".join(lines)


def _graph_lines(result: Mapping[str, Any], unit: str) -> list[str]:
    counts = [str(count) for count in result["settings"]["threads"]] if unit != "none" else []
    one, others = counts[:1], counts[1:]
    head = f"{'graph and variant':<29} {'KiB':>6}"
    if one:
        head += f" {'load':>11} {'first':>10} {'p50':>10} {'p90':>10} {'p99':>10}"
    head += "".join(f" {f'p50 ×{count}':>10}" for count in others) + f" {'parts':>5}  parity"
    lines = [head]
    for row in result["graphs"]:
        name = f"{row['graph']} {row['variant']}{' *' if row['ships'] else ''}"
        line = f"{name:<29} {row['bytes'] / 1024:>6.1f}"
        for count in one:
            timed = row["threads"][count]
            steady = timed["steady"]
            line += f" {figure(timed['load'], unit):>11} {figure(timed['first'], unit):>10}"
            line += "".join(f" {figure(steady[name], unit):>10}" for name in ("p50", "p90", "p99"))
        line += "".join(f" {figure(row['threads'][count]['steady']['p50'], unit):>10}" for count in others)
        left = sum(row["delegate"]["left_out"].values())
        parts = f"{row['delegate']['partitions']}{f'+{left}' if left else ''}"
        lines.append(f"{line} {parts:>5}  {parity_words(row['parity'])}")
    threads = f"{one[0]} thread{'s' if one[0] != '1' else ''}" if one else ""
    about = f"* ships; {threads}{' and more' if others else ''}; " if threads else "* ships; "
    return [*lines, about + "parts: XNNPACK's, + operators left out"]


def _session_lines(session: Mapping[str, Any], unit: str) -> list[str]:
    lines = ["", f"a session, {session['candidates']} candidates a page, {session['swipes']} timed"]
    if session["stages"]:
        lines[-1] += f"{'':<8} {'p50':>12} {'p90':>12} {'p99':>12} {'count':>6}"
        width = len(lines[-1]) - 45
        for stage in STAGES:
            if stage in session["stages"]:
                row = session["stages"][stage]
                cells = "".join(f" {figure(row[name], unit):>12}" for name in ("p50", "p90", "p99"))
                lines.append(f"  {stage:<{width - 2}}{cells} {row['count']:>6}")
        cold = ", ".join(
            f"{name.replace('_', ' ')} {figure(value, unit)}" for name, value in session["cold_start"].items()
        )
        lines.append(f"cold start: {cold}")
    return lines


def _operator_lines(operators: Mapping[str, Any], unit: str) -> list[str]:
    if "not_available" in operators:
        return [f"operators: not available ({operators['not_available']})"]
    lines = []
    for name, rows in operators["graphs"].items():
        dearest = sorted(rows, key=lambda row: -row["mean"])[:3]
        told = ", ".join(f"{row['name']} {row['share']:.0%}" for row in dearest)
        lines.append(f"dearest of {name}: {told}")
    return lines


def _binary_lines(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        f"benchmark_model: {run['graph']} {run['variant']} ×{run['threads']}: avg {run['avg_us']:.1f} µs"
        + (f", p95 {run['steady']['p95']:.1f}" if "p95" in run["steady"] else "")
        for run in runs
    ]

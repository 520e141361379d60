"""A device benchmark as a page: report.html beside report.json. Rendering only; every figure is in the JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import figures
from benchmarks.device.compare import compare_lines
from benchmarks.device.result import (
    PAGE_STAGES,
    PERCENTILES,
    STAGES,
    SWIPE_STAGES,
    TITLES,
    WORDS,
    figure,
    parity_words,
    swipe_over_whole,
)
from benchmarks.report import render_page, table, write_report

OPERATORS = 12  # dearest ones of each graph
RESOLUTION = {"us": "microseconds", "instructions": "thousands of instructions"}


def write_device_report(out_dir: str | Path, result: Mapping[str, Any]) -> Path:
    """report.html and report.json in `out_dir`; the page's path. Raises MissingExtra without jinja2."""
    return write_report(out_dir, result, render_device)


def render_device(result: Mapping[str, Any]) -> str:
    """The page. An emulated device shows instructions or nothing where others show time."""
    properties = result["device"]["properties"]
    title = f"{result['model']['dense_version']} on {properties.get('model', result['device']['serial'])}"
    sections = [_graphs(result), _session(result), _memory(result), _operators(result), _parity(result)]
    if result.get("benchmark_model"):
        sections.append(_binary(result))
    if "compare" in result:
        sections.insert(0, _compare(result["compare"]))
    sections.append(_device(result))
    lead = f"kind: {result['kind']} – {TITLES[result['kind']]}."
    if result["problems"]:
        lead += " PROBLEMS: " + "; ".join(result["problems"])
    return render_page(result, title, lead, _cards(result), sections)


def _cards(result: Mapping[str, Any]) -> list[dict[str, str]]:
    unit, cards = result["unit"], []
    total = result["session"]["stages"].get("total")
    if total:
        value = f"{figure(total['p50'], unit)} {WORDS[unit]}"
        cards.append({"value": value, "label": "one swipe, p50: feedback in → next video out"})
        if unit == "us":
            cards.append({"value": f"{figure(total['p99'], unit)} µs", "label": "one swipe, p99"})
    half = swipe_over_whole(result)
    if half is not None:
        cards.append({"value": f"{half:.2f}", "label": "watch/T1 + swipe over the whole net in float32"})
    cards.append({"value": f"{result['peak_rss_kb']['session'] / 1024:.1f} MiB", "label": "peak RSS of a session"})
    cases = result["replay"]["cases"]
    agree = sum(case["ok"] for case in cases)
    cards.append({"value": f"{agree} of {len(cases)}", "label": "golden cases agree"})
    return cards


def _section(title: str, text: str = "", **parts: Any) -> dict[str, Any]:
    return {"title": title, "text": text, "figures": [], "tables": [], "log": [], "note": "", **parts}


def _graphs(result: Mapping[str, Any]) -> dict[str, Any]:
    unit = result["unit"]
    counts = [str(count) for count in result["settings"]["threads"]] if unit != "none" else []
    shown, rows = [], []
    for row in result["graphs"]:
        line = [row["graph"], row["variant"], f"{row['bytes'] / 1024:.1f}", "✓" if row["ships"] else ""]
        for count in counts[:1]:
            timed = row["threads"][count]
            line += [figure(timed["load"], unit), figure(timed["first"], unit)]
            line += [figure(timed["steady"][name], unit) for name in ("p50", "p90", "p99")]
        line += [figure(row["threads"][count]["steady"]["p50"], unit) for count in counts[1:]]
        rows.append([*line, _delegate_words(row["delegate"])])
    header = ["graph", "variant", "KiB", "ships"]
    if counts:
        one = counts[0]
        header += ["load", "first call", *(f"{name}, ×{one}" for name in ("p50", "p90", "p99"))]
        header += [f"p50, ×{count}" for count in counts[1:]]
        bars: dict[str, dict[str, float]] = {}
        for row in result["graphs"]:
            bars.setdefault(row["graph"], {})[row["variant"]] = row["threads"][one]["steady"]["p50"]
        shown = [figures.grouped_bars(bars, WORDS[unit], f"one call, p50, {one} thread{'' if one == '1' else 's'}")]
        if unit == "us":
            largest = [row["graph"] for row in result["graphs"] if row["graph"].startswith("swipe/")][-1:]
            lines = {
                f"{row['graph']} {row['variant']}": row["threads"][one]["steady"]["quantiles"]
                for row in result["graphs"]
                if row["graph"] in largest
            }
            shown.append(figures.distributions(lines, f"one call, {WORDS[unit]}", "distribution"))
    return _section(
        "Graphs, variants side by side",
        f"Calls alone, inputs set before; ×n is the number of threads. In {WORDS[unit]}." if counts else
        "Nothing is timed: wall time of an emulated device means nothing, and this one does not count instructions.",
        figures=shown,
        tables=[table([*header, "XNNPACK"], rows)],
        note="load: read, planned and packed by XNNPACK; first call: the first after it.",
    )  # fmt: skip


def _delegate_words(delegate: Mapping[str, Any]) -> str:
    parts = delegate["partitions"]
    left = ", ".join(f"{count}× {name}" for name, count in delegate["left_out"].items())
    return f"{parts} part{'' if parts == 1 else 's'}" + (f", without {left}" if left else ", all operators")


def _session(result: Mapping[str, Any]) -> dict[str, Any]:
    unit, session = result["unit"], result["session"]
    stages = {name: session["stages"][name] for name in STAGES if name in session["stages"]}
    if not stages:
        return _section("A session", "Ran to its end; nothing is timed.")
    parts: dict[str, float] = {name: stages[name]["p50"] for name in SWIPE_STAGES if name in stages}
    pages: dict[str, float] = {name: stages[name]["p50"] for name in PAGE_STAGES if name in stages}
    shown = [figures.stacked_stages(parts, "where a swipe goes", WORDS[unit])]
    if pages:  # few swipes may all be of one page, fetched before they are timed
        shown.append(figures.stacked_stages(pages, "where a page goes", WORDS[unit]))
    if unit == "us":
        lines = {"total": stages["total"]["quantiles"]}
        shown.append(figures.distributions(lines, "one swipe, µs", "distribution of a swipe"))
    names = [name for name in PERCENTILES if name != "mean"]
    rows = [[name, *(figure(row[key], unit) for key in names), str(row["count"])] for name, row in stages.items()]
    cold = [[name.replace("_", " "), figure(value, unit)] for name, value in session["cold_start"].items()]
    return _section(
        "A whole session",
        f"{session['candidates']} candidates a page, {session['watched']} videos watched at the end; "
        f"{session['swipes']} swipes a round. fetch: page bytes from memory, parsed and checked; merge: sparse "
        "rows and features into blocks; page, swipe: their graphs; watch: feedback taken in, with its graph; choose: "
        "the rest.",
        figures=shown,
        tables=[table([WORDS[unit], *names, "count"], rows), table(["cold start", WORDS[unit]], cold)],
    )


def _memory(result: Mapping[str, Any]) -> dict[str, Any]:
    mib = {name: kb / 1024 for name, kb in result["peak_rss_kb"].items()}
    bars = {name: {"mean": value} for name, value in mib.items()}
    return _section(
        "Memory",
        "Largest resident memory of a process (VmHWM), Python and libraries included; each is a process of its own.",
        figures=[figures.interval_bars(bars, "MiB", "peak RSS")],
        tables=[table(["process", "MiB"], [[name, f"{value:.1f}"] for name, value in mib.items()])],
    )


def _operators(result: Mapping[str, Any]) -> dict[str, Any]:
    operators, unit = result["operators"], result["unit"]
    if "not_available" in operators:
        return _section("Operators", f"Not available: {operators['not_available']}.")
    tables = []
    for name, rows in operators["graphs"].items():
        dearest = sorted(rows, key=lambda row: -row["mean"])[:OPERATORS]
        cells = [
            [row["name"], str(row["number"]), "✓" if row["xnnpack"] else "–", figure(row["mean"], unit),
             f"{row['share']:.1%}"]
            for row in dearest
        ]  # fmt: skip
        tables.append(
            table([f"{name}: {len(dearest)} of {len(rows)}", "number", "XNNPACK", WORDS[unit], "share"], cells)
        )
    return _section(
        "Operators",
        f"By {operators['source']}, which counts whole {RESOLUTION[unit]} and costs some of its own: read shares, not "
        "sums.",
        tables=tables,
    )


def _parity(result: Mapping[str, Any]) -> dict[str, Any]:
    rows = [
        [row["graph"], row["variant"], f"{row['parity']['tolerance']:.1e}", parity_words(row["parity"]),
         {True: "equal", False: "differs", None: "–"}[row["parity"]["ranking"]]]
        for row in result["graphs"]
    ]  # fmt: skip
    cases = result["replay"]["cases"]
    return _section(
        "Parity",
        f"{sum(case['ok'] for case in cases)} of {len(cases)} golden cases agree, the golden session's swipes among "
        "them. Below, each variant against the golden outputs of its own, or of float32 where the model has none "
        "(then it is what quantising costs), and against this computer's where the device is another.",
        tables=[table(["graph", "variant", "allowed", "found", "ranking"], rows)],
    )


def _binary(result: Mapping[str, Any]) -> dict[str, Any]:
    rows = [
        [run["graph"], run["variant"], str(run["threads"]), figure(run["avg_us"], "us"),
         *(figure(run["steady"].get(key), "us") for key in ("p5", "median", "p95", "max")),
         "–" if run["memory_peak_mb"] is None else f"{run['memory_peak_mb']:.1f}"]
        for run in result["benchmark_model"]
    ]  # fmt: skip
    header = ["graph", "variant", "threads", "avg µs", "p5", "median", "p95", "max", "peak MB"]
    return _section("benchmark_model", "The binary that was given, on the same files.", tables=[table(header, rows)])


def _compare(compared: Mapping[str, Any]) -> dict[str, Any]:
    rows = [
        [row["name"], figure(row["old"], row["unit"]), figure(row["new"], row["unit"]),
         WORDS.get(row["unit"], row["unit"]), f"{row['percent']:+.1f} %", "beyond" if row["beyond"] else ""]
        for row in sorted(compared["rows"], key=lambda row: -row["percent"])
    ]  # fmt: skip
    header = ["figure", compared["old_version"], compared["new_version"], "unit", "change", "gate"]
    head = compare_lines(compared)[0]
    return _section("Against an older result", f"{head}.", tables=[table(header, rows)], log=compared["notes"])


def _device(result: Mapping[str, Any]) -> dict[str, Any]:
    device = result["device"]
    rows = [["serial", device["serial"]], *([name, value] for name, value in device["properties"].items())]
    rows += [["cores", str(device["cores"])], ["pinned", device["pinned"] or "no"], ["Python", device["python"]]]
    rows += [[name, version] for name, version in device["packages"].items()]
    rows += [[when, line] for when, line in device.get("state_lines", {}).items()]
    rows += [[name, str(value)] for name, value in result["settings"].items()]
    return _section("Device and settings", tables=[table(["", ""], rows)], log=device.get("remarks", []))

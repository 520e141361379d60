"""report.json -> report.html: one page that a person would look at. Rendering only; every figure is in the JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import figures
from benchmarks.stats import Interval
from contract.errors import MissingExtra
from contract.files import replacing

TEMPLATES = Path(__file__).parent / "templates"


def write_report(
    out_dir: str | Path, result: Mapping[str, Any], render: Callable[[Mapping[str, Any]], str] | None = None
) -> Path:
    """Write report.json and report.html (aside, then renamed); returns the page's path. render: default the demo's."""
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    _replace(out_dir / "report.json", json.dumps(result, indent=1, allow_nan=False, default=float))
    page = out_dir / "report.html"
    _replace(page, (render or render_loop)(result))
    return page


def _replace(path: Path, text: str) -> None:
    with replacing(path) as file:
        file.write(text.encode())


def render_page(
    result: Mapping[str, Any], title: str, lead: str, cards: list[dict[str, str]], sections: list[dict[str, Any]]
) -> str:
    """One self-contained HTML page. `result` gives the machine and the command under it."""
    try:
        import jinja2
    except ImportError:
        raise MissingExtra("jinja2", "bench") from None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    machine = result["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    return environment.get_template("report.html.j2").render(
        title=title,
        lead=lead,
        cards=cards,
        sections=sections,
        machine=f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}, "
        f"Python {machine['python']}; {packages}; commit {machine['commit']}",
        command=result["command"],
    )


def render_loop(result: Mapping[str, Any]) -> str:
    """The demo's page. Sections whose part of the result is absent are left out."""
    sections = [
        make(result[key])
        for key, make in (
            ("closed_loop", _closed_loop),
            ("replay", _replay),
            ("swipe", _swipe),
            ("conversion", _conversion),
            ("training", _training),
            ("stages", _stages),
        )
        if result.get(key)
    ]
    return render_page(result, "kir-edge: the whole loop", _lead(result), _cards(result), sections)


def _lead(result: Mapping[str, Any]) -> str:
    events = result["events"]
    small = "A quick run: it shows that everything runs, and its figures mean nothing. " if result.get("quick") else ""
    return (
        f"{small}{events['impressions']:,} impressions of {events['users']:,} users and {events['videos']:,} videos "
        f"({result['data']}), trained, converted, verified, published, served over gRPC and swiped through by phone "
        f"processes, in {sum(stage['seconds'] for stage in result['stages']):.0f} s."
    )


def _cards(result: Mapping[str, Any]) -> list[dict[str, str]]:
    cards = []
    loop = result.get("closed_loop")
    if loop:
        gain = loop["world"]["gains"]["per_swipe vs server"]
        low, high = (100 * gain["watch_s"][end] / loop["world"]["arms"]["server"]["watch_s"] for end in ("low", "high"))
        label = f"watch time, per-swipe against server order; 95 % interval {low:+.0f} … {high:+.0f} %"
        cards.append({"value": f"{gain['relative']:+.1%}", "label": label})
    replay = result.get("replay")
    if replay and replay.get("sizes"):
        row = replay["sizes"][0]
        cards.append(
            {"value": f"{row['ndcg_gain']['mean']:+.4f}", "label": f"nDCG against logged order, pages of {row['size']}"}
        )
    swipe = result.get("swipe")
    if swipe:
        cards.append({"value": f"{swipe['latency_us']['p50'] / 1000:.2f} ms", "label": "one swipe, p50, this machine"})
        cards.append({"value": f"{swipe['latency_us']['p99'] / 1000:.2f} ms", "label": "one swipe, p99"})
        cards.append({"value": f"{swipe['page_bytes']['p50'] / 1024:.1f} KiB", "label": "one candidate page"})
    if result.get("conversion"):
        last = result["conversion"]["versions"][-1]
        cards.append({"value": f"{last['download_bytes'] / 1024:.0f} KiB", "label": "model files that one phone loads"})
    return cards


def table(header: list[str], rows: list[list[str]]) -> dict[str, Any]:
    return {"header": header, "rows": rows}


def _interval(data: Mapping[str, float], scale: float = 1.0) -> str:
    return str(Interval(data["mean"] * scale, data["low"] * scale, data["high"] * scale))


def _gain_table(loop: Mapping[str, Any], label: str) -> dict[str, Any]:
    rows = [
        [
            name,
            f"{gain['relative']:+.1%}",
            _interval(gain["watch_s"]),
            _interval(gain["likes"]) if "likes" in gain else "–",
        ]
        for name, gain in loop["gains"].items()
    ]
    return table([label, "watch time", "seconds, 95 % interval", "likes, 95 % interval"], rows)


def _closed_loop(loops: Mapping[str, Any]) -> dict[str, Any]:
    world, control = loops["world"], loops.get("control")
    shown = [figures.arms(world, f"users with moods (drift {world['drift']:g})")]
    tables = [_gain_table(world, "users with moods")]
    if control:
        shown.append(figures.arms(control, f"control: no mood, no fatigue (drift {control['drift']:g})"))
        tables.append(_gain_table(control, "control"))
    return {
        "title": "Watch time in the simulator, same pages for every arm",
        "text": f"{world['n_sessions']} sessions of {world['n_seeds']} seeds. Means over sessions; whiskers are 95 % "
        "bootstrap intervals of the paired difference to server order, users drawn whole. The second table is the "
        "control world.",
        "figures": shown,
        "tables": tables,
        "log": [],
        "note": loops.get("note", ""),
    }


def _replay(replay: Mapping[str, Any]) -> dict[str, Any]:
    rows = [
        [
            str(row["size"]),
            str(row["pages"]),
            f"{row['logged']:.4f}",
            f"{row['one_shot']:.4f}",
            f"{row['per_swipe']:.4f}",
            _interval(row["ndcg_gain"]),
            _interval(row["swipe_gain"]),
        ]
        for row in replay["sizes"]
    ]
    header = [
        "page size",
        "pages",
        "logged order",
        "one-shot",
        "per-swipe",
        "per-swipe − logged",
        "per-swipe − one-shot",
    ]
    return {
        "title": "Replay on real logs",
        "text": replay["protocol"],
        "figures": [],
        "tables": [
            table(header, rows),
            table(["within users", "value"], [[k, f"{v:.4f}"] for k, v in replay["within_user"].items()]),
        ],
        "log": [],
        "note": replay.get("note", ""),
    }


def _swipe(swipe: Mapping[str, Any]) -> dict[str, Any]:
    rows = []
    for name in ("latency_us", "page_arrival_us", "page_round_trip_us"):
        if swipe.get(name, {}).get("count"):
            cells = [f"{swipe[name][key] / 1000:.2f}" for key in ("p50", "p90", "p99", "max")]
            rows.append([name.removesuffix("_us").replace("_", " "), *cells, str(swipe[name]["count"])])
    rows.append(
        [
            "page size, KiB",
            *(f"{swipe['page_bytes'][key] / 1024:.1f}" for key in ("p50", "p90", "p99", "max")),
            str(swipe["page_bytes"]["count"]),
        ]
    )
    return {
        "title": "The phone: swipes over real sockets",
        "text": "A phone process with the edge runtime alone, against the gRPC server process; wall times of this "
        "machine, not of a phone.",
        "figures": [
            figures.latency(swipe["samples_us"]),
            figures.stacked_stages(swipe["stages_us"], "where a swipe's time goes"),
        ],
        "tables": [table(["ms", "p50", "p90", "p99", "max", "count"], rows)],
        "log": list(swipe["log"]),
        "note": "Choosers: " + ", ".join(f"{name} {count}" for name, count in swipe["choosers"].items()) + ".",
    }


def _conversion(conversion: Mapping[str, Any]) -> dict[str, Any]:
    last = conversion["versions"][-1]
    sizes = {
        graph: {v: data["bytes"] / 1024 for v, data in row["variants"].items()} for graph, row in last["graphs"].items()
    }
    header = ["graph", "variant", "KiB", "max abs", "Kendall τ", "top-1", "invoke µs", "ships"]
    rows = [
        [
            graph,
            name,
            f"{data['bytes'] / 1024:.1f}",
            *(
                number(data.get(key), spec)
                for key, spec in (("max_abs", ".2e"), ("tau", ".4f"), ("top1", ".3f"), ("invoke_us", ".0f"))
            ),
            "✓" if name == row["ship"] else "",
        ]
        for graph, row in last["graphs"].items()
        for name, data in row["variants"].items()
    ]
    versions = [
        [v["dense_version"], f"{v['seconds']:.0f} s", f"{v['download_bytes'] / 1024:.0f} KiB"]
        for v in conversion["versions"]
    ]
    return {
        "title": "Conversion: size and parity per variant",
        "text": "Torch → ONNX → TFLite float32 → quantised, each compared with torch on held-out windows; a failed "
        "gate publishes nothing.",
        "figures": [figures.grouped_bars(sizes, "KiB", "file size per graph and variant")],
        "tables": [table(header, rows), table(["published version", "conversion", "one phone loads"], versions)],
        "log": [],
        "note": "",
    }


def number(value: Any, spec: str) -> str:
    return "–" if value is None else format(float(value), spec)


def _training(training: Mapping[str, Any]) -> dict[str, Any]:
    tables = [
        table(
            [model, "value"],
            [[key, number(value, ".4f")] for key, value in metrics.items() if isinstance(value, (int, float))],
        )
        for model, metrics in training.items()
    ]
    return {"title": "Training", "text": "", "figures": [], "tables": tables, "log": [], "note": ""}


def _stages(stages: list[Mapping[str, Any]]) -> dict[str, Any]:
    total = sum(stage["seconds"] for stage in stages)
    rows = [[stage["name"], f"{stage['seconds']:.1f}", f"{stage['seconds'] / total:.0%}"] for stage in stages]
    return {
        "title": "Where the time went",
        "text": "",
        "figures": [],
        "tables": [table(["stage", "seconds", "share"], [*rows, ["total", f"{total:.1f}", "100%"]])],
        "log": [],
        "note": "",
    }

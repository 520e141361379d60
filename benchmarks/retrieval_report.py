"""The page of `kir bench retrieval`. Rendering only: every figure is in report.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks import figures
from benchmarks.report import number, render_page, table

COLUMNS = 4
NO_CLAIM = "Figures marked * have a cut-off above 5 % of the catalogue: shown, no claim."


def render(result: Mapping[str, Any]) -> str:
    """The HTML of what `benchmarks.retrieval.bench_retrieval` returns."""
    sections = [_figures(result)]
    if result["differences"]:
        sections.append(_differences(result))
    if result["published"]:
        sections.append(_published(result["published"]))
    sections.append(_cost(result))
    lead = (
        f"{result['data']}, {result['split']}: {result['queries']:,} queries of {result['users']:,} users, each ranks "
    )
    lead += f"{result['items']:,} items. Protocol: {result['protocol']}."
    return render_page(result, f"Retrieval on {result['data']}", lead, _cards(result), sections)


def _cards(result: Mapping[str, Any]) -> list[dict[str, str]]:
    reference = result["reference"]
    found = result["arms"][reference]["metrics"]
    cards = [
        {"value": f"{found[name]['mean']:.4f}", "label": f"{name} of {reference}; 95 % {_bounds(found[name])}"}
        for name in ("recall@10", "ndcg@10")
        if name in found
    ]
    return [*cards, {"value": f"{found['mrr']['mean']:.4f}", "label": f"MRR of {reference}"}]


def _figures(result: Mapping[str, Any]) -> dict[str, Any]:
    arms = result["arms"]
    names = list(arms[result["reference"]]["metrics"])
    shown = [figures.curves(_recalls(result), "recall@k", result["items"] // 20, "recall by cut-off")]
    ndcg = {title: arm["metrics"]["ndcg@10"] for title, arm in _titled(arms).items()}
    shown.append(figures.interval_bars(ndcg, "ndcg@10", "NDCG@10"))
    rows = [
        [title, *(f"{arm['metrics'][name]['mean']:.4f} {_bounds(arm['metrics'][name])}" for name in names)]
        for title, arm in _titled(arms).items()
    ]
    first = arms[result["reference"]]["metrics"]
    header = ["", *(_marked(name, first) for name in names)]
    return {
        "title": "Figures",
        "text": "Whiskers and brackets are 95 % bootstrap intervals, users drawn whole. Left of the line a cut-off is "
        "at most 5 % of the catalogue.",
        "figures": shown,
        "tables": _narrow(header, rows),
        "log": [],
        "note": NO_CLAIM,
    }


def _marked(name: str, figures: Mapping[str, Mapping[str, Any]]) -> str:
    return name if figures[name]["claim"] else f"{name} *"


def _narrow(header: list[str], rows: list[list[str]]) -> list[dict[str, Any]]:
    """Tables of at most COLUMNS figures, each with the models in front."""
    starts = range(1, len(header), COLUMNS)
    return [table(["", *header[i : i + COLUMNS]], [[row[0], *row[i : i + COLUMNS]] for row in rows]) for i in starts]


def _recalls(result: Mapping[str, Any]) -> dict[str, dict[int, Mapping[str, float]]]:
    """Model -> cut-off -> interval, the reference first."""
    return {
        title: {int(n.split("@")[1]): one for n, one in arm["metrics"].items() if n.startswith("recall@")}
        for title, arm in _titled(result["arms"]).items()
    }


def _titled(arms: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return {arm["name"]: arm for arm in arms.values()}


def _differences(result: Mapping[str, Any]) -> dict[str, Any]:
    differences = result["differences"]
    first = next(iter(differences.values()))
    names = list(first)
    rows = [
        [model, *(f"{one[name]['mean']:+.4f} {_bounds(one[name], '+')}" for name in names)]
        for model, one in differences.items()
    ]
    return {
        "title": f"Paired differences to {result['reference']}",
        "text": f"Each model less {result['reference']}, query by query; an interval without zero is a difference "
        "that these users show.",
        "figures": [],
        "tables": _narrow(["", *(_marked(name, first) for name in names)], rows),
        "log": [],
        "note": NO_CLAIM,
    }


def _published(published: Mapping[str, Any]) -> dict[str, Any]:
    names = list(dict.fromkeys(name for row in published["rows"].values() for name in row))
    rows = [[model, *(number(row.get(name), ".4f") for name in names)] for model, row in published["rows"].items()]
    return {
        "title": "Published" + published["source"].removeprefix("published"),
        "text": "Printed there, not measured here; no intervals are known, so nothing is tested against them.",
        "figures": [],
        "tables": [table(["", *names], rows)],
        "log": [],
        "note": published["note"],
    }


def _cost(result: Mapping[str, Any]) -> dict[str, Any]:
    rows = []
    for title, arm in _titled(result["arms"]).items():
        speed, covered = arm["speed"], arm["coverage"]
        rows.append(
            [
                title,
                *(number(covered.get(name), ".4f") for name in ("coverage@10", "coverage@50")),
                number(speed.get("queries_per_second"), ".0f"),
                *(number(speed.get(name), ".2f") for name in ("one_p50_ms", "one_p99_ms", "batch_p50_ms")),
                str(speed.get("batch", "–")),
            ]
        )
    header = ["", "coverage@10", "coverage@50", "queries/s", "one, p50 ms", "one, p99 ms", "batch, p50 ms", "batch"]
    return {
        "title": "Coverage and cost",
        "text": "Share of the catalogue in at least one list; scoring of the whole catalogue on the machine that "
        "evaluated the model: one history at a time, and in batches.",
        "figures": [],
        "tables": [table(header, rows)],
        "log": [],
        "note": "",
    }


def _bounds(one: Mapping[str, float], sign: str = "") -> str:
    return f"[{one['low']:{sign}.4f}, {one['high']:{sign}.4f}]" if "low" in one else ""

"""The report's plots, as inline SVG. One style: one hue for ours, grey for the rest, intervals as whiskers."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

OURS, REST, BOUND = "#1f6feb", "#8b949e", "#2da44e"
MARKERS, STYLES = "os^Dvx", ("-", "--", ":", "-.")
SVG_START = "<svg"


def _axes(width: float, height: float) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "kir"})
    figure, axes = pyplot.subplots(figsize=(width, height), layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Any) -> str:
    from matplotlib import pyplot

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    text = buffer.getvalue()
    return text[text.index(SVG_START) :]


def arms(result: Mapping[str, Any], title: str) -> str:
    """Mean session watch time per arm, and the interval of its gain over server order where there is one."""
    names = list(result["arms"])
    values = [result["arms"][name]["watch_s"] for name in names]
    colours = [OURS if name == "per_swipe" else BOUND if name == "oracle" else REST for name in names]
    figure, axes = _axes(5.2, 2.6)
    axes.bar(names, values, color=colours, width=0.62)
    for i, name in enumerate(names):
        gain = result["gains"].get(f"{name} vs server")
        if gain:
            base = result["arms"]["server"]["watch_s"]
            low, high = base + gain["watch_s"]["low"], base + gain["watch_s"]["high"]
            axes.errorbar(i, values[i], yerr=[[values[i] - low], [high - values[i]]], color="black", capsize=3, lw=1)
        axes.annotate(
            f"{values[i]:.0f}",
            (i, values[i]),
            ha="center",
            va="bottom",
            fontsize=8,
            xytext=(9, 2),
            textcoords="offset points",
        )
    axes.set_ylabel("watch time per session, s")
    axes.set_title(title, fontsize=10, loc="left")
    return _svg(figure)


def latency(samples_us: Sequence[float]) -> str:
    """Empirical distribution of the swipe, with p50 and p99 marked."""
    data = np.sort(np.asarray(samples_us, float)) / 1000.0
    figure, axes = _axes(5.2, 2.4)
    axes.plot(data, np.arange(1, len(data) + 1) / len(data), color=OURS, lw=1.8)
    for share in (50, 99):
        at = float(np.percentile(data, share))
        axes.axvline(at, color=REST, lw=0.8, ls="--")
        axes.annotate(
            f"p{share} {at:.2f} ms", (at, share / 100 - 0.08), fontsize=8, xytext=(4, 0), textcoords="offset points"
        )
    axes.set_xscale("log")
    axes.set_xlabel("one swipe on this machine, feedback in → next video out, ms")
    axes.set_ylabel("share of swipes")
    axes.set_ylim(0, 1.02)
    return _svg(figure)


def distributions(rows: Mapping[str, Sequence[float]], xlabel: str, title: str) -> str:
    """One line per row: the empirical distribution of what its equally spaced quantiles tell, the first row as ours."""
    figure, axes = _axes(5.2, 2.6)
    for i, (name, quantiles) in enumerate(rows.items()):
        colour, style = (OURS, "-") if i == 0 else (REST, STYLES[i % len(STYLES)])
        axes.plot(quantiles, np.linspace(0, 1, len(quantiles)), color=colour, ls=style, lw=1.6, label=name)
    axes.set_xscale("log")
    axes.set_xlabel(xlabel)
    axes.set_ylabel("share of calls")
    axes.set_ylim(0, 1.02)
    axes.set_title(title, fontsize=10, loc="left")
    axes.legend(fontsize=7, frameon=False)
    return _svg(figure)


def stacked_stages(stages: Mapping[str, float], title: str, unit: str = "µs") -> str:
    """One bar cut into its stages (medians)."""
    figure, axes = _axes(5.2, 2.0)
    left = 0.0
    shades = np.linspace(0.95, 0.35, max(len(stages), 1))
    for shade, (name, value) in zip(shades, stages.items(), strict=True):
        axes.barh([0], [value], left=left, color=OURS, alpha=float(shade), label=f"{name} {value:,.0f} {unit}")
        left += value
    axes.set_yticks([])
    axes.set_xlabel(f"{unit} (median)")
    axes.set_title(title, fontsize=10, loc="left")
    figure.legend(fontsize=8, ncols=2, frameon=False, loc="outside lower left")
    return _svg(figure)


def grouped_bars(rows: Mapping[str, Mapping[str, float]], ylabel: str, title: str) -> str:
    """One group per row, one bar per inner key."""
    groups = list(rows)
    keys = list(dict.fromkeys(key for row in rows.values() for key in row))
    figure, axes = _axes(5.2, 2.4)
    width = 0.8 / max(len(keys), 1)
    shades = np.linspace(0.35, 1.0, max(len(keys), 1))
    for k, key in enumerate(keys):
        at = np.arange(len(groups)) + (k - (len(keys) - 1) / 2) * width
        axes.bar(at, [rows[g].get(key, np.nan) for g in groups], width, label=key, color=OURS, alpha=float(shades[k]))
    axes.set_xticks(np.arange(len(groups)), groups)
    axes.set_ylabel(ylabel)
    axes.set_title(title, fontsize=10, loc="left")
    axes.legend(fontsize=7, frameon=False)
    return _svg(figure)


def curves(rows: Mapping[str, Mapping[int, Mapping[str, float]]], ylabel: str, limit: float, title: str) -> str:
    """One line per row over cut-offs (log scale) with whiskers, the first row as ours; a dashed line at `limit`."""
    figure, axes = _axes(5.2, 3.0)
    for i, (name, points) in enumerate(rows.items()):
        at = sorted(points)
        mean, low, high = ([points[k].get(key, np.nan) for k in at] for key in ("mean", "low", "high"))
        whiskers = [np.subtract(mean, low), np.subtract(high, mean)]
        colour, style = (OURS, "-") if i == 0 else (REST, STYLES[(i - 1) % len(STYLES)])
        axes.errorbar(
            at,
            mean,
            yerr=whiskers,
            color=colour,
            ls=style,
            marker=MARKERS[i % len(MARKERS)],
            ms=3.5,
            lw=1.4,
            capsize=2,
            label=name,
        )
    axes.axvline(limit, color=REST, lw=0.8, ls="--")
    axes.set_xscale("log")
    axes.set_xlabel("k")
    axes.set_ylabel(ylabel)
    axes.set_title(title, fontsize=10, loc="left")
    axes.legend(fontsize=7, frameon=False)
    return _svg(figure)


def interval_bars(rows: Mapping[str, Mapping[str, float]], ylabel: str, title: str) -> str:
    """One bar per row with its whisker, the first row as ours."""
    names = list(rows)
    values = np.array([rows[name]["mean"] for name in names])
    ends = np.array([[rows[name].get(end, rows[name]["mean"]) for name in names] for end in ("low", "high")])
    figure, axes = _axes(5.2, 3.0)
    axes.barh(names[::-1], values[::-1], color=[OURS if name == names[0] else REST for name in names[::-1]], height=0.6)
    axes.errorbar(
        values[::-1],
        np.arange(len(names)),
        xerr=np.abs(ends - values)[:, ::-1],
        fmt="none",
        color="black",
        capsize=3,
        lw=1,
    )
    axes.set_xlabel(ylabel)
    axes.set_title(title, fontsize=10, loc="left")
    return _svg(figure)

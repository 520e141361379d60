"""A result beside an older one of the same device and kind: what changed, and whether it is beyond the gate."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.device.result import FORMAT, WORDS, figure
from contract.errors import InputError

# Instruction counts repeat within a tenth of a percent; wall times of an idle phone within some.
GATE_PERCENT = {"instructions": 2.0, "us": 10.0, "none": 2.0}


def read_result(path: Path) -> dict[str, Any]:
    """An older result, whole as far as it is compared. Raises InputError for anything else."""
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError("--compare reads no result", where=path, got=str(error)) from None
    found = data.get("format") if isinstance(data, dict) else None
    fix = "give a file that kir bench --serial … --json wrote"
    if found != FORMAT:
        raise InputError("--compare is no device benchmark", where=path, got=found, allowed=FORMAT, fix=fix)
    try:
        figures = figures_of(data)
        _facts(data)
        unit, version = data["unit"], data["model"]["dense_version"]
        whole = isinstance(data["kind"], str) and unit in GATE_PERCENT and isinstance(version, str)
    except (KeyError, TypeError, AttributeError) as error:
        got = f"{type(error).__name__}: {error}"
        raise InputError("--compare reads a result that lacks a part", where=path, got=got, fix=fix) from None
    bad = [name for name, (value, _) in figures.items() if not math.isfinite(value)]
    if bad or not whole:
        wrong = bad[:3] or [data["kind"], unit, version]
        raise InputError("--compare reads a result whose figures are none", where=path, got=wrong, fix=fix)
    return dict(data)


def check_gate(gate_percent: float | None, compare: Path | None) -> None:
    """Raises InputError for a gate that gates nothing: no number from 0 on, or no older result to hold it against."""
    if gate_percent is None:
        return
    if not (math.isfinite(gate_percent) and gate_percent >= 0):
        raise InputError("--gate-percent is a number from 0 on", got=gate_percent)
    if compare is None:
        raise InputError("--gate-percent needs an older result", got=gate_percent, fix="add --compare OLD.json")


def figures_of(result: Mapping[str, Any]) -> dict[str, tuple[float, str]]:
    """What is compared: name -> (value, unit). Medians of graphs and of a swipe, peak memory; what has few samples or
    depends on the disk (pages, loads, cold start) is in the document and not here.
    """
    found: dict[str, tuple[float, str]] = {}
    for row in result["graphs"]:
        for count, timed in row["threads"].items():
            found[f"{row['graph']} {row['variant']} ×{count}"] = (_number(timed["steady"]["p50"]), result["unit"])
    for stage in ("watch", "swipe", "choose", "total"):
        if stage in result["session"]["stages"]:
            found[f"session {stage}"] = (_number(result["session"]["stages"][stage]["p50"]), result["unit"])
    for name, kb in result["peak_rss_kb"].items():
        found[f"peak RSS {name}"] = (_number(kb), "KiB")
    return found


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"no number: {value!r}")
    return float(value)


def check_comparable(old: Mapping[str, Any], kind: str, unit: str, model: str) -> None:
    """Raises InputError when an older result is of another kind, unit or device model: before minutes of measuring."""
    was = (old["kind"], old["unit"], old["device"]["properties"].get("model", ""))
    for name, before, now in zip(("kind", "unit", "device"), was, (kind, unit, model), strict=True):
        if before != now:
            raise InputError(
                f"results of another {name} can't be compared", got=before, allowed=now,
                fix="measure the older version here and now",
            )  # fmt: skip


def compare_results(old: Mapping[str, Any], new: Mapping[str, Any], gate_percent: float | None) -> dict[str, Any]:
    """rows: name, old, new, unit, percent, beyond; notes: what else differs. gate_percent: None = by the unit.

    Raises InputError when the two can't be compared: another kind, unit or device, or nothing in common.
    """
    check_comparable(old, new["kind"], new["unit"], new["device"]["properties"].get("model", ""))
    gate = GATE_PERCENT[new["unit"]] if gate_percent is None else gate_percent
    before, after = figures_of(old), figures_of(new)
    rows = []
    for name, (value, unit) in after.items():
        was = before.get(name, (0.0, unit))[0]
        if was > 0:
            percent = 100 * (value - was) / was
            rows.append(
                {"name": name, "old": was, "new": value, "unit": unit, "percent": percent, "beyond": percent > gate}
            )
    if not rows:
        raise InputError("the two results have no figure in common", got=sorted(before)[:3], allowed=sorted(after)[:3])
    return {
        "gate_percent": gate,
        "old_version": old["model"]["dense_version"],
        "new_version": new["model"]["dense_version"],
        "rows": rows,
        "only_old": sorted(set(before) - set(after)),
        "only_new": sorted(set(after) - set(before)),
        "notes": _notes(old, new),
        "ok": not any(row["beyond"] for row in rows),
    }


def _notes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Differences that may explain a change."""
    was, now = _facts(old), _facts(new)
    return [f"{name}: {was[name]} then, {now[name]} now" for name in was if was[name] != now[name]]


def _facts(result: Mapping[str, Any]) -> dict[str, Any]:
    device, settings = result["device"], result["settings"]
    return {
        "LiteRT": device["packages"].get("ai-edge-litert"),
        "pinned cores": device["pinned"] or "none",
        "runs": settings["runs"],
        "system": device["properties"].get("fingerprint", device["properties"].get("kernel")),
    }


def compare_lines(compared: Mapping[str, Any]) -> list[str]:
    """For a terminal: what is beyond the gate first, then the largest changes."""
    rows = sorted(compared["rows"], key=lambda row: -row["percent"])
    beyond = [row for row in rows if row["beyond"]]
    head = (
        f"{compared['new_version']} against {compared['old_version']}: "
        f"{len(beyond)} of {len(rows)} figures beyond +{compared['gate_percent']:g} %"
    )
    shown = beyond + [row for row in rows if not row["beyond"]][: max(0, 5 - len(beyond))]
    lines = [head]
    for row in shown:
        words = "BEYOND" if row["beyond"] else ""
        unit = WORDS.get(row["unit"], row["unit"])
        lines.append(
            f"  {row['percent']:>+7.1f} %  {row['name']:<34} {figure(row['old'], row['unit'])} → "
            f"{figure(row['new'], row['unit'])} {unit} {words}".rstrip()
        )
    if compared["only_old"]:
        lines.append(f"  {len(compared['only_old'])} figures of the older result were not measured now")
    return lines + [f"  note: {note}" for note in compared["notes"]]

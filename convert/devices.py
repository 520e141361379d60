"""The device table of a model card: what a swipe took where it was measured.

kir publish converted --cdn staging && kir bench swipe --cdn staging --json host.json
kir publish converted --cdn cdn --measured host.json --measured phone.json
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from contract.errors import InputError

KINDS = ("host", "emulator", "phone")
COLUMNS = ("page", "watch/T1", "swipe", "place", "whole")


def device_table(measured: Sequence[str | Path], version: str, shipped: Mapping[str, str]) -> str:
    """Markdown of these results of `kir bench swipe`. shipped: graph key -> the variant a phone loads.

    Times are medians in µs of the shipped variants, in the largest bucket. Raises InputError for a file that is no such
    result, or one of another version.
    """
    rows = [_row(Path(path), version, shipped) for path in measured]
    head = ["where", "device", *COLUMNS, "watch and swipe of whole"]
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
    return "\n".join(["## Devices", "", *lines, "", "Medians in µs, largest bucket, one thread, shipped variants.", ""])


def _row(path: Path, version: str, shipped: Mapping[str, str]) -> list[str]:
    try:
        result: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError("measured result can't be read", where=path, got=str(error)) from None
    if not isinstance(result, dict) or result.get("benchmark") != "swipe" or result.get("kind") not in KINDS:
        raise InputError("no result of kir bench swipe", where=path, fix="make it with: kir bench swipe --json")
    if result.get("dense_version") != version:
        raise InputError(
            "measured on another model", where=path, got=result.get("dense_version"), allowed=version
        )  # fmt: skip
    try:
        medians = {key: float(figures["p50"]) for key, figures in result["invoke_us"].items()}
        device = _cell(f"{result['machine']['cpu']}, {result['machine']['system']}")
        cells = [_median(medians, name, shipped) for name in COLUMNS]
        share = float(result["watch_and_swipe_over_whole"])
        if not all(math.isfinite(figure) for figure in (*medians.values(), share)):
            raise ValueError("a figure that is no finite number")
        return [result["kind"], device, *cells, f"{100 * share:.0f} %"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError("measured result lacks a figure", where=path, got=str(error)) from None


def _cell(text: str) -> str:
    """One line without what ends a cell of a table."""
    return " ".join(text.replace("|", "/").split())


def _median(medians: Mapping[str, float], name: str, shipped: Mapping[str, str]) -> str:
    """Of a graph's largest bucket, "page", or of one, "watch/T1"; "-" for a graph that this model has not."""
    keys = [key for key in shipped if key == name or key.startswith(f"{name}/")]
    if not keys:
        return "-"
    largest = max(keys, key=lambda key: 0 if key == name else int(key.rpartition("/")[2][1:]))
    return f"{medians[f'{largest} {shipped[largest]}']:.0f}"

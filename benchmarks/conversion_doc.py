"""The table of docs/conversion.md from results of `kir bench conversion`: every recipe, every model, one table.

kir bench conversion-doc docs/results/conversion-*.json --into docs/conversion.md

A cell is bytes / µs / Kendall tau; bold ships, "!" misses a gate. A test holds the manual to the committed results.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from contract.errors import InputError
from contract.files import replacing

BEGIN, END = "<!-- kir bench conversion-doc -->", "<!-- end of the table -->"
NONE = "–"
LITERT = "LiteRT "  # what the name of a variant's run begins with


def add_conversion_doc_arguments(add: Callable[..., Any]) -> None:
    add("results", type=Path, nargs="+", metavar="FILE.json", help="what `kir bench conversion --json` wrote")
    add("--into", type=Path, metavar="FILE.md", help=f"put the table there, between {BEGIN} and {END}")


def run_conversion_doc(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    results = [read_result(path) for path in args.results]
    table = markdown_table(results)
    if args.into is not None:
        text = replace_table(args.into.read_text(), table, args.into)
        with replacing(args.into) as file:
            file.write(text.encode())
    return {"benchmark": "conversion-doc", "results": [str(path) for path in args.results]}, table


def read_result(path: Path) -> dict[str, Any]:
    """A result file. Raises InputError for one of another benchmark."""
    try:
        result: dict[str, Any] = json.loads(path.read_text())
        kind = result["benchmark"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError("not a result of `kir bench conversion --json`", where=path, got=str(error)) from None
    if kind != "conversion":
        raise InputError("not a result of `kir bench conversion --json`", where=path, got=kind, allowed="conversion")
    return result


def replace_table(text: str, table: str, where: Path | str = "") -> str:
    """`text` with what stands between the marks replaced. Raises InputError without both marks."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise InputError("no place for the table", where=where, fix=f"a line {BEGIN} and a line {END}")
    return f"{head}{BEGIN}\n{table}\n{END}{tail}"


def markdown_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Rows: recipes, then the other runtimes and the floor. Columns: one everyday bucket of each graph of each model.

    The reranker's whole net stands in it as well; a phone never loads it, it is what the parts are compared with.
    """
    columns = [(result, graph) for result in results for graph in _shown(result)]
    recipes = list(dict.fromkeys(["float32", *(recipe["name"] for result in results for recipe in result["recipes"])]))
    heads = [f"{result['model']['kind']} {graph}" for result, graph in columns]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [_line(recipe, [_cell(result, graph, recipe) for result, graph in columns]) for recipe in recipes]
    ways = dict.fromkeys(name for result, graph in columns for name in result["graphs"][graph]["runs"])
    for way in (name for name in ways if not name.startswith(LITERT)):
        lines.append(_line(way, [_time(result, graph, way) for result, graph in columns]))
    lines.append(_line("floor", [f"{result['graphs'][graph]['floor_us']:,.0f}" for result, graph in columns]))
    return "\n".join(lines)


def _shown(result: Mapping[str, Any]) -> list[str]:
    """The first bucket of each graph, and of `watch` the largest too: one token at a swipe, many at an eviction."""
    by_graph: dict[str, list[str]] = {}
    for key in result["graphs"]:
        by_graph.setdefault(key.split("/")[0], []).append(key)
    shown: list[str] = []
    for name, keys in by_graph.items():
        keys = sorted(keys, key=lambda key: int(key.split("/")[-1][1:]))
        shown += dict.fromkeys([keys[0], keys[-1]]) if name == "watch" else keys[:1]
    return shown


def _cell(result: Mapping[str, Any], graph: str, recipe: str) -> str:
    for row in result["verification"]["rows"]:
        if (row["graph"], row["variant"]) == (graph, recipe):
            quality = NONE if row["tau"] is None else f"{row['tau']:.3f}"
            text = f"{row['n_bytes']:,} / {_time(result, graph, LITERT + recipe)} / {quality}"
            if result["verification"]["shipped"].get(graph) == recipe:
                return f"**{text}**"
            return text if row["passed"] else text + " !"
    return NONE


def _time(result: Mapping[str, Any], graph: str, way: str) -> str:
    run = result["graphs"][graph]["runs"].get(way)
    return NONE if run is None else f"{run['wall_us']['p50']:,.0f}"


def _line(name: str, cells: Sequence[str]) -> str:
    return f"| {name} | " + " | ".join(cells) + " |"

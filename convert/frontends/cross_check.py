"""Front ends asked for the same graph: who agrees with eager torch, who with whom, and who is off.

    check = cross_check(graph, feeds, "scratch", ("onnx2tf", "litert-torch"))
    print(check.table())

A front end that is off alone is at fault. When all agree with each other and none with torch, the export or the torch
module is: a branch on data that tracing wrote down once, a dropout left on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.errors import ConversionError, InputError
from convert.chain import Feeds
from convert.frontends import FRONT_ENDS, export_and_convert
from convert.onnx_export import TorchGraph
from convert.report import Gates
from convert.subject import Subject
from convert.tflite import TfliteGraph
from convert.verify import LARGE

ALLOWED = Gates.float_max_abs  # grows with values above LARGE, as in the verification chain
Outputs = Sequence[Mapping[str, NDArray[Any]]]
Convert = Callable[[TorchGraph, Path, str], tuple[Path, Path]]


@dataclass(frozen=True)
class Opinion:
    """One front end's file on all feeds. max_abs: to eager torch. error: why there is no file."""

    front_end: str
    max_abs: float = 0.0
    n_bytes: int = 0
    operators: int = 0
    partitions: int = 0
    error: str = ""


@dataclass(frozen=True)
class CrossCheck:
    """apart: (front end, front end, max abs between them). allowed: what still counts as agreement."""

    graph: str
    opinions: tuple[Opinion, ...]
    apart: tuple[tuple[str, str, float], ...]
    allowed: float
    n_feeds: int

    @property
    def off(self) -> tuple[str, ...]:
        """Front ends that made a file and are not with torch."""
        return tuple(one.front_end for one in self.opinions if not one.error and not one.max_abs <= self.allowed)

    @property
    def verdict(self) -> str:
        """Who is off, in words."""
        made = [one.front_end for one in self.opinions if not one.error]
        if not made:
            return "no front end made a file"
        if not self.off:
            return "all agree with torch"
        if len(self.off) == len(made) > 1 and all(apart <= self.allowed for *_, apart in self.apart):
            return "all agree with each other and none with torch: the export or the module is at fault"
        return f"off: {', '.join(self.off)}"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "off": list(self.off), "verdict": self.verdict}

    def table(self) -> str:
        """One line per front end; ! = off."""
        head = f"{'front end':<15} {'max abs':>9} {'bytes':>9} {'operators':>9} {'parts':>5}"
        lines = [f"{self.graph}: {self.n_feeds} feeds, {self.allowed:.2g} allowed", head, "-" * len(head)]
        for one in self.opinions:
            if one.error:
                lines.append(f"{one.front_end:<15} not possible: {one.error}")
                continue
            name = one.front_end + ("!" if one.front_end in self.off else "")
            lines.append(f"{name:<15} {one.max_abs:>9.2g} {one.n_bytes:>9} {one.operators:>9} {one.partitions:>5}")
        return "\n".join([*lines, self.verdict])


@dataclass(frozen=True)
class CrossChecks:
    """Every graph of a model."""

    checks: tuple[CrossCheck, ...]

    def agrees(self, front_end: str) -> bool:
        """Whether a front end made every graph and is with torch in all of them."""
        made = {one.graph: {o.front_end for o in one.opinions if not o.error} - set(one.off) for one in self.checks}
        return all(front_end in names for names in made.values())

    def to_json(self) -> dict[str, Any]:
        return {"graphs": [one.to_json() for one in self.checks]}

    def table(self) -> str:
        return "\n\n".join(one.table() for one in self.checks)


def cross_check_job(
    subject: Subject,
    directory: str | Path,
    front_ends: Sequence[str] = FRONT_ENDS,
    graphs: Sequence[str] = (),
    *,
    convert: Convert = export_and_convert,
    progress: Callable[[str], None] = lambda line: None,
) -> CrossChecks:
    """Cross-check a model's graphs on what its held-out samples feed them. graphs: keys; () = all.

    Raises InputError for a graph that it does not have.
    """
    unknown = sorted(set(graphs) - set(subject.graphs))
    if unknown:
        raise InputError("--graph names what is not there", got=unknown, allowed=sorted(subject.graphs))
    runs = {key: graph.run for key, graph in subject.graphs.items()}
    feeds: dict[str, list[Feeds]] = {}
    for sample in range(len(subject)):
        subject.run(sample, runs, feeds)
    found = []
    for key in graphs or subject.graphs:
        found.append(cross_check(subject.graphs[key], feeds.get(key, ()), directory, front_ends, convert=convert))
        progress(f"  {key:<12} {found[-1].verdict}")
    return CrossChecks(tuple(found))


def cross_check(
    graph: TorchGraph,
    feeds: Sequence[Feeds],
    directory: str | Path,
    front_ends: Sequence[str] = FRONT_ENDS,
    *,
    convert: Convert = export_and_convert,
) -> CrossCheck:
    """Convert a graph by each front end into DIRECTORY and compare what the files give for `feeds`.

    A front end that fails is an opinion with its error. Raises ConversionError when there are no feeds, InputError for
    a name that is no front end and for one that is not installed.
    """
    if not feeds:
        raise ConversionError("nothing to compare front ends on", where=graph.key, got="no feeds")
    want = [graph.run(one) for one in feeds]
    opinions, found = [], {}
    for name in front_ends:
        try:
            _, path = convert(graph, Path(directory), name)
            file = TfliteGraph(path)
            found[name] = [file.run(one) for one in feeds]
        except ConversionError as error:
            opinions.append(Opinion(name, error=str(error)))
            continue
        operators = len([op for op in file.operators if op != "DELEGATE"])
        opinions.append(Opinion(name, apart(want, found[name]), file.n_bytes, operators, file.partitions))
    largest = max(float(np.abs(value).max(initial=0.0)) for one in want for value in one.values())
    pairs = tuple((a, b, apart(found[a], found[b])) for a, b in combinations(found, 2))
    return CrossCheck(graph.key, tuple(opinions), pairs, ALLOWED * max(1.0, largest / LARGE), len(feeds))


def apart(one: Outputs, other: Outputs) -> float:
    """Largest difference of any output; NaN counts as infinitely far."""
    values = (float(np.abs(a[name] - b[name]).max(initial=0.0)) for a, b in zip(one, other, strict=True) for name in a)
    return max(float("inf") if np.isnan(value) else value for value in values)

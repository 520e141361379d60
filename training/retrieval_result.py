"""What an evaluation found: a table with the protocol above it, a dict, a file to compare with later.

result = evaluate(split, "val", Popularity())
print(result)
result.save("popularity.parquet")
print(compare(RetrievalResult.load("ours.parquet"), result))
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from contract.errors import InputError
from contract.stats import DRAWS, Interval
from training.retrieval_metrics import CLAIM_SHARE, TIES, Ranks, claims, differences, means

NO_CLAIM = f"* cut-off above {CLAIM_SHARE:.0%} of the catalogue: shown, carries no claim"


@dataclass(frozen=True, eq=False)
class RetrievalResult:
    """One scorer on the queries of one split.

    name, data, split   of the scorer, the data, the split ("val", "test", or "part" for queries given by hand)
    protocol            one line that says what a figure means
    n_items             size of the catalogue
    ranks               what became of each query
    metrics             name -> mean and 95 % interval, users drawn whole
    coverage            "coverage@k" -> share of the catalogue in at least one list's first k places; {} if not asked
    speed               seconds in all, queries per second, milliseconds of one and of many; {} if not asked
    about               whatever else belongs beside the figures: versions, seeds
    """

    name: str
    data: str
    split: str
    protocol: str
    n_items: int
    ranks: Ranks
    metrics: Mapping[str, Interval]
    coverage: Mapping[str, float]
    speed: Mapping[str, Any]
    about: Mapping[str, Any]

    @staticmethod
    def of(
        ranks: Ranks,
        *,
        n_items: int,
        seed: int = 0,
        draws: int = DRAWS,
        about: Mapping[str, Any] | None = None,
        **facts: Any,
    ) -> RetrievalResult:
        """Work out the metrics of ranks; `facts` are the other fields."""
        bootstrap = {"bootstrap_seed": seed, "bootstrap_draws": draws}
        found = means([ranks], n_items, seed=seed, draws=draws)
        return RetrievalResult(
            ranks=ranks, n_items=n_items, metrics=found, about={**(about or {}), **bootstrap}, **facts
        )

    @property
    def values(self) -> dict[str, float]:
        """Every figure without its interval."""
        return {**{name: one.mean for name, one in self.metrics.items()}, **self.coverage}

    def renamed(self, name: str) -> RetrievalResult:
        return replace(self, name=name)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: every figure with its interval and whether it carries a claim."""
        return {
            "name": self.name,
            "data": self.data,
            "split": self.split,
            "protocol": f"{self.protocol}; {TIES}",
            "items": self.n_items,
            "queries": len(self.ranks),
            "users": len(np.unique(self.ranks.user_id)),
            "metrics": {
                name: {**_finite(one), "claim": claims(name, self.n_items)} for name, one in self.metrics.items()
            },
            "coverage": dict(self.coverage),
            "speed": dict(self.speed),
            "about": dict(self.about),
        }

    def table(self) -> str:
        """The protocol, then one figure a line."""
        return results_table([self])

    __str__ = table

    def save(self, path: str | Path) -> Path:
        """Write ranks, protocol and facts to one Parquet file that `load` and `kir bench retrieval` read."""
        from training.retrieval_dump import write_result

        return write_result(path, self)

    @staticmethod
    def load(path: str | Path) -> RetrievalResult:
        """Read a saved result or a dump; the metrics are worked out anew from its ranks."""
        from training.retrieval_dump import read_result

        return read_result(path)


@dataclass(frozen=True, eq=False)
class Comparison:
    """ours − theirs, query by query: mean difference of each figure and its 95 % interval."""

    ours: str
    theirs: str
    data: str
    split: str
    n_items: int
    metrics: Mapping[str, Interval]

    def claims(self, name: str) -> bool:
        """Whether the figure may be claimed to differ: its interval excludes zero, its cut-off carries a claim."""
        return self.metrics[name].excludes_zero and claims(name, self.n_items)

    def to_dict(self) -> dict[str, Any]:
        rows = {
            name: {**_finite(one), "claim": claims(name, self.n_items), "excludes_zero": one.excludes_zero}
            for name, one in self.metrics.items()
        }
        return {"ours": self.ours, "theirs": self.theirs, "data": self.data, "split": self.split, "metrics": rows}

    def table(self) -> str:
        title = f"{self.ours} − {self.theirs}"
        rows = [
            (_label(name, self.n_items), difference_text(one) + "  excludes 0" * self.claims(name))
            for name, one in self.metrics.items()
        ]
        note = f"{self.data} {self.split}: paired differences, 95 % interval, users drawn whole"
        return "\n".join([note, *_aligned([("", title), *rows]), *_footnote(self.metrics, self.n_items)])

    __str__ = table


def compare(
    ours: RetrievalResult | Sequence[RetrievalResult],
    theirs: RetrievalResult | Sequence[RetrievalResult],
    *,
    seed: int = 0,
    draws: int = DRAWS,
) -> Comparison:
    """Paired bootstrap of ours − theirs on the same queries.

    A side may be several results (seeds of one model): they are averaged query by query, so the interval is that of the
    mean of these seeds over users, not over further seeds. Raises InputError when the queries differ.
    """
    sides = [[side] if isinstance(side, RetrievalResult) else list(side) for side in (ours, theirs)]
    if not all(sides):
        raise InputError("nothing to compare", got=[len(side) for side in sides])
    first, other = sides[0][0], sides[1][0]
    sizes = {(one.n_items, one.data, one.split) for side in sides for one in side}
    if len(sizes) > 1:
        raise InputError(
            "results of different data can't be compared",
            got=sorted(f"{data} {split}, {n} items" for n, data, split in sizes),
            fix="evaluate all of them on the same data and split",
        )
    found = differences(
        [one.ranks for one in sides[0]], [one.ranks for one in sides[1]], first.n_items, seed=seed, draws=draws
    )
    names = [side[0].name + f" (mean of {len(side)})" * (len(side) > 1) for side in sides]
    return Comparison(names[0], names[1], other.data, other.split, first.n_items, found)


def results_table(results: Sequence[RetrievalResult]) -> str:
    """The protocol, then one figure a line and one result a column. All must be of the same split."""
    first = results[0]
    n = first.n_items
    users = len(np.unique(first.ranks.user_id))
    head = [f"protocol: {first.protocol}; {TIES}", f"{first.data} {first.split}: {len(first.ranks)} queries"]
    head[1] += f" of {users} users, {n} items; 95 % intervals by bootstrap, users drawn whole"
    rows = [("", *(one.name for one in results))]
    for name in first.metrics:
        rows.append((_label(name, n), *(interval_text(one.metrics[name]) for one in results)))
    for name in dict.fromkeys(name for one in results for name in one.coverage):
        rows.append((name, *(_number(one.coverage.get(name)) for one in results)))
    for name, digits in SPEED_SHOWN.items():
        if any(name in one.speed for one in results):
            rows.append((name.replace("_", " "), *(_number(one.speed.get(name), digits) for one in results)))
    return "\n".join([*head, *_aligned(rows), *_footnote(first.metrics, n)])


SPEED_SHOWN = {"seconds": 1, "queries_per_second": 0, "one_p50_ms": 2, "one_p99_ms": 2, "batch_p50_ms": 2}


def interval_text(one: Interval) -> str:
    """.1234 [.1200, .1268]"""
    if math.isnan(one.low):
        return f"{one.mean:.4f}"
    return f"{one.mean:.4f} [{one.low:.4f}, {one.high:.4f}]"


def difference_text(one: Interval) -> str:
    return f"{one.mean:+.4f} [{one.low:+.4f}, {one.high:+.4f}]"


def _number(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _label(name: str, n_items: int) -> str:
    return name if claims(name, n_items) else f"{name} *"


def _footnote(names: Mapping[str, Any], n_items: int) -> list[str]:
    return [] if all(claims(name, n_items) for name in names) else [f"  {NO_CLAIM}"]


def _finite(one: Interval) -> dict[str, float]:
    return {key: value for key, value in one.to_json().items() if not math.isnan(value)}


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]

"""What `kir describe` prints and writes: facts, then tables of plain columns, and the same as one JSON object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from contract.spec import GROUPS, FeatureSpec

FLOAT_TARGET_BYTES, INT8_TARGET_BYTES = 6_000_000, 1_500_000  # of the default preset, all files one device loads


@dataclass(frozen=True)
class Section:
    """A table: rows as long as the header. A cell is text or a number; numbers stand at the right."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]

    def lines(self) -> list[str]:
        table = [[str(name) for name in self.header], *([cell_text(cell) for cell in row] for row in self.rows)]
        right = [bool(self.rows) and all(_is_number(row[i]) for row in self.rows) for i in range(len(self.header))]
        widths = [max(len(row[i]) for row in table) for i in range(len(self.header))]
        cells = [
            [text.rjust(w) if number else text.ljust(w) for text, w, number in zip(row, widths, right, strict=True)]
            for row in table
        ]
        return [self.title, *("  " + "  ".join(row).rstrip() for row in cells)]


@dataclass(frozen=True)
class Description:
    """facts: one a line. data: what the JSON holds besides."""

    title: str
    facts: Mapping[str, Any]
    sections: Sequence[Section] = ()
    data: Mapping[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        width = max((len(name) for name in self.facts), default=0)
        lines = [self.title, *(f"  {name:<{width}}  {cell_text(value)}" for name, value in self.facts.items())]
        for section in self.sections:
            lines += ["", *section.lines()]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        return {**self.facts, **self.data}


def cell_text(value: Any) -> str:
    """Thousands apart, shares as percentages; None is a dash."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.1%}"
    return str(value)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def fields_of(spec: FeatureSpec) -> list[dict[str, Any]]:
    """Every field in the order of the five groups: group, name, known, where its table lives, block, width."""
    return [
        {
            "group": one.group, "field": one.name, "known": one.known,
            "table": f"served: {one.table}" if one.table else "dense", "block": one.block, "width": one.width,
            "max_len": one.max_len,
        }
        for group in GROUPS for one in spec.fields if one.group == group
    ]  # fmt: skip


def spec_facts(spec: FeatureSpec) -> dict[str, Any]:
    served = sum(bool(one.table) for one in spec.fields)
    mode = f"{served} served" if served else "no served field: a page without rows is whole"
    return {"spec": spec.name, "fingerprint": spec.fingerprint, "fields": f"{len(spec.fields)}, {mode}"}


def spec_sections(spec: FeatureSpec) -> list[Section]:
    """The fields, and how wide the blocks are that they make."""
    rows = fields_of(spec)
    header = ("group", "field", "known", "table", "block", "width", "max_len")
    blocks = [(name, len(spec.columns(name)), spec.width(name)) for name in spec.blocks]
    return [
        Section("fields", header, [[row[name] for name in header] for row in rows]),
        Section("blocks", ("block", "fields", "width"), blocks),
    ]


def against(n_bytes: int, target_bytes: int) -> str:
    """How bytes stand to a target, in words."""
    return f"{'under' if n_bytes < target_bytes else 'OVER'} the target of {target_bytes / 1e6:g} MB"

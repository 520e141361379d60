"""FeatureSpec: which features exist, when each is known, where its table lives, and where its columns stand.

A spec is a list of fields, grouped into named blocks. A block is one tensor: its served fields are embedding rows laid
side by side (`*_rows`), its dense fields are numbers and one-hots laid side by side (`*_dense`). Training, server and
edge build every block through `contract.features`, so that a swipe sees what training saw.

Two parts that meet compare `fingerprint`: the hash of the canonical bytes, without doc text and without capacities.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from contract.errors import SpecError
from contract.typed import check_types

KNOWN = ("page", "watch", "swipe", "place")
GROUPS = ("user", "video", "feedback", "server", "device")
ENCODINGS = ("served", "dense")
FORMAT = "kir-spec/1"
FIELDS_MAX, WIDTH_MAX, ENTRIES_MAX = 512, 4096, 64


@dataclass(frozen=True)
class Field:
    """One feature.

    name      unique in the spec
    feature   the function that computes it (a name in `contract.features`)
    block     the tensor that holds its columns
    group     user | video | feedback | server | device
    known     page (fixed when the page arrives) | watch (frozen when the video was watched) | swipe | place
    encoding  served: rows of `table` come with the page; dense: numbers or one-hots computed on the spot
    width     columns in the block
    table     the served table, "" for dense fields
    max_len   entries of a multi-valued feature, mean-pooled after decode
    """

    name: str
    feature: str
    block: str
    group: str
    known: str
    encoding: str
    width: int
    table: str = ""
    max_len: int = 1
    doc: str = ""

    def __post_init__(self) -> None:
        for value, allowed, label in (
            (self.known, KNOWN, "known"),
            (self.group, GROUPS, "group"),
            (self.encoding, ENCODINGS, "encoding"),
        ):
            if value not in allowed:
                raise SpecError(f"field '{self.name}': unknown {label}", got=value, allowed=allowed)
        if not (1 <= self.width <= WIDTH_MAX and 1 <= self.max_len <= ENTRIES_MAX):
            raise SpecError(
                f"field '{self.name}': width or max_len out of range",
                got=(self.width, self.max_len),
                allowed=f"width 1 … {WIDTH_MAX}, max_len 1 … {ENTRIES_MAX}",
            )
        if (self.encoding == "served") != bool(self.table):
            raise SpecError(f"field '{self.name}': served fields name a table, dense ones don't", got=self.table)


@dataclass(frozen=True)
class Column:
    """Where a field stands in its block: columns [offset, offset + field.width)."""

    field: Field
    offset: int

    @property
    def slice(self) -> slice:
        return slice(self.offset, self.offset + self.field.width)


@dataclass(frozen=True)
class FeatureSpec:
    """An ordered set of fields. Immutable; `without` and `only` make smaller ones."""

    name: str
    fields: tuple[Field, ...]

    def __post_init__(self) -> None:
        if len(self.fields) > FIELDS_MAX:
            raise SpecError(f"spec '{self.name}': too many fields", got=len(self.fields), allowed=FIELDS_MAX)
        names = [field.name for field in self.fields]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise SpecError(f"spec '{self.name}': field names must be unique", got=twice)
        widths: dict[str, int] = {}
        for field in self.fields:
            if field.table and widths.setdefault(field.table, field.width) != field.width:
                raise SpecError(
                    f"spec '{self.name}': fields of table '{field.table}' must have one width",
                    got=field.width,
                    allowed=widths[field.table],
                )
        for block in self.blocks:
            if len({field.encoding for field in self.fields if field.block == block}) > 1:
                raise SpecError(f"spec '{self.name}': block '{block}' mixes served and dense fields")

    @cached_property
    def blocks(self) -> tuple[str, ...]:
        """Block names in order of first appearance; only those with columns."""
        return tuple(dict.fromkeys(field.block for field in self.fields))

    @cached_property
    def tables(self) -> dict[str, int]:
        """Served tables and their row width."""
        return {field.table: field.width for field in self.fields if field.table}

    @cached_property
    def _columns(self) -> dict[str, tuple[Column, ...]]:
        found: dict[str, list[Column]] = {}
        for field in self.fields:
            before = found.setdefault(field.block, [])
            offset = before[-1].offset + before[-1].field.width if before else 0
            before.append(Column(field, offset))
        return {block: tuple(columns) for block, columns in found.items()}

    def columns(self, block: str) -> tuple[Column, ...]:
        """The columns of a block, left to right; empty for a block this spec does not have."""
        return self._columns.get(block, ())

    def width(self, block: str) -> int:
        """Columns of a block; 0 when the spec has no field there."""
        columns = self.columns(block)
        return columns[-1].offset + columns[-1].field.width if columns else 0

    def without(self, names: Iterable[str]) -> FeatureSpec:
        """The spec minus some fields (signal-poor logs, pXTR-only mode). Unknown names are refused."""
        dropped = set(names)
        unknown = dropped - {field.name for field in self.fields}
        if unknown:
            raise SpecError(f"spec '{self.name}' has no such field", got=sorted(unknown))
        return replace(self, fields=tuple(f for f in self.fields if f.name not in dropped))

    def without_served(self) -> FeatureSpec:
        """The pXTR-only mode: no served field, so a page without rows is whole."""
        return replace(self, fields=tuple(f for f in self.fields if f.encoding != "served"))

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, "name": self.name, "fields": [asdict(field) for field in self.fields]}

    @staticmethod
    def from_json(data: Any, where: str = "spec") -> FeatureSpec:
        """Parse `to_json` output. Raises SpecError for anything else."""
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            got = data.get("format") if isinstance(data, dict) else type(data).__name__
            raise SpecError("not a feature spec of this format", where=where, got=got, allowed=FORMAT)
        try:
            fields = tuple(_field(field) for field in data["fields"])
            spec = FeatureSpec(name=data["name"], fields=fields)
            check_types(spec)
            return spec
        except (KeyError, TypeError) as error:
            raise SpecError("a field of the spec is incomplete or unknown", where=where, got=str(error)) from None

    @cached_property
    def canonical_bytes(self) -> bytes:
        """What the fingerprint covers: sorted keys, no spaces, no doc text."""
        fields = [{k: v for k, v in asdict(field).items() if k != "doc"} for field in self.fields]
        text = {"format": FORMAT, "name": self.name, "fields": fields}
        return json.dumps(text, sort_keys=True, separators=(",", ":")).encode()

    @cached_property
    def fingerprint(self) -> str:
        """First 16 hex digits of the SHA-256 of `canonical_bytes`."""
        return hashlib.sha256(self.canonical_bytes).hexdigest()[:16]


def _field(data: Any) -> Field:
    field = Field(**data)
    check_types(field)
    return field

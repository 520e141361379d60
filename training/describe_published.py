"""What a converted or published model holds: spec, graphs, and the bytes of every file; no torch, nothing is run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract.errors import InputError, ManifestError
from contract.manifest import MANIFEST_NAME, POINTER_NAME, Manifest, Pointer
from contract.spec import FeatureSpec
from training.description import (
    FLOAT_TARGET_BYTES,
    INT8_TARGET_BYTES,
    Description,
    Section,
    against,
    fields_of,
    spec_facts,
    spec_sections,
)

CONVERTED, CONVERTED_FORMAT, VERIFICATION = "model.json", "kir-converted/2", "verification.json"  # convert/model.py
FLOAT = "float32"


@dataclass(frozen=True)
class VariantFile:
    """One file: a graph in a bucket, in one precision."""

    graph: str
    bucket: str
    variant: str
    file: str
    n_bytes: int
    ships: bool

    @property
    def on_device(self) -> bool:
        """Whether a device loads this graph; the whole net is there to check the others by."""
        return self.graph != "whole"


def describe_published(path: Path) -> Description:
    """A version directory (manifest.json) or a CDN root (current.json: the version that it names).

    Raises ManifestError for a damaged pointer or manifest, one that is not there included.
    """
    where, more = path, {}
    if (path / POINTER_NAME).is_file():
        pointer = Pointer.from_bytes((path / POINTER_NAME).read_bytes(), str(path / POINTER_NAME))
        where = (path / pointer.manifest).parent
        if not (where / MANIFEST_NAME).is_file():
            raise ManifestError("the version that the pointer names is not there", where=path, got=pointer.manifest)
        more["versions"] = ", ".join(sorted(one.parent.name for one in path.glob(f"models/*/{MANIFEST_NAME}")))
    manifest = Manifest.from_bytes((where / MANIFEST_NAME).read_bytes(), str(where / MANIFEST_NAME))
    files = [
        VariantFile(one.name, one.bucket, v.name, v.file, manifest.files[v.file].n_bytes, v.name == one.ship)
        for one in manifest.graphs for v in one.variants
    ]  # fmt: skip
    return _described(
        path, "published model", manifest.dense_version, manifest.spec, files, created_at=manifest.created_at,
        capacities=manifest.capacities, fusion=manifest.fusion, provenance=manifest.provenance, more=more,
    )  # fmt: skip


def describe_converted(path: Path) -> Description:
    """What `kir convert model` wrote. Raises InputError for anything else or damaged files."""
    try:
        about = json.loads((path / CONVERTED).read_text())
        if about.get("format") != CONVERTED_FORMAT:
            raise InputError(
                "another format", where=path / CONVERTED, got=about.get("format"), allowed=CONVERTED_FORMAT
            )
        if about["kind"] != "kir":
            what = "a conversion of another kind than a reranker's, which its card describes"
            raise InputError(what, where=path / "card.md", got=about["kind"], fix=f"kir inspect {path}")
        shipped = json.loads((path / VERIFICATION).read_text())["shipped"]
        files = [
            VariantFile(graph["name"], graph["bucket"], variant, name, (path / name).stat().st_size,
                        shipped.get(f"{graph['name']}/{graph['bucket']}") == variant)
            for graph in about["graphs"] for variant, name in graph["variants"].items()
        ]  # fmt: skip
        spec = FeatureSpec.from_json(about["spec"], str(path / CONVERTED))
        return _described(
            path, "converted model", about["dense_version"], spec, files, created_at=about["created_at"],
            capacities=about["capacities"], fusion=about["fusion"], provenance=about["provenance"], more={},
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError("a converted model that is not whole", where=path, got=str(error)) from None


def _described(
    path: Path, kind: str, version: str, spec: FeatureSpec, files: list[VariantFile], *, created_at: str,
    capacities: Mapping[str, Any], fusion: Mapping[str, float], provenance: Mapping[str, Any], more: Mapping[str, Any],
) -> Description:  # fmt: skip
    device = [one for one in files if one.on_device]
    shipped = sum(one.n_bytes for one in device if one.ships)
    graphs = {(one.graph, one.bucket) for one in device}
    facts: dict[str, Any] = {
        "kind": kind,
        "version": version,
        "created_at": created_at,
        "preset": str(provenance.get("model", {}).get("preset", "not said")),
        "capacities": ", ".join(f"{name} {value}" for name, value in sorted(capacities.items())),
        "value": " + ".join(f"{weight:g}·σ({task})" for task, weight in fusion.items()),
        **spec_facts(spec),
        "shipped_bytes": f"{shipped:,}: {len(graphs)} files that one device loads, each graph and bucket but whole",
        **more,
    }
    totals = [_total(name, device, len(graphs)) for name in dict.fromkeys(one.variant for one in device)]
    header = ("graph", "bucket", "variant", "bytes", "ships", "file")
    rows = [(one.graph, one.bucket, one.variant, one.n_bytes, "*" * one.ships, one.file) for one in files]
    sections = [
        *spec_sections(spec),
        Section("files", header, rows),
        Section("all files one device loads, by variant", ("variant", "files", "bytes", "target"), totals),
    ]
    data = {
        "path": str(path),
        "spec_fields": fields_of(spec),
        "files": [{**one.__dict__, "on_device": one.on_device} for one in files],
        "device_bytes": {"shipped": shipped, **{str(row[0]): row[2] for row in totals}},
    }
    return Description(str(path), facts, sections, data)


def _total(variant: str, device: list[VariantFile], n_graphs: int) -> list[Any]:
    mine = [one.n_bytes for one in device if one.variant == variant]
    target = FLOAT_TARGET_BYTES if variant == FLOAT else INT8_TARGET_BYTES
    told = (
        against(sum(mine), target) if len(mine) == n_graphs else f"{n_graphs - len(mine)} graphs have no such variant"
    )
    return [variant, len(mine), sum(mine), told]

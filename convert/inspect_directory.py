"""A directory of .tflite files, one line each and the totals: what `kir convert model` wrote, a published version, a
CDN, or any other. Names of graphs and variants are those of model.json or manifest.json, where there is one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contract.errors import InputError
from contract.manifest import MANIFEST_NAME, Manifest
from convert.inspect_weights import shortened
from convert.inspection import Damaged, Inspection, counted, inspect_files, what_it_is

MODEL, REPORT = "model.json", "verification.json"  # convert/model.py, which needs torch


@dataclass(frozen=True)
class InspectedDirectory:
    """files: in the order of their labels. shipped: paths of the variants that a phone loads. classes: device classes
    of published versions, a line each."""

    path: str
    files: tuple[Inspection, ...]
    damaged: tuple[Damaged, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    shipped: frozenset[str] = frozenset()
    classes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "files": [
                {**one.to_json(), "label": self.labels.get(one.path, ""), "ships": one.path in self.shipped}
                for one in self.files
            ],
            "damaged": [{"path": one.path, "error": str(one.error)} for one in self.damaged],
            "device_classes": list(self.classes),
            "totals": self.totals(),
        }

    def totals(self) -> dict[str, int]:
        ships = [one for one in self.files if one.path in self.shipped]
        return {
            "files": len(self.files),
            "bytes": sum(one.n_bytes for one in self.files),
            "parameters": sum(one.parameters for one in self.files),
            "shipped_files": len(ships),
            "shipped_bytes": sum(one.n_bytes for one in ships),
        }

    def table(self) -> str:
        """One line per file, under its folder where there are several; * = ships."""
        head = (
            f"{'file':<34} {'bytes':>9} {'params':>9} {'ops':>4} {'parts':>5}  {'sha256':<12} {'left out':<20} contract"
        )
        lines = [self.path, head, "-" * len(head)]
        folders = [str(Path(one.path).parent) for one in self.files]
        for i, one in enumerate(self.files):
            if len(set(folders)) > 1 and (i == 0 or folders[i] != folders[i - 1]):
                lines.append(folders[i])
            label = self.labels.get(one.path) or Path(one.path).name
            mark = "*" if one.path in self.shipped else ""
            told = "-" if one.contract is None else what_it_is(one.contract)
            told += f" ! differs in {', '.join(one.contract_differs)}" if one.contract_differs else ""
            lines.append(
                f"{shortened(label, 33) + mark:<34} {one.n_bytes:>9,} {one.parameters:>9,} "
                f"{sum(one.operators.values()):>4} {one.partitions:>5}  {one.sha256[:12]} "
                f"{counted(one.left_out) or '-':<20} {told}"
            )
        lines += [f"! {one.error}" for one in self.damaged]
        totals = self.totals()
        line = f"{totals['files']} files, {totals['bytes']:,} bytes, {totals['parameters']:,} parameters"
        if self.shipped:
            line += f"; * ships: {totals['shipped_files']} files, {totals['shipped_bytes']:,} bytes"
        return "\n".join([*lines, line, *self.classes])


def inspect_paths(paths: Sequence[str | Path]) -> Inspection | InspectedDirectory:
    """A single file, or a listing of directories and files. Raises the error of the only file, if it has one."""
    if len(paths) > 1 or Path(paths[0]).is_dir():
        return inspect_many(paths)
    (one,) = inspect_files(paths)
    if isinstance(one, Damaged):
        raise one.error
    return one


def inspect_many(paths: Sequence[str | Path]) -> InspectedDirectory:
    """Every file named, and every .tflite below a directory named.

    Raises InputError for a directory without any, or with a model.json that is damaged; ManifestError likewise.
    """
    files: list[str] = []
    named = _Named()
    for path in map(Path, paths):
        files += named.below(path) if path.is_dir() else [str(path)]
    found = inspect_files(files)
    return InspectedDirectory(
        path=", ".join(map(str, paths)),
        files=tuple(one for one in found if isinstance(one, Inspection)),
        damaged=tuple(one for one in found if isinstance(one, Damaged)),
        labels=named.labels,
        shipped=frozenset(named.shipped),
        classes=tuple(named.classes),
    )


class _Named:
    """Labels of files, and which of them ship, from what stands beside them."""

    def __init__(self) -> None:
        self.labels: dict[str, str] = {}
        self.shipped: set[str] = set()
        self.classes: list[str] = []

    def below(self, root: Path) -> list[str]:
        """Files below root, folder by folder, those with a label first and by it."""
        paths = [str(path) for path in root.rglob("*.tflite")]
        if not paths:
            raise InputError("no .tflite file in this directory", where=root, fix="name a converted or published model")
        for file in sorted(root.rglob(MODEL)):
            self._converted(file)
        for file in sorted(root.rglob(MANIFEST_NAME)):
            self._published(file)
        return sorted(
            paths, key=lambda path: (str(Path(path).parent), path not in self.labels, self.labels.get(path, ""), path)
        )

    def _add(self, path: Path, graph: str, variant: str, ship: str) -> None:
        """One file may serve several graphs or variants: equal bytes have one name in a published version."""
        label = f"{graph} {variant}"
        self.labels[str(path)] = ", ".join(filter(None, (self.labels.get(str(path)), label)))
        if variant == ship and not graph.startswith("whole"):
            self.shipped.add(str(path))

    def _published(self, file: Path) -> None:
        manifest = Manifest.from_bytes(file.read_bytes(), str(file))
        for graph in manifest.graphs:
            for variant in graph.variants:
                self._add(file.parent / variant.file, f"{graph.name}/{graph.bucket}", variant.name, graph.ship)
        for one in manifest.device_classes:
            variants = ", ".join(f"{graph} {variant}" for graph, variant in sorted(one.variants.items()))
            line = f"{manifest.dense_version}: device class {one.name} ({one.needs}): {variants or 'as shipped'}"
            self.classes.append(line)

    def _converted(self, file: Path) -> None:
        try:
            about = json.loads(file.read_bytes())
            report = file.with_name(REPORT)
            ships = json.loads(report.read_bytes())["shipped"] if report.is_file() else {}
            for entry in about["graphs"]:
                key = f"{entry['name']}/{entry['bucket']}"
                for variant, path in entry["variants"].items():
                    self._add(file.parent / path, key, variant, ships.get(key, ""))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError("conversion is unreadable", where=file, got=str(error)) from None

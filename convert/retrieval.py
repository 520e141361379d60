"""A KuaiFormer checkpoint alone, ready to answer: what `kir retrieve` and a retrieval service load. No torch in it.

    from convert.retrieval import write_retrieval
    write_retrieval("retrieval", checkpoint="runs/kuaiformer", catalogue="runs/data/catalogue.parquet")

The files of BUNDLE/retrieval (docs/architecture.md) and the catalogue; config.json names the version.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract.catalogue import read_catalogue
from convert.build import Progress
from convert.bundle import write_json
from convert.files import copy_in, written_aside
from convert.server_models import RetrievalChoices, export_retrieval
from training.checkpoint import load_checkpoint


@dataclass(frozen=True)
class RetrievalExport:
    """What was written; config: config.json, with the int8 verdict and the index's measurements."""

    directory: Path
    items: int
    config: dict[str, Any]

    def table(self) -> str:
        index = self.config["index"]
        lines = [
            f"retrieval {self.config['version']}",
            f"encoder   {self.config['encoder']['kind']}, the last {self.config['history']} positives",
            f"index     {index['kind']} {index['setting']}".rstrip() + f", {self.items} items",
        ]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        return {"directory": str(self.directory), "items": self.items, **self.config}


def write_retrieval(
    out: str | Path,
    *,
    checkpoint: str | Path,
    catalogue: str | Path,
    choices: RetrievalChoices | None = None,
    overwrite: bool = False,
    progress: Progress = lambda line: None,
) -> RetrievalExport:
    """Write the directory aside, then rename it. Raises what `convert.bundle.write_bundle` raises."""
    out = Path(out)
    with written_aside(out, overwrite) as aside:
        loaded = load_checkpoint(checkpoint, kind="kuaiformer")
        items = read_catalogue(copy_in(catalogue, aside / "catalogue.parquet"))
        for line in export_retrieval(loaded, items, aside, choices):
            progress(line)
        config = {"version": loaded.version, **json.loads((aside / "config.json").read_text())}
        write_json(aside / "config.json", config)
    return RetrievalExport(out, len(items), config)

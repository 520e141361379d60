"""A KuaiFormer checkpoint alone, ready to answer: what `kir retrieve` and a retrieval service load. No torch in it.

    from convert.retrieval import write_retrieval
    write_retrieval("retrieval", checkpoint="runs/kuaiformer", catalogue="runs/data/catalogue.parquet")
    write_retrieval("retrieval", checkpoint="runs/ml-1m", choices=RetrievalChoices(data="ml-1m:PATH"))

The files of BUNDLE/retrieval (docs/architecture.md) and the catalogue; config.json names the version.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract.catalogue import Catalogue, read_catalogue, write_catalogue
from contract.errors import InputError
from convert.build import Progress
from convert.bundle import CATALOGUE, write_json
from convert.files import read_and_copy, written_aside
from convert.server_models import RetrievalChoices, export_retrieval
from training.checkpoint import load_checkpoint
from training.readers import LogData, open_data
from training.retrieval_split import split_of


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


def catalogue_of(data: str) -> Catalogue:
    """The videos of data named as `kir train --data` names them: the same ids and content that training saw.

    Raises InputError, EventError as `training.readers.open_data` does.
    """
    opened = open_data(data)
    return opened.items if isinstance(opened, LogData) else split_of(opened, data.partition(":")[0]).items


def write_retrieval(
    out: str | Path,
    *,
    checkpoint: str | Path,
    catalogue: str | Path | None = None,
    choices: RetrievalChoices | None = None,
    overwrite: bool = False,
    progress: Progress = lambda line: None,
) -> RetrievalExport:
    """Write the directory aside, then rename it. Raises what `convert.bundle.write_bundle` raises.

    catalogue  a Parquet file; None = the videos of `choices.data`, which is how data without such a file (ml-1m,
               amazon-beauty, kuairand) are exported. InputError when neither is given.
    """
    out = Path(out)
    if catalogue is None and not (choices and choices.data):
        raise InputError("nothing says which videos there are", fix="pass --catalogue FILE or --data KIND:PATH")
    with written_aside(out, overwrite) as aside:
        loaded = load_checkpoint(checkpoint, kind="kuaiformer")
        if catalogue is not None:
            items = read_and_copy(catalogue, aside / CATALOGUE, read_catalogue)
        else:
            assert choices is not None, "checked above"
            items = catalogue_of(choices.data)
            write_catalogue(aside / CATALOGUE, items)
        for line in export_retrieval(loaded, items, aside, choices):
            progress(line)
        config = {"version": loaded.version, **json.loads((aside / "config.json").read_text())}
        write_json(aside / "config.json", config)
    return RetrievalExport(out, len(items), config)

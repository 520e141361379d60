"""What can be converted, and what each kind knows of itself: KIR, the server ranker, the KuaiFormer encoder, any
module.

A job opens held-out data, makes a subject of them for verification (and another, of earlier data, for calibration), and
says what stands in model.json and on the card. How graphs are built, verified and written is the same for all
(`convert.model`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from contract.errors import CheckpointError, InputError
from contract.events import Events
from contract.parquet import read_events
from convert.build import BuiltGraph
from convert.files import sha256_of
from convert.onnx_export import TorchGraph
from convert.report import Verification
from convert.subject import Subject


class Job(Protocol):
    """One model on its way to TFLite. kind: "kir" | "ranker" | "kuaiformer" | "module"."""

    @property
    def kind(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def graphs(self) -> Mapping[str, TorchGraph]: ...

    def open(self, data: Any, seed: int) -> tuple[Any, str]:
        """Held-out data, and in words what they are. None: stand-ins, which the words say."""
        ...

    def subject(self, opened: Any, n: int, seed: int) -> Subject:
        """About n held-out samples."""
        ...

    def calibration(self, opened: Any, n: int, seed: int) -> Subject:
        """n samples that verification does not use."""
        ...

    def goldens(
        self, built: Mapping[str, BuiltGraph], report: Verification, opened: Any, out: Path, seed: int
    ) -> dict[str, Any]:
        """Write golden cases below OUT/golden. Returns what model.json says of them."""
        ...

    def about(self) -> dict[str, Any]:
        """What model.json says of this kind beside graphs and versions."""
        ...

    def card(self, report: Verification) -> str:
        """Markdown."""
        ...


def open_job(checkpoint: str | Path) -> Job:
    """The job of a checkpoint directory. Raises CheckpointError for a directory that is none."""
    from training.checkpoint import CONFIG

    where = Path(checkpoint)
    if not where.is_dir():
        raise CheckpointError("no such checkpoint directory", where=where)
    try:
        kind = json.loads((where / CONFIG).read_text())["kind"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError("not a checkpoint directory", where=where, got=str(error)) from None
    if kind == "kir":
        from convert.kir_job import KirJob

        return KirJob.load(where)
    if kind == "ranker":
        from convert.ranker_job import RankerJob

        return RankerJob.load(where)
    if kind == "kuaiformer":
        from convert.encoder_job import EncoderJob

        return EncoderJob.load(where)
    allowed = ("kir", "ranker", "kuaiformer")
    raise CheckpointError("checkpoints of this kind are not converted", where=where, got=kind, allowed=allowed)


def open_events(data: str | Path | Events) -> tuple[Events, str]:
    """A log: Events, a Parquet file or directory, or KIND:PATH as `kir train --data` takes it. And what it is, with the
    hash of a file's content. Raises InputError for data without events."""
    if isinstance(data, Events):
        return data, f"events: {len(data)} impressions"
    if ":" in str(data) and not Path(data).exists():
        from training.readers import LogData, open_data

        opened = open_data(str(data))
        if not isinstance(opened, LogData):
            raise InputError("these data have no events", where=f"--data {data}")
        name = str(data).partition(":")[0]
        return opened.events, f"{name}: {len(opened.events)} impressions"
    path = Path(data)
    if (path / "events.parquet").is_file():  # what `kir simulate` and `kir annotate` write, with other tables beside it
        path = path / "events.parquet"
    log = read_events(path)
    if not len(log):
        raise InputError("the log is empty", where=path)
    content = f", sha256 {sha256_of(path)[:12]}" if path.is_file() else ""
    return log, f"{path.name}: {len(log)} impressions{content}"

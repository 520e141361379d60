"""The training log: one JSON line per logged step and per validation.

{"step": 200, "epoch": 0, "loss": 5.1, "rate": 0.8, "targets_per_s": 21000.0, "seconds": 31.2, ...}
{"step": 500, "epoch": 0, "validation": {"recall_10": 0.21}, "seconds": 80.4}

{"stage": 2, "of": 2, "step": 0, "seconds": 0.0}        before the steps of each stage, where a training has several

`rate` is the factor of the peak learning rates; `seconds` is training time over all pieces of a run.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

LOG_NAME = "train_log.jsonl"


class TrainLog:
    """Appends lines to `path`; None writes nothing. Counts targets for their rate between two lines."""

    def __init__(self, path: str | Path | None):
        self.path = Path(path) if path else None
        self._targets = 0.0
        self._since_s = 0.0

    def count(self, targets: float) -> None:
        self._targets += targets

    def step(self, line: dict[str, Any], seconds: float) -> None:
        """A line of training; with the targets per second since the line before, where batches said theirs."""
        if self._targets and seconds > self._since_s:
            line = {**line, "targets_per_s": round(self._targets / (seconds - self._since_s), 1)}
        self.write(line, seconds)

    def write(self, line: dict[str, Any], seconds: float) -> None:
        """Any line; the time of what it tells (a validation) does not count as training time of the next."""
        self._targets, self._since_s = 0.0, seconds
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps({**line, "seconds": round(seconds, 3)}, default=float) + "\n")

    def go_on_from(self, step: int, seconds: float) -> None:
        """Drop the lines after `step`, which a resumed run writes again, and a line that a kill cut in two."""
        self._targets, self._since_s = 0.0, seconds
        if self.path is None or not self.path.exists():
            return
        kept = []
        for line in self.path.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError):
                continue
        aside = self.path.with_name(self.path.name + ".part")
        aside.write_text("".join(kept))
        os.replace(aside, self.path)


def log_beside(out_dir: Path, *, keep: bool = False) -> Path:
    """Where to log while `out_dir`, which is written whole at the end, is not there yet.

    keep  False: it starts empty; True: a resumed run goes on in it
    """
    path = out_dir.with_name(f".{out_dir.name}.{LOG_NAME}")
    if not keep:
        path.unlink(missing_ok=True)
    return path


def keep_log(out_dir: Path) -> None:
    """Move that log to out_dir/train_log.jsonl."""
    path = out_dir.with_name(f".{out_dir.name}.{LOG_NAME}")
    if path.exists():
        os.replace(path, out_dir / LOG_NAME)

"""What `kir describe PATH` tells of a directory: a checkpoint of any kind, or a converted or published model.

kir describe runs/kir
kir describe runs/cdn --json model.json
"""

from __future__ import annotations

from pathlib import Path

from contract.errors import InputError
from contract.manifest import MANIFEST_NAME, POINTER_NAME
from training.describe_published import CONVERTED, describe_converted, describe_published
from training.description import Description

CHECKPOINT = "config.json"  # training/checkpoint.py, which needs torch


def describe(path: Path) -> Description:
    """Raises InputError for a path that is none of these, CheckpointError or ManifestError for a damaged one."""
    path = Path(path)
    if not path.is_dir():
        raise InputError("no such directory", where=path, fix="name a checkpoint, a converted or a published model")
    if (path / POINTER_NAME).is_file() or (path / MANIFEST_NAME).is_file():
        return describe_published(path)
    if (path / CONVERTED).is_file():
        return describe_converted(path)
    if (path / CHECKPOINT).is_file():
        from training.describe_checkpoint import describe_checkpoint

        return describe_checkpoint(path)
    raise InputError(
        "neither a checkpoint nor a converted or published model", where=path,
        got=sorted(one.name for one in path.iterdir())[:9] or "an empty directory",
        allowed=f"a directory with {CHECKPOINT}, {CONVERTED}, {MANIFEST_NAME} or {POINTER_NAME}",
    )  # fmt: skip

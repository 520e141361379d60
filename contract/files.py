"""Files that a reader never sees half of: written aside, flushed to disk, renamed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from contract.errors import InputError

# What the top of every directory that this project writes holds: a checkpoint, a conversion, a bundle, a diagnosis. The
# names are common ones: "format" in the file says whose it is.
OURS = ("config.json", "model.json", "bundle.json", "shards.json", "debug.json", "bisect.json")
FORMATS = "kir-"


@contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write that becomes `path` when the block ends well; an interruption leaves what was there.

    Directories on the way are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(aside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    flush(path.parent)


def flush(path: str | Path) -> None:
    """fsync a file or a directory."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_vacant(
    directory: str | Path, overwrite: bool, what: str = "output directory", error: type[InputError] = InputError
) -> None:
    """Whether a directory may be written, or replaced if `overwrite` says so: never a file, nor what others wrote.

    Raises `error`.
    """
    path = Path(directory)
    if not path.exists():
        return
    if not path.is_dir():
        raise error(f"{what}: a file is in the way", where=path, fix="choose another --out")
    if not overwrite:
        raise error(f"{what} exists", where=path, fix="choose another --out or pass --overwrite")
    if any(path.iterdir()) and not any(_is_ours(path / name) for name in OURS):
        raise error(
            f"{what} was not written by this project, so --overwrite leaves it alone",
            where=path,
            got=sorted(entry.name for entry in path.iterdir())[:5],
            fix="choose another --out, or delete it yourself",
        )


def _is_ours(path: Path) -> bool:
    try:
        told = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(told, dict) and str(told.get("format", "")).startswith(FORMATS)

"""Files written so that a reader never sees half of one: aside, flushed to disk, renamed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def sha256_of(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_durably(path: str | Path, content: bytes) -> Path:
    """Write aside, fsync, rename, fsync the directory. An interruption leaves the old file or the new one."""
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(aside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    flush(path.parent)
    return path


def flush(path: str | Path) -> None:
    """fsync a file or a directory."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flush_tree(root: str | Path) -> None:
    """fsync every file below root, then every directory."""
    root = Path(root)
    for path in sorted(root.rglob("*"), reverse=True):
        flush(path)
    flush(root)

"""Files written so that a reader never sees half of one: aside, flushed to disk, renamed."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from contract.errors import InputError
from contract.files import check_vacant, flush, replacing
from training.checkpoint import swap_directory

T = TypeVar("T")


def sha256_of(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_durably(path: str | Path, content: bytes) -> Path:
    """Write aside, fsync, rename, fsync the directory. An interruption leaves the old file or the new one."""
    with replacing(path) as file:
        file.write(content)
    return Path(path)


def flush_tree(root: str | Path) -> None:
    """fsync every file below root, then every directory."""
    root = Path(root)
    for path in sorted(root.rglob("*"), reverse=True):
        flush(path)
    flush(root)


@contextmanager
def written_aside(out: Path, overwrite: bool) -> Iterator[Path]:
    """A directory to fill; it becomes `out` when the block ends well, and vanishes when it does not.

    Raises InputError when `out` exists and may not be overwritten (`check_vacant`).
    """
    check_vacant(out, overwrite, "directory")
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(f".{out.name}.{os.getpid()}.part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
        flush_tree(aside)
        swap_directory(aside, out)  # the old one goes last: an interruption must not cost both
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def write_golden(out: Path, key: str, raw: bytes) -> Path:
    """OUT/golden/<graph>.npz; key as "swipe/N24"."""
    path = out / "golden" / f"{key.replace('/', '-')}.npz"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(raw)
    return path


def copy_in(source: str | Path, target: Path) -> Path:
    """Copy a file. Raises InputError when there is none."""
    if not Path(source).is_file():
        raise InputError("file does not exist", where=source)
    shutil.copyfile(source, target)
    return target


def read_and_copy(source: str | Path, target: Path, read: Callable[[Path], T]) -> T:
    """What `read` finds in a file, and the file copied to `target`.

    It is read where it lies, so that what `read` raises names the file that was given. Raises InputError as `copy_in`.
    """
    found = read(Path(source))
    copy_in(source, target)
    return found

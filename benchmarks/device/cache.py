"""What is built once and kept: $KIR_CACHE, else kir-edge in $XDG_CACHE_HOME or ~/.cache.

$KIR_CACHE may be another user's, as a CI's: what is built there is read, and nothing is written.

A folder's name holds the hash of what makes it, so that another recipe builds anew. Two builders of the same thing
wait for each other; a folder gets its name when it is whole.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from contract.errors import InputError
from contract.files import flush


def user_cache() -> Path:
    """This user's own cache folder, whatever $KIR_CACHE says."""
    told = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(told) if os.path.isabs(told) else Path.home() / ".cache") / "kir-edge"


def cache_root() -> Path:
    """The cache folder; made when it is not there. Raises InputError when it can't be."""
    root = Path(os.environ.get("KIR_CACHE") or user_cache())
    make_folder(root)
    return root


def make_folder(folder: Path) -> None:
    """Make it and what leads to it. Raises InputError when that is not allowed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fix = "name another: KIR_CACHE=/path/to/folder"
        raise InputError("the cache can't be made", where=folder, got=error.strerror, fix=fix) from None


def writable(folder: Path) -> bool:
    """Whether this user may make files in it."""
    return os.access(folder, os.W_OK | os.X_OK)


def digest_of(recipe: Any) -> str:
    """12 hex digits of a recipe's JSON form."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]


@contextmanager
def locked(name: str) -> Iterator[None]:
    """One holder of `name` at a time, over processes; the lock goes with the process that holds it."""
    with open(cache_root() / f"{name}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def held(name: str) -> Iterator[bool]:
    """As `locked`, without waiting: whether it is ours."""
    with open(user_cache_file(f"{name}.lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def user_cache_file(name: str) -> Path:
    """A file in this user's own cache folder, which is made when it is not there."""
    make_folder(user_cache())
    return user_cache() / name


def place_of(name: str, recipe: Any) -> Path:
    """Where a recipe's folder stands, built or not."""
    return cache_root() / f"{name}-{digest_of(recipe)}"


def built(name: str, recipe: Any, make: Callable[[Path], None], log: Callable[[str], None]) -> Path:
    """The folder that `make` fills, from the cache or made now: aside, flushed, renamed. log: gets a line then."""
    place = place_of(name, recipe)
    if place.is_dir():
        return place
    if not writable(place.parent):
        fix = "let its owner run `kir device build`, or name a folder of your own with KIR_CACHE"
        raise InputError(f"{name} is not built, and this cache can't be written", where=place.parent, fix=fix)
    with locked(place.name):
        if place.is_dir():  # the holder before made it
            return place
        log(f"building {name} …")
        aside = place.with_name(f".{place.name}.part")
        remove_tree(aside)
        aside.mkdir()
        try:
            make(aside)
            for path in aside.rglob("*"):
                if path.is_file():
                    flush(path)
            os.replace(aside, place)
            flush(place.parent)
        finally:
            remove_tree(aside)
    return place


def remove_tree(folder: Path) -> None:
    """Delete a folder if it is there."""
    if folder.exists():
        shutil.rmtree(folder)

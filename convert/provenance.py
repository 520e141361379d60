"""What made a file: the source code, and the commit where there is one."""

from __future__ import annotations

import functools
import hashlib
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("contract", "convert", "training")  # whose code decides what a conversion makes


@functools.cache
def code_sha256() -> str:
    """Over the sources of this project that have a hand in a converted file."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            digest.update(f"{path.relative_to(ROOT).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def commit() -> str:
    """Short hash of the checkout this runs from, "-dirty" behind it when files differ; "" for an installed package."""
    if not (ROOT / ".git").exists():
        return ""
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
    except OSError:
        return ""
    return run.stdout.strip()

"""The emulated device's disk: /data with the portable runtime on it; to push that through qemu takes a minute."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.device.cache import built
from benchmarks.device.debian import run_tool
from benchmarks.device.machine_image import SHELL_UID
from benchmarks.device.runtime_build import runtime_archive

SIZE_MIB = 400
RECIPE_VERSION = 1


def data_image(log: Callable[[str], None]) -> Path:
    """Folder with `data.ext4`, built now or before; only ever opened with snapshot=on."""
    archive = runtime_archive(log)
    digest = json.loads((archive / "runtime.json").read_text())["id"]
    recipe = {"version": RECIPE_VERSION, "size": SIZE_MIB, "runtime": digest}
    return built("data", recipe, lambda folder: _make(folder, archive / "runtime.tar.gz", digest), log)


def _make(folder: Path, archive: Path, digest: str) -> None:
    tree = folder / "tree"
    home = tree / "local" / "tmp" / "kir" / f"runtime-{digest}"
    home.mkdir(parents=True)
    with tarfile.open(archive) as packed:
        packed.extractall(home, filter="fully_trusted")  # made by this program
    for path in [tree / "local" / "tmp", *(tree / "local" / "tmp").rglob("*")]:
        os.chown(path, SHELL_UID, SHELL_UID, follow_symlinks=False)
    disk = ["-t", "ext4", "-E", "lazy_itable_init=0", "-d", str(tree), str(folder / "data.ext4"), f"{SIZE_MIB}M"]
    run_tool(["mke2fs", "-q", *disk])
    shutil.rmtree(tree)

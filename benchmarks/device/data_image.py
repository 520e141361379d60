"""The emulated device's disk: /data with the portable runtime on it; to push that through qemu takes a minute."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from benchmarks.device.cache import built
from benchmarks.device.debian import run_tool
from benchmarks.device.machine_image import SHELL_UID

SIZE_MIB = 400
RECIPE_VERSION = 1


def data_image(log: Callable[[str], None]) -> Path:
    """Folder with `data.ext4`, built now or before; only ever opened with snapshot=on."""
    recipe = {"version": RECIPE_VERSION, "size": SIZE_MIB}
    return built("data", recipe, _make, log)


def _make(folder: Path) -> None:
    tree = folder / "tree"
    home = tree / "local" / "tmp" / "kir"
    home.mkdir(parents=True)
    for path in [home.parent, *home.parent.rglob("*")]:
        os.chown(path, SHELL_UID, SHELL_UID, follow_symlinks=False)
    run_tool(
        [
            "mke2fs",
            "-q",
            "-t",
            "ext4",
            "-E",
            "lazy_itable_init=0",
            "-d",
            str(tree),
            str(folder / "data.ext4"),
            f"{SIZE_MIB}M",
        ]
    )
    shutil.rmtree(tree)

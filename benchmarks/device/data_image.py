"""The emulated device's disk: /data with the portable runtime on it; to push that through qemu takes a minute."""

from __future__ import annotations

import json
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.device.cache import built
from benchmarks.device.debian import run_tool
from benchmarks.device.machine_image import SHELL_UID
from benchmarks.device.runtime_build import runtime_archive
from contract.errors import KirError

SIZE_MIB = 400
RECIPE_VERSION = 2


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
    image = folder / "data.ext4"
    options = "lazy_itable_init=0,root_owner=0:0"
    run_tool(["mke2fs", "-q", "-t", "ext4", "-E", options, "-d", str(tree), str(image), f"{SIZE_MIB}M"])
    _own(image, tree)
    shutil.rmtree(tree)


def _own(image: Path, tree: Path) -> None:
    """Give the files in an image their owners: the shell user's in /local/tmp, root's above.

    Written into the image, since only root may give files of this computer to another.
    """
    shells = tree / "local" / "tmp"
    owners = {tree / "local": 0, **dict.fromkeys([shells, *shells.rglob("*")], SHELL_UID)}
    lines = [
        f'set_inode_field "/{path.relative_to(tree).as_posix()}" {field} {owner}\n'
        for path, owner in owners.items()
        for field in ("uid", "gid")
    ]
    script = image.with_suffix(".owners")
    script.write_text("".join(lines))
    run_tool(["debugfs", "-w", "-f", str(script), str(image)])
    script.unlink()
    # debugfs ends with 0 whatever a command did, so one file is asked.
    last = next(reversed(owners))
    told = run_tool(["debugfs", "-R", f'stat "/{last.relative_to(tree).as_posix()}"', str(image)])
    if not re.search(rf"User:\s+{SHELL_UID}\s+Group:\s+{SHELL_UID}\b", told):
        raise KirError("the disk's files could not be given to the shell user", where=image, got=told[:300])

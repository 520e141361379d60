"""Unpacked Debian arm64 trees, of which no foreign code is ever run: what the emulated device and the runtime are made
of.

`mmdebstrap --variant=extract` downloads, verifies signatures and unpacks; no second stage, binfmt or chroot, and so no
root and no user namespace either.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from contract.errors import InputError, KirError

# Command -> Debian package. modprobe and mke2fs stand in /usr/sbin, which is not in everyone's PATH.
TOOLS: Mapping[str, str] = {
    "qemu-system-aarch64": "qemu-system-arm",
    "mmdebstrap": "mmdebstrap",
    "cpio": "cpio",
    "depmod": "kmod",
    "modprobe": "kmod",
    "mke2fs": "e2fsprogs",
    "debugfs": "e2fsprogs",
    "xz": "xz-utils",
}
# What Debian's packages are signed with; Ubuntu does not have it by itself.
KEYRING, KEYRING_PACKAGE = Path("/usr/share/keyrings/debian-archive-keyring.gpg"), "debian-archive-keyring"
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def tool(command: str) -> str:
    """Path of one of TOOLS. Raises InputError with the line to type when it is absent."""
    found = shutil.which(command, path=PATH)
    if found is None:
        raise InputError(f"the emulated device needs the command '{command}'", fix=_install_line())
    return found


def _install_line() -> str:
    packages = {TOOLS[name] for name in TOOLS if shutil.which(name, path=PATH) is None}
    if not KEYRING.is_file():
        packages.add(KEYRING_PACKAGE)
    return f"install it with: apt-get install --no-install-recommends {' '.join(sorted(packages))}"


def run_tool(argv: Sequence[str], **options: object) -> str:
    """Run one of TOOLS and return its standard output. Raises KirError with the end of what it said."""
    command = [tool(argv[0]), *argv[1:]]
    environment = {**os.environ, "PATH": PATH}
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment, **options)  # type: ignore[call-overload]
    if done.returncode:
        raise KirError(f"{argv[0]} failed", got=done.stderr[-600:], where=argv[-1])
    return str(done.stdout)


def extract_tree(suite: str, packages: Sequence[str], folder: Path) -> None:
    """Unpack arm64 packages of a Debian suite with all they depend on into `folder`, which must not be there yet.

    /bin, /sbin and /lib are made links into /usr as on a merged system. Files belong to whoever runs this, root or not:
    what is packed or made into a disk is given its owners there. Raises InputError without mmdebstrap or Debian's keys.
    """
    tool("mmdebstrap")
    if not KEYRING.is_file():
        raise InputError("Debian's packages can't be verified", where=KEYRING, got="not there", fix=_install_line())
    # Nothing is run in the tree, so that "chrootless" is as good as "root", which it is refused to.
    mode = "root" if os.geteuid() == 0 else "chrootless"
    options = [f"--mode={mode}", "--variant=extract", "--architectures=arm64", f"--include={','.join(packages)}"]
    run_tool(["mmdebstrap", *options, suite, str(folder)])
    for name in ("bin", "sbin", "lib"):
        if not (folder / name).exists():
            (folder / name).symlink_to(f"usr/{name}")

"""This machine as a device: the same calls, so that one measurement runs on a desk, in CI and on a phone."""

from __future__ import annotations

import filecmp
import os
import platform
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.device.device import DeviceCrashed, DeviceError, DeviceFull, DeviceTimeout, Ran
from benchmarks.stats import machine
from contract.files import replacing

NOT_FOUND = 127  # what a shell says of a program that is not there


class HostDevice:
    """`Device` on this machine, in a folder of its own that goes with `close`."""

    serial = "host"
    kind = "host"

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="kir-host-")
        self.root = self._folder.name

    def close(self) -> None:
        self._folder.cleanup()

    def push(self, local: Path, remote: str) -> int:
        """Copy, equal files left out; bytes written. Raises DeviceFull."""
        sent = 0
        for source in sorted(local.rglob("*")) if local.is_dir() else [local]:
            target = Path(remote) / source.relative_to(local) if local.is_dir() else Path(remote)
            if source.is_dir() or (target.is_file() and filecmp.cmp(source, target, shallow=False)):
                continue
            sent += _copy(source, target)
        return sent

    def pull(self, remote: str, local: Path) -> None:
        """Raises DeviceError when nothing is there."""
        if not Path(remote).exists():
            raise DeviceError("nothing to pull", where=f"host: {remote}")
        if Path(remote).is_dir():
            shutil.copytree(remote, local, dirs_exist_ok=True)
        else:
            _copy(Path(remote), local)

    def run(self, argv: Sequence[str], *, timeout_s: float, env: Mapping[str, str] | None = None) -> Ran:
        """Raises DeviceTimeout and DeviceCrashed; a program that is not there ends with 127, as in a shell."""
        start = time.monotonic()
        try:
            done = subprocess.run(
                list(argv), capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL,
                timeout=timeout_s, env={**os.environ, **(env or {})}, cwd=self.root, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise DeviceTimeout("no end in time", where=f"host: {argv[0]}", allowed=f"{timeout_s:g} s") from None
        except (FileNotFoundError, PermissionError) as error:
            return Ran(NOT_FOUND, "", f"{argv[0]}: {error.strerror}", time.monotonic() - start)
        if done.returncode < 0:
            name = signal.Signals(-done.returncode).name
            raise DeviceCrashed(
                f"{argv[0]} was ended by {name}", signal=-done.returncode, where=self.serial, got=done.stderr[-300:]
            )
        return Ran(done.returncode, done.stdout, done.stderr, time.monotonic() - start)

    def properties(self) -> dict[str, str]:
        facts = machine()
        return {
            "abi": platform.machine(),
            "model": facts["cpu"],
            "kernel": f"{platform.system()} {platform.release()}",
            "page_size": str(resource.getpagesize()),
            "memory_kb": str(os.sysconf("SC_PHYS_PAGES") * resource.getpagesize() // 1024),
        }

    def logcat(self) -> str:
        return ""


def _copy(source: Path, target: Path) -> int:
    """Written aside and renamed; the file's bytes."""
    try:
        with open(source, "rb") as reader, replacing(target) as file:
            shutil.copyfileobj(reader, file)
    except OSError as error:
        if error.errno == 28:  # ENOSPC
            raise DeviceFull("no space left", where=target) from None
        raise
    return source.stat().st_size

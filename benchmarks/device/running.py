"""Which emulated devices run: one file each, so that another process finds, lists and ends them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.device.cache import cache_root, make_folder, user_cache, writable
from contract.files import replacing

END_S = 10.0
ABANDONED_S = 600.0  # a boot takes less; whoever booted was killed


@dataclass(frozen=True)
class Running:
    """An emulated device that was started. pids: its processes, each with its start time as /proc tells it.

    page_bytes, memory_mib, icount: what it was started with. kept: it outlives who started it, for whoever asks; else
    it is that process's own. folder: its log and state, deleted with it.
    """

    serial: str
    adb_port: int
    pids: dict[int, str]
    page_bytes: int
    memory_mib: int
    icount: bool
    kept: bool
    folder: str

    @property
    def alive(self) -> bool:
        """Whether all its processes run."""
        return bool(self.pids) and all(start_time(pid) == told for pid, told in self.pids.items())

    def save(self) -> None:
        """Let other processes find it."""
        with replacing(Path(self.folder, "running.json")) as file:
            file.write(json.dumps(asdict(self)).encode())

    def end(self) -> None:
        """Kill its processes, wait for them, delete its folder. Processes that are not ours any more are left alone."""
        for pid, told in self.pids.items():
            if start_time(pid) == told:
                os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + END_S
        while any(start_time(pid) == told for pid, told in self.pids.items()) and time.monotonic() < deadline:
            time.sleep(0.02)
        shutil.rmtree(self.folder, ignore_errors=True)


def start_time(pid: int) -> str:
    """When a process started, in ticks since boot: with its number it names one process for good. "" = it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def running_folder() -> Path:
    """Where the folders of this user's running devices stand: beside the images, or apart where those are another's."""
    root = cache_root()
    folder = (root if writable(root) else user_cache()) / f"running-{os.getuid()}"
    make_folder(folder)
    return folder


def running_devices() -> list[Running]:
    """Those that run. What a killed one left behind is ended and deleted."""
    found = []
    for folder in running_folder().iterdir():
        if not (folder / "running.json").exists() and time.time() - folder.stat().st_mtime > ABANDONED_S:
            shutil.rmtree(folder, ignore_errors=True)
    for path in sorted(running_folder().glob("*/running.json")):
        try:
            told = json.loads(path.read_text())
            told["pids"] = {int(pid): started for pid, started in told["pids"].items()}
            running = Running(**told)
        except (OSError, ValueError, TypeError, KeyError):
            continue  # being written or deleted by its owner
        if running.alive:
            found.append(running)
        else:
            running.end()
    return found


def dying_with_parent(command: list[str]) -> list[str]:
    """The command so that the kernel kills it when its parent ends, however that ends; it keeps its process number.

    The parent is the thread that starts it, so a machine is booted from a thread that lives as long as it is needed.
    By util-linux's setpriv and not subprocess's preexec_fn, which forks the Python way: JAX and others warn of that.
    """
    unless_it_ended_before = '[ "$PPID" = "$0" ] && exec "$@"'
    return ["setpriv", "--pdeathsig", "KILL", "sh", "-c", unless_it_ended_before, str(os.getpid()), *command]

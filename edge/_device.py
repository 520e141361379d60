"""This device as a manifest's device classes see it: CPU flags and memory, read once.

Linux and Android tell both in /proc. What can't be read is "no flags" or "no memory": then no class that needs them
fits, and the model's shipped variants run, which every device can.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Device:
    """cpu: flags that every core has, as /proc/cpuinfo spells them ("asimddp", "avx512_vnni"); memory_mib: of MemTotal,
    which is some 5 to 10 % below what the phone is sold with.
    """

    cpu: frozenset[str] = frozenset()
    memory_mib: int = 0

    @staticmethod
    def this() -> Device:
        """The device this runs on. Never raises."""
        return _this_device()

    @staticmethod
    def of_text(cpuinfo: str, meminfo: str) -> Device:
        """From the text of /proc/cpuinfo and /proc/meminfo."""
        cores = []
        for line in cpuinfo.splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("flags", "Features"):  # x86, arm
                cores.append(frozenset(value.split()))
        # A thread may run on any core: on a phone with large and small ones, what all of them have.
        cpu = frozenset.intersection(*cores) if cores else frozenset()
        found = [
            line.split()[1] for line in meminfo.splitlines() if line.startswith("MemTotal:") and line.endswith("kB")
        ]
        return Device(cpu, int(found[0]) // 1024 if found and found[0].isdecimal() else 0)


@cache
def _this_device() -> Device:
    return Device.of_text(_text("/proc/cpuinfo"), _text("/proc/meminfo"))


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""

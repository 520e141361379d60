"""A phone that is this machine: the same files and processes, with a phone's answers to what only a phone is asked."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.device.device import Ran
from benchmarks.device.host import HostDevice
from benchmarks.device.target import Target, target_of

THERMAL = """IsStatusOverride: false
Thermal Status: 0
Cached temperatures:
\tTemperature{mValue=41.5, mType=0, mName=CPU0, mStatus=0}
HAL Ready: true
Current temperatures from HAL:
\tTemperature{mValue=36.2, mType=3, mName=skin, mStatus=0}
\tTemperature{mValue=44.25, mType=0, mName=CPU0, mStatus=0}
\tTemperature{mValue=-273.0, mType=9, mName=npu, mStatus=0}
Current cooling devices from HAL:
\tCoolingDevice{mValue=0, mType=2, mName=thermal-cpufreq-0}
"""
BATTERY = """Current Battery Service state:
  AC powered: false
  USB powered: true
  Max charging current: 500000
  status: 2
  health: 2
  present: true
  level: 87
  scale: 100
  voltage: 4210
  temperature: 301
  technology: Li-ion
"""
FREQUENCIES = "".join(
    f"/sys/devices/system/cpu/cpu{core}/cpufreq/cpuinfo_max_freq {khz}\n"
    for core, khz in enumerate([1_800_000] * 4 + [2_400_000] * 3 + [3_000_000])
)
PIXEL = {"abi": "arm64-v8a", "model": "Pixel 8", "fingerprint": "google/shiba/shiba:14/UQ1A", "page_size": "4096"}
NOTHING: Mapping[str, str] = {}
EMULATED = {"abi": "aarch64", "model": "emulated arm64 device (Linux, real adbd)", "icount": "1"}


class PretendDevice(HostDevice):
    """kind, properties: what it says of itself; answers: first words of a command -> its output, others run here."""

    def __init__(self, kind: str, properties: Mapping[str, str], answers: Mapping[str, str]):
        super().__init__()
        self.kind, self.serial = kind, "R5CT000000A"
        self._properties, self._answers = dict(properties), dict(answers)
        self.asked: list[list[str]] = []

    def run(self, argv: Sequence[str], *, timeout_s: float, env: Mapping[str, str] | None = None) -> Ran:
        self.asked.append(list(argv))
        line = " ".join(argv)
        for words, answer in self._answers.items():
            if line.startswith(words):
                return Ran(0, answer, "", 0.0)
        return super().run(argv, timeout_s=timeout_s, env=env)

    def properties(self) -> dict[str, str]:
        return dict(self._properties)


@dataclass
class InProcess:
    """A runtime that runs a script's `main` here: quick, and what it raises is seen."""

    device: HostDevice
    folder: str = ""

    def python(self, argv: Sequence[str], *, timeout_s: float) -> Ran:
        script = Path(argv[0])
        spec = importlib.util.spec_from_file_location(f"pushed_{script.stem}", script)
        assert spec is not None
        assert spec.loader is not None
        module: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return Ran(module.main(list(argv[1:])), "", "", 0.0)


@contextmanager
def phone(answers: Mapping[str, str] | None = None, properties: Mapping[str, str] = PIXEL) -> Iterator[Target]:
    """A phone with eight cores, four of them slow, that is cool and charged."""
    told = {"dumpsys thermalservice": THERMAL, "dumpsys battery": BATTERY} if answers is None else answers
    with pretended("device", properties, told) as target:
        yield target


@contextmanager
def pretended(
    kind: str,
    properties: Mapping[str, str] = EMULATED,
    answers: Mapping[str, str] = NOTHING,
    runtime: type[InProcess] = InProcess,
) -> Iterator[Target]:
    """A device of a kind. An emulated one counts instructions (nanoseconds stand in for them) unless told otherwise."""
    device = PretendDevice(kind, properties, answers)
    try:
        yield target_of(device, runtime(device))
    finally:
        device.close()


@contextmanager
def host_in_process() -> Iterator[Target]:
    """What `open_target("host")` gives, without a process."""
    device = HostDevice()
    try:
        yield target_of(device, InProcess(device))
    finally:
        device.close()

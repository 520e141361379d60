"""What a phone is like while it is measured: heat, battery, cores. Whatever it does not tell is "not available"."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.device.device import Device
from contract.errors import InputError

NOT_AVAILABLE = "not available"
TIMEOUT_S = 20.0
BATTERY_LOW_PERCENT = 50
# PowerManager.THERMAL_STATUS_*: from "light" on the system may slow itself.
THERMAL = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")
CHARGING, FULL = 2, 5  # BatteryManager.BATTERY_STATUS_*
_FREQUENCIES = (
    'for f in /sys/devices/system/cpu/cpu[0-9]*/cpufreq/cpuinfo_max_freq; do [ -r "$f" ] && echo "$f $(cat "$f")"; done'
)
_TEMPERATURE = re.compile(r"Temperature\{mValue=([-\d.]+), mType=(-?\d+), mName=([^,]+), mStatus=(\d+)\}")


@dataclass(frozen=True)
class PhoneState:
    """thermal: a word of THERMAL; temperatures: sensor -> °C; battery_percent, battery_c; power: "charging", "full" or
    "battery". What the phone did not tell is NOT_AVAILABLE, or absent.
    """

    thermal: str = NOT_AVAILABLE
    temperatures_c: Mapping[str, float] = field(default_factory=dict)
    battery_percent: int | str = NOT_AVAILABLE
    battery_c: float | str = NOT_AVAILABLE
    power: str = NOT_AVAILABLE

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def remarks(self) -> list[str]:
        """What makes a figure of now worth less."""
        found = []
        if self.thermal not in (THERMAL[0], NOT_AVAILABLE):
            found.append(f"thermal status {self.thermal}: the phone may be slowing itself; let it cool")
        if isinstance(self.battery_percent, int) and self.battery_percent < BATTERY_LOW_PERCENT:
            found.append(
                f"battery at {self.battery_percent} %: some phones slow themselves below {BATTERY_LOW_PERCENT} %"
            )
        return found

    def line(self) -> str:
        """For a terminal."""
        hottest = max(self.temperatures_c.items(), key=lambda item: item[1], default=None)
        heat = f", hottest {hottest[0]} {hottest[1]:.1f} °C" if hottest else ""
        percent = f"{self.battery_percent} %" if isinstance(self.battery_percent, int) else self.battery_percent
        warm = f", {self.battery_c:.1f} °C" if isinstance(self.battery_c, float) else ""
        return f"thermal status {self.thermal}{heat}; battery {percent}{warm}, power: {self.power}"


def phone_state(device: Device) -> PhoneState:
    """Ask `dumpsys`; never raises for a phone that has none."""
    return PhoneState(**{**parse_thermal(_ask(device, "thermalservice")), **parse_battery(_ask(device, "battery"))})


def _ask(device: Device, service: str) -> str:
    ran = device.run(["dumpsys", service], timeout_s=TIMEOUT_S)
    return ran.stdout if ran.returncode == 0 else ""


def parse_thermal(text: str) -> dict[str, Any]:
    """`dumpsys thermalservice`. The HAL's current values stand last and win over cached ones."""
    found: dict[str, Any] = {}
    status = re.search(r"Thermal Status:\s*(\d+)", text)
    if status and int(status.group(1)) < len(THERMAL):
        found["thermal"] = THERMAL[int(status.group(1))]
    temperatures = {name: float(value) for value, _, name, _ in _TEMPERATURE.findall(text)}
    # Sensors that are not there report 0 or absurd values.
    found["temperatures_c"] = {name: value for name, value in temperatures.items() if 0 < value < 150}
    return found


def parse_battery(text: str) -> dict[str, Any]:
    """`dumpsys battery`: temperature in tenths of a degree."""
    values = dict(re.findall(r"^\s*(level|scale|temperature|status):\s*(-?\d+)\s*$", text, re.MULTILINE))
    found: dict[str, Any] = {}
    if "level" in values:
        found["battery_percent"] = round(100 * int(values["level"]) / (int(values.get("scale", 100)) or 100))
    if "temperature" in values:
        found["battery_c"] = int(values["temperature"]) / 10
    if "status" in values:
        found["power"] = {CHARGING: "charging", FULL: "full"}.get(int(values["status"]), "battery")
    return found


def core_frequencies(device: Device) -> dict[int, int]:
    """Core -> its highest frequency in kHz; empty where cpufreq tells nothing."""
    ran = device.run(["sh", "-c", _FREQUENCIES], timeout_s=TIMEOUT_S)
    return {int(core): int(khz) for core, khz in re.findall(r"/cpu(\d+)/cpufreq/\S+ (\d+)", ran.stdout)}


def big_cores(frequencies: Mapping[int, int]) -> list[int]:
    """All cores but the slowest cluster's; [] where all are alike or unknown."""
    slowest = min(frequencies.values(), default=0)
    return sorted(core for core, khz in frequencies.items() if khz > slowest)


def cores_of(pin: str, device: Device) -> list[int]:
    """Cores to stay on. pin: "none", "big", or a hexadecimal mask; [] = any. Raises InputError for another word."""
    if pin == "none":
        return []
    if pin == "big":
        return big_cores(core_frequencies(device))
    try:
        mask = int(pin, 16)
    except ValueError:
        mask = 0
    if mask <= 0:
        raise InputError("--pin takes cores", got=pin, allowed="none, big, or a hexadecimal mask like f0")
    return [core for core in range(mask.bit_length()) if mask >> core & 1]


def mask_of(cores: list[int]) -> str:
    """As `taskset` takes it: hexadecimal; "" for any core."""
    return f"{sum(1 << core for core in cores):x}" if cores else ""

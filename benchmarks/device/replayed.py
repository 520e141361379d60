"""A published model's golden cases and golden session, replayed on a device."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.device.device import DelegateMissing, DeviceError, Ran
from benchmarks.device.runtime import Runtime
from contract.errors import IntegrityError, KirError

SCRIPT = Path(__file__).with_name("there") / "replay_here.py"


@dataclass(frozen=True)
class Replayed:
    """report: `edge.ReplayReport.to_dict()`. foreign: libraries it ran that the runtime did not bring."""

    report: Mapping[str, Any]
    peak_rss_kb: int
    foreign: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return bool(self.report["ok"])

    def problems(self) -> list[str]:
        """One line for each case that does not agree."""
        cases = self.report["cases"]
        return [f"{case['case']}: {case['problem']} ({case['max_abs']:.2e})" for case in cases if not case["ok"]]


def replay_on(runtime: Runtime, folder: str, *, timeout_s: float, env: Mapping[str, str] | None = None) -> Replayed:
    """Replay the model in a folder of the device. A difference is in the report.

    Raises DelegateMissing when a graph runs without XNNPACK there, IntegrityError when a file is not the one that was
    published, DeviceError for whatever else keeps it from replaying.
    """
    remote = f"{runtime.device.root}/{SCRIPT.name}"
    runtime.device.push(SCRIPT, remote)
    told = last_json(runtime.python([remote, folder], timeout_s=timeout_s, env=env), runtime.device.serial)
    if "error" in told:
        raise _error(told, runtime.device.serial)
    return Replayed(told["report"], told["peak_rss_kb"], tuple(told["foreign"]))


def last_json(ran: Ran, serial: str) -> dict[str, Any]:
    """What a script on a device told in its last line. Raises DeviceError with its last words when it told nothing."""
    lines = ran.stdout.strip().splitlines()
    try:
        told = json.loads(lines[-1]) if lines and ran.returncode == 0 else None
    except ValueError:
        told = None
    if not isinstance(told, dict):
        said = (ran.stderr or ran.stdout)[-600:]
        raise DeviceError(
            "a script on the device failed", where=serial, got=said, fix=f"it ended with {ran.returncode}"
        )
    return told


def _error(told: Mapping[str, Any], serial: str) -> KirError:
    message = str(told["message"])
    if "without XNNPACK" in message:
        return DelegateMissing("XNNPACK was not applied on the device", where=serial, got=message)
    if told["error"] == IntegrityError.__name__:
        return IntegrityError("the model on the device is damaged", where=serial, got=message)
    return DeviceError("the model can't be replayed on the device", where=serial, got=message)

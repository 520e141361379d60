"""What every device offers, whatever it is: this machine, an emulated arm64 device, a phone over adb.

Errors are typed, so that a caller can tell a pulled cable from a model that is too large.

KirError
└── DeviceError
    ├── NoDevice            nothing is connected, or not what was named
    ├── SeveralDevices      more than one is, and none was named
    ├── DeviceOffline       it is known and does not answer
    ├── DeviceUnauthorised  it waits for its owner to allow this computer
    ├── DeviceFull          no space left
    ├── WrongAbi            its processor runs other code
    ├── DeviceCrashed       the process there died by a signal
    ├── DelegateMissing     the graph runs without XNNPACK there
    └── DeviceTimeout       no answer in time
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from contract.errors import KirError

KINDS = ("host", "emulated-arm64", "device")


class DeviceError(KirError):
    """Whatever goes wrong between this machine and a device."""


class NoDevice(DeviceError):
    """Nothing is connected, or not what was named."""


class SeveralDevices(DeviceError):
    """More than one device is connected, and none was named."""


class DeviceOffline(DeviceError):
    """The device is known and does not answer."""


class DeviceUnauthorised(DeviceError):
    """The device waits for its owner to allow this computer."""


class DeviceFull(DeviceError):
    """No space left on the device."""


class WrongAbi(DeviceError):
    """The device's processor runs other code."""


class DeviceCrashed(DeviceError):
    """The process on the device died by a signal."""


class DelegateMissing(DeviceError):
    """A graph runs without XNNPACK there: with other kernels, and other figures."""


class DeviceTimeout(DeviceError):
    """No answer in time."""


@dataclass(frozen=True)
class Ran:
    """What a command on a device gave. seconds: wall time seen from here."""

    returncode: int
    stdout: str
    stderr: str
    seconds: float


class Device(Protocol):
    """A place where programs run. Every method may raise the errors above."""

    serial: str  # "host", "127.0.0.1:PORT", "R5CT..."
    kind: str  # one of KINDS
    root: str  # a writable folder there: /data/local/tmp/kir on adb devices

    def push(self, local: Path, remote: str) -> int:
        """Copy a file or a folder there, files that are there already (by hash) left out. Returns bytes sent."""

    def pull(self, remote: str, local: Path) -> None:
        """Copy a file or a folder from there."""

    def run(self, argv: Sequence[str], *, timeout_s: float, env: Mapping[str, str] | None = None) -> Ran:
        """Run a program to its end. A program that fails is a Ran; one that died or never ended is an error."""

    def properties(self) -> dict[str, str]:
        """abi, model, page_size, memory_kb, fingerprint or kernel, cpu features; icount "1" where time is counted."""

    def logcat(self) -> str:
        """The system's log; "" where there is none."""

"""What a device is to a benchmark or a test: push, run, pull. And the errors it may end with.

DeviceError (a KirError)
├── NoDevice             none is there
├── SeveralDevices       more than one is there and none was named
├── DeviceOffline        it went away, or does not answer
├── DeviceUnauthorised   its owner has not allowed this computer, or this computer its user
├── DeviceFull           no space left
├── DeviceReadOnly       the target can't be written
├── WrongAbi             it can't execute what was sent
├── DeviceCrashed        a program was ended by a signal; `signal` holds its number
├── DelegateMissing      a graph runs without XNNPACK, so its numbers mean nothing
└── DeviceTimeout        a program did not end in time and was killed
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from contract.errors import KirError


@dataclass(frozen=True)
class Ran:
    """A program that ended by itself. seconds: wall time as the computer saw it, transport included."""

    returncode: int
    stdout: str
    stderr: str
    seconds: float


class Device(Protocol):
    """The computer itself, the emulated arm64 device, or a phone.

    serial: "host", "127.0.0.1:PORT", "R5CT…". kind: "host" | "emulated-arm64" | "android-emulator" | "device". root: a
    writable folder there. Every method raises a DeviceError when the device does not do its part.
    """

    serial: str
    kind: str
    root: str

    def push(self, local: Path, remote: str) -> int:
        """Copy a file or a folder; what has the same hash there is left. Returns the bytes that were not there yet."""
        ...

    def pull(self, remote: str, local: Path) -> None:
        """Copy a file or a folder from the device; `local` is whole or not there."""
        ...

    def run(self, argv: Sequence[str], *, timeout_s: float, env: Mapping[str, str] | None = None) -> Ran:
        """Run a program in `root` and wait for its end.

        Raises DeviceTimeout, DeviceCrashed (by a signal), WrongAbi, DeviceOffline.
        """
        ...

    def properties(self) -> dict[str, str]:
        """abi, model, page_size, memory_kb, fingerprint, kernel, cpu_features; "" = the device does not tell."""
        ...

    def logcat(self) -> str:
        """The system's log, "" where there is none."""
        ...


class DeviceError(KirError):
    """A device did not do its part."""


class NoDevice(DeviceError):
    """None is there."""


class SeveralDevices(DeviceError):
    """More than one is there and none was named."""


class DeviceOffline(DeviceError):
    """It went away, or does not answer."""


class DeviceUnauthorised(DeviceError):
    """Its owner has not allowed this computer, or this computer has not allowed its user."""


class DeviceFull(DeviceError):
    """No space left on it."""


class DeviceReadOnly(DeviceError):
    """The target can't be written."""


class WrongAbi(DeviceError):
    """It can't execute what was sent."""


class DeviceCrashed(DeviceError):
    """A program was ended by a signal."""

    signal: int

    def __init__(self, what: str, *, signal: int, where: object = "", got: object = None, fix: str = ""):
        super().__init__(what, where=where, got=got, fix=fix)
        self.signal = signal


class DelegateMissing(DeviceError):
    """A graph runs without XNNPACK, so its numbers mean nothing."""


class DeviceTimeout(DeviceError):
    """A program did not end in time and was killed."""

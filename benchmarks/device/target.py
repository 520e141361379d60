"""Where a benchmark runs, and running a script there that answers with one document."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from benchmarks.device.cache import held
from benchmarks.device.device import DelegateMissing, Device, DeviceError, Ran
from benchmarks.device.host import HostDevice
from contract.errors import InputError, IntegrityError, KirError, ManifestError, NoModelError, PageError

KINDS = ("host", "emulated-arm64", "android-emulator", "device")
LESS = ("emulated-arm64", "android-emulator")  # what a phone may be counted as
SCRIPTS = Path(__file__).parent
PROBE_ERRORS = (NoModelError, IntegrityError, ManifestError, PageError)  # a DelegateMissing is NoDelegate there
Log = Callable[[str], None]
TIMED = {"host": "us", "device": "us", "emulated-arm64": "none", "android-emulator": "none"}


class Runtime(Protocol):
    """A Python on the device with `edge` and `contract`."""

    @property
    def folder(self) -> str:
        """Where it stands there."""

    def python(self, argv: Sequence[str], *, timeout_s: float) -> Ran:
        """Run `python argv` there."""


@dataclass(frozen=True)
class Target:
    """A device with its runtime. kind: what its results count as; unit: "us", "instructions" or "none" (no time)."""

    device: Device
    runtime: Runtime
    kind: str
    unit: str
    properties: Mapping[str, str]

    @property
    def timed(self) -> bool:
        return self.unit != "none"

    def place(self, name: str) -> str:
        """A path in the benchmark's own folder there."""
        return f"{self.device.root}/bench/{name}"

    def ask(self, script: str, settings: Mapping[str, Any], *, timeout_s: float) -> dict[str, Any]:
        """Push a script of this room with its settings, run it, and return its document.

        Raises the error that it tells, DelegateMissing among them, or KirError when it left no document.
        """
        answer = self.place("result.json")
        with tempfile.TemporaryDirectory(prefix="kir-ask-") as folder:
            local = Path(folder) / "settings.json"
            local.write_text(json.dumps(settings))
            self.device.push(SCRIPTS / script, self.place(script))
            self.device.push(local, self.place("settings.json"))
            self.device.run(["rm", "-f", answer], timeout_s=30.0)  # an older answer is none
            argv = [self.place(script), self.place("settings.json"), answer]
            ran = self.runtime.python(argv, timeout_s=timeout_s)
            where = f"{self.device.serial}: {script} {settings.get('mode', '')}".rstrip()
            if ran.returncode not in (0, 3):
                last = ran.stderr.strip().splitlines() or ["no word"]  # a trace ends with what was wrong
                raise KirError("the script failed there", where=where, got=f"{ran.returncode}: {last[-1]}")
            self.device.pull(answer, Path(folder) / "result.json")
            document: dict[str, Any] = json.loads((Path(folder) / "result.json").read_text())
        if "error" in document:
            raise _error(document["error"], self.device.serial)
        return document


def _error(told: Mapping[str, str], serial: str) -> KirError:
    """The device's error as one of ours."""
    kinds = {"NoDelegate": DelegateMissing, **{kind.__name__: kind for kind in PROBE_ERRORS}}
    kind = kinds.get(told["type"], KirError)
    what = told["what"] or told["text"]
    return kind(what, where=": ".join(filter(None, (serial, told["where"]))), got=told["got"] or None, fix=told["fix"])


def kind_of(device: Device, asked: str) -> str:
    """What results of this device count as. Raises InputError when it is asked to be more than it is."""
    if asked and asked not in KINDS:
        raise InputError("unknown --kind", got=asked, allowed=KINDS)
    kind = device.kind
    if not asked or asked == kind:
        return kind
    if asked in LESS and kind == "device":
        return asked
    raise InputError("a device can't count as another kind", where=device.serial, got=asked, allowed=kind)


@contextmanager
def open_target(serial: str | None, kind: str = "", log: Log = lambda line: None) -> Iterator[Target]:
    """serial: "host", an adb serial, or None for the only device there is. One holder of a device at a time.

    Raises the errors of `device.py`.
    """
    from benchmarks.device.runtime import install_runtime

    if serial == "host":
        host = HostDevice()
        try:
            yield target_of(host, install_runtime(host, log), kind)
        finally:
            host.close()
        return
    from benchmarks.device.find import connect

    device = connect(serial)
    with held(f"bench-{re.sub(r'[^A-Za-z0-9]', '-', device.serial)}") as ours:
        if not ours:  # one would read the other's answers
            raise DeviceError("another kir bench uses this device", where=device.serial, fix="wait for it, or end it")
        yield target_of(device, install_runtime(device, log), kind)


def target_of(device: Device, runtime: Runtime, kind: str = "") -> Target:
    """A target of parts that are there."""
    properties = device.properties()
    kind = kind_of(device, kind)
    counts = kind == "emulated-arm64" and properties.get("icount") == "1"
    return Target(device, runtime, kind, "instructions" if counts else TIMED[kind], properties)

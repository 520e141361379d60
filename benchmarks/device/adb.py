"""The adb client and server: a user's own server for phones, one of our own for each emulated device.

`adbutils` brings Google's adb, so that nobody needs an SDK. On the user's server an adb in PATH is taken first, since
two versions of it end each other's servers; on our own the brought one alone: older ones (Debian's is 29) lack flags.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from adbutils import AdbClient, AdbError, adb_path

from benchmarks.device.device import (
    DeviceError,
    DeviceFull,
    DeviceOffline,
    DeviceReadOnly,
    DeviceTimeout,
    DeviceUnauthorised,
    NoDevice,
)
from benchmarks.device.running import dying_with_parent
from contract.errors import InputError

SERVER_START_S = 20.0
ADB_PORT = "5037"


def user_server_port() -> int:
    """Where the user's adb server listens: $ANDROID_ADB_SERVER_PORT, or adb's default.

    Raises InputError for a value that is no port.
    """
    told = os.environ.get("ANDROID_ADB_SERVER_PORT") or ADB_PORT
    if not (told.isascii() and told.isdigit() and 0 < int(told) < 65536):
        raise InputError("ANDROID_ADB_SERVER_PORT is no port", got=told, allowed="1 … 65535")
    return int(told)


def adb_for(port: int) -> str:
    """Path of the adb to talk to the server on `port` with: the one that started it.

    Raises InputError when `adbutils` was installed without its own.
    """
    if port == user_server_port():
        return adb_path()
    bundled = Path(str(resources.files("adbutils.binaries") / "adb"))
    if not bundled.is_file():
        fix = "install adbutils from a wheel: pip install --force-reinstall --only-binary=:all: adbutils"
        raise InputError("adbutils came without its adb", where=bundled, fix=fix)
    return str(bundled)


def client_of(port: int) -> AdbClient:
    """A client of the adb server on a loopback port."""
    return AdbClient("127.0.0.1", port)


def free_port() -> int:
    """A loopback port from the kernel, let go again: whoever takes it must be ready to ask for another."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def own_server(port: int, home: Path, keep: bool) -> subprocess.Popen[bytes]:
    """Start an adb server on `port` that takes no phone, emulator or announced device away from a user's server.

    home: folder for its key and log. keep: it outlives this process. Raises DeviceError when it does not answer.
    """
    environment = {
        **os.environ,
        "HOME": str(home),
        "ADB_USB": "0",
        "ADB_MDNS": "0",
        "ADB_LOCAL_TRANSPORT_MAX_PORT": "0",
        "TMPDIR": str(home),
    }
    command = [adb_for(port), "-P", str(port), "--one-device", "none", "server", "nodaemon"]
    with open(home / "adb.log", "ab") as log:
        server = subprocess.Popen(
            command if keep else dying_with_parent(command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=keep,
        )
    deadline = time.monotonic() + SERVER_START_S
    while time.monotonic() < deadline and server.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return server
        time.sleep(0.05)
    server.kill()
    server.wait()
    raise DeviceError("the adb server did not start", where=home / "adb.log", got=(home / "adb.log").read_text()[-400:])


def run_adb(port: int, serial: str, words: Sequence[str], timeout_s: float) -> str:
    """One adb command on a device; returns its output. Raises a DeviceError that says what went wrong."""
    environment = {**os.environ, "ANDROID_ADB_SERVER_PORT": str(port)}
    try:
        done = subprocess.run(
            [adb_for(port), "-P", str(port), "-s", serial, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout_s,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        raise DeviceTimeout(f"adb {words[0]} did not end", where=serial, got=f"{timeout_s:g} s") from None
    if done.returncode:
        raise device_error(done.stdout, serial)
    return done.stdout


# What `adb devices` tells of a device that no shell can be had on -> what to do.
STATES = {
    "recovery": "start Android on it: adb reboot",
    "sideload": "end the sideload on its screen, or: adb reboot",
    "rescue": "start Android on it: adb reboot",
    "bootloader": "start Android on it: fastboot reboot",
}


def state_error(state: str, serial: str) -> DeviceError:
    """The typed error for a state of `adb devices` other than "device"."""
    if state in STATES:
        return DeviceOffline(f"the device is in {state} mode", where=serial, fix=STATES[state])
    return device_error(state, serial)


def device_error(text: str, serial: str) -> DeviceError:
    """The typed error for what adb, adbd or a device's shell said."""
    said = " ".join(text.split())[-400:]
    low = said.lower()
    if "no permissions" in low or "insufficient permissions" in low:
        fix = (
            "let your user open it: apt-get install android-sdk-platform-tools-common (its udev rules), join the group "
            "plugdev, and plug it in again"
        )
        return DeviceUnauthorised("this computer does not let you use its USB port", where=serial, got=said, fix=fix)
    if "no space left" in low:
        return DeviceFull("no space left on the device", where=serial, got=said, fix="delete what is not needed there")
    if "read-only file system" in low or "permission denied" in low:
        return DeviceReadOnly("the device does not let this be written", where=serial, got=said)
    if "unauthorized" in low or "authoriz" in low:
        fix = "unlock the phone and allow USB debugging for this computer"
        return DeviceUnauthorised("the device has not allowed this computer", where=serial, fix=fix)
    if "not found" in low and "device" in low:
        return NoDevice("no such device", where=serial, fix="`kir device list` shows what is there")
    if any(word in low for word in ("offline", "closed", "connect", "eof", "reset", "no devices", "broken pipe")):
        return DeviceOffline("the device went away", where=serial, got=said, fix="check the cable, or start it again")
    return DeviceError("adb failed", where=serial, got=said)


def connect_tcp(port: int, address: str, timeout_s: float) -> None:
    """`adb connect` to a device's TCP port, until it is usable. Raises DeviceOffline when it is not in time."""
    client = client_of(port)
    deadline = time.monotonic() + timeout_s
    said = ""
    while time.monotonic() < deadline:
        try:
            said = client.connect(address, timeout=max(0.1, deadline - time.monotonic()))
            if any(info.serial == address and info.state == "device" for info in client.list()):
                return
            said = f"{said}; {[info.state for info in client.list()]}"
        except (AdbError, OSError) as error:
            said = str(error)
        time.sleep(0.1)
    raise DeviceOffline("the device did not answer adb", where=address, got=said)

"""Which devices there are, and the one that is meant: emulated ones that run, and what the user's adb server has."""

from __future__ import annotations

import re

from adbutils import AdbError

from benchmarks.device.adb import client_of, connect_tcp, state_error, user_server_port
from benchmarks.device.device import DeviceError, NoDevice, SeveralDevices
from benchmarks.device.driver import AdbDevice, named_emulator
from benchmarks.device.running import running_devices

ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[\w.-]+):\d{1,5}")
CONNECT_S = 10.0


def connect(serial: str | None) -> AdbDevice:
    """The device of that serial, or with None the only one there is: emulated ones that were started to be kept, then
    the adb server's. An address, HOST:PORT, that the adb server does not have is connected.

    Raises NoDevice, SeveralDevices, DeviceOffline, DeviceUnauthorised.
    """
    emulated = {running.serial: running.adb_port for running in running_devices()}
    if serial in emulated:  # without asking for the user's adb server, which that would start
        return AdbDevice(serial, emulated[serial])
    there = list_devices()
    if serial is None:
        if len(there) > 1:
            raise SeveralDevices("several devices are there", got=sorted(there), fix="name one with --serial")
        if not there:
            raise NoDevice("no device is there", fix="connect a phone with USB debugging on, or run: kir device start")
        serial = next(iter(there))
    if serial not in there and ADDRESS.fullmatch(serial):
        connect_tcp(user_server_port(), serial, CONNECT_S)
        there = list_devices()
    if serial not in there:
        raise NoDevice("no such device", got=serial, allowed=sorted(there), fix="`kir device list` shows what is there")
    port, state = there[serial]
    if state != "device":
        raise state_error(state, serial)
    return AdbDevice(serial, port)


def kind_listed(serial: str, port: int, state: str) -> str:
    """What a listed device counts as: its own word where it can be asked, else what its serial says."""
    if state == "device":
        try:
            return AdbDevice(serial, port).kind
        except DeviceError:
            pass  # it left since; a list tells what it can
    return "android-emulator" if named_emulator(serial) else "device"


def list_devices() -> dict[str, tuple[int, str]]:
    """serial -> (port of the adb server that has it, its state: "device", "offline", "unauthorized", …).

    An emulated device that another process booted for itself is not among them: it ends with that process.
    """
    found: dict[str, tuple[int, str]] = {}
    for running in running_devices():
        if running.kept:
            found |= _listed(running.adb_port)
    return found | _listed(user_server_port())


def _listed(port: int) -> dict[str, tuple[int, str]]:
    try:
        with client_of(port).make_connection() as link:  # adbutils' own list cuts a state at its first blank
            link.send_command("host:devices")
            link.check_okay()
            told = link.read_string_block()
    except (AdbError, OSError) as error:
        raise DeviceError("the adb server does not answer", where=f"127.0.0.1:{port}", got=str(error)) from None
    lines = [line.partition("\t") for line in told.splitlines() if "\t" in line]
    return {serial: (port, state.strip()) for serial, _, state in lines}

"""The emulated arm64 device (Linux, real adbd): qemu with a Debian kernel and Google's own adb daemon in it.

    with EmulatedDevice.booted() as machine:
        machine.device.run(["uname", "-m"], timeout_s=10)

It proves arm64 code, page sizes, memory limits and the adb protocol. It is no Android emulator, and its times say
nothing about a phone; with `icount` its clock counts instructions instead.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.device.adb import connect_tcp, free_port, own_server
from benchmarks.device.data_image import data_image
from benchmarks.device.debian import tool
from benchmarks.device.device import DeviceError, DeviceOffline
from benchmarks.device.driver import AdbDevice
from benchmarks.device.machine_image import machine_image
from benchmarks.device.running import Running, dying_with_parent, running_folder, start_time

CPU = "cortex-a76"  # `max`, the default, computes int8 wrongly in qemu 7.2
BOOT_S = 120.0
PORT_TRIES = 5


@dataclass(frozen=True)
class MachineConfig:
    """page_bytes: 4096 or 16384. memory_mib: RAM. icount: one core whose clock advances 1 ns an instruction."""

    page_bytes: int = 4096
    memory_mib: int = 512
    icount: bool = False


@dataclass(frozen=True)
class EmulatedDevice:
    """A booted machine. boot_s: from the start of qemu until adb was usable. processes: qemu, then its adb server."""

    running: Running
    device: AdbDevice
    boot_s: float
    processes: tuple[subprocess.Popen[bytes], ...]

    @staticmethod
    @contextmanager
    def booted(config: MachineConfig | None = None, log: Callable[[str], None] = print) -> Iterator[EmulatedDevice]:
        """Boot, and end it with the block; it also ends when this process dies. Every boot begins with a clean disk."""
        machine = start(config or MachineConfig(), log, keep=False)
        try:
            yield machine
        finally:
            machine.running.end()
            for process in machine.processes:
                process.wait()

    def kill(self) -> None:
        """As a battery pulled out: its processes end at once, nothing is told to anyone."""
        self.processes[0].kill()
        self.processes[0].wait()

    def console(self) -> str:
        """What kernel and init said."""
        return Path(self.running.folder, "console.log").read_text(errors="replace")


def start(config: MachineConfig, log: Callable[[str], None], *, keep: bool) -> EmulatedDevice:
    """Build what is missing and boot. keep: it outlives this process, until `kir device stop`.

    Raises InputError (a tool or root is missing), DeviceError, DeviceOffline with the console's last lines.
    """
    image, data = machine_image(config.page_bytes, log), data_image(log)
    folder = Path(tempfile.mkdtemp(prefix="device-", dir=running_folder()))
    processes: list[subprocess.Popen[bytes]] = []
    try:
        begun = time.monotonic()
        qemu, port = _start_qemu(config, image, data, folder, keep)
        processes.append(qemu)
        adb_port = free_port()
        processes.append(own_server(adb_port, folder, keep))
        serial = f"127.0.0.1:{port}"
        _await_console(qemu, folder / "console.log", begun + BOOT_S)
        connect_tcp(adb_port, serial, max(1.0, begun + BOOT_S - time.monotonic()))
        boot_s = time.monotonic() - begun
        pids = {process.pid: start_time(process.pid) for process in processes}
        about = (config.page_bytes, config.memory_mib, config.icount)
        running = Running(serial, adb_port, pids, *about, keep, str(folder))
        running.save()
        return EmulatedDevice(running, AdbDevice(serial, adb_port), boot_s, tuple(processes))
    except BaseException:
        for process in processes:
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)
        raise


def command_of(config: MachineConfig, image: Path, data: Path, port: int, folder: Path) -> list[str]:
    """qemu's command line. restrict=on: the machine reaches nothing but what adb forwards to it."""
    cores = ["-smp", "1", "-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off,align=off"]
    if not config.icount:
        cores = ["-smp", "2", "-accel", "tcg,thread=multi"]
    return [
        tool("qemu-system-aarch64"),
        *("-M", "virt", "-cpu", CPU, "-m", str(config.memory_mib), *cores),
        *("-display", "none", "-no-reboot", "-nodefaults", "-serial", f"file:{folder / 'console.log'}"),
        *("-kernel", str(image / "kernel"), "-initrd", str(image / "initrd")),
        *("-append", "console=ttyAMA0 rdinit=/init loglevel=3 panic=-1"),
        *("-netdev", f"user,id=n0,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:5555"),
        *("-device", "virtio-net-pci,netdev=n0,romfile=", "-device", "virtio-rng-pci"),
        *("-drive", f"file={data / 'data.ext4'},if=none,id=d0,format=raw,snapshot=on"),
        *("-device", "virtio-blk-pci,drive=d0"),
    ]


def _start_qemu(
    config: MachineConfig, image: Path, data: Path, folder: Path, keep: bool
) -> tuple[subprocess.Popen[bytes], int]:
    """qemu and the loopback port of its adbd. A port may be taken between asking and binding: then another one."""
    said = ""
    for _ in range(PORT_TRIES):
        port = free_port()
        command = command_of(config, image, data, port, folder)
        with open(folder / "qemu.log", "wb") as log:
            qemu = subprocess.Popen(
                command if keep else dying_with_parent(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "TMPDIR": str(folder)},  # the snapshot's changes lie there
                start_new_session=keep,
            )
        try:
            qemu.wait(0.5)
        except subprocess.TimeoutExpired:
            return qemu, port
        said = (folder / "qemu.log").read_text(errors="replace")
        if "forwarding rule" not in said:
            break
    raise DeviceError("qemu did not start", where=folder / "qemu.log", got=said[-400:])


def _await_console(qemu: subprocess.Popen[bytes], console: Path, deadline: float) -> None:
    """Wait for init's word that adbd listens."""
    while True:
        said = console.read_text(errors="replace") if console.exists() else ""
        if "KIR-READY" in said:
            return
        if qemu.poll() is not None or time.monotonic() > deadline:
            raise DeviceOffline("the emulated device did not boot", where=console, got=said[-400:])
        time.sleep(0.05)

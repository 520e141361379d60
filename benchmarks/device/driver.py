"""A device over adb: the emulated one and phones alike.

    device = connect("127.0.0.1:41234")     # benchmarks/device/find.py; None: the only one there is
    device.push(Path("model.tflite"), f"{device.root}/model.tflite")
    device.run(["sha256sum", "model.tflite"], timeout_s=10)

An exit status of 0 alone proves nothing: older adb tell 0 for a device that died. So every program's output must end in
a mark that its shell writes, with the status in it.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
import secrets
import shlex
import shutil
import signal
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from adbutils import AdbConnection, AdbError
from adbutils.errors import AdbTimeout

from benchmarks.device.adb import client_of, device_error, run_adb
from benchmarks.device.device import (
    DeviceCrashed,
    DeviceError,
    DeviceOffline,
    DeviceTimeout,
    Ran,
    WrongAbi,
)
from benchmarks.device.running import running_devices
from contract.errors import InputError

ROOT = "/data/local/tmp/kir"  # /data/local/tmp is where a phone lets its shell user write and execute
STEP_S = 60.0  # for the driver's own small commands
TRANSFER_S = 600.0
EMULATOR_WORDS = ("sdk_gphone", "android sdk built for", "emulator")  # model names of Android's own emulators
ELF = ["7f", "45", "4c", "46"]
ELF_MACHINES = {"arm64-v8a": "b7", "armeabi-v7a": "28", "x86_64": "3e", "x86": "03"}  # the low byte of e_machine
STDOUT, STDERR, EXIT = 1, 2, 3  # packets of adb's shell protocol, version 2


class AdbDevice:
    """A `Device` behind an adb server. Not thread-safe."""

    def __init__(self, serial: str, server_port: int):
        self.serial, self.root = serial, ROOT
        self.server_port = server_port
        self.kind = self._kind()

    def _kind(self) -> str:
        """What it says it is. Android's own emulators are no phones, however they are reached."""
        names = ("ro.kir.emulated", "ro.kernel.qemu", "ro.boot.qemu", "ro.product.model")
        told = self._shell("; ".join(f'echo "{name}=$(getprop {name})"' for name in names))
        found = {name: value.strip() for name, _, value in (line.partition("=") for line in told.splitlines())}
        if found.get("ro.kir.emulated") == "1":
            return "emulated-arm64"
        qemu = "1" in (found.get("ro.kernel.qemu"), found.get("ro.boot.qemu"))
        model = found.get("ro.product.model", "").lower()
        return "android-emulator" if qemu or named_emulator(self.serial, model) else "device"

    def push(self, local: Path, remote: str) -> int:
        """Copy a file, or a folder's files; those with the same hash there are left, others that lie there stay.

        Returns the bytes that were not there yet. Raises InputError for a path that does not exist, DeviceFull,
        DeviceReadOnly, DeviceOffline.
        """
        local = Path(local)
        if local.is_dir():
            files = {path.relative_to(local).as_posix(): path for path in sorted(local.rglob("*")) if path.is_file()}
            new = self._differing(files, remote)
            if new:
                self._push_archive({name: files[name] for name in new}, remote)
        elif local.is_file():
            folder, name = posixpath.split(remote)
            files = {name: local}
            new = self._differing(files, folder)
            if new:
                self._push_file(local, remote)
        else:
            raise InputError("nothing to push", where=local)
        return sum(files[name].stat().st_size for name in new)

    def pull(self, remote: str, local: Path) -> None:
        """Copy a file or a folder from the device; `local` is whole or not there, and replaced when it was."""
        local = Path(local)
        local.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=local.parent, prefix=f".{local.name}.") as aside:
            run_adb(self.server_port, self.serial, ["pull", remote, f"{aside}/pulled"], TRANSFER_S)
            if local.is_dir():
                shutil.rmtree(local)
            os.replace(Path(aside, "pulled"), local)

    def run(self, argv: Sequence[str], *, timeout_s: float, env: Mapping[str, str] | None = None) -> Ran:
        """Run a program in `root`, without standard input, and wait for its end.

        Raises DeviceTimeout (the program and its children are killed), DeviceCrashed for an end by signal, WrongAbi
        when the device can't execute it, DeviceOffline when the connection or the mark at the end is missing.
        """
        start = time.monotonic()
        mark = secrets.token_hex(8)
        words = [*(f"{name}={shlex.quote(value)}" for name, value in (env or {}).items()), *map(shlex.quote, argv)]
        # The group's number first, for the kill; the status last, after the program's own output.
        go = f"cd {ROOT} 2>/dev/null || {{ mkdir -p {ROOT} && cd {ROOT}; }}"
        script = f"echo {mark}:$$; {go}; {' '.join(words)} </dev/null; echo {mark}=$?"
        stdout, stderr = self._talk(script, mark, start + timeout_s, argv[0])
        head, _, rest = stdout.partition("\n")
        body, found, status = rest.rpartition(f"{mark}=")
        if not (head.startswith(mark) and found and status.strip().isdigit()):
            raise DeviceOffline("the device went away in mid-run", where=self.serial, got=(stdout + stderr)[-400:])
        ran = Ran(int(status), body, stderr, time.monotonic() - start)
        self._judge(ran, argv[0])
        return ran

    def properties(self) -> dict[str, str]:
        """abi, model, page_size (bytes), memory_kb, fingerprint, kernel, cpu_features; "" = not told.

        icount: "1" on an emulated device whose clock counts instructions.
        """
        asked = {
            "abi": "getprop ro.product.cpu.abi",
            "model": "getprop ro.product.model",
            "page_size": "getconf PAGESIZE",
            "memory_kb": "sed -n 's/^MemTotal: *\\([0-9]*\\).*/\\1/p' /proc/meminfo",
            "fingerprint": "getprop ro.build.fingerprint",
            "kernel": "uname -r",
            "cpu_features": "sed -n 's/^Features[^:]*: *//p' /proc/cpuinfo | head -n 1",
        }
        told = self._shell("; ".join(f'echo "{name}=$({command} 2>/dev/null)"' for name, command in asked.items()))
        found = {name: value.strip() for name, _, value in (line.partition("=") for line in told.splitlines())}
        counts = any(one.serial == self.serial and one.icount for one in running_devices())
        return found | {"icount": "1" if counts else ""}

    def logcat(self) -> str:
        """Android's log so far, "" on a device that has none."""
        return self._shell("command -v logcat >/dev/null && logcat -d -v threadtime || true")

    def reverse(self, device_port: int, host_port: int) -> None:
        """Let the device reach a port of this computer's loopback as `device_port` of its own."""
        try:
            client_of(self.server_port).device(self.serial).reverse(f"tcp:{device_port}", f"tcp:{host_port}")
        except (AdbError, OSError) as error:
            raise device_error(str(error), self.serial) from None

    def _shell(self, script: str) -> str:
        """Standard output of a small command of the driver's own, which must end with status 0."""
        ran = self.run(["sh", "-c", script], timeout_s=STEP_S)
        if ran.returncode:
            raise device_error(ran.stderr or ran.stdout or script, self.serial)
        return ran.stdout

    def _talk(self, script: str, mark: str, deadline: float, program: str) -> tuple[str, str]:
        """Both outputs of a script. Raises DeviceTimeout past the deadline, DeviceOffline when the connection ends."""
        parts: dict[int, bytearray] = {STDOUT: bytearray(), STDERR: bytearray()}
        try:
            with self._shell_link(script, max(1.0, deadline - time.monotonic())) as link:
                while True:
                    link.conn.settimeout(max(0.001, deadline - time.monotonic()))
                    header = link.read_exact(5)
                    content = link.read_exact(int.from_bytes(header[1:], "little"))
                    if header[0] == EXIT:
                        break
                    parts.setdefault(header[0], bytearray()).extend(content)
        except AdbTimeout:
            self._kill_group(parts[STDOUT].decode(errors="replace"), mark)
            said = (parts[STDOUT] + parts[STDERR]).decode(errors="replace")[-300:]
            raise DeviceTimeout(f"{program} did not end in time and was killed", where=self.serial, got=said) from None
        except (AdbError, EOFError, OSError) as error:
            raise device_error(f"connection closed: {error}", self.serial) from None
        return parts[STDOUT].decode(errors="replace"), parts[STDERR].decode(errors="replace")

    @contextmanager
    def _shell_link(self, script: str, timeout_s: float) -> Iterator[AdbConnection]:
        """A connection on which a script runs. adbutils' own leaves its socket open when the device is gone."""
        with client_of(self.server_port).make_connection(timeout=timeout_s) as link:
            link.send_command(f"host:tport:serial:{self.serial}")
            link.check_okay()
            link.read_exact(8)  # the transport's number
            link.send_command(f"shell,v2,raw:{script}")
            link.check_okay()
            yield link

    def _kill_group(self, told: str, mark: str) -> None:
        """End what a script started; adbd makes each script the head of a process group."""
        found = re.match(rf"{mark}:(\d+)", told)
        if not found:
            return
        try:
            with self._shell_link(f"kill -9 -{found.group(1)}", STEP_S) as link:
                link.read_until_close(encoding=None)
        except (AdbError, EOFError, OSError):
            return  # the timeout is told; a device that died as well has nothing left to end

    def _judge(self, ran: Ran, program: str) -> None:
        said = ran.stderr[-300:]
        # A shell that can't execute a file may take it for a script, so what it says does not suffice.
        if ran.returncode in (1, 2, 126, 127) and re.search(r"format|syntax error|not executable|elf", said, re.I):
            abi, *head = self._shell(f"getprop ro.product.cpu.abi; {self._head_of(program)}").split()
            if head[:4] == ELF and head[18:19] != [ELF_MACHINES.get(abi, "")]:
                raise WrongAbi("the device can't execute this program", where=program, got=said, allowed=abi)
        number = ran.returncode - 128
        if number in signal.valid_signals():  # 255 is what a program says that ends with -1
            name = next((sign.name for sign in signal.Signals if sign == number), f"signal {number}")
            raise DeviceCrashed(f"{program} was ended by {name}", signal=number, where=self.serial, got=said)

    def _head_of(self, program: str) -> str:
        """A command that prints the first bytes of a program, two hexadecimal digits each, or nothing."""
        return f"cd {ROOT} && head -c 20 {shlex.quote(program)} 2>/dev/null | od -An -tx1 || true"

    def _differing(self, files: Mapping[str, Path], folder: str) -> list[str]:
        """Names of the files that are not in a folder of the device with the same content."""
        there = self._hashes(folder, files)
        return [name for name, path in files.items() if there.get(name) != _sha256(path)]

    def _hashes(self, folder: str, names: Iterable[str]) -> dict[str, str]:
        """sha256 by name, of those files that are there."""
        names = list(names)
        if len(names) == 1:
            ask = f"sha256sum -- {shlex.quote(names[0])} 2>/dev/null || true"
        else:
            ask = "find . -type f -exec sha256sum {} + 2>/dev/null || true"
        told = self._shell(f"cd {shlex.quote(folder)} 2>/dev/null || exit 0; {ask}")
        pairs = [line.split(None, 1) for line in told.splitlines() if len(line) > 66]
        return {name.strip().removeprefix("./"): digest for digest, name in pairs}

    def _push_file(self, local: Path, remote: str) -> None:
        folder, name = posixpath.split(remote)
        aside = f"{folder}/.{name}.part"
        try:
            self._shell(f"mkdir -p {shlex.quote(folder)}")
            run_adb(self.server_port, self.serial, ["push", str(local), aside], TRANSFER_S)
            if self._hashes(folder, [posixpath.basename(aside)]).get(posixpath.basename(aside)) != _sha256(local):
                raise DeviceError("a pushed file arrived otherwise than it was sent", where=remote)
            self._shell(f"mv -f {shlex.quote(aside)} {shlex.quote(remote)}")
        except DeviceError:
            self._discard(aside)
            raise

    def _push_archive(self, files: Mapping[str, Path], remote: str) -> None:
        """Many files in one transfer: each small push of its own costs a round trip."""
        aside = f"{posixpath.dirname(remote)}/.{posixpath.basename(remote)}.tar"
        with tempfile.TemporaryDirectory() as work:
            packed = Path(work, "files.tar")
            with tarfile.open(packed, "w") as archive:
                for name, path in files.items():
                    archive.add(path, name, filter=_plain)
            try:
                self._push_file(packed, aside)
                self._shell(f"mkdir -p {shlex.quote(remote)} && tar -xf {shlex.quote(aside)} -C {shlex.quote(remote)}")
            finally:
                self._discard(aside)
        if wrong := self._differing(files, remote):
            raise DeviceError("pushed files arrived otherwise than they were sent", where=remote, got=wrong[:5])

    def _discard(self, path: str) -> None:
        try:
            self._shell(f"rm -f {shlex.quote(path)}")
        except DeviceError:
            return  # the first error is the one to tell


def named_emulator(serial: str, model: str = "") -> bool:
    """Whether a serial, or a model's name in lower case, is one of Android's own emulators."""
    return serial.startswith("emulator-") or any(word in model for word in EMULATOR_WORDS)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """No owner of this computer; the times do not matter."""
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    info.mtime = 0
    return info

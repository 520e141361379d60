"""The driver against an adb server in this process: what it makes of outputs, endings and states."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.device.adb import adb_for, device_error, free_port, own_server, user_server_port
from benchmarks.device.device import (
    DeviceCrashed,
    DeviceFull,
    DeviceOffline,
    DeviceReadOnly,
    DeviceTimeout,
    DeviceUnauthorised,
    NoDevice,
    SeveralDevices,
    WrongAbi,
)
from benchmarks.device.driver import AdbDevice
from benchmarks.device.find import connect, kind_listed, list_devices
from benchmarks.device.running import Running, running_folder, start_time
from contract.errors import InputError
from tests.device.fake_adb import GROUP, FakeAdb, Reply

PHONE = "R5CT123"


class Shell:
    """What the device's shell answers to the program under test; small commands of the driver's own succeed."""

    def __init__(self) -> None:
        self.reply: Reply = (b"", b"", 0)
        self.head = b""

    def __call__(self, script: str) -> Reply:
        if "getprop ro.product.cpu.abi" in script:
            return b"arm64-v8a\n" + self.head, b"", 0
        return self.reply if "; program" in script else (b"", b"", 0)


@pytest.fixture
def shell() -> Shell:
    return Shell()


@pytest.fixture
def adb(shell: Shell) -> Iterator[FakeAdb]:
    with FakeAdb({PHONE: "device"}, shell) as server:
        yield server


@pytest.fixture
def device(adb: FakeAdb) -> AdbDevice:
    return AdbDevice(PHONE, adb.port)


@pytest.fixture(autouse=True)
def nothing_emulated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KIR_CACHE", str(tmp_path / "cache"))


class TestRun:
    def test_outputs_and_status_are_the_programs(self, device: AdbDevice, shell: Shell) -> None:
        shell.reply = (b"out without an end", b"err\n", 7)
        ran = device.run(["program"], timeout_s=10)
        assert (ran.returncode, ran.stdout, ran.stderr) == (7, "out without an end", "err\n")

    def test_words_reach_the_shell_quoted(self, device: AdbDevice, adb: FakeAdb) -> None:
        device.run(["program", "it's", "a b"], timeout_s=10, env={"NAME": "x y"})
        assert "; NAME='x y' program 'it'\"'\"'s' 'a b' </dev/null;" in adb.scripts[-1].replace("; program", "; ")

    def test_an_output_without_the_mark_is_no_success(self, device: AdbDevice, shell: Shell) -> None:
        shell.reply = (b"half of it", b"", None)
        with pytest.raises(DeviceOffline):
            device.run(["program"], timeout_s=10)

    @pytest.mark.parametrize(
        ("status", "number", "name"), [(139, 11, "SIGSEGV"), (132, 4, "SIGILL"), (137, 9, "SIGKILL")]
    )
    def test_an_end_by_signal_is_a_crash(
        self, device: AdbDevice, shell: Shell, status: int, number: int, name: str
    ) -> None:
        shell.reply = (b"", b"last words", status)
        with pytest.raises(DeviceCrashed, match=f"{name}.*last words") as caught:
            device.run(["program"], timeout_s=10)
        assert caught.value.signal == number

    @pytest.mark.parametrize("status", [128, 160, 255])  # 255: exit(-1)
    def test_a_status_that_is_no_signals_is_the_programs(self, device: AdbDevice, shell: Shell, status: int) -> None:
        shell.reply = (b"", b"", status)
        assert device.run(["program"], timeout_s=10).returncode == status

    @pytest.mark.parametrize(
        "said",
        [
            b"sh: program: Exec format error",
            b"program: not executable: 64-bit ELF file",
            b"program[1]: syntax error: unexpected '('",  # mksh takes it for a script
        ],
    )
    def test_a_program_for_another_processor(self, device: AdbDevice, shell: Shell, said: bytes) -> None:
        shell.reply, shell.head = (b"", said, 1), b"7f 45 4c 46 " + b"00 " * 14 + b"3e 00\n"
        with pytest.raises(WrongAbi, match="arm64-v8a"):
            device.run(["program"], timeout_s=10)

    def test_a_script_with_a_mistake_is_no_wrong_processor(self, device: AdbDevice, shell: Shell) -> None:
        shell.reply, shell.head = (b"", b"program[1]: syntax error", 1), b"23 21 2f 62\n"
        assert device.run(["program"], timeout_s=10).returncode == 1

    def test_what_does_not_end_is_killed_by_its_group(self, device: AdbDevice, adb: FakeAdb) -> None:
        release = threading.Event()
        adb.shell = lambda script: (b"", b"", 0 if release.wait(20) else None)
        with pytest.raises(DeviceTimeout):
            device.run(["program"], timeout_s=0.2)
        release.set()
        assert adb.scripts[-1] == f"kill -9 -{GROUP}"


class TestConnect:
    @pytest.fixture(autouse=True)
    def users_server(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch

    def listed(self, adb: FakeAdb, devices: dict[str, str]) -> None:
        adb.devices = devices
        self.monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(adb.port))

    def test_the_only_one_needs_no_name(self, adb: FakeAdb) -> None:
        self.listed(adb, {PHONE: "device"})
        assert connect(None).serial == PHONE
        assert connect(None).kind == "device"

    def test_none(self, adb: FakeAdb) -> None:
        self.listed(adb, {})
        with pytest.raises(NoDevice, match="kir device start"):
            connect(None)

    def test_several_are_named(self, adb: FakeAdb) -> None:
        self.listed(adb, {PHONE: "device", "OTHER": "device"})
        with pytest.raises(SeveralDevices, match=f"OTHER.*{PHONE}"):
            connect(None)
        assert connect(PHONE).serial == PHONE

    def test_another_name_is_told_with_those_there(self, adb: FakeAdb) -> None:
        self.listed(adb, {PHONE: "device"})
        with pytest.raises(NoDevice, match=PHONE):
            connect("NOT-THERE")

    @pytest.mark.parametrize(
        ("state", "error", "fix"),
        [
            ("offline", DeviceOffline, "check the cable"),
            ("unauthorized", DeviceUnauthorised, "allow USB debugging"),
            ("no permissions (missing udev rules? user is in the plugdev group); see [x]", DeviceUnauthorised,
             "udev rules.*plugdev"),
            ("recovery", DeviceOffline, "recovery mode.*adb reboot"),
            ("sideload", DeviceOffline, "sideload mode.*adb reboot"),
        ],
    )  # fmt: skip
    def test_one_that_can_not_be_used(self, adb: FakeAdb, state: str, error: type[Exception], fix: str) -> None:
        self.listed(adb, {PHONE: state})
        assert list_devices()[PHONE] == (adb.port, state)
        with pytest.raises(error, match=fix):
            connect(PHONE)

    @pytest.mark.parametrize("port", ["abc", "0", "65536", "-1", "5037.0"])
    def test_a_port_that_is_none(self, port: str) -> None:
        self.monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", port)
        with pytest.raises(InputError, match="ANDROID_ADB_SERVER_PORT is no port"):
            connect(None)

    def test_an_address_is_connected(self, adb: FakeAdb) -> None:
        self.listed(adb, {PHONE: "device"})
        assert connect("192.0.2.7:5555").serial == "192.0.2.7:5555"
        assert adb.connected == ["192.0.2.7:5555"]
        assert connect("192.0.2.7:5555").kind == "device"  # it is there now
        assert adb.connected == ["192.0.2.7:5555"]

    def test_an_address_where_nothing_answers(self, adb: FakeAdb) -> None:
        self.listed(adb, {PHONE: "device"})
        adb.refuse = True
        self.monkeypatch.setattr("benchmarks.device.find.CONNECT_S", 0.2)
        with pytest.raises(DeviceOffline, match=r"did not answer adb.*failed to connect"):
            connect("192.0.2.7:5555")

    def test_a_machine_of_another_process_is_found_by_its_name_alone(self, adb: FakeAdb) -> None:
        self.listed(adb, {PHONE: "device"})
        with FakeAdb({"127.0.0.1:7": "device"}) as theirs:
            folder = running_folder() / "device-a"
            folder.mkdir()
            pids = {os.getpid(): start_time(os.getpid())}
            Running("127.0.0.1:7", theirs.port, pids, 4096, 512, False, False, str(folder)).save()
            assert connect(None).serial == PHONE
            assert set(list_devices()) == {PHONE}
            assert connect("127.0.0.1:7").server_port == theirs.port
            Running("127.0.0.1:7", theirs.port, pids, 4096, 512, False, True, str(folder)).save()
            assert set(list_devices()) == {PHONE, "127.0.0.1:7"}

    def test_one_that_left_since_it_was_listed(self, adb: FakeAdb) -> None:
        self.listed(adb, {PHONE: "device"})
        there = list_devices()
        adb.devices = {}
        with pytest.raises(NoDevice):
            AdbDevice(PHONE, there[PHONE][0])


class TestKind:
    @pytest.mark.parametrize(
        ("serial", "told", "kind"),
        [
            (PHONE, {"ro.product.model": "Pixel 8"}, "device"),
            (PHONE, {"ro.kir.emulated": "1"}, "emulated-arm64"),
            ("emulator-5554", {}, "android-emulator"),
            ("10.0.0.2:5555", {"ro.kernel.qemu": "1"}, "android-emulator"),
            ("10.0.0.2:5555", {"ro.boot.qemu": "1"}, "android-emulator"),
            ("10.0.0.2:5555", {"ro.product.model": "sdk_gphone64_arm64"}, "android-emulator"),
        ],
    )
    def test_androids_own_emulator_is_no_phone(self, serial: str, told: dict[str, str], kind: str) -> None:
        def shell(script: str) -> Reply:
            names = re.findall(r'echo "([\w.]+)=', script)
            return "".join(f"{name}={told.get(name, '')}\n" for name in names).encode(), b"", 0

        with FakeAdb({serial: "device"}, shell) as adb:
            assert AdbDevice(serial, adb.port).kind == kind
            assert kind_listed(serial, adb.port, "device") == kind

    def test_one_that_can_not_be_asked_counts_by_its_serial(self) -> None:
        with FakeAdb({}) as adb:
            assert kind_listed("emulator-5554", adb.port, "offline") == "android-emulator"
            assert kind_listed(PHONE, adb.port, "offline") == "device"
            assert kind_listed(PHONE, adb.port, "device") == "device"  # it left since it was listed


class TestOwnServer:
    """Google's adb, that `adbutils` brings, whatever adb stands in PATH: Debian's is of 2019."""

    @pytest.fixture(autouse=True)
    def debians(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.old = tmp_path / "bin" / "adb"
        self.old.parent.mkdir()
        self.old.write_text("#!/bin/sh\necho 'Android Debug Bridge version 1.0.39'\n[ $# -le 1 ]\n")
        self.old.chmod(0o755)
        monkeypatch.setenv("PATH", f"{self.old.parent}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.delenv("ADBUTILS_ADB_PATH", raising=False)

    def test_it_starts_beside_an_older_adb(self, tmp_path: Path) -> None:
        server = own_server(port := free_port(), tmp_path, keep=False)
        try:
            assert server.poll() is None
            assert adb_for(port) != str(self.old)
        finally:
            server.kill()
            server.wait()

    def test_the_users_server_is_asked_with_the_users_adb(self) -> None:
        assert adb_for(user_server_port()) == str(self.old)


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("adb: error: failed to copy 'a' to 'b': remote couldn't create file: No space left on device", DeviceFull),
        ("remote couldn't create file: Read-only file system", DeviceReadOnly),
        ("remote couldn't create file: Permission denied", DeviceReadOnly),
        ("error: device unauthorized.\nThis adb server's $ADB_VENDOR_KEYS is not set", DeviceUnauthorised),
        ("error: device offline", DeviceOffline),
        ("error: closed", DeviceOffline),
        ("error: device 'x' not found", NoDevice),
    ],
)
def test_what_adb_says_has_its_error(said: str, error: type[Exception]) -> None:
    assert type(device_error(said, PHONE)) is error

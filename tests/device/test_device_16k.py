"""A machine of 16 KiB pages, as new phones have: the same runtime replays there. And what goes wrong with a device."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.device.device import (
    DeviceCrashed,
    DeviceFull,
    DeviceOffline,
    DeviceReadOnly,
    DeviceTimeout,
    NoDevice,
    WrongAbi,
)
from benchmarks.device.driver import AdbDevice
from benchmarks.device.emulated import EmulatedDevice, MachineConfig
from benchmarks.device.find import connect
from benchmarks.device.replayed import replay_on
from benchmarks.device.runtime import Runtime, install_runtime

pytestmark = [pytest.mark.device, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def machine() -> Iterator[EmulatedDevice]:
    with EmulatedDevice.booted(MachineConfig(page_bytes=16384)) as booted:
        yield booted


@pytest.fixture(scope="module")
def device(machine: EmulatedDevice) -> AdbDevice:
    return machine.device


@pytest.fixture(scope="module")
def runtime(device: AdbDevice) -> Runtime:
    return install_runtime(device)


def listing(device: AdbDevice, folder: str) -> list[str]:
    return device.run(["ls", "-A", folder], timeout_s=60).stdout.split()


def test_golden_cases_replay_on_16_kib_pages(device: AdbDevice, runtime: Runtime, default_model: Path) -> None:
    assert device.properties()["page_size"] == "16384"
    device.push(default_model, f"{device.root}/model")
    replayed = replay_on(runtime, "model", timeout_s=300)
    assert replayed.ok, replayed.problems()
    assert replayed.foreign == ()


def test_its_serial_finds_it(machine: EmulatedDevice) -> None:
    found = connect(machine.running.serial)
    assert found.kind == "emulated-arm64"
    assert found.run(["echo", "it's", "$HOME", "here"], timeout_s=60).stdout == "it's $HOME here\n"


def test_what_is_there_is_not_sent_again(device: AdbDevice, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "deep").mkdir(parents=True)
    (tree / "one").write_bytes(b"1" * 1000)
    (tree / "deep" / "with space").write_bytes(b"2" * 500)
    remote = f"{device.root}/tree"
    assert device.push(tree, remote) == 1500
    assert device.push(tree, remote) == 0
    (tree / "one").write_bytes(b"3" * 1000)  # the same size: a hash tells
    assert device.push(tree, remote) == 1000
    device.pull(remote, tmp_path / "back")
    assert (tmp_path / "back" / "one").read_bytes() == b"3" * 1000
    assert (tmp_path / "back" / "deep" / "with space").read_bytes() == b"2" * 500


def test_status_output_and_errors_come_back_apart(device: AdbDevice) -> None:
    ran = device.run(["sh", "-c", "printf 'no newline'; echo problem >&2; exit 7"], timeout_s=60)
    assert (ran.returncode, ran.stdout, ran.stderr) == (7, "no newline", "problem\n")


def test_a_crash_is_told_with_its_signal(runtime: Runtime) -> None:
    with pytest.raises(DeviceCrashed, match="SIGSEGV") as caught:
        runtime.python(["-c", "import os; os.kill(os.getpid(), 11)"], timeout_s=120)
    assert caught.value.signal == 11


def test_what_does_not_end_is_killed_with_its_children(device: AdbDevice) -> None:
    with pytest.raises(DeviceTimeout):
        device.run(["sh", "-c", "sleep 4321 & sleep 4321"], timeout_s=3)
    assert device.run(["pidof", "sleep"], timeout_s=60).stdout == ""


def test_a_program_of_another_abi_is_told_as_such(device: AdbDevice) -> None:
    assert sys.platform == "linux"
    device.push(Path(shutil.which("true") or "/bin/true"), f"{device.root}/true-of-the-host")
    with pytest.raises(WrongAbi, match="arm64-v8a"):
        device.run(["./true-of-the-host"], timeout_s=60)


def test_a_target_that_can_not_be_written(device: AdbDevice, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(DeviceReadOnly):
        device.push(tmp_path / "file", "/system/bin/file")


def test_a_full_disk_is_told_and_leaves_no_half_file(device: AdbDevice, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(256)) * 40_000)
    folder = f"{device.root}/full"
    device.run(["mkdir", folder], timeout_s=60)
    # df's fourth column is what is free, KiB: all of it but 3 MiB.
    script = f"set -- $(df -k /data | tail -n 1); fallocate -l $((($4 - 3072) * 1024)) {folder}/filler"
    assert device.run(["sh", "-c", script], timeout_s=60).returncode == 0
    try:
        with pytest.raises(DeviceFull):
            device.push(tmp_path / "file", f"{folder}/file")
        assert listing(device, folder) == ["filler"]
    finally:
        device.run(["rm", "-rf", folder], timeout_s=60)
    assert device.push(tmp_path / "file", f"{device.root}/file") == 256 * 40_000


def test_a_device_that_dies_in_mid_run_is_never_a_success(machine: EmulatedDevice, wait_for: Callable) -> None:
    """Last of this file: the machine is gone after it."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(machine.device.run, ["sh", "-c", "echo begun; sleep 600"], timeout_s=700)
        time.sleep(3)
        machine.kill()
        with pytest.raises(DeviceOffline):
            running.result(timeout=60)
    with pytest.raises((DeviceOffline, NoDevice)):
        machine.device.run(["true"], timeout_s=30)

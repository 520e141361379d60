"""This machine as a device: files by content, programs that fail, die, hang or are not there."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.device.device import DeviceCrashed, DeviceError, DeviceFull, DeviceTimeout
from benchmarks.device.host import HostDevice
from benchmarks.device.runtime import install_runtime


@pytest.fixture
def host() -> Iterator[HostDevice]:
    device = HostDevice()
    yield device
    device.close()


def test_a_folder_is_pushed_once_and_what_changed_again(host: HostDevice, tmp_path: Path) -> None:
    (tmp_path / "model" / "deep").mkdir(parents=True)
    (tmp_path / "model" / "a").write_bytes(b"12345")
    (tmp_path / "model" / "deep" / "b").write_bytes(b"123")
    there = f"{host.root}/model"
    assert host.push(tmp_path / "model", there) == 8
    assert host.push(tmp_path / "model", there) == 0
    (tmp_path / "model" / "a").write_bytes(b"54321")  # as long as it was
    assert host.push(tmp_path / "model", there) == 5
    assert (Path(there) / "a").read_bytes() == b"54321"


def test_a_file_goes_there_and_back(host: HostDevice, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\0\1")
    assert host.push(tmp_path / "x", f"{host.root}/new/folder/x") == 2
    host.pull(f"{host.root}/new/folder/x", tmp_path / "y")
    host.pull(f"{host.root}/new", tmp_path / "all")
    assert (tmp_path / "y").read_bytes() == (tmp_path / "all" / "folder" / "x").read_bytes() == b"\0\1"


def test_what_is_not_there_can_not_be_pulled(host: HostDevice, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="nothing to pull"):
        host.pull(f"{host.root}/none", tmp_path / "y")


def test_a_full_disk_leaves_what_was_there(host: HostDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_bytes(b"new")
    (Path(host.root) / "x").write_bytes(b"old")

    def full(*given: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("benchmarks.device.host.shutil.copyfileobj", full)
    with pytest.raises(DeviceFull):
        host.push(tmp_path / "x", f"{host.root}/x")
    assert [(path.name, path.read_bytes()) for path in Path(host.root).iterdir()] == [("x", b"old")]


class TestRun:
    def test_output_status_and_environment(self, host: HostDevice) -> None:
        code = "import os, sys; print(os.environ['WORD']); print('bad', file=sys.stderr); sys.exit(7)"
        ran = host.run([sys.executable, "-c", code], timeout_s=30, env={"WORD": "good"})
        assert (ran.returncode, ran.stdout.strip(), ran.stderr.strip()) == (7, "good", "bad")

    def test_a_program_that_is_not_there_is_a_status(self, host: HostDevice) -> None:
        ran = host.run(["dumpsys-is-not-here", "battery"], timeout_s=30)
        assert ran.returncode == 127
        assert "dumpsys-is-not-here" in ran.stderr

    def test_a_signal_is_an_error_with_its_name(self, host: HostDevice) -> None:
        with pytest.raises(DeviceCrashed, match="SIGSEGV"):
            host.run(["sh", "-c", "kill -SEGV $$"], timeout_s=30)

    def test_a_program_that_never_ends_is_ended(self, host: HostDevice) -> None:
        with pytest.raises(DeviceTimeout, match=r"0\.2 s"):
            host.run(["sleep", "60"], timeout_s=0.2)

    def test_bytes_that_are_no_text_do_not_end_it(self, host: HostDevice) -> None:
        assert "�" in host.run(["printf", r"\377"], timeout_s=30).stdout


def test_the_runtime_is_this_trees(host: HostDevice, repository: Path) -> None:
    ran = install_runtime(host).python(["-c", "import contract; print(contract.__file__)"], timeout_s=60)
    assert Path(ran.stdout.strip()) == repository / "contract" / "__init__.py"


def test_properties_are_those_of_any_device(host: HostDevice) -> None:
    found = host.properties()
    assert {"abi", "model", "kernel", "page_size", "memory_kb"} <= set(found)
    assert int(found["page_size"]) >= 4096
    assert host.logcat() == ""

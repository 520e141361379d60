"""What is built once: whole or not there, one builder at a time, and devices that were left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import kir
from benchmarks.device.cache import built, cache_root, place_of
from benchmarks.device.emulated import MachineConfig, command_of
from benchmarks.device.running import Running, running_devices, running_folder, start_time
from contract.errors import InputError


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KIR_CACHE", str(tmp_path / "cache"))


def test_a_recipe_is_built_once_and_another_one_beside_it() -> None:
    made: list[str] = []

    def make(folder: Path) -> None:
        made.append(folder.name)
        (folder / "file").write_text("whole")

    first = built("thing", {"version": 1}, make, made.append)
    assert built("thing", {"version": 1}, make, made.append) == first
    assert built("thing", {"version": 2}, make, made.append) != first
    assert (first / "file").read_text() == "whole"
    assert len(made) == 4  # two folders and two lines of the log


def test_a_build_that_fails_leaves_nothing() -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise OSError("no network")

    with pytest.raises(OSError, match="no network"):
        built("thing", {}, fail, lambda line: None)
    place = place_of("thing", {})
    assert [path.name for path in place.parent.iterdir() if "lock" not in path.name] == []


def test_the_cache_is_the_users_unless_another_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_root() == tmp_path / "cache"
    monkeypatch.delenv("KIR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "kir-edge"
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")  # then it is to be ignored, says its specification
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_root() == tmp_path / "home" / ".cache" / "kir-edge"


def test_a_cache_that_can_not_be_made_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KIR_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match=r"the cache can't be made.*KIR_CACHE="):
        cache_root()


def test_another_users_cache_is_read_and_not_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Root may write anywhere, so who may write is asked of the same function, told otherwise."""
    first = built("thing", {"version": 1}, lambda folder: None, lambda line: None)
    monkeypatch.setattr("benchmarks.device.cache.writable", lambda folder: False)
    monkeypatch.setattr("benchmarks.device.running.writable", lambda folder: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    assert built("thing", {"version": 1}, lambda folder: None, lambda line: None) == first
    with pytest.raises(InputError, match=r"is not built, and this cache can't be written.*kir device build"):
        built("thing", {"version": 2}, lambda folder: None, lambda line: None)
    assert running_folder() == tmp_path / "own" / "kir-edge" / f"running-{os.getuid()}"


def test_two_builders_make_it_once() -> None:
    made: list[int] = []

    def make(folder: Path) -> None:
        made.append(1)
        (folder / "file").touch()

    with ThreadPoolExecutor(4) as pool:
        places = list(pool.map(lambda _: built("thing", {}, make, lambda line: None), range(8)))
    assert len(set(places)) == 1
    assert len(made) == 1


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "600"], stdin=subprocess.DEVNULL)


def running(
    process: subprocess.Popen[bytes], started: str, name: str, *, serial: str = "127.0.0.1:1", kept: bool = True
) -> Running:
    folder = running_folder() / name
    folder.mkdir()
    made = Running(serial, 2, {process.pid: started}, 4096, 512, False, kept, str(folder))
    made.save()
    return made


def test_a_device_is_found_by_another_process_and_ended() -> None:
    process = sleeper()
    made = running(process, start_time(process.pid), "device-a")
    assert running_devices() == [made]
    made.end()
    assert process.wait(10) == -signal.SIGKILL
    assert running_devices() == []
    assert list(running_folder().iterdir()) == []


def test_stop_leaves_the_devices_of_other_processes(capsys: pytest.CaptureFixture[str]) -> None:
    ours, theirs = sleeper(), sleeper()
    try:
        running(ours, start_time(ours.pid), "device-a")
        running(theirs, start_time(theirs.pid), "device-b", serial="127.0.0.1:2", kept=False)
        assert kir.main(["device", "stop"]) == 0
        assert capsys.readouterr().out == "127.0.0.1:1  ended\n"
        assert ours.wait(10) == -signal.SIGKILL
        assert theirs.poll() is None
        assert kir.main(["device", "stop", "127.0.0.1:2"]) == 0  # by its name
        assert theirs.wait(10) == -signal.SIGKILL
    finally:
        for process in (ours, theirs):
            process.kill()
            process.wait()


def test_a_process_that_only_has_the_number_of_a_dead_one_is_left_alone() -> None:
    process = sleeper()
    try:
        running(process, "1", "device-a")  # another start time: the machine's own process ended long ago
        assert running_devices() == []
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


def test_a_child_dies_with_a_parent_that_is_killed() -> None:
    code = (
        "import subprocess, time, sys\n"
        "from benchmarks.device.running import dying_with_parent\n"
        "child = subprocess.Popen(dying_with_parent(['sleep', '600']))\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert start_time(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 20
    while start_time(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert start_time(child) == ""


def test_the_machine_reaches_nothing_and_writes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("benchmarks.device.emulated.tool", lambda name: f"/usr/bin/{name}")
    command = command_of(MachineConfig(icount=True), tmp_path, tmp_path, 1234, tmp_path)
    words = json.dumps(command)
    assert "restrict=on" in words
    assert "hostfwd=tcp:127.0.0.1:1234-:5555" in words
    assert "snapshot=on" in words
    assert command[command.index("-cpu") + 1] == "cortex-a76"
    assert command[command.index("-icount") + 1] == "shift=0,sleep=off,align=off"
    assert command[command.index("-smp") + 1] == "1"

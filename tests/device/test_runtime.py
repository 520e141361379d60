"""What is put on a device: the code's archive, and whom the runtime is for. And the commands that need no machine."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

import kir
from benchmarks.device import runtime_build
from benchmarks.device.device import DeviceError, Ran, WrongAbi
from benchmarks.device.driver import AdbDevice
from benchmarks.device.replayed import last_json
from benchmarks.device.runtime import install_runtime, pack_code
from tests.device.fake_adb import FakeAdb, Reply

PHONE = "R5CT123"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KIR_CACHE", str(tmp_path / "cache"))


def test_the_code_is_this_trees_and_named_by_its_content(tmp_path: Path) -> None:
    digest = pack_code(tmp_path / "one.tar.gz")
    assert pack_code(tmp_path / "two.tar.gz") == digest
    with tarfile.open(tmp_path / "one.tar.gz") as archive:
        names = archive.getnames()
    assert {"kir.py", "edge/_session.py", "contract/page.py", "contract/v1/page_pb2.py"} <= set(names)
    assert {name.partition("/")[0] for name in names} - {"__pycache__"} == {"kir.py", "edge", "contract"}
    assert any(name.endswith("_session.cpython-311.pyc") for name in names) == runtime_build.compiles_here()


def test_the_packages_are_the_plain_install_in_the_versions_here() -> None:
    names = {line.partition("==")[0] for line in runtime_build.pinned()}
    assert {"ai-edge-litert", "numpy", "grpcio", "protobuf", "tuf", "securesystemslib", "urllib3", "xxhash"} <= names
    assert not names & {"torch", "tensorflow", "pyarrow", "pytest", "adbutils"}


def test_a_device_of_another_processor_is_refused_before_anything_is_built() -> None:
    def shell(script: str) -> Reply:
        return (b"abi=x86_64\nmodel=an emulator\n" if "page_size" in script else b"\n"), b"", 0

    with FakeAdb({PHONE: "device"}, shell) as adb:
        device = AdbDevice(PHONE, adb.port)
        assert device.properties()["model"] == "an emulator"
        with pytest.raises(WrongAbi, match="x86_64"):
            install_runtime(device)


@pytest.mark.parametrize("ran", [Ran(1, '{"ok": 1}\n', "", 0.1), Ran(0, "words\n", "", 0.1), Ran(0, "", "trace", 0.1)])
def test_a_script_that_tells_nothing_has_failed(ran: Ran) -> None:
    with pytest.raises(DeviceError, match="a script on the device failed"):
        last_json(ran, PHONE)


def test_a_scripts_last_line_is_what_it_tells() -> None:
    assert last_json(Ran(0, 'words before\n{"ok": 1}\n', "", 0.1), PHONE) == {"ok": 1}


class TestCommands:
    def test_list_names_what_adb_has(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        with FakeAdb({PHONE: "unauthorized", "emulator-5554": "device"}) as adb:
            monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(adb.port))
            assert kir.main(["device", "list"]) == 0
        assert capsys.readouterr().out.splitlines() == [
            f"{PHONE}  unauthorized  device",
            "emulator-5554  device  android-emulator",
        ]

    def test_stop_without_any(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert kir.main(["device", "stop"]) == 0
        assert capsys.readouterr().out == "no emulated device runs that was started to be kept\n"
        assert kir.main(["device", "stop", "127.0.0.1:1"]) == 2
        assert "no emulated device of this serial runs; got 127.0.0.1:1" in capsys.readouterr().err

    def test_start_refuses_less_memory_than_a_boot_takes(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert kir.main(["device", "start", "--memory", "64"]) == 2
        assert "--memory is too small to boot; got 64; allowed: from 256 MiB" in capsys.readouterr().err

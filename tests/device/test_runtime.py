"""What is put on a device: the code's archive, and whom the runtime is for. And the commands that need no machine."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import kir
from benchmarks.device import debian, runtime_build
from benchmarks.device.device import DeviceError, Ran, WrongAbi
from benchmarks.device.driver import AdbDevice
from benchmarks.device.replayed import last_json
from benchmarks.device.runtime import install_runtime, pack_code
from contract.errors import InputError
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


def test_the_runtime_has_byte_code_in_the_place_of_sources(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text('"""Said once."""\n\nANSWER = 42\n')
    (tmp_path / "package" / "broken.py").write_text("def (\n")
    runtime_build.leave_byte_code(tmp_path)
    compiled = runtime_build.compiles_here()
    assert (tmp_path / "package" / "__init__.pyc").is_file() == compiled
    assert (tmp_path / "package" / "__init__.py").is_file() != compiled
    assert (tmp_path / "package" / "broken.py").is_file()  # what can't be compiled stays
    code = "import package; print(package.ANSWER, package.__doc__)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ran.stdout == f"42 {None if compiled else 'Said once.'}\n"


def test_what_no_edge_loads_is_left_out(tmp_path: Path) -> None:
    modules = "lib/python3.11/lib-dynload"
    kept = (
        "site/numpy/_core/a.so", "lib/python3.11/sqlite3/x.py", f"{modules}/_sqlite3.cpython-311.so",
        f"{modules}/_contextvars.cpython-311.so",
    )  # fmt: skip
    gone = (
        "site/securesystemslib/_vendor/ed25519/test_data/x", "site/numpy/tests/a.py", "site/numpy/a.pyi",
        "site/numpy/random/b.so", f"{modules}/_testcapi.cpython-311.so", f"{modules}/_codecs_jp.cpython-311.so",
        f"{modules}/xxlimited.cpython-311.so",
    )  # fmt: skip
    for name in (*kept, *gone):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    runtime_build._trim(tmp_path)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == set(kept)


def test_without_debians_keys_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(debian, "tool", lambda command: command)
    monkeypatch.setattr(debian, "KEYRING", tmp_path / "none.gpg")
    with pytest.raises(InputError, match=r"can't be verified.*debian-archive-keyring"):
        debian.extract_tree("bookworm", ["python3"], tmp_path / "tree")


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

"""What `pip install .` brings, what it leaves out, and that every pin has its reason."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

import kir

REPOSITORY = Path(__file__).resolve().parents[1]
PYPROJECT = (REPOSITORY / "pyproject.toml").read_text()
PROJECT = tomllib.loads(PYPROJECT)["project"]
ROOMS = ("contract", "training", "convert", "edge", "server_stub", "benchmarks")
EDGE = {"numpy", "ai-edge-litert", "grpcio", "protobuf", "xxhash", "urllib3", "tuf"}
EXTRAS = {"train", "convert", "server", "bench", "dev", "all"}


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=!~\[; ]", requirement, maxsplit=1)[0].lower() for requirement in requirements}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the tree: a build in place would pick up what an older one left in `build/`."""
    copy = tmp_path_factory.mktemp("tree")
    for room in (*ROOMS, "tests"):
        if (REPOSITORY / room).is_dir():
            shutil.copytree(REPOSITORY / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("kir.py", "setup.py", "pyproject.toml", "LICENSE", "README.md"):
        if (REPOSITORY / name).exists():
            shutil.copy(REPOSITORY / name, copy / name)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        ".",
        "--no-deps",
        "--no-build-isolation",
        "--quiet",
        "--wheel-dir",
        "out",
    ]
    result = subprocess.run(command, cwd=copy, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert result.returncode == 0, result.stderr
    (built,) = (copy / "out").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def files(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


class TestWheel:
    def test_nothing_but_the_rooms_and_kir_is_installed(self, files: set[str]) -> None:
        tops = {name.partition("/")[0] for name in files if ".dist-info/" not in name}
        assert tops == {"kir.py", *ROOMS}

    def test_every_module_of_the_tree_is_in_it(self, wheel: Path, files: set[str]) -> None:
        tree = wheel.parents[1]
        modules = [
            path for room in ROOMS for path in (tree / room).rglob("*.py") if (path.parent / "__init__.py").exists()
        ]
        assert len(modules) > len(ROOMS)
        assert {path.relative_to(tree).as_posix() for path in modules} - files == set()

    def test_every_recipe_template_and_proto_is_in_it(self, wheel: Path, files: set[str]) -> None:
        """Data beside the code is read at run time: recipes, presets, report pages."""
        tree = wheel.parents[1]
        endings = {".pyi", ".proto", ".yaml", ".json", ".html", ".j2", ".txt"}
        data = [path for room in ROOMS for path in (tree / room).rglob("*") if path.suffix in endings]
        packages = {room for room in ROOMS if (tree / room / "__init__.py").exists()}
        wanted = {path.relative_to(tree).as_posix() for path in data if path.relative_to(tree).parts[0] in packages}
        assert wanted - files == set()

    def test_no_data_of_another_kind_lies_in_a_room(self, wheel: Path) -> None:
        """A file whose ending package-data does not name would work in the tree and be absent from an install."""
        tree = wheel.parents[1]
        known = {".py", ".pyi", ".typed", ".proto", ".yaml", ".json", ".html", ".j2", ".txt"}
        odd = [
            path for room in ROOMS for path in (tree / room).rglob("*") if path.is_file() and path.suffix not in known
        ]
        assert [path.relative_to(tree).as_posix() for path in odd] == []

    @pytest.mark.parametrize("room", ROOMS)
    def test_types_are_declared(self, files: set[str], room: str) -> None:
        assert f"{room}/py.typed" in files

    def test_protos_and_stubs_travel(self, files: set[str]) -> None:
        assert {"contract/proto/kir/v1/page.proto", "contract/v1/page_pb2.pyi", "contract/v1/page_pb2_grpc.py"} <= files

    def test_licence_travels(self, files: set[str], metadata: Message) -> None:
        assert any(name.endswith("licenses/LICENSE") for name in files)
        assert metadata["License-Expression"] == "Apache-2.0"

    def test_console_script(self, wheel: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith("/entry_points.txt"))
            assert "kir = kir:main" in archive.read(name).decode()

    def test_a_plain_install_is_the_edge(self, metadata: Message) -> None:
        plain = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
        assert names(plain) == EDGE

    def test_name_version_python(self, metadata: Message) -> None:
        assert (metadata["Name"], metadata["Version"], metadata["Requires-Python"]) == (
            "kir-edge",
            kir.__version__,
            ">=3.11",
        )
        assert set(metadata.get_all("Provides-Extra", [])) == EXTRAS


class TestExtras:
    def test_extras_by_role(self) -> None:
        assert set(PROJECT["optional-dependencies"]) == EXTRAS

    def test_all_is_the_sum(self) -> None:
        (line,) = PROJECT["optional-dependencies"]["all"]
        assert set(line.removeprefix("kir-edge[").removesuffix("]").split(",")) == EXTRAS - {"all"}

    def test_convert_stands_on_train(self) -> None:
        assert "kir-edge[train]" in PROJECT["optional-dependencies"]["convert"]

    @pytest.mark.parametrize("extra", ["server", "bench", "dev"])
    def test_only_train_and_convert_bring_a_framework(self, extra: str) -> None:
        assert names(PROJECT["optional-dependencies"][extra]) & {"torch", "tensorflow", "tf-keras", "kir-edge"} == set()

    def test_onnx2tf_is_named_by_no_extra_and_installed_by_make(self) -> None:
        named = {name for extra in PROJECT["optional-dependencies"].values() for name in names(extra)}
        assert "onnx2tf" not in named
        makefile = (REPOSITORY / "Makefile").read_text()
        assert "--no-deps --ignore-requires-python onnx2tf==2.6.9" in makefile

    def test_bounds_of_a_package_are_the_same_in_every_extra_that_ranges_it(self) -> None:
        ranges: dict[str, set[str]] = {}
        for extra in PROJECT["optional-dependencies"].values():
            for requirement in extra:
                if ">=" in requirement:
                    (name,) = names([requirement])
                    ranges.setdefault(name, set()).add(requirement)
        assert {name: sorted(found) for name, found in ranges.items() if len(found) > 1} == {}


def test_a_reason_stands_beside_every_pin() -> None:
    pins = [line for line in PYPROJECT.splitlines() if re.match(r'\s*"[A-Za-z0-9_.-]+[<>=!~]', line)]
    pins += [line for line in PYPROJECT.splitlines() if re.match(r"requires(-python)? =", line)]
    count = sum(len(extra) for extra in PROJECT["optional-dependencies"].values()) + len(EDGE)
    # Every requirement has a line of its own; the two on kir-edge itself make up for the two `requires`.
    assert len(pins) >= count
    assert [line.strip() for line in pins if len(line.partition("#")[2].strip()) < 10] == []


def test_the_version_stands_in_one_place() -> None:
    assert PROJECT["dynamic"] == ["version"]
    assert "version" not in PROJECT
    assert 'version = { attr = "kir.__version__" }' in PYPROJECT


def test_the_changelog_knows_the_version() -> None:
    changelog = (REPOSITORY / "CHANGELOG.md").read_text()
    assert "## [Unreleased]" in changelog
    assert re.search(rf"^## \[{re.escape(kir.__version__)}\]", changelog, re.MULTILINE)


def test_setup_py_is_thin() -> None:
    lines = [line for line in (REPOSITORY / "setup.py").read_text().splitlines() if line and not line.startswith('"""')]
    assert lines == ["from setuptools import setup", "setup()"]


def test_licence_text_is_whole() -> None:
    text = (REPOSITORY / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


@pytest.mark.parametrize("verb", ["venv", "install", "test", "test-slow", "device", "demo", "lint", "proto"])
def test_make_has_the_verb(verb: str) -> None:
    assert re.search(rf"^{verb}:", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)


def test_ci_calls_the_same_verbs_as_a_person() -> None:
    script = REPOSITORY / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    lines = script.read_text().splitlines()
    assert [line for line in lines if line.startswith("make ")] == [
        "make install",
        "make lint",
        "make test",
        "make device",
        "make test-slow",
    ]
    assert "set -euo pipefail" in lines

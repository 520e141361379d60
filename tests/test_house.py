"""Who may import whom, held by reading the source. CONTRIBUTING.md says the rules, and why.

An import counts wherever it stands: at the top, inside a function (late), or under `if TYPE_CHECKING`.
"""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

# Room -> rooms it may import; None = all: contract and edge (the plain install) at the top, the others late.
MAY_IMPORT: dict[str, set[str] | None] = {
    "contract": set(),
    "training": {"contract"},
    "convert": {"contract", "training"},
    "edge": {"contract"},
    "server_stub": {"contract"},
    "benchmarks": None,
}
# Room -> packages it may import at all, late or not: those of the plain install.
ONLY_PACKAGES = {
    "contract": {"numpy", "google", "grpc", "xxhash"},
    "edge": {"numpy", "google", "grpc", "xxhash", "ai_edge_litert", "urllib3", "tuf"},
}
# Room -> the extra that must bring every package it imports; "" = the plain install.
EXTRA_OF = {
    "contract": "train",
    "training": "train",
    "convert": "convert",
    "edge": "",
    "server_stub": "server",
    "benchmarks": "all",
}
# The exceptions: the Parquet readers and writers (events; catalogue and users), which the edge never imports.
LATE_EXCEPTIONS = {"contract/parquet.py": {"pyarrow"}, "contract/catalogue.py": {"pyarrow"}}
# Packages that one file imports late and that stand in no extra, because pip can't resolve them: an environment file.
ENVIRONMENTS = {"training/tables_torchrec.py": "training/requirements-torchrec.txt"}
HEAVY = {"torch", "tensorflow", "tf_keras", "tensorflow_model_optimization", "onnx2tf", "ai_edge_quantizer"}
LONGEST_FILE_LINES = 500
IMPORTING_CALLS = ("importlib.import_module", "import_module", "__import__")


@dataclass(frozen=True)
class Import:
    """An import: its absolute name, and if it runs at once ("top"), in a function ("late") or never ("typing")."""

    module: str
    when: str
    where: str

    @property
    def top_level(self) -> str:
        return self.module.partition(".")[0]

    def __str__(self) -> str:
        return f"{self.where} imports {self.module} ({self.when})"


def is_generated(path: Path) -> bool:
    return "_pb2" in path.name


def sources(root: Path) -> list[Path]:
    """Python files of a room, or the one file."""
    return [root] if root.is_file() else sorted(path for path in root.rglob("*.py") if "__pycache__" not in path.parts)


def imports_of(path: Path, repository: Path = REPOSITORY) -> list[Import]:
    """Every import in a file, relative ones made absolute, `importlib.import_module("name")` included."""
    relative = path.relative_to(repository)
    package = list(relative.parts[:-1])
    found: list[Import] = []

    def visit(node: ast.AST, when: str) -> None:
        for module in modules_named(node, package):
            found.append(Import(module, when, f"{relative.as_posix()}:{getattr(node, 'lineno', 0)}"))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            when = "late" if when == "top" else when
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                visit(child, "typing")
            for child in node.orelse:
                visit(child, when)
            return
        for child in ast.iter_child_nodes(node):
            visit(child, when)

    visit(ast.parse(path.read_text(), str(path)), "top")
    return found


def modules_named(node: ast.AST, package: list[str]) -> Iterator[str]:
    """Absolute names of the modules that one syntax node imports."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = package[: len(package) - node.level + 1] if node.level else []
        yield ".".join([*base, *([node.module] if node.module else [])])
    elif isinstance(node, ast.Call) and ast.unparse(node.func) in IMPORTING_CALLS:
        name = node.args[0] if node.args else None
        if isinstance(name, ast.Constant) and isinstance(name.value, str):
            yield name.value


def present_rooms() -> list[str]:
    return [room for room in MAY_IMPORT if (REPOSITORY / room / "__init__.py").exists()]


def imports_of_room(room: str) -> list[Import]:
    return [found for path in sources(REPOSITORY / room) for found in imports_of(path)]


def test_the_rooms_are_those_of_the_architecture() -> None:
    folders = {path.parent.name for path in REPOSITORY.glob("*/__init__.py")} - {"tests"}
    assert folders == set(MAY_IMPORT)


@pytest.mark.parametrize("room", present_rooms())
def test_a_room_imports_only_the_rooms_below_it(room: str) -> None:
    allowed = MAY_IMPORT[room]
    others = set(MAY_IMPORT) - {room}
    if allowed is None:
        wrong = [i for i in imports_of_room(room) if i.top_level in others - {"contract", "edge"} and i.when == "top"]
    else:
        wrong = [i for i in imports_of_room(room) if i.top_level in others - allowed]
    assert [str(i) for i in wrong] == []


@pytest.mark.parametrize("room", [room for room in present_rooms() if room in ONLY_PACKAGES])
def test_contract_and_edge_need_the_plain_install_only(room: str) -> None:
    allowed = ONLY_PACKAGES[room] | set(MAY_IMPORT) | sys.stdlib_module_names | {"__future__"}
    wrong = []
    for found in imports_of_room(room):
        exceptions = LATE_EXCEPTIONS.get(found.where.rpartition(":")[0], set())
        excused = found.top_level in exceptions and found.when != "top"
        if found.top_level not in allowed and not excused:
            wrong.append(str(found))
    assert wrong == []


def declared_distributions(extra: str) -> set[str]:
    """What `pip install kir-edge[extra]` names, extras within extras followed; what
    `kir convert setup` installs goes with `convert`."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    found: set[str] = set()
    waiting = list(project["dependencies"]) + ([f"kir-edge[{extra}]"] if extra else [])
    while waiting:
        requirement = waiting.pop()
        within = re.fullmatch(r"kir-edge\[(.*)\]", requirement)
        for name in within.group(1).split(",") if within else ():
            waiting += project["optional-dependencies"][name]
            found |= {"onnx2tf", "litert-torch"} if name == "convert" else set()
        if not within:
            found.add(re.split(r"[<>=!~]", requirement, maxsplit=1)[0])
    return found


def environment_of(found: Import) -> set[str]:
    """Import names that the environment file of the importing file pins: fbgemm-gpu-cpu is imported as fbgemm_gpu."""
    name = ENVIRONMENTS.get(found.where.rpartition(":")[0])
    lines = (REPOSITORY / name).read_text().splitlines() if name else []
    pinned = [line.partition("==")[0] for line in lines if "==" in line and not line.startswith("#")]
    return {pin.removesuffix("-cpu").replace("-", "_") for pin in pinned}


@pytest.mark.parametrize("room", present_rooms())
def test_every_package_a_room_imports_is_declared(room: str) -> None:
    """What is only there because something else brought it may be gone tomorrow."""
    declared = declared_distributions(EXTRA_OF[room])
    installed = importlib.metadata.packages_distributions()
    wrong = []
    for found in imports_of_room(room):
        if found.top_level in sys.stdlib_module_names or found.top_level in MAY_IMPORT or found.when == "typing":
            continue
        if found.when != "top" and found.top_level in environment_of(found):
            continue
        distributions = {name.lower().replace("_", "-") for name in installed.get(found.top_level, [found.top_level])}
        if not distributions & declared and not found.where.startswith("contract/proto/"):
            wrong.append(f"{found}: '{sorted(distributions)}' is not in the extra '{EXTRA_OF[room]}'")
    assert wrong == []


def test_grpc_enters_the_contract_only_in_generated_code() -> None:
    wrong = [
        str(i)
        for p in sources(REPOSITORY / "contract")
        if not is_generated(p)
        for i in imports_of(p)
        if i.top_level == "grpc"
    ]
    assert wrong == []


def test_the_edge_never_reads_parquet() -> None:
    assert [str(i) for i in imports_of_room("edge") if i.module == "contract.parquet"] == []


def test_the_server_never_loads_a_training_framework() -> None:
    assert [str(i) for i in imports_of_room("server_stub") if i.top_level in HEAVY] == []


def test_kir_imports_rooms_late() -> None:
    rooms = set(MAY_IMPORT) - {"contract"}
    assert [str(i) for i in imports_of(REPOSITORY / "kir.py") if i.top_level in rooms and i.when == "top"] == []


@pytest.mark.parametrize("room", [*present_rooms(), "kir.py"])
def test_no_source_imports_tests_or_the_command_line(room: str) -> None:
    assert [str(i) for i in imports_of_room(room) if i.top_level in {"tests", "kir", "pytest", "hypothesis"}] == []


@pytest.mark.parametrize("room", [*present_rooms(), "kir.py"])
def test_a_file_fits_a_sitting(room: str) -> None:
    files = [path for path in sources(REPOSITORY / room) if not is_generated(path)]
    lengths = {path.relative_to(REPOSITORY).as_posix(): len(path.read_text().splitlines()) for path in files}
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_FILE_LINES} == {}


@pytest.mark.parametrize("room", [room for room in ("contract", "edge") if room in present_rooms()])
def test_contract_and_edge_import_without_the_heavy_packages(room: str) -> None:
    """Every module of the room, in a process where torch, TensorFlow, pyarrow and their company can't be imported."""
    modules = [
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
        for path in sources(REPOSITORY / room)
        if path.parent.joinpath("__init__.py").exists() and path.name != "__main__.py"
    ]
    blocked = sorted(HEAVY | {"pyarrow", "onnx", "onnxruntime", "faiss", "grpc_tools", "safetensors", "rich", "scipy"})
    code = f"""
        import importlib, sys
        sys.modules.update(dict.fromkeys({blocked!r}))
        for name in {modules!r}:
            importlib.import_module(name)
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert result.returncode == 0, result.stderr


class TestReadingImports:
    """The reader itself, on a file with every way to import."""

    SOURCE = """
        import os, torch.nn as nn
        from . import sibling
        from .deep import thing
        from ..contract import keys
        from typing import TYPE_CHECKING
        if TYPE_CHECKING:
            import pyarrow
        else:
            import json
        class Holder:
            import xxhash
            async def method(self):
                from training.model import Net
        late = lambda: importlib.import_module("convert.cli")
        name = "edge"
        importlib.import_module(name)
    """

    @pytest.fixture
    def found(self, tmp_path: Path) -> dict[str, str]:
        path = tmp_path / "edge" / "part.py"
        path.parent.mkdir()
        path.write_text(textwrap.dedent(self.SOURCE))
        return {found.module: found.when for found in imports_of(path, tmp_path)}

    def test_plain_imports_run_at_once(self, found: dict[str, str]) -> None:
        assert found["os"] == found["torch.nn"] == found["json"] == found["xxhash"] == "top"

    def test_relative_imports_become_absolute(self, found: dict[str, str]) -> None:
        assert found["edge"] == found["edge.deep"] == found["contract"] == "top"

    def test_imports_in_functions_are_late(self, found: dict[str, str]) -> None:
        assert found["training.model"] == "late"
        assert found["convert.cli"] == "late"

    def test_imports_for_types_never_run(self, found: dict[str, str]) -> None:
        assert found["pyarrow"] == "typing"

    def test_names_it_can_not_know_are_left_out(self, found: dict[str, str]) -> None:
        assert len(found) == 11

"""`pip install .` is the edge: in an environment with nothing else, a published model replays its golden cases."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.e2e.conftest import SmallLoop

PROBE = """
import importlib.util, json, sys
import edge
names = ("torch", "tensorflow", "pyarrow", "onnx", "onnxruntime", "cryptography")
absent = [n for n in names if importlib.util.find_spec(n) is None]
print(json.dumps({"absent": absent, "tests": importlib.util.find_spec("tests") is not None, "edge": edge.__file__}))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_plain_install_is_the_edge_and_replays_goldens(
    small_loop: SmallLoop, tmp_path: Path, repository: Path
) -> None:
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"

    def run(*arguments: str) -> str:
        done = subprocess.run([str(python), *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(repository))
    found = json.loads(run("-c", PROBE))
    assert found["absent"] == ["torch", "tensorflow", "pyarrow", "onnx", "onnxruntime", "cryptography"]
    assert not found["tests"]
    assert found["edge"].startswith(str(environment))
    run("-m", "pip", "check")
    assert "kir" in run("-m", "kir", "--version")
    report = tmp_path / "replay.json"
    root = str(small_loop.paths.root_json)
    run("-m", "kir", "replay", "--cdn", str(small_loop.paths.cdn), "--root", root, "--json", str(report))
    assert json.loads(report.read_text())["ok"] is True
    n_bytes = sum(path.stat().st_size for path in environment.rglob("*") if path.is_file())
    print(f"edge install: {n_bytes / 1e6:.0f} MB with pip", file=sys.stderr)

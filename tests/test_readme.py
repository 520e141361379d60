"""The README's commands are run as they stand there, in order, in an empty folder; its Python is checked by name."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import edge
import kir

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)


def commands() -> list[list[str]]:
    """Every `kir …` line of the README's shell blocks, as words."""
    lines = [line for kind, text in BLOCKS if kind == "bash" for line in text.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("kir ")]


def run(words: list[str], folder: Path, timeout_s: float = 240) -> str:
    environment = {**os.environ, "PYTHONPATH": str(Path(kir.__file__).parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "kir", *words]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert done.returncode == 0, f"kir {' '.join(words)}\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}"
    return done.stdout


def test_every_command_is_shown() -> None:
    shown = {words[0] for words in commands()} | {"demo", "device"}
    assert "make demo" in README
    assert "`kir device start`" in README  # boots a machine: tests/device does
    assert shown == set(kir.COMMANDS)


def test_links_lead_somewhere(repository: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    assert [link for link in links if not link.startswith("http") and not (repository / link).exists()] == []


def test_the_python_example_uses_public_names_only() -> None:
    (source,) = [text for kind, text in BLOCKS if kind == "python"]
    compile(source, "README.md", "exec")
    imported = re.search(r"from edge import (.+)", source)
    assert imported is not None
    assert set(imported.group(1).split(", ")) <= set(edge.__all__)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_loop_by_hand_runs_as_written(tmp_path: Path) -> None:
    """All but `bench closed-loop`, which needs a whole demo (tests/e2e/test_demo.py); serve and swipe on free ports."""
    steps = commands()
    assert steps[-1][:2] == ["bench", "closed-loop"]
    for words in steps[:-1]:
        if words[0] == "serve":
            _serve_and_swipe(words, steps[steps.index(words) + 1], tmp_path)
        elif words[0] != "swipe":
            run(words, tmp_path)
    assert list((tmp_path / "runs" / "feedback").glob("*.parquet"))


def _serve_and_swipe(serve: list[str], swipe: list[str], folder: Path) -> None:
    ready = folder / "ready.json"
    free = [word if word not in ("50051", "8080") else "0" for word in serve]
    environment = {**os.environ, "PYTHONPATH": str(Path(kir.__file__).parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "kir", *free, "--ready-file", str(ready)]
    with subprocess.Popen(command, cwd=folder, env=environment) as server:
        try:
            deadline = time.monotonic() + 60
            while not ready.exists():
                assert server.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            told = json.loads(ready.read_text())
            ports = {"50051": str(told["grpc_port"]), "8080": str(told["http_port"])}
            words = [re.sub(r":(50051|8080)$", lambda found: f":{ports[found.group(1)]}", word) for word in swipe]
            summary = json.loads(run(words, folder).splitlines()[-1])
            assert summary["by_model"] == summary["swipes"] == 20
        finally:
            server.send_signal(signal.SIGTERM)
    assert server.returncode == 0

"""docs/training.md: its commands run as written, its Python names what there is."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from training import distributed, table_shards, tables_torchrec, train_config, trainer
from training.autosave import Autosave
from training.checkpoint import load_checkpoint
from training.tables_torchrec import REQUIREMENTS

REPOSITORY = Path(__file__).parents[2]
TEXT = (REPOSITORY / "docs" / "training.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL)
MODULES = {"kir": ["kir"], "torchrun": ["torch.distributed.run"]}


def commands() -> list[list[str]]:
    lines = [line for kind, text in BLOCKS if kind == "bash" for line in text.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def test_settings_named_are_settings_there_are():
    fields = set(train_config.TrainConfig.__dataclass_fields__)
    named = re.findall(r"^\| `(\w+)", TEXT, re.MULTILINE) + re.findall(r"--set train\.(\w+)=", TEXT)
    assert {"precision", "ema_decay", "table_optimizer"} <= set(named) <= fields


def test_the_requirements_file_is_the_one_that_is_tested():
    (pip,) = [words for words in commands() if words[0] == "pip"]
    assert pip[:4] == ["pip", "install", "--no-deps", "-r"]
    assert (REPOSITORY / pip[4]).samefile(REQUIREMENTS)


def test_python_examples_name_what_there_is():
    sources = [text for kind, text in BLOCKS if kind == "python"]
    assert len(sources) == 2
    known = {name for module in (trainer, distributed, table_shards, tables_torchrec) for name in vars(module)}
    known |= {"Autosave", "save_checkpoint"}
    for source in sources:
        called = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
        names = {f.id for f in called if isinstance(f, ast.Name)}
        assert {name for name in names if name[0].isupper()} <= known, names
        owners = {"saver": Autosave, "trainer": trainer.Trainer, "tables": tables_torchrec.ShardedTables}
        for function in called:
            owner, _, method = ast.unparse(function).partition(".")
            if owner in owners:
                assert hasattr(owners[owner], method), ast.unparse(function)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_commands_run_as_written(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    for words in commands():
        if words[0] == "pip":
            continue  # tests/training/test_tables_torchrec.py installs that file
        command = [sys.executable, "-m", *MODULES[words[0]], *words[1:]]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=250)
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stderr[-2000:]}"
    for name in ("long", "two"):
        result = load_checkpoint(tmp_path / "runs" / name).config["training"]["result"]
        assert result["epochs"] == 3, name
    assert list((tmp_path / "runs").glob(".*.autosave")) == []

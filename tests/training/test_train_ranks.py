"""`kir train kuaiformer` under torchrun: two processes write the checkpoint that one writes; stopped, they go on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

REPOSITORY = Path(__file__).parents[2]
# Dropout off: each rank draws its own, so only the expected gradient would be that of one process.
WORDS = [
    *("train", "kuaiformer", "--data", "sim:users=60,items=400,days=3", "--epochs", "3"),
    *("--set", "data.key_dropout=0", "--set", "model.dropout=0", "--set", "data.batch=96"),
]
CANDIDATES = {"full": 1e-5, "in-batch": 1e-5, "sampled": 1e-5}


def kir(out: Path, ranks: int, *words: str) -> str:
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"] if ranks else []
    command = [sys.executable, "-m", *launcher, "kir", *WORDS, "--out", str(out), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def differences(one: Path, other: Path) -> dict[str, float]:
    found = {}
    for file in ("model", "tables"):
        ours, theirs = load_file(one / f"{file}.safetensors"), load_file(other / f"{file}.safetensors")
        assert ours.keys() == theirs.keys()
        for name in ours:
            found[name] = float(np.abs(ours[name].astype(np.float64) - theirs[name].astype(np.float64)).max())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("candidates", list(CANDIDATES))
def test_two_ranks_write_what_one_process_writes(tmp_path, candidates):
    words = ["--set", f"loss.candidates={candidates}", "--set", "loss.negatives=64"]
    assert "saved to" in kir(tmp_path / "one", 0, *words)
    printed = kir(tmp_path / "two", 2, *words)
    assert printed.count("saved to") == 1
    different = differences(tmp_path / "one", tmp_path / "two")
    assert max(different.values()) < CANDIDATES[candidates], max(different, key=different.get)
    results = [
        json.loads((tmp_path / name / "config.json").read_text())["training"]["result"] for name in ("one", "two")
    ]
    assert results[0]["steps"] == results[1]["steps"] > 20
    assert results[1]["losses"] == pytest.approx(results[0]["losses"], abs=2e-5)
    lines = [json.loads(line) for line in (tmp_path / "two" / "train_log.jsonl").read_text().splitlines()]
    assert len({line["step"] for line in lines}) == len(lines), "one rank writes the log"
    assert [path.name for path in tmp_path.iterdir() if "autosave" in path.name] == []


@pytest.mark.slow
def test_two_ranks_stop_and_go_on(tmp_path):
    words = ["--set", "data.key_dropout=0.1"]
    kir(tmp_path / "whole", 2, *words)
    kir(tmp_path / "parts", 2, *words, "--steps", "11")
    assert (tmp_path / ".parts.autosave").is_dir()
    kir(tmp_path / "parts", 2, *words, "--resume", "--overwrite")
    assert not (tmp_path / ".parts.autosave").exists()
    assert max(differences(tmp_path / "whole", tmp_path / "parts").values()) == 0

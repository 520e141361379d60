"""`kir train kuaiformer` under torchrun: two processes write the checkpoint that one writes; stopped, they go on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

REPOSITORY = Path(__file__).parents[2]
# Dropout off: each rank draws its own, so only the expected gradient would be that of one process.
WORDS = [
    *("train", "kuaiformer", "--data", "sim:users=60,items=400,days=3", "--epochs", "3"),
    *("--set", "data.key_dropout=0", "--set", "model.dropout=0", "--set", "data.batch=96"),
]


def kir(out: Path, ranks: int, *words: str) -> str:
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"] if ranks else []
    command = [sys.executable, "-m", *launcher, "kir", *WORDS, "--out", str(out), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def weights(checkpoint: Path) -> dict[str, NDArray[np.float64]]:
    """Dense weights and rows (keys too: they must be the same)."""
    files = (load_file(checkpoint / f"{name}.safetensors") for name in ("model", "tables"))
    return {name: array.astype(np.float64) for arrays in files for name, array in arrays.items()}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> dict[str, tuple[Path, Path, str]]:
    """By candidates: the checkpoint of one process, that of two ranks, and what the two printed."""
    found = {}
    for candidates in ("in-batch", "sampled"):
        out = tmp_path_factory.mktemp(candidates)
        words = ["--set", f"loss.candidates={candidates}", "--set", "loss.negatives=64"]
        assert "saved to" in kir(out / "one", 0, *words)
        found[candidates] = (out / "one", out / "two", kir(out / "two", 2, *words))
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)  # six launches in all, each of which imports torch twice or more
@pytest.mark.parametrize("candidates", ["in-batch", "sampled"])
def test_two_ranks_write_what_one_process_writes(pairs, candidates):
    first, second, printed = pairs[candidates]
    assert printed.count("saved to") == 1
    one, two = weights(first), weights(second)
    assert one.keys() == two.keys()
    for name in one:
        apart = np.abs(one[name] - two[name])
        # Not max: where a gradient is rounding alone, Adagrad divides it by itself and steps as far as elsewhere.
        assert np.linalg.norm(apart) < 5e-5 * np.linalg.norm(one[name]), name
        assert (apart > 1e-5).mean() < 0.05, name
    results = [json.loads((path / "config.json").read_text())["training"]["result"] for path in (first, second)]
    assert results[0]["steps"] == results[1]["steps"] > 20
    assert results[1]["losses"] == pytest.approx(results[0]["losses"], abs=2e-5)
    lines = [json.loads(line) for line in (second / "train_log.jsonl").read_text().splitlines()]
    assert len({line["step"] for line in lines}) == len(lines), "one rank writes the log"
    assert [path.name for path in second.parent.iterdir() if "autosave" in path.name] == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_ranks_stop_and_go_on(pairs, tmp_path):
    words = ["--set", "loss.candidates=in-batch", "--set", "loss.negatives=64"]
    kir(tmp_path / "parts", 2, *words, "--steps", "11")
    assert (tmp_path / ".parts.autosave").is_dir()
    kir(tmp_path / "parts", 2, *words, "--resume", "--overwrite")
    assert not (tmp_path / ".parts.autosave").exists()
    whole, parts = weights(pairs["in-batch"][1]), weights(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    for name in whole:
        assert np.array_equal(whole[name], parts[name]), name

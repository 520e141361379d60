"""The loss benchmark: what it counts, what it refuses, and that a wrong loss is not timed. No assertion on time."""

from __future__ import annotations

import json

import pytest
import torch

import training.losses
from benchmarks import loss_speed
from benchmarks.loss_speed import OURS, OURS_BF16, PLAIN, TORCH, Way, measure_loss
from contract.errors import InputError, VerificationFailed
from kir import main


@pytest.mark.slow
def test_every_way_is_checked_and_timed():
    result, table = measure_loss(targets=70, candidates=50, width=8, queries=(1, 3), rounds=2)
    assert set(result["queries"]) == {"1", "3"}
    one, three = result["queries"]["1"]["ways"], result["queries"]["3"]["ways"]
    assert {PLAIN, OURS, OURS_BF16} < set(one)
    assert TORCH not in three  # it has no maximum over queries
    assert (TORCH in one) == hasattr(torch.nn.functional, "linear_cross_entropy")
    assert one[PLAIN]["times_plain"] == 1
    assert one[PLAIN]["error"] == 0
    assert all(row["error"] < 2e-2 and row["wall_ms"] > 0 for row in (one | three).values())
    assert result["queries"]["3"]["gflop"] == pytest.approx(3 * 2 * 70 * 3 * 50 * 8 / 1e9)
    assert all(name in table for name in one)


def test_figures_are_medians_of_ratios():
    ways = [Way(PLAIN, lambda: None), Way(OURS, lambda: None)]
    ways[0].cpu_s, ways[0].wall_s = [4.0, 2.0, 9.0], [4.0, 4.0, 4.0]
    ways[1].cpu_s, ways[1].wall_s = [2.0, 2.0, 1.0], [1.0, 2.0, 3.0]
    rates = {"float32": [10.0, 10.0, 20.0], "bfloat16": [1.0, 1.0, 1.0]}
    figures = loss_speed._figures(ways, rates, {PLAIN: 0.0, OURS: 0.0}, gflop=10.0, targets=100)["ways"][OURS]
    assert figures["times_plain"] == 2.0  # of 2, 1 and 9
    assert figures["targets_per_s"] == 50.0
    assert figures["share_of_peak"] == 0.5
    assert figures["least_cpu_ms"] == 1000.0


def test_a_wrong_loss_is_not_timed(monkeypatch):
    right = training.losses.candidate_softmax
    monkeypatch.setattr(training.losses, "candidate_softmax", lambda *a, **options: 1.01 * right(*a, **options))
    with pytest.raises(VerificationFailed, match="cross entropy"):
        measure_loss(targets=20, candidates=10, width=4, queries=(1,), rounds=1)


def test_sizes_start_at_1():
    with pytest.raises(InputError, match="start at 1"):
        measure_loss(targets=0)


@pytest.mark.slow
def test_the_command_prints_a_table_and_fills_a_file(capsys, tmp_path):
    path = tmp_path / "loss.json"
    sizes = ["--targets", "40", "--candidates", "30", "--width", "4", "--queries", "1", "2", "--rounds", "1"]
    assert main(["bench", "loss", *sizes, "--json", str(path)]) == 0
    assert "candidates" in capsys.readouterr().out.splitlines()[0]
    assert json.loads(path.read_text())["queries"]["2"]["ways"][OURS]["targets_per_s"] > 0

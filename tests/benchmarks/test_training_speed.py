"""The training bench: what it counts is what a step does, and what it tells adds up."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import training_speed
from benchmarks.training_speed import measure_training
from contract.errors import InputError
from training.recipe import Recipe
from training.table_optimizers import TABLE_OPTIMIZERS

DATA = "sim:users=20,items=200,days=2"
RECIPE = Recipe.from_dict(
    {"data": {"batch": 64}, "model": {"windows": [8], "latest": 8}, "loss": {"candidates": "full"}}
)


@pytest.fixture(scope="module")
def measured() -> tuple[dict, str]:
    return measure_training(RECIPE, DATA, rounds=2, steps=2, rows=5000, command="kir bench training")


@pytest.mark.slow
def test_the_result_is_json_and_adds_up(measured):
    result = json.loads(json.dumps(measured[0]))
    assert set(result["steps"]) == {"float32", "bfloat16"}
    for row in result["steps"].values():
        seconds = row["cpu_ms"]["p50"] / 1e3
        assert row["targets_per_cpu_s"] == pytest.approx(result["targets_per_step"] / seconds)
        assert row["gflops"] == pytest.approx(result["gflop_per_step"] / seconds)
        if row["share_of_gemm"] is not None:
            assert row["share_of_gemm"] == pytest.approx(row["gflops"] / row["gemm_gflops"])
    assert result["steps"]["float32"]["share_of_gemm"] is not None
    assert (result["steps"]["bfloat16"]["share_of_gemm"] is not None) == result["bfloat16_in_hardware"]
    assert result["command"] == "kir bench training"
    assert set(result["table_optimizers_ms"]) == set(TABLE_OPTIMIZERS)
    assert result["autosave"]["megabytes"] > 0.1
    assert result["bfloat16_over_float32"]["p25"] <= result["bfloat16_over_float32"]["p75"]


@pytest.mark.slow
def test_the_table_names_precisions_and_optimisers(measured):
    for word in ("float32", "bfloat16", "of square GEMM", "a save:", *TABLE_OPTIMIZERS):
        assert word in measured[1]


@pytest.mark.slow
def test_flops_hold_at_least_what_the_softmax_must_do(measured):
    """Scores, and the gradients of both their sides: 3 products of [T, K · D] x [N, D] at the very least."""
    result = measured[0]
    config = RECIPE.config()
    scores = 3 * 2 * result["targets_per_step"] * config.interests * config.width * 200
    assert scores < 1e9 * result["gflop_per_step"] < 1000 * scores


def test_emulated_products_are_no_rate_to_take_a_share_of():
    """Most of a step stays in float32, which outruns them: 216 % of a "peak" has been printed."""
    seconds, rate = [2.0, 2.0], [0.9e9]
    assert training_speed._told(seconds, rate, 4e9, 10)["share_of_gemm"] == pytest.approx(4 / 2 / 0.9)
    emulated = training_speed._told(seconds, rate, 4e9, 10, training_speed.EMULATED)
    assert emulated["share_of_gemm"] is None
    assert emulated["no_share"].startswith("this machine has no bfloat16 in hardware")
    result = {
        "threads": 1, "targets_per_step": 10, "gflop_per_step": 4.0, "recipe": {"preset": "tiny"},
        "steps": {"float32": training_speed._told(seconds, [4e9], 4e9, 10), "bfloat16": emulated},
        "bfloat16_over_float32": {"p25": 1.0, "p50": 1.0, "p75": 1.0}, "bfloat16_in_hardware": False,
        "autosave": {"megabytes": 1.0, "wall_ms": 1.0}, "table_rows": 5, "table_optimizers_ms": {"adam": 1.0},
    }  # fmt: skip
    full, half = (
        line for line in training_speed._table(result).splitlines() if line.startswith(("float32", "bfloat16  "))
    )
    assert full.rstrip().endswith("50%")
    assert half.rstrip().endswith("–")
    assert training_speed.EMULATED in training_speed._table(result)


def test_in_place_products_are_counted():
    a, b, c = torch.ones(3, 5), torch.ones(5, 7), torch.zeros(3, 7)
    with training_speed.flop_counter() as counter:
        torch.mm(a, b, out=c)
        c.addmm_(a, b)
    assert counter.get_total_flops() == 2 * (2 * 3 * 5 * 7)


def test_nothing_to_measure_is_refused():
    for options in ({"rounds": 0}, {"steps": 0}, {"rows": 0}):
        with pytest.raises(InputError, match="start at 1"):
            measure_training(RECIPE, DATA, **options)

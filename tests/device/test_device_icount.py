"""A machine whose clock counts instructions: what a swipe takes on an arm64 core, exactly, whatever this one is doing.

It is a proxy of cost, with no caches, frequencies or memory in it, and never milliseconds of a phone. Budgets stand in
`instructions.json`; to take new ones over: KIR_BUDGETS=write python -m pytest tests/device/test_device_icount.py
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from benchmarks.device.emulated import EmulatedDevice, MachineConfig
from benchmarks.device.replayed import last_json
from benchmarks.device.runtime import install_runtime
from tests.device.conftest import N

pytestmark = [pytest.mark.device, pytest.mark.slow, pytest.mark.timeout(900)]
SCRIPT = Path(__file__).with_name("there") / "count.py"
BUDGETS = Path(__file__).with_name("instructions.json")
GATE = 0.02
REPEATABLE = 0.001


@pytest.fixture(scope="module")
def counts(default_model: Path) -> list[dict[str, int]]:
    """Instructions of one call per "graph/bucket variant", from two boots."""
    found = []
    for _ in range(2):
        with EmulatedDevice.booted(MachineConfig(icount=True)) as machine:
            print(f"ready after {machine.boot_s:.1f} s")
            device, runtime = machine.device, install_runtime(machine.device)
            device.push(default_model, f"{device.root}/model")
            device.push(SCRIPT, f"{device.root}/{SCRIPT.name}")
            found.append(last_json(runtime.python([SCRIPT.name, "model"], timeout_s=400), device.serial))
    if os.environ.get("KIR_BUDGETS") == "write":
        BUDGETS.write_text(json.dumps(found[0], indent=2) + "\n")
    return found


def swipe(counts: dict[str, int], variant: str) -> int:
    """Feedback in, scores out: one watched video appended, all candidates scored."""
    return counts[f"watch/T1 {variant}"] + counts[f"swipe/N{N} {variant}"]


def test_another_boot_counts_the_same(counts: list[dict[str, int]]) -> None:
    first, second = counts
    assert set(first) == set(second)
    apart = {key: abs(first[key] - second[key]) / first[key] for key in first}
    print(f"largest difference between two boots: {max(apart.values()):.4%}")
    assert max(apart.values()) <= REPEATABLE, apart


def test_a_swipe_takes_a_quarter_of_the_whole_net_at_most(counts: list[dict[str, int]]) -> None:
    whole = counts[0][f"whole/N{N} float32"]
    shares = {variant: swipe(counts[0], variant) / whole for variant in ("float32", "int8-dynamic", "int8-full")}
    print({variant: round(share, 3) for variant, share in shares.items()})
    assert shares["float32"] <= 0.25
    assert shares["int8-dynamic"] <= shares["float32"]


def test_no_graph_is_above_its_budget(counts: list[dict[str, int]]) -> None:
    """2 %: what the compiler of another LiteRT may change is more, and is looked at by a person."""
    budgets = json.loads(BUDGETS.read_text())
    assert set(budgets) == set(counts[0])
    above = {key: (n, budgets[key]) for key, n in counts[0].items() if n > budgets[key] * (1 + GATE)}
    assert above == {}

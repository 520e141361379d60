"""Which operators a delegate left out, from lists as LiteRT gives them. Real graphs: tests/convert/test_tflite.py."""

from __future__ import annotations

from typing import Any

import pytest

from contract.delegation import left_outside


def node(name: str, inputs: list[int], outputs: list[int]) -> dict[str, Any]:
    return {"op_name": name, "inputs": inputs, "outputs": outputs}


# 0 -> A -> 1 -> B -> 2 -> C -> 3, and C takes 1 as well
CHAIN = [node("A", [0, -1], [1]), node("B", [1], [2]), node("C", [2, 1], [3])]


@pytest.mark.parametrize(
    ("delegates", "left"),
    [
        ([], [0, 1, 2]),
        ([node("DELEGATE", [0], [3])], []),
        ([node("DELEGATE", [0], [1]), node("DELEGATE", [1, 2], [3])], [1]),
        ([node("DELEGATE", [0], [1, 2])], [2]),
        ([node("DELEGATE", [0], [1])], [1, 2]),
        ([node("DELEGATE", [2, 1, -1], [3])], [0, 1]),
    ],
)
def test_a_delegate_runs_what_lies_between_its_inputs_and_outputs(
    delegates: list[dict[str, Any]], left: list[int]
) -> None:
    assert left_outside([*CHAIN, *delegates]) == left

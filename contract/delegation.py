"""Which operators of a graph a delegate has not taken, from LiteRT's list of them; pure, so that converter and phone
count alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

DELEGATE = "DELEGATE"
NO_TENSOR = -1


def left_outside(nodes: Sequence[Mapping[str, Any]]) -> list[int]:
    """Numbers of the operators that no delegate runs, of those that are no delegate, in their order.

    nodes: `Interpreter._get_ops_details()`, whose list keeps the operators that a delegate has taken. A delegate runs
    what its outputs are made from, back to its inputs: if anything between were left out, its tensors would be an input
    and an output of the delegate as well.
    """
    delegates = [node for node in nodes if node["op_name"] == DELEGATE]
    plain = [node for node in nodes if node["op_name"] != DELEGATE]
    made_by = {int(tensor): number for number, node in enumerate(plain) for tensor in node["outputs"]}
    taken: set[int] = set()
    for delegate in delegates:
        given = {int(tensor) for tensor in delegate["inputs"]} | {NO_TENSOR}
        asked = [int(tensor) for tensor in delegate["outputs"]]
        while asked:
            tensor = asked.pop()
            number = made_by.get(tensor)
            if tensor in given or number is None or number in taken:
                continue
            taken.add(number)
            asked += [int(tensor) for tensor in plain[number]["inputs"]]
    return [number for number in range(len(plain)) if number not in taken]

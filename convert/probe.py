"""What LiteRT makes of .tflite files, asked in a process of its own.

LiteRT refuses a truncated file, but a well-formed one whose operators do not fit their tensors can end the process
with a segmentation fault (an operator code exchanged is enough). `probe` therefore starts a child that loads the files
one after the other; when it dies, the file it was at is to blame, and another child goes on with the rest.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMEOUT_S = 120.0  # for all files of one child; loading one takes milliseconds


@dataclass(frozen=True)
class Probe:
    """partitions: how many parts XNNPACK runs. left_out: numbers of the operators outside. error: "" = it loads."""

    partitions: int = 0
    left_out: tuple[int, ...] = ()
    error: str = ""


def probe(paths: Sequence[str | Path], timeout_s: float = TIMEOUT_S) -> list[Probe]:
    """One answer per file, in order. Never raises for what a file does."""
    found: list[Probe] = []
    while len(found) < len(paths):
        rest = [str(Path(path).resolve()) for path in paths[len(found) :]]
        lines, end = _child(rest, timeout_s)
        found += [Probe(line["partitions"], tuple(line["left_out"]), line["error"]) for line in lines]
        if len(lines) < len(rest):
            found.append(Probe(error=f"LiteRT died loading it ({end})"))
    return found


def _child(paths: Sequence[str], timeout_s: float) -> tuple[list[dict[str, Any]], str]:
    """Answers until the child ended, and how it ended."""
    # -P: this folder must not become the child's first place to look for modules.
    command = [sys.executable, "-P", __file__, *paths]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=timeout_s
        )
        out, end = done.stdout, f"signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
    except subprocess.TimeoutExpired as error:
        out, end = error.stdout or b"", f"no answer within {timeout_s:g} s"
    return [json.loads(line) for line in out.decode().splitlines() if line.endswith("}")], end


def load(path: str) -> dict[str, Any]:
    """In the child: partitions as a phone has them, and the operators outside, from a load without fusing nodes.

    Unfused, every operator that XNNPACK takes becomes a delegate of its own, with that operator's outputs.
    """
    from ai_edge_litert.interpreter import Interpreter

    try:
        raw = Path(path).read_bytes()
        nodes = []
        for apart in (False, True):
            interpreter = Interpreter(
                model_content=raw, num_threads=1, experimental_disable_delegate_node_fusion=apart
            )  # fmt: skip
            interpreter.allocate_tensors()
            nodes.append(interpreter._get_ops_details())
    except (ValueError, RuntimeError, OSError) as error:  # UnicodeDecodeError is a ValueError
        return {"partitions": 0, "left_out": [], "error": " ".join(str(error).split())}
    fused, single = nodes
    taken = {int(number) for node in single if node["op_name"] == "DELEGATE" for number in node["outputs"]}
    plain = [node for node in single if node["op_name"] != "DELEGATE"]
    left_out = [i for i, node in enumerate(plain) if not taken & {int(number) for number in node["outputs"]}]
    partitions = sum(node["op_name"] == "DELEGATE" for node in fused)
    return {"partitions": partitions, "left_out": left_out, "error": ""}


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(json.dumps(load(name)), flush=True)

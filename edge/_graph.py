"""One LiteRT graph bound to its contract: tensors by exact name, XNNPACK applied for sure, buffers reused.

Not thread-safe: a runner belongs to one engine, an engine to one session.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from contract.errors import NoModelError
from contract.manifest import Graph, Tensor

Floats = NDArray[np.float32]
NOTHING: Mapping[str, Any] = MappingProxyType({})


class GraphRunner:
    """An interpreter for one graph and bucket, one thread, through `set_tensor` / `invoke` / `get_tensor`.

    `inputs` are zeroed float32 arrays of the contract's shapes, made once: fill them and call `run`. A value of another
    array may be passed to `run` by name instead, so that a page's or cache's own buffer needs no copy.
    LiteRT leaves a graph's inputs as they are, so what did not change since the last run need not be set again
    (`holds`, `give`, `invoke`); `try_out` sees whether that is true of this file on this machine.
    Raises NoModelError when the file is no model, does not match its contract, or runs without XNNPACK.
    """

    def __init__(self, content: bytes, contract: Graph, *, allow_no_delegate: bool = False):
        self.name = f"{contract.name}/{contract.bucket}"
        try:
            self._interpreter = Interpreter(model_content=content, num_threads=1)
            self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise NoModelError("graph does not load", where=self.name, got=str(error)) from None
        self.delegated = any(op["op_name"] == "DELEGATE" for op in self._interpreter._get_ops_details())
        if not (self.delegated or allow_no_delegate):
            raise NoModelError(
                "graph runs without XNNPACK",
                where=self.name,
                fix="is /sys/devices/system/cpu readable? allow_no_delegate=True accepts slow kernels",
            )
        self._inputs = self._bind(contract.inputs, self._interpreter.get_input_details(), "input")
        self._outputs = self._bind(contract.outputs, self._interpreter.get_output_details(), "output")
        self.inputs: dict[str, Floats] = {t.name: np.zeros(t.shape, t.dtype) for t in contract.inputs}
        self.keeps_inputs = False
        self._held: dict[str, object] = {}

    def _bind(self, tensors: tuple[Tensor, ...], details: list[dict[str, Any]], side: str) -> dict[str, int]:
        """Tensor name -> LiteRT's index, after names, shapes and dtypes were compared."""
        found = {str(d["name"]): (tuple(map(int, d["shape"])), np.dtype(d["dtype"]).name) for d in details}
        wanted = {t.name: (t.shape, t.dtype) for t in tensors}
        if found != wanted:
            differs = {name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name)}
            raise NoModelError(
                f"{side} tensors are not those of the manifest",
                where=self.name,
                got={name: found.get(name, "absent") for name in sorted(differs)},
                allowed={name: wanted.get(name, "none of this name") for name in sorted(differs)},
            )
        return {str(d["name"]): int(d["index"]) for d in details}

    def try_out(self) -> None:
        """Run once, so that a broken file is refused here, and see whether the inputs outlive a run."""
        interpreter = self._interpreter
        for name, index in self._inputs.items():
            buffer = self.inputs[name]
            ramp = np.linspace(-1.0, 1.0, buffer.size, dtype=buffer.dtype)
            interpreter.set_tensor(index, ramp.reshape(buffer.shape))
        before = [(index, interpreter.get_tensor(index)) for index in self._inputs.values()]
        interpreter.invoke()
        self.keeps_inputs = all(np.array_equal(interpreter.get_tensor(index), value) for index, value in before)
        self._held.clear()

    def run(self, given: Mapping[str, Floats] = NOTHING) -> dict[str, Floats]:
        """Outputs by name, each a fresh array. `given` replaces `inputs` by name (exact shape, float32)."""
        self._held.clear()
        self.give({**self.inputs, **given})
        return self.invoke()

    def holds(self, group: str, mark: object) -> bool:
        """Whether what was given as `group` still stands in the graph; if not, the caller gives it now.

        mark: an object of its own for each state of what the group holds.
        """
        if self._held.get(group) is mark and self.keeps_inputs:
            return True
        self._held[group] = mark
        return False

    def give(self, values: Mapping[str, Floats]) -> None:
        """Set inputs by name, those that the graph has."""
        inputs, set_tensor = self._inputs, self._interpreter.set_tensor
        try:
            for name, value in values.items():
                index = inputs.get(name)
                if index is not None:
                    set_tensor(index, value)
        except Exception:  # what `holds` promised for these values is not there
            self._held.clear()
            raise

    def write(self, name: str, at: tuple[Any, ...], value: Floats) -> None:
        """Change a part of an input where it stands, if the graph has it."""
        index = self._inputs.get(name)
        if index is not None:
            self._interpreter.tensor(index)()[at] = value  # the view must not outlive this line: LiteRT would not run

    def invoke(self) -> dict[str, Floats]:
        """Outputs for what was given, each a fresh array."""
        try:
            self._interpreter.invoke()
        except Exception:
            self._held.clear()
            raise
        return {name: self._interpreter.get_tensor(index) for name, index in self._outputs.items()}

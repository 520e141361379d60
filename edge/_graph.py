"""One LiteRT graph bound to its contract: tensors by exact name, XNNPACK applied for sure, buffers reused.

Not thread-safe: a runner belongs to one engine, an engine to one session.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from contract.delegation import DELEGATE, left_outside
from contract.errors import NoModelError
from contract.manifest import Graph, Tensor

Floats = NDArray[np.float32]
NOTHING: Mapping[str, Any] = MappingProxyType({})
# Share of a graph's operators that XNNPACK may leave to plain kernels beyond those that it left where the file was
# made. What it takes follows from an operator's kind, types and shapes, hardly from the CPU, and an older LiteRT is
# refused by `min_runtime`. But a newer one may drop a kind of operator: a tenth of a graph in plain kernels costs less
# than no model on every phone that has it. Taking more than there is never wrong.
MORE_LEFT_OUT = 0.1


class GraphRunner:
    """An interpreter for one graph and bucket, one thread, its tensors read and written where they stand.

    `inputs` and `outputs` are float32 arrays of the contract's shapes over LiteRT's own memory, bound once: shapes are
    fixed, so that nothing moves (`try_out` sees whether that is true). Fill inputs, call `invoke`, read outputs before
    the next run; or `run`, which takes all inputs and gives copies.
    LiteRT leaves a graph's inputs as they are, so what did not change since the last run need not be set again
    (`holds`, `lacks`, `give`); `try_out` sees that as well.
    left_out: how many operators XNNPACK left out where the file was made (`Variant.left_out`); None = not told.
    Raises NoModelError when the file is no model, does not match its contract, or XNNPACK runs no part of it or clearly
    less than there.
    """

    def __init__(
        self, content: bytes, contract: Graph, *, allow_no_delegate: bool = False, left_out: int | None = None
    ):
        self.name = f"{contract.name}/{contract.bucket}"
        try:
            self._interpreter = Interpreter(model_content=content, num_threads=1)
            self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise NoModelError("graph does not load", where=self.name, got=str(error)) from None
        self.delegated = self._delegated(left_out, allow_no_delegate)
        self._inputs = self._bind(contract.inputs, self._interpreter.get_input_details(), "input")
        self._outputs = self._bind(contract.outputs, self._interpreter.get_output_details(), "output")
        self.inputs, self.outputs = self._views(self._inputs), self._views(self._outputs)
        # `Interpreter.invoke` refuses to run while an array over its memory is held, which could move with a resize.
        self._invoke: Callable[[], object] = self._interpreter._interpreter.Invoke
        self.keeps_inputs = False
        self._held: dict[str, object] = {}
        self._given: dict[str, int] = {}  # slots of a growing list that stand in the graph
        for view in self.inputs.values():
            view[...] = 0.0

    def _delegated(self, left_out: int | None, allow_no_delegate: bool) -> bool:
        """Whether XNNPACK runs what it should."""
        nodes = self._interpreter._get_ops_details()
        parts = sum(node["op_name"] == DELEGATE for node in nodes)
        total, outside = len(nodes) - parts, len(left_outside(nodes))
        most = total if left_out is None else left_out + int(MORE_LEFT_OUT * total)
        if (parts and outside <= most) or allow_no_delegate:
            return parts > 0 and outside <= most
        raise NoModelError(
            "XNNPACK leaves too much of the graph out" if parts else "graph runs without XNNPACK",
            where=self.name,
            got=f"{outside} of {total} operators outside",
            allowed=f"{most}: {left_out} on the converting machine, and a tenth" if parts else None,
            fix="is /sys/devices/system/cpu readable? allow_no_delegate=True accepts slow kernels",
        )

    def _views(self, indices: Mapping[str, int]) -> dict[str, Floats]:
        return {name: self._interpreter.tensor(index)() for name, index in indices.items()}

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
        """Run once, so that a broken file is refused here, and see whether the inputs outlive a run.

        Raises NoModelError when LiteRT moves a tensor at a run, whose arrays would then be of the past.
        """
        for view in self.inputs.values():
            view[...] = np.linspace(-1.0, 1.0, view.size, dtype=view.dtype).reshape(view.shape)
        before = [(view, view.copy()) for view in self.inputs.values()]
        self._invoke()
        self.keeps_inputs = all(np.array_equal(view, value) for view, value in before)
        for indices, views in ((self._inputs, self.inputs), (self._outputs, self.outputs)):
            for name, view in self._views(indices).items():
                if view.__array_interface__["data"] != views[name].__array_interface__["data"]:
                    raise NoModelError("graph moves its tensors at a run", where=self.name, got=name)
        self._held.clear()

    def run(self, given: Mapping[str, Floats] = NOTHING) -> dict[str, Floats]:
        """Outputs by name, each a fresh array, for inputs by name (exact shape, float32); what is not given is zero."""
        self._held.clear()
        for name, view in self.inputs.items():
            if name not in given:
                view[...] = 0.0
        self.give(given)
        return {name: view.copy() for name, view in self.invoke().items()}

    def holds(self, group: str, mark: object) -> bool:
        """Whether what was given as `group` still stands in the graph; if not, the caller gives it now.

        mark: an object of its own for each state of what the group holds, as an array that nobody writes to again.
        """
        if self._held.get(group) is mark and self.keeps_inputs:
            return True
        self._held[group] = mark
        return False

    def lacks(self, group: str, mark: object, length: int) -> int:
        """From which of a list's `length` slots on the graph lacks them: the caller gives those, or all if it is -1.

        mark: as of `holds`; the same one while slots only join at the end.
        """
        given = self._given.get(group, 0) if self.holds(group, mark) else -1
        self._given[group] = length
        return given

    def give(self, values: Mapping[str, Floats]) -> None:
        """Set inputs by name, those that the graph has. Raises ValueError for another shape."""
        inputs = self.inputs
        for name, value in values.items():
            view = inputs.get(name)
            if view is None:
                continue
            if view.shape != value.shape:
                self._held.clear()  # what `holds` promised for these values is not there
                raise ValueError(f"{self.name}: input {name} has dimensions {view.shape}, got {value.shape}")
            view[...] = value

    def invoke(self) -> Mapping[str, Floats]:
        """Outputs for what was given: views, overwritten by the next run."""
        try:
            self._invoke()
        except Exception:
            self._held.clear()
            raise
        return self.outputs

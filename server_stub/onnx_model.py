"""One ONNX graph in onnxruntime, its tensors checked against what the room expects before the first request."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.errors import InputError, VersionMismatch

Floats = NDArray[np.float32]
ANY = -1  # a width the spec does not fix


class OnnxModel:
    """A session. Thread-safe (onnxruntime's `run` is). Dynamic dimensions are None in `shapes`."""

    def __init__(self, path: str | Path, *, threads: int = 1):
        import onnxruntime as ort  # late: half a second

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self.path = Path(path)
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own exception classes have no common public base
            raise InputError("onnxruntime can't load this graph", where=path, got=str(error)) from None
        self.shapes = {i.name: _shape(i.shape) for i in self._session.get_inputs()}
        self.outputs = {o.name: _shape(o.shape) for o in self._session.get_outputs()}

    def check(self, widths: Mapping[str, int], output: str) -> None:
        """widths: input -> last dimension the spec gives, or ANY.

        Raises VersionMismatch when graph and spec disagree.
        """
        unknown = sorted(set(self.shapes) - set(widths))
        if unknown or output not in self.outputs:
            got = (sorted(self.shapes), sorted(self.outputs))
            raise VersionMismatch("graph has other tensors", where=self.path, got=got, allowed=(sorted(widths), output))
        for name, shape in self.shapes.items():
            if widths[name] != ANY and shape[-1] not in (None, widths[name]):
                raise VersionMismatch(
                    f"input '{name}' does not fit the spec", where=self.path, got=shape[-1], allowed=widths[name]
                )

    def run(self, feeds: Mapping[str, Floats], output: str) -> Floats:
        """Feeds the graph does not take are left out (a block of width 0 is no input)."""
        taken = {name: feeds[name] for name in self.shapes}
        result: Floats = self._session.run([output], taken)[0]
        return result

    def run_all(self, feeds: Mapping[str, Floats]) -> dict[str, Floats]:
        """Every output by name."""
        found = self._session.run(list(self.outputs), {name: feeds[name] for name in self.shapes})
        return dict(zip(self.outputs, found, strict=True))


def _shape(shape: list[Any]) -> tuple[int | None, ...]:
    return tuple(size if isinstance(size, int) else None for size in shape)

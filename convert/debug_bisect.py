"""kir convert debug MODEL.onnx --bisect --out DIR: which node of an ONNX graph is converted wrongly.

    from convert.debug_bisect import bisect
    found = bisect("model.onnx", samples); print(found.table()); found.save("why")

Prefixes of the graph are converted and compared with onnxruntime until the first one that disagrees is found; then what
lies before its last node is cut away while it still disagrees. What is left, with the inputs it was seen on, is
written out. A conversion that fails, or that LiteRT refuses, disagrees too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.errors import ConversionError, InputError
from contract.manifest import Tensor
from convert.debug_taps import Arrays, Feeds, OnnxTaps, TensorRunner
from convert.noise import FLOOR, Noise, told
from convert.onnx_graph import OnnxParts, Piece
from convert.tflite import convert_onnx

FORMAT = "kir-bisect/1"
MINIMAL = "minimal.onnx"
INPUTS = "minimal.npz"
ROUNDING = 1e-6  # absolute: tensors whose values are rounding errors themselves agree with nothing
Convert = Callable[[Path, Path, tuple[Tensor, ...]], Any]


@dataclass(frozen=True)
class Disagreement:
    """what: in words. outputs: those that differ; all of them when nothing could be run."""

    what: str
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Bisection:
    """node: the first that is converted wrongly, "" when the conversion agrees. nodes: those of the minimal model.

    minimal, inputs: that model, and stacked samples of its inputs. directory: where they were saved, for the table.
    """

    onnx: str
    n_nodes: int
    tried: int
    node: str = ""
    what: str = ""
    nodes: tuple[str, ...] = ()
    minimal: bytes = field(default=b"", repr=False)
    inputs: Mapping[str, NDArray[Any]] = field(default_factory=dict, repr=False)
    directory: str = ""

    @property
    def agrees(self) -> bool:
        return not self.node

    @property
    def reproduce(self) -> str:
        """One line for a terminal, in the directory that it was saved to."""
        place = Path(self.directory)
        return f"kir convert debug {place / MINIMAL} --inputs {place / INPUTS} --bisect --out {place / 'again'}"

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "onnx": self.onnx,
            "n_nodes": self.n_nodes,
            "tried": self.tried,
            "agrees": self.agrees,
            "node": self.node,
            "what": self.what,
            "nodes": list(self.nodes),
            "inputs": {name: list(value.shape) for name, value in self.inputs.items()},
        }

    def save(self, directory: str | Path) -> Path:
        """bisect.json and, unless the conversion agrees, minimal.onnx and minimal.npz. Gives the directory."""
        place = Path(directory)
        place.mkdir(parents=True, exist_ok=True)
        (place / "bisect.json").write_text(json.dumps(self.to_json(), indent=2) + "\n")
        if not self.agrees:
            (place / MINIMAL).write_bytes(self.minimal)
            np.savez_compressed(place / INPUTS, allow_pickle=False, **dict(self.inputs))
        return place

    def table(self) -> str:
        head = f"{self.onnx}: {self.n_nodes} nodes, {self.tried} conversions"
        if self.agrees:
            return f"{head}\nTFLite float agrees with ONNX: noise:signal at most {FLOOR:g}"
        lines = [head, f"first node that is converted wrongly: {self.node}", f"  {self.what}"]
        lines.append(f"minimal failing model: {len(self.nodes)} nodes: {', '.join(self.nodes)}")
        if self.directory:
            lines += [f"  {Path(self.directory) / MINIMAL} beside {INPUTS}; again with:", f"  {self.reproduce}"]
        return "\n".join(lines)


def bisect(onnx: str | Path, samples: Sequence[Feeds], convert: Convert = convert_onnx) -> Bisection:
    """Raises InputError or ConversionError for an ONNX file that onnxruntime can't run."""
    return _Search(onnx, samples, convert).run()


class _Search:
    def __init__(self, onnx: str | Path, samples: Sequence[Feeds], convert: Convert):
        taps = OnnxTaps(onnx)
        if not samples:
            raise InputError("nothing to run the graph on", where=onnx)
        self.onnx, self.convert, self.tried = str(onnx), convert, 0
        self.values: list[Arrays] = [{**feeds, **taps.run(feeds)} for feeds in samples]
        self.parts = OnnxParts(taps.model, self.values[0])

    def run(self) -> Bisection:
        n = len(self.parts.nodes)
        last = self._disagrees(self.parts.prefix(n - 1))
        if last is None:
            return Bisection(self.onnx, n, self.tried)
        good, bad = -1, n - 1
        while bad - good > 1:
            middle = (good + bad) // 2
            found = self._disagrees(self.parts.prefix(middle))
            if found is None:
                good = middle
            else:
                bad, last = middle, found
        piece, what = self._minimal(bad, last)
        return Bisection(
            onnx=self.onnx,
            n_nodes=n,
            tried=self.tried,
            node=self.parts.describe(bad),
            what=what,
            nodes=tuple(self.parts.describe(place) for place in piece.nodes),
            minimal=piece.model.SerializeToString(deterministic=True),
            inputs={name: np.stack([values[name] for values in self.values]) for name in piece.inputs},
        )

    def _minimal(self, bad: int, last: Disagreement) -> tuple[Piece, str]:
        """The smallest cone of nodes before what disagrees that still does, by doubling its depth, then halving."""
        own = [name for name in self.parts.nodes[bad].output if name in self.values[0]]
        outputs = [name for name in last.outputs if name in own] or list(last.outputs)
        deep, shallow, found = 1, 0, self._cone(outputs, 1)
        while found is None and deep <= len(self.parts.nodes):
            deep, shallow = 2 * deep, deep
            found = self._cone(outputs, deep)
        if found is None:  # what disagrees needs its company: the prefix itself
            whole = self.parts.prefix(bad)
            assert whole is not None
            return whole, last.what
        while deep - shallow > 1:
            middle = (deep + shallow) // 2
            smaller = self._cone(outputs, middle)
            if smaller is None:
                shallow = middle
            else:
                deep, found = middle, smaller
        return found

    def _cone(self, outputs: Sequence[str], depth: int) -> tuple[Piece, str] | None:
        piece = self.parts.cone(outputs, depth)
        found = self._disagrees(piece)
        return None if piece is None or found is None else (piece, found.what)

    def _disagrees(self, piece: Piece | None) -> Disagreement | None:
        """Convert a piece and compare. None when it agrees, or when it has nothing to compare or to be fed."""
        if piece is None or not piece.inputs:
            return None
        self.tried += 1
        with TemporaryDirectory(prefix="kir-bisect-") as scratch:
            source, target = Path(scratch) / "piece.onnx", Path(scratch) / "piece.tflite"
            source.write_bytes(piece.model.SerializeToString(deterministic=True))
            first = self.values[0]
            inputs = tuple(Tensor(name, first[name].shape, first[name].dtype.name) for name in piece.inputs)
            try:
                self.convert(source, target, inputs)
                runner = TensorRunner(target.read_bytes(), "the converted piece")
                return self._compared(piece, runner)
            except ConversionError as error:
                return Disagreement(f"{error.what}: {' '.join(str(error.got).split())}", piece.outputs)
            except InputError as error:  # the converter changed an input's name or shape
                what = f"{error.what}: the file wants {error.allowed}, ONNX has {error.got}"
                return Disagreement(what, piece.outputs)

    def _compared(self, piece: Piece, runner: TensorRunner) -> Disagreement | None:
        noises = {name: Noise() for name in piece.outputs}
        for values in self.values:
            got = runner.run({name: values[name] for name in piece.inputs})
            missing = [name for name in piece.outputs if name not in got]
            if missing:
                return Disagreement(f"the TFLite file has no output {missing}", tuple(missing))
            for name, noise in noises.items():
                if values[name].shape != got[name].shape:
                    shapes = f"{list(got[name].shape)}, ONNX gives {list(values[name].shape)}"
                    return Disagreement(f"output '{name}' has shape {shapes}", (name,))
                noise.add(values[name], got[name])
        wrong = {name: one for name, one in noises.items() if one.ratio > FLOOR and one.max_abs > ROUNDING}
        if not wrong:
            return None
        name, worst = max(wrong.items(), key=lambda pair: pair[1].ratio)
        return Disagreement(
            f"output '{name}': noise:signal {told(worst.ratio)}, max abs {worst.max_abs:.3g}", tuple(wrong)
        )

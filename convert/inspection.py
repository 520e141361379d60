"""kir inspect FILE.tflite …: what a TFLite file is, read from the file alone.

    from convert.inspection import inspect_files
    print(inspect_files(["swipe.tflite"])[0].table())

Interface, operators, what XNNPACK takes, bytes by layer, the contract embedded in it. The flatbuffer is parsed and
checked first, LiteRT sees it in a process of its own (convert/probe.py).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from contract.errors import ConversionError, InputError, KirError
from convert import flatbuffer
from convert.inspect_weights import Weight, quantisation, weights_of, weights_table
from convert.metadata import metadata_of
from convert.probe import Probe, probe


@dataclass(frozen=True)
class Port:
    """An input or output. name: the tensor's. signature_name: the signature's, when it says otherwise."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    quantisation: str = ""
    signature_name: str = ""

    def line(self) -> str:
        other = f"as '{self.signature_name}'" if self.signature_name else ""
        return "  ".join(part for part in (self.dtype, str(list(self.shape)), self.quantisation, other) if part)


@dataclass(frozen=True)
class Inspection:
    """One file. left_out: operators that XNNPACK does not take, by name. contract: None = none embedded."""

    path: str
    n_bytes: int
    sha256: str
    description: str
    signature: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    operators: Mapping[str, int]
    partitions: int
    left_out: Mapping[str, int]
    weights: tuple[Weight, ...]
    contract: Mapping[str, Any] | None

    @property
    def parameters(self) -> int:
        """Values of weights: float or quantised constants. Shapes, axes and permutations are none."""
        return sum(weight.n_values for weight in self.weights if weight.trained)

    @property
    def contract_differs(self) -> tuple[str, ...]:
        """Tensors of which the embedded contract and the file say different things."""
        if self.contract is None:
            return ()
        have = {(p.name, p.shape, p.dtype) for p in (*self.inputs, *self.outputs)}
        told = [*self.contract.get("inputs", ()), *self.contract.get("outputs", ())]
        want = {(str(t["name"]), tuple(t["shape"]), str(t["dtype"])) for t in told}
        return tuple(sorted({name for name, _, _ in have ^ want}))

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "parameters": self.parameters, "contract_differs": list(self.contract_differs)}

    def table(self) -> str:
        width = max([len(port.name) for port in (*self.inputs, *self.outputs)], default=0)
        sides = [
            line
            for label, ports in (("inputs", self.inputs), ("outputs", self.outputs))
            for line in (label, *(f"  {port.name:<{width}}  {port.line()}" for port in ports))
        ]
        made_by = f"  ({self.description})" if self.description else ""
        return "\n".join(
            [
                self.path,
                f"{self.n_bytes:,} bytes  sha256 {self.sha256}{made_by}",
                self._contract_line(),
                f"signature {self.signature or 'none'}",
                *sides,
                f"operators {sum(self.operators.values())}: {counted(self.operators)}",
                f"XNNPACK runs {self.partitions} partitions; left out: {counted(self.left_out) or 'nothing'}",
                f"parameters {self.parameters:,}",
                weights_table(self.weights, self.n_bytes),
            ]
        )

    def _contract_line(self) -> str:
        if self.contract is None:
            return "contract none embedded"
        facts = self.contract
        recipe, tools = facts.get("recipe", {}), facts.get("tools", {})
        line = f"contract {what_it_is(facts)}  onnx {str(facts.get('onnx_sha256', ''))[:12]}…  "
        line += f"{len(recipe.get('recipe', ()))} rules  " + ", ".join(f"{k} {v}" for k, v in tools.items())
        if self.contract_differs:
            line += f"\n! the contract and the file differ in: {', '.join(self.contract_differs)}"
        return line


@dataclass(frozen=True)
class Damaged:
    """A file that can't be inspected, and why, in one line."""

    path: str
    error: KirError


def what_it_is(facts: Mapping[str, Any]) -> str:
    """ "kir-1f3a swipe/N20 int8-dynamic" of an embedded contract."""
    graph = "/".join(str(facts[key]) for key in ("graph", "bucket") if facts.get(key))
    return " ".join(
        str(word) for word in (facts.get("model_version"), graph, facts.get("recipe", {}).get("name")) if word
    )


def counted(names: Mapping[str, int]) -> str:
    """ "ADD 12, SLICE 2": most first."""
    return ", ".join(f"{name} {n}" for name, n in sorted(names.items(), key=lambda pair: (-pair[1], pair[0])))


def inspect_files(paths: Sequence[str | Path]) -> list[Inspection | Damaged]:
    """One answer per path, in order; a file that is absent, truncated, none or refused by LiteRT gives Damaged."""
    parsed: dict[int, tuple[bytes, Any]] = {}
    found: list[Inspection | Damaged | None] = [None] * len(paths)
    for i, path in enumerate(paths):
        try:
            raw = _read(Path(path))
            parsed[i] = raw, flatbuffer.unpack(raw, path)
        except KirError as error:
            found[i] = Damaged(str(path), error)
    for i, answer in zip(parsed, probe([paths[i] for i in parsed]), strict=True):
        try:
            found[i] = _inspection(str(paths[i]), *parsed[i], answer)
        except KirError as error:
            found[i] = Damaged(str(paths[i]), error)
    return [one for one in found if one is not None]


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise InputError("no such file", where=path, fix="name a .tflite file or a directory of them")
    return path.read_bytes()


def _inspection(path: str, raw: bytes, model: Any, answer: Probe) -> Inspection:
    if answer.error:
        raise ConversionError("LiteRT refuses the file", where=path, got=answer.error)
    graph = model.subgraphs[0]
    operators = [flatbuffer.operator_name(model, one) for one in flatbuffer.operators(graph)]
    signature = next(iter(model.signatureDefs or ()), None)
    return Inspection(
        path=path,
        n_bytes=len(raw),
        sha256=hashlib.sha256(raw).hexdigest(),
        description=flatbuffer.text(model.description),
        signature=flatbuffer.text(signature.signatureKey) if signature else "",
        inputs=_ports(graph, graph.inputs, signature.inputs if signature else ()),
        outputs=_ports(graph, graph.outputs, signature.outputs if signature else ()),
        operators=dict(Counter(operators)),
        partitions=answer.partitions,
        left_out=dict(Counter(operators[number] for number in answer.left_out if number < len(operators))),
        weights=weights_of(model),
        contract=metadata_of(model, path),
    )


def _ports(graph: Any, chosen: Any, maps: Any) -> tuple[Port, ...]:
    tensors = flatbuffer.tensors(graph)
    signed = {int(one.tensorIndex): flatbuffer.text(one.name) for one in maps or ()}
    found = []
    for number in flatbuffer.numbers(chosen):
        tensor = tensors[number]
        name = flatbuffer.text(tensor.name)
        other = signed.get(number, name)
        shape, dtype = flatbuffer.shape_of(tensor), flatbuffer.dtype_of(tensor)
        found.append(Port(name, shape, dtype, quantisation(tensor), other if other != name else ""))
    return tuple(found)

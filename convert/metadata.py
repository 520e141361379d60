"""The contract inside the .tflite: which model, graph and recipe a file is, readable without anything beside it.

    raw = embed(path.read_bytes(), graph_facts(...))
    read_metadata(raw)["graph"]                       # "swipe"

One entry of the flatbuffer's own metadata, canonical JSON in UTF-8. LiteRT, XNNPACK and the quantizer pass over entries
they do not know; tensors, operators, signatures and constants stay as they are. `kir inspect` prints it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from contract.errors import ConversionError, InputError
from contract.manifest import Tensor
from convert.flatbuffer import pack, schema, text, unpack

ENTRY = "kir.contract"
FORMAT = "kir-contract/1"
TOOLS = ("torch", "onnx", "onnxscript", "onnxsim", "onnx2tf", "tensorflow", "litert-torch", "ai-edge-quantizer",
         "ai-edge-litert")  # fmt: skip


def graph_facts(
    *,
    model_version: str,
    graph: str,
    bucket: str,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    recipe: Mapping[str, Any],
    onnx: str | Path,
) -> dict[str, Any]:
    """What `kir convert model` says of a file. recipe: `Recipe.to_json()`. Nothing tells the time or the place."""
    return {
        "format": FORMAT,
        "model_version": model_version,
        "graph": graph,
        "bucket": bucket,
        "inputs": [asdict(tensor) for tensor in inputs],
        "outputs": [asdict(tensor) for tensor in outputs],
        "recipe": dict(recipe),
        "onnx_sha256": hashlib.sha256(Path(onnx).read_bytes()).hexdigest(),
        "tools": tool_versions(),
    }


def tool_versions() -> dict[str, str]:
    """Versions of what had a hand in the file; a tool that is not installed had none."""
    found = {}
    for name in TOOLS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def embed(raw: bytes, facts: Mapping[str, Any], where: object = "") -> bytes:
    """The file with one entry more, or with that entry's content replaced. The same bytes every time.

    Raises InputError for facts that are no JSON, ConversionError for a file that is none.
    """
    content = _canonical(facts, where)
    model = unpack(raw, where)
    entry = _entry(model)
    if entry is None:
        entry = schema.MetadataT(name=ENTRY, buffer=len(model.buffers))
        model.metadata = [*(model.metadata or []), entry]
        model.buffers = [*model.buffers, schema.BufferT()]
    model.buffers[entry.buffer].data = np.frombuffer(content, np.uint8)
    return pack(model)


def read_metadata(raw: bytes, where: object = "") -> dict[str, Any] | None:
    """The embedded contract; None for a file without one. Raises ConversionError for a damaged file or entry."""
    return metadata_of(unpack(raw, where), where)


def metadata_of(model: Any, where: object = "") -> dict[str, Any] | None:
    """`read_metadata` of a model that is unpacked."""
    entry = _entry(model)
    return None if entry is None else _parsed(model, entry, where)


def _entry(model: Any) -> Any:
    return next((one for one in model.metadata or [] if text(one.name) == ENTRY), None)


def _parsed(model: Any, entry: Any, where: object) -> dict[str, Any]:
    try:
        facts = json.loads(bytes(model.buffers[entry.buffer].data).decode())
    except (IndexError, TypeError, ValueError, RecursionError) as error:
        raise ConversionError("embedded contract is malformed", where=where, got=str(error)) from None
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        got = facts.get("format") if isinstance(facts, dict) else type(facts).__name__
        raise ConversionError("embedded contract has another format", where=where, got=got, allowed=FORMAT)
    odd = _misfit(facts)
    if odd:
        raise ConversionError("embedded contract is malformed", where=where, got=odd)
    return facts


def _misfit(facts: Mapping[str, Any]) -> str:
    """The first fact that is not of its kind; "" when there is none. A fact that is absent is none of them."""
    for side in ("inputs", "outputs"):
        try:
            for tensor in facts.get(side, []):
                Tensor(tensor["name"] + "", tuple(n + 0 for n in tensor["shape"]), tensor["dtype"] + "")
        except (KeyError, TypeError):
            return side
    recipe, tools = facts.get("recipe", {}), facts.get("tools", {})
    if not isinstance(recipe, dict) or not isinstance(recipe.get("recipe", []), list):
        return "recipe"
    return "" if isinstance(tools, dict) else "tools"


def _canonical(facts: Mapping[str, Any], where: object) -> bytes:
    if facts.get("format") != FORMAT:
        raise InputError("facts have another format", where=where, got=facts.get("format"), allowed=FORMAT)
    try:
        content = json.dumps(dict(facts), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError("facts are no JSON", where=where, got=str(error)) from None
    return content.encode()

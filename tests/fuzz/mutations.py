"""Mutations that know the shape of an input: a field of a protobuf message, a value of a JSON document, or plain bytes.

Bytes alone seldom get past the parser; a valid message with one field gone wrong reaches the checks behind it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from tests.fuzz.judge import Target

SIZE_MAX = 16 * 1024
_INTS = (-(2**63), -(2**31) - 1, -5, -1, 0, 1, 2, 3, 63, 64, 127, 128, 255, 4096, 10_001, 2**31 - 1, 2**31, 2**32 - 1)
_BIG = (2**53, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30)
_FLOATS = (0.0, -0.0, 1.0, -1.0, 1.5, 1e-45, 3.4e38, -3.4e38, 1e300, float("inf"), float("-inf"), float("nan"))
_TEXTS = ("", "x", "ok", "kir-a", "N8", "T0", "../etc", "é\u0000", "\ud800", "x" * 129, "a" * 5_000, "1e999", "swipe")
_BYTES = (b"", b"\x00", b"\xff" * 4, b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\x00\x7c", b"\x01" * 200, b"{}")
Rng = random.Random


def mutate(target: Target, data: bytes, rng: Rng) -> bytes:
    """One mutated input of at most SIZE_MAX bytes: one to four changes, the seal put on again most of the time.

    What is no message of the target's shape any more mostly gives way to a valid one: it only tries the parser, again.
    """
    if not _parses(target, data) and rng.random() < 0.8:
        data = rng.choice(target.seeds())
    for _ in range(rng.choice((1, 1, 2, 4))):
        data = _change(target, data, rng)[:SIZE_MAX]
    if rng.random() < 0.1:
        return mutate_bytes(data, rng)[:SIZE_MAX]
    return target.seal(data)[:SIZE_MAX] if rng.random() < 0.9 else data


def _parses(target: Target, data: bytes) -> bool:
    if target.shape == "json":
        try:
            document, seed = json.loads(data), json.loads(target.seeds()[0])
            return isinstance(document, dict) and document.get("format") == seed.get("format")
        except (ValueError, RecursionError):
            return False
    if hasattr(target.shape, "change"):
        parses: bool = target.shape.parses(data)
        return parses
    try:
        target.shape().ParseFromString(data)
    except DecodeError:
        return False
    return True


def _change(target: Target, data: bytes, rng: Rng) -> bytes:
    if hasattr(target.shape, "change"):
        changed: bytes = target.shape.change(data, rng)
        return changed
    return mutate_json(data, rng) if target.shape == "json" else mutate_message(target.shape, data, rng)


def mutate_bytes(data: bytes, rng: Rng) -> bytes:
    """Flip, cut, double, insert or overwrite a run of bytes."""
    raw = bytearray(data or b"\x00")
    at, length = rng.randrange(len(raw)), rng.choice((1, 1, 2, 4, 8, 64))
    changes: tuple[Callable[[], object], ...] = (
        lambda: raw.__setitem__(at, raw[at] ^ (1 << rng.randrange(8))),
        lambda: raw.__setitem__(at, rng.choice((0, 1, 0x7F, 0x80, 0xFF))),
        lambda: raw.__delitem__(slice(at, at + length)),
        lambda: raw.__delitem__(slice(at, None)),
        lambda: raw.__setitem__(slice(at, at), raw[at : at + length]),
        lambda: raw.__setitem__(slice(at, at), rng.choice(_BYTES)),
        lambda: raw.__setitem__(slice(at, at + length), rng.randbytes(length)),
    )
    rng.choice(changes)()
    return bytes(raw)


# -- protobuf


def mutate_message(kind: type[Message], data: bytes, rng: Rng) -> bytes:
    """Change one field of a message somewhere below the root; bytes that are no such message are mutated as bytes."""
    message = kind()
    try:
        message.ParseFromString(data)
    except DecodeError:
        return mutate_bytes(data, rng)
    node = rng.choice(_nodes(message))
    field = rng.choice(node.DESCRIPTOR.fields)
    try:
        _change_field(node, field, rng)
    except (ValueError, TypeError):  # out of the field's range: the next draw will fit
        node.ClearField(field.name)
    return message.SerializeToString()


def _nodes(message: Message) -> list[Message]:
    """The message and all messages in it."""
    found = [message]
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for child in value if field.is_repeated else [value]:
                found += _nodes(child)
    return found


def _change_field(node: Any, field: FieldDescriptor, rng: Rng) -> None:
    if rng.random() < 0.1:
        node.ClearField(field.name)
    elif not field.is_repeated:
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            getattr(node, field.name).SetInParent()
        else:
            setattr(node, field.name, _value(field, getattr(node, field.name), rng))
    else:
        _change_repeated(getattr(node, field.name), field, rng)


def _change_repeated(values: Any, field: FieldDescriptor, rng: Rng) -> None:
    is_message = field.type == FieldDescriptor.TYPE_MESSAGE
    at = rng.randrange(len(values)) if len(values) else 0
    choice = rng.choice(("set", "drop", "double", "many", "shuffle"))
    if not len(values):
        choice = "set"
    if choice == "drop":
        del values[at]
    elif choice == "double":
        values.append(values[at])
    elif choice == "many":
        values.extend([values[at]] * rng.choice((2, 100, 300 if is_message else 4_000)))
    elif choice == "shuffle":
        order = list(values)
        rng.shuffle(order)
        del values[:]
        values.extend(order)
    elif is_message:
        values.add()
    elif len(values):
        values[at] = _value(field, values[at], rng)
    else:
        values.append(_value(field, field.default_value or 0, rng))


def _value(field: FieldDescriptor, old: Any, rng: Rng) -> Any:
    if field.type == FieldDescriptor.TYPE_BYTES:
        return rng.choice((mutate_bytes(old or b"", rng), rng.choice(_BYTES), (old or b"") * 2, (old or b"")[:-1]))
    if field.type == FieldDescriptor.TYPE_STRING:
        return rng.choice((*_TEXTS, str(old) + "x"))
    if field.type == FieldDescriptor.TYPE_BOOL:
        return rng.random() < 0.5
    if field.type in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
        return rng.choice(_FLOATS)
    return rng.choice((*_INTS, *_BIG, old + 1, old - 1, rng.randrange(1_000)))


# -- JSON


def mutate_json(data: bytes, rng: Rng) -> bytes:
    """Change one value of a document, a key or an element; in the canonical form of `contract.manifest`."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return mutate_bytes(data, rng)
    place = _place(document, rng)
    if place is None:
        document = _json_value(document, rng)
    else:
        _change_place(*place, rng)
    try:
        return (json.dumps(document, sort_keys=True, indent=2) + "\n").encode()
    except (RecursionError, ValueError):
        return mutate_bytes(data, rng)


def _place(document: Any, rng: Rng) -> tuple[Any, Any] | None:
    """(container, key or index) of a value below the root, as likely near the root as far from it; None without any."""
    found, node = None, document
    while isinstance(node, dict | list) and node and (found is None or rng.random() < 0.7):
        key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
        found, node = (node, key), node[key]
    return found


def _change_place(node: Any, key: Any, rng: Rng) -> None:
    choice = rng.choice(("set", "set", "set", "drop", "rename", "double"))
    if choice == "drop":
        del node[key]
    elif choice == "rename" and isinstance(node, dict):
        node[rng.choice((*_TEXTS[:5], f"{key}x", "format", "name"))] = node.pop(key)
    elif choice == "double" and isinstance(node, list):
        node.extend([node[key]] * rng.choice((1, 2, 100)))
    else:
        node[key] = _json_value(node[key], rng)


def _json_value(old: Any, rng: Rng) -> Any:
    nested: list[Any] = []
    for _ in range(rng.choice((1, 20, 120))):
        nested = [nested]
    plain = (None, True, False, [], {}, [[]], {"x": []}, [old], {"x": old}, nested)
    near = (old + 1, old - 1, float(old), str(old)) if isinstance(old, int) else ()
    return rng.choice((rng.choice(_INTS), rng.choice(_BIG), rng.choice(_FLOATS), rng.choice(_TEXTS), *plain, *near))

"""Where a training runs and in which precision: a device by name, bfloat16 where the machine has it, batches moved."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from contract.errors import InputError

DEVICES = ("cpu", "cuda", "auto")
PRECISIONS = ("float32", "bfloat16", "auto")


def pick_device(name: str) -> torch.device:
    """The device of a name; "auto" = CUDA where there is one. Raises InputError for one that is not there."""
    if name not in DEVICES:
        raise InputError("unknown device", got=name, allowed=DEVICES)
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("this machine or this torch has no CUDA device", got=name, fix="say cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def has_bfloat16(device: torch.device) -> bool:
    """True where the hardware multiplies bfloat16; emulated, it is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # get_capabilities is younger than torch 2.11; its older sister knows x86 alone.
    facts: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    named = any(facts.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))
    return bool(named or getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """float32 or bfloat16; "auto" = bfloat16 where the hardware has it."""
    if name not in PRECISIONS:
        raise InputError("unknown precision", got=name, allowed=PRECISIONS)
    half = name == "bfloat16" or (name == "auto" and has_bfloat16(device))
    return torch.bfloat16 if half else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Matrix products in bfloat16 around the loss, weights and sums in float32; nothing at float32.

    bfloat16 has float32's range, so gradients need no scaling.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)


def to_device(batch: Any, device: torch.device) -> Any:
    """`batch` with every tensor on `device`: tensors, mappings, lists, tuples and dataclasses of them."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {name: to_device(value, device) for name, value in batch.items()}
    if is_dataclass(batch) and not isinstance(batch, type):
        return replace(batch, **{f.name: to_device(getattr(batch, f.name), device) for f in fields(batch) if f.init})
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(to_device(value, device) for value in batch)
    return batch

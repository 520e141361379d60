"""Device classes: which variants of a model's graphs a kind of device runs, by CPU flags and memory.

The manifest lists them in order; a device takes the first whose needs it meets, and what the graphs ship without one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from contract.errors import ManifestError
from contract.typed import check_types

CLASSES_MAX = 16
FLAGS_MAX = 32  # of one class
MEMORY_MIB_MAX = 2**20

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_FLAG = re.compile(r"[a-z0-9_]{1,32}")


@dataclass(frozen=True)
class DeviceClass:
    """Devices whose cores all have the flags `cpu`, as /proc/cpuinfo spells them, and `memory_mib_min` of MemTotal.

    variants: graph -> variant, in all its buckets (a cache must not depend on how it was filled); a graph that is not
    named ships. golden_tensors, golden_session: golden files by these variants, where they are others than the
    manifest's own. verification: what stands in the manifest's place.
    """

    name: str
    variants: Mapping[str, str]
    cpu: tuple[str, ...] = ()
    memory_mib_min: int = 0
    golden_tensors: Mapping[str, str] = field(default_factory=dict)
    golden_session: str = ""
    verification: Mapping[str, Any] = field(default_factory=dict)

    def fits(self, cpu: Collection[str], memory_mib: int) -> bool:
        """Whether a device with these flags and that much memory meets the needs."""
        return memory_mib >= self.memory_mib_min and set(self.cpu) <= set(cpu)

    @property
    def files(self) -> list[str]:
        """Golden files that this class names."""
        return [*self.golden_tensors.values(), *filter(None, (self.golden_session,))]

    @property
    def needs(self) -> str:
        """In words: "asimddp i8mm, from 3072 MiB"."""
        memory = f"from {self.memory_mib_min} MiB" if self.memory_mib_min else ""
        return ", ".join(filter(None, (" ".join(self.cpu), memory))) or "any device"

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> DeviceClass:
        """Raises TypeError or ValueError for unknown or missing keys and other types."""
        made = DeviceClass(**{**data, "cpu": _tuple(data.get("cpu", ()))})
        check_types(made)
        return made


def check_classes(
    classes: Sequence[DeviceClass], variants: Mapping[str, Mapping[str, Collection[str]]], where: object
) -> None:
    """variants: graph -> bucket -> names of its variants.

    Raises ManifestError for odd names, needs out of range, a graph or variant that is not there, a class no device can
    reach because an earlier one asks for no more.
    """
    if len(classes) > CLASSES_MAX:
        raise ManifestError("too many device classes", where=where, got=len(classes), allowed=CLASSES_MAX)
    for number, one in enumerate(classes):
        if not _NAME.fullmatch(one.name) or one.name in {other.name for other in classes[:number]}:
            raise ManifestError("device class has no name of its own", where=where, got=one.name)
        _check_needs(one, where)
        _check_variants(one, variants, where)
        before = next((other for other in classes[:number] if other.fits(one.cpu, one.memory_mib_min)), None)
        if before is not None:
            what, fix = f"device class '{one.name}' is never reached", "put the class that needs more first"
            raise ManifestError(what, where=where, got=f"after '{before.name}'", fix=fix)


def _check_needs(one: DeviceClass, where: object) -> None:
    what = f"device class '{one.name}'"
    odd = [flag for flag in one.cpu if not _FLAG.fullmatch(flag)]
    if odd or len(one.cpu) > FLAGS_MAX:
        allowed = f"at most {FLAGS_MAX}, of a-z, 0-9 and _"
        raise ManifestError(f"{what} names no CPU flags", where=where, got=odd or len(one.cpu), allowed=allowed)
    if not 0 <= one.memory_mib_min <= MEMORY_MIB_MAX:
        allowed = f"0 … {MEMORY_MIB_MAX}"
        raise ManifestError(f"{what} needs no such memory", where=where, got=one.memory_mib_min, allowed=allowed)


def _check_variants(one: DeviceClass, variants: Mapping[str, Mapping[str, Collection[str]]], where: object) -> None:
    what = f"device class '{one.name}'"
    for graph, variant in one.variants.items():
        if graph not in variants:
            raise ManifestError(f"{what} names no graph", where=where, got=graph, allowed=sorted(variants))
        lacking = [bucket for bucket, names in variants[graph].items() if variant not in names]
        if lacking:
            have = sorted(set.intersection(*(set(names) for names in variants[graph].values())))
            got = f"{graph} {variant} (not in {', '.join(lacking)})"
            raise ManifestError(f"{what} names an absent variant", where=where, got=got, allowed=have)
    keys = {f"{graph}/{bucket}" for graph, buckets in variants.items() for bucket in buckets}
    if unknown := sorted(set(one.golden_tensors) - keys):
        raise ManifestError(f"{what} has golden tensors of no graph", where=where, got=unknown)


def _tuple(value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise TypeError(f"DeviceClass.cpu must be a list, not {type(value).__name__}")
    return tuple(value)

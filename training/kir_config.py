"""Sizes of the reranker: one dial, `preset`; everything else follows from it and is written into the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from contract.errors import InputError
from contract.vocabulary import TASKS

TOWERS = ("id", "pxtr")
S = len(TOWERS)
T = len(TASKS)

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"width": 16, "blocks": 2, "heads": 2, "ffn": 32, "watched": 20, "buckets": (20,), "expert": 16},
    # kir2020: three transformer blocks in each stack. No bucket equals a feature width of `kir_spec` (16, 32, 40, 64).
    "small": {"width": 32, "blocks": 3, "heads": 2, "ffn": 128, "watched": 50, "buckets": (20, 36), "expert": 32},
}


@dataclass(frozen=True)
class KirConfig:
    """Sizes of the net; `KirConfig.of(preset)` is the one dial.

    width     D, features of one tower           heads    H, heads of one tower
    blocks    transformer blocks of each tower   ffn      hidden width of a tower's feed-forward
    watched   L, capacity of the watched list    buckets  N buckets that are published, ascending
    expert    hidden width of one expert         experts  E
    fm        common width of FM's fields        bottom   width of the page's shared bottom
    beams     k of the place graph               placed   P of the place graph
    """

    preset: str
    width: int
    blocks: int
    heads: int
    ffn: int
    watched: int
    buckets: tuple[int, ...]
    expert: int
    experts: int = 3
    fm: int = 8
    bottom: int = 48
    beams: int = 2
    placed: int = 4

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise InputError("--preset: width must be a multiple of heads", got=(self.width, self.heads))
        if self.watched < 2 or self.watched % 2:
            raise InputError("--preset: watched must be an even number from 2", got=self.watched)
        if not self.buckets or list(self.buckets) != sorted(set(self.buckets)) or self.buckets[0] < 1:
            raise InputError("--preset: buckets must ascend from 1", got=self.buckets)

    @staticmethod
    def of(preset: str = "small", **changes: Any) -> KirConfig:
        if preset not in PRESETS:
            raise InputError("--preset: unknown size", got=preset, allowed=sorted(PRESETS))
        return KirConfig(preset=preset, **{**PRESETS[preset], **changes})

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> KirConfig:
        """Parse `to_json` output; the derived entries are recomputed."""
        names = {field.name for field in fields(KirConfig)}
        try:
            known: dict[str, Any] = {k: tuple(v) if k == "buckets" else v for k, v in data.items() if k in names}
            return KirConfig(**known)
        except TypeError as error:
            raise InputError("a KIR configuration is incomplete", got=str(error), allowed=sorted(names)) from None

    def to_json(self) -> dict[str, Any]:
        derived = {"slots": self.slots, "planes": self.planes, "pre_width": self.pre_width, "kv_width": self.kv_width}
        return {**asdict(self), "buckets": list(self.buckets), **derived}

    @property
    def slots(self) -> int:
        """L1: the watched list with its start token."""
        return self.watched + 1

    @property
    def planes(self) -> int:
        """G = S·B·2 cache planes: tower-major, then layer, then key/value."""
        return S * self.blocks * 2

    @property
    def pre_width(self) -> int:
        """C: the candidate part of every expert's first layer."""
        return self.experts * self.expert

    @property
    def kv_width(self) -> int:
        """V: key and value of a placed candidate."""
        return 2 * self.width

    @property
    def rebuild(self) -> int:
        """t of the rebuild bucket: L/2."""
        return self.watched // 2

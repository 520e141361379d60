"""Sizes of the reranker: one dial, `preset`; everything else follows from it and is written into the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from contract.errors import InputError
from contract.vocabulary import TASKS

# What a tower reads of the watched list: `id` the videos and what was done with them, `pxtr` the server's predictions
# and what was done with them, `both` everything.
TOWERS = ("id", "pxtr", "both")
READS = ("target", "mean")
LOSSES = ("tasks", "weighted")

# No bucket equals a feature width of `kir_spec` (16, 32, 40, 64).
_SIZE: dict[str, Any] = {"width": 32, "heads": 2, "ffn": 128, "watched": 50, "buckets": (20, 36), "expert": 32}
PRESETS: dict[str, dict[str, Any]] = {
    # `kir` for tests, the demo and first tries.
    "tiny": {"fm": 0, "width": 16, "blocks": 2, "heads": 2, "ffn": 32, "watched": 20, "buckets": (20,), "expert": 16,
             "skip": True},
    # Ours: the two stacks of 2020 under the target attention, placed context and experts of 2022, four tasks; no FM,
    # which costs GAUC (docs/experiments.md); scores that begin at the server's.
    "kir": {**_SIZE, "blocks": 3, "fm": 0, "skip": True},
    # The 2020 talk: two stacks of three blocks, DeepFM, one score by weighted log loss; what was watched is one vector
    # for all candidates.
    "kir2020": {
        **_SIZE, "blocks": 3, "reads": "mean", "placed": 0, "experts": 1, "tasks": ("effective_view",),
        "loss": "weighted",
    },
    # CIKM 2022, Figure 3: target attention straight on the watched videos and on the placed ones, MMoE, three tasks.
    "kir2022": {
        **_SIZE, "towers": ("both",), "blocks": 0, "fm": 0, "tasks": ("has_next", "effective_view", "like"),
    },
}  # fmt: skip


@dataclass(frozen=True)
class KirConfig:
    """Sizes of the net; `KirConfig.of(preset)` is the one dial.

    width     D, features of one tower           heads    H, heads of one tower
    blocks    transformer blocks of each tower   ffn      hidden width of a tower's feed-forward
    watched   L, capacity of the watched list    buckets  N buckets that are published, ascending
    expert    hidden width of one expert         experts  E
    fm        common width of FM's fields, 0 = no FM
    bottom    width of the page's shared bottom
    beams     k of the place graph               placed   P of the place graph, 0 = no context of placed videos
    towers    what each tower reads (TOWERS)     tasks    of vocabulary.TASKS, in the order of the score columns
    reads     target = every candidate attends to the watched list; mean = one mean of it, weighted by age, for all
    loss      tasks = cross-entropy of each task; weighted = the 2020 talk's, of effective_view alone
    skip      the server's pXTR reach each score by a linear layer of their own, past the experts: the net learns what
              is to be changed about them
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
    towers: tuple[str, ...] = ("id", "pxtr")
    tasks: tuple[str, ...] = TASKS
    reads: str = "target"
    loss: str = "tasks"
    skip: bool = False  # checkpoints older than it have none

    def __post_init__(self) -> None:
        for name in ("buckets", "towers", "tasks"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        self._check_names()
        least = {"width": 1, "heads": 1, "ffn": 1, "expert": 2, "experts": 1, "blocks": 0, "fm": 0, "placed": 0}
        small = {name: getattr(self, name) for name, low in least.items() if getattr(self, name) < low}
        if small:
            raise InputError("--preset: a size is too small", got=small, allowed=least)
        if self.width % self.heads:
            raise InputError("--preset: width must be a multiple of heads", got=(self.width, self.heads))
        if self.watched < 2 or self.watched % 2:
            raise InputError("--preset: watched must be an even number from 2", got=self.watched)
        if not self.buckets or list(self.buckets) != sorted(set(self.buckets)) or self.buckets[0] < 1:
            raise InputError("--preset: buckets must ascend from 1", got=self.buckets)

    def _check_names(self) -> None:
        several: dict[str, tuple[str, ...]] = {"towers": TOWERS, "tasks": TASKS}
        for name, allowed in several.items():
            found = getattr(self, name)
            if not found or len(set(found)) < len(found) or set(found) - set(allowed):
                raise InputError(f"{name} of the reranker: one or more, each once", got=found, allowed=allowed)
        for name, one in (("reads", READS), ("loss", LOSSES)):
            if getattr(self, name) not in one:
                raise InputError(f"unknown {name} of the reranker", got=getattr(self, name), allowed=one)
        if self.loss == "weighted" and self.tasks != ("effective_view",):
            raise InputError("the weighted loss is of one score", got=self.tasks, allowed=("effective_view",))

    @staticmethod
    def of(preset: str = "kir", **changes: Any) -> KirConfig:
        if preset not in PRESETS:
            raise InputError("--preset: unknown size", got=preset, allowed=sorted(PRESETS))
        return KirConfig(preset=preset, **{**PRESETS[preset], **changes})

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> KirConfig:
        """Parse `to_json` output; the derived entries are recomputed."""
        names = {field.name for field in fields(KirConfig)}
        try:
            return KirConfig(**{k: v for k, v in data.items() if k in names})
        except TypeError as error:
            raise InputError("a KIR configuration is incomplete", got=str(error), allowed=sorted(names)) from None

    def to_json(self) -> dict[str, Any]:
        derived = {"slots": self.slots, "planes": self.planes, "pre_width": self.pre_width, "kv_width": self.kv_width}
        lists = {name: list(getattr(self, name)) for name in ("buckets", "towers", "tasks")}
        return {**asdict(self), **lists, **derived}

    @property
    def slots(self) -> int:
        """L1: the watched list with its start token."""
        return self.watched + 1

    @property
    def n_towers(self) -> int:
        """S."""
        return len(self.towers)

    @property
    def n_tasks(self) -> int:
        """T."""
        return len(self.tasks)

    @property
    def planes(self) -> int:
        """G = S·B·2 cache planes: tower-major, then layer, then key/value."""
        return self.n_towers * self.blocks * 2

    @property
    def query_width(self) -> int:
        """S·D, or 0 where no candidate attends to anything."""
        return self.n_towers * self.width if self.reads == "target" or self.placed else 0

    @property
    def memory_width(self) -> int:
        """Wm: keys and values of all towers, or values alone where nothing attends to the watched list."""
        return (2 if self.reads == "target" else 1) * self.n_towers * self.width

    @property
    def hidden_width(self) -> int:
        """What the experts' first layer has in all."""
        return self.experts * self.expert

    @property
    def pre_width(self) -> int:
        """C: the candidate part of every expert's first layer and, with `skip`, of the T scores."""
        return self.hidden_width + (self.n_tasks if self.skip else 0)

    @property
    def kv_width(self) -> int:
        """V: key and value of a placed candidate; 0 without a context of placed ones."""
        return 2 * self.width if self.placed else 0

    @property
    def rebuild(self) -> int:
        """t of the rebuild bucket: L/2."""
        return self.watched // 2

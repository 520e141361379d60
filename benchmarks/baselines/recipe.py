"""How a baseline is made and trained, as data: recipes.json beside this file, by model and data set, chosen on `val`.

    {"sasrec": {"any": {"model": {"width": 64}, "data": {"batch": 4096}, "train": {"epochs": 30}}, "ml-1m": {…}}}

What stands under a data set changes what stands under "any". `--set train.epochs=5` changes one value.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contract.errors import InputError

if TYPE_CHECKING:
    from training.trainer import TrainConfig

RECIPES = Path(__file__).parent / "recipes.json"
ANY = "any"
PARTS = ("model", "data", "train")


@dataclass(frozen=True)
class DataConfig:
    """What training reads.

    batch        targets of a step
    latest       items of a segment; stride: cuts of a segment that is not a user's first (training/segments.py)
    half_life_days  of a target's weight (training/segments.py); None = all weigh 1
    negatives    items drawn anew for each step, to stand beside its targets in the softmax; None = the whole catalogue
    except_seen  what stands in the history is no negative
    val_queries  of `val`, drawn once, to choose the epoch by; None = all, 0 = none: the last epoch is kept
    """

    batch: int = 4096
    latest: int = 200
    stride: int | None = None
    half_life_days: float | None = None
    negatives: int | None = None
    except_seen: bool = False
    val_queries: int | None = 3000


@dataclass(frozen=True)
class Recipe:
    """model: the arguments of the model's class; data; train: those of training.trainer.TrainConfig that differ."""

    name: str
    model: Mapping[str, Any] = field(default_factory=dict)
    data: DataConfig = field(default_factory=DataConfig)
    train: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def shipped(name: str, data_name: str) -> Recipe:
        """The recipe of a baseline for data of a kind ("ml-1m"); those without their own have that for any."""
        found = json.loads(RECIPES.read_text())
        if name not in found:
            raise InputError("no recipe for this baseline", got=name, allowed=sorted(found))
        recipe = Recipe(name).with_values(found[name][ANY], RECIPES)
        return recipe.with_values(found[name].get(data_name, {}), RECIPES)

    def with_values(self, values: Mapping[str, Mapping[str, Any]], where: object) -> Recipe:
        """With some values changed: part -> key -> value. Raises InputError for parts and keys that are not there."""
        if unknown := sorted(set(values) - set(PARTS)):
            raise InputError("unknown part of a recipe", where=where, got=unknown, allowed=PARTS)
        known = {f.name for f in fields(DataConfig)}
        if unknown := sorted(set(values.get("data", {})) - known):
            raise InputError("unknown key in a recipe's data", where=where, got=unknown, allowed=sorted(known))
        return replace(
            self,
            model={**self.model, **values.get("model", {})},
            data=replace(self.data, **values.get("data", {})),
            train={**self.train, **values.get("train", {})},
        )

    def changed(self, settings: Iterable[str]) -> Recipe:
        """With settings of the form part.key=VALUE, VALUE in JSON or a bare word. Raises InputError."""
        recipe = self
        for setting in settings:
            path, equals, text = setting.partition("=")
            part, dot, key = path.partition(".")
            if not equals or not dot or part not in PARTS:
                allowed = f"PART.KEY=VALUE with PART one of {', '.join(PARTS)}"
                raise InputError("not a setting", where="--set", got=setting, allowed=allowed)
            try:
                value = json.loads(text)
            except ValueError:
                value = text
            recipe = recipe.with_values({part: {key: value}}, "--set")
        return recipe

    def train_config(self) -> TrainConfig:
        """Raises InputError for unknown keys and values out of range."""
        from training.trainer import TrainConfig

        try:
            return TrainConfig(**self.train)
        except TypeError as error:
            raise InputError("not a training configuration", where=f"recipe of {self.name}", got=str(error)) from None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

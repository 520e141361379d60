"""A training recipe as data: one JSON object that says how a KuaiFormer is made and trained, saved with the checkpoint.

    {"preset": "tiny", "model": {"layers": 2}, "data": {"batch": 4096}, "loss": {"smoothing": "standard"},
     "train": {"epochs": 60, "precision": "auto"}}

What is left out has its default. `kir train kuaiformer --recipe NAME` takes those in training/recipes/, or a file;
`--set loss.alpha=0.2` changes one value.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from contract.errors import InputError
from training.kuaiformer import KuaiFormerConfig, preset_config
from training.kuaiformer_task import LossConfig
from training.tables import INIT_STD
from training.trainer import TrainConfig

FOLDER = Path(__file__).parent / "recipes"
# Recall@10 on the simulator .199, with the trainer's own 0.05 .188 (tiny, one seed).
TABLE_RATE = 0.15


@dataclass(frozen=True)
class DataConfig:
    """batch: targets of a step; key_dropout: chance that an id of any field is unknown, as a candidate's too;
    item_dropout: that a video of a history is; init_std: of the tables' rows before training, smaller where items are
    rare, whose rows keep it longest; the others: see training/segments.py.

    select_by  metric of `val` that chooses the epoch, "" = the last one; it costs an evaluation each time
    """

    batch: int = 1024
    stride: int | None = None
    cap: int | None = None
    half_life_days: float | None = None
    key_dropout: float = 0.05
    item_dropout: float = 0.0
    init_std: float = INIT_STD
    select_by: str = ""


@dataclass(frozen=True)
class Recipe:
    """preset and `model` (changes to it), data, loss and train."""

    preset: str = "tiny"
    model: Mapping[str, Any] = field(default_factory=dict)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=10, table_rate=TABLE_RATE))

    def config(self, without: Iterable[str] = ()) -> KuaiFormerConfig:
        """The model's configuration; `without`: served fields that the data do not tell."""
        changes = dict(self.model)
        changes["without"] = tuple(dict.fromkeys((*changes.get("without", ()), *without)))
        return preset_config(self.preset, **changes)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any], where: object = "recipe") -> Recipe:
        """Raises InputError for unknown parts, unknown keys and values of another type."""
        recipe = Recipe()
        unknown = sorted(set(data) - {f.name for f in fields(Recipe)})
        if unknown:
            raise InputError(
                "unknown part of a recipe", where=where, got=unknown, allowed=[f.name for f in fields(Recipe)]
            )
        for part, value in data.items():
            if part == "preset":
                _check(Recipe, {part: value}, str(where))
                recipe = replace(recipe, preset=value)
            elif not isinstance(value, Mapping):
                raise InputError(f"'{part}' of a recipe is an object", where=where, got=type(value).__name__)
            elif part == "model":
                _check(KuaiFormerConfig, value, f"{where}: {part}", but=("preset",))
                recipe = replace(recipe, model={**recipe.model, **value})
            else:
                was = getattr(recipe, part)
                _check(type(was), value, f"{where}: {part}")
                recipe = replace(recipe, **{part: replace(was, **value)})
        recipe.config()
        return recipe

    def changed(self, settings: Iterable[str]) -> Recipe:
        """With settings of the form part.key=VALUE, VALUE in JSON or a bare word. Raises InputError."""
        data: dict[str, Any] = {"preset": self.preset, "model": dict(self.model)}
        data |= {part: asdict(getattr(self, part)) for part in ("data", "loss", "train")}
        for setting in settings:
            path, equals, text = setting.partition("=")
            part, dot, key = path.partition(".")
            if not equals or not dot or part not in data or part == "preset":
                allowed = "PART.KEY=VALUE with PART model, data, loss or train"
                raise InputError("not a setting", where="--set", got=setting, allowed=allowed)
            try:
                data[part][key] = json.loads(text)
            except ValueError:
                data[part][key] = text
        return Recipe.from_dict(data, "--set")


def read_recipe(name: str | Path) -> Recipe:
    """A recipe that ships, by name, or a JSON file. Raises InputError."""
    path = Path(name)
    if not path.suffix:
        path = FOLDER / f"{name}.json"
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        shipped = sorted(p.stem for p in FOLDER.glob("*.json"))
        raise InputError("no such recipe", got=str(name), allowed=[*shipped, "a JSON file"]) from None
    except (OSError, ValueError) as error:
        raise InputError("not a readable recipe", where=path, got=str(error)) from None
    if not isinstance(data, dict):
        raise InputError("a recipe is one JSON object", where=path, got=type(data).__name__)
    return Recipe.from_dict(data, path)


def _check(kind: type, values: Mapping[str, Any], where: str, but: tuple[str, ...] = ()) -> None:
    """Names and types of some of a configuration's values, as its annotations say."""
    known = {name: hint for name, hint in get_type_hints(kind).items() if name not in but}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise InputError("unknown key", where=where, got=unknown, allowed=sorted(known))
    for name, value in values.items():
        if not _fits(value, known[name]):
            allowed = getattr(known[name], "__name__", None) if type(known[name]) is type else str(known[name])
            raise InputError(f"'{name}' has another type", where=where, got=value, allowed=allowed)


def _fits(value: Any, hint: Any) -> bool:
    if isinstance(hint, UnionType):
        return any(_fits(value, one) for one in get_args(hint))
    if get_origin(hint) is tuple:
        return isinstance(value, list | tuple) and all(_fits(one, get_args(hint)[0]) for one in value)
    if hint is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is hint  # so that `true` is no number

"""Quantisation recipes are data: one JSON file each in `recipes/`, saved with every artifact they made.

A recipe is a list of ai-edge-quantizer's rules: a pattern searched in the names of what an operator writes, an
operation ("*" = all), and settings. Later rules win, whatever their patterns; `no_quantize` leaves a layer in float.
Inputs and outputs stay float32: a graph has one contract, whichever variant ships.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from contract.errors import ConversionError, InputError
from convert import flatbuffer
from convert.quiet import quiet
from convert.recipe_rules import (
    calibrated,
    check_rules,
    constants_on_the_left,
    idle_rules,
    in_order,
    integer,
    layers_of,
)
from convert.tensor_names import float_outputs, named_by_signature

RECIPES_DIR = Path(__file__).with_name("recipes")
FLOAT = "float32"
DEFAULT_RECIPES = (FLOAT, "int8-dynamic", "int8-weight-only")
QUANTIZER = "ai-edge-quantizer"
Ranges = Mapping[str, Mapping[str, Any]]  # tensor name -> {"min", "max"}: convert/calibration.py


@dataclass(frozen=True)
class Recipe:
    """name: the variant's name in the manifest. quantizer: None = the float file as it is.

    calibrate: whether the ranges of activations must be seen on real pages first.
    """

    name: str
    doc: str
    quantizer: str | None
    recipe: tuple[dict[str, Any], ...]
    calibrate: bool = False

    @property
    def integer(self) -> bool:
        """Whether products are in integers: such outputs differ between CPUs by more than a float's last bit."""
        return integer(self.recipe)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "recipe": list(self.recipe)}

    @staticmethod
    def from_json(data: Mapping[str, Any], where: object) -> Recipe:
        """Raises InputError naming `where` and, for a rule, its number."""
        try:
            rules = data["recipe"]
            if not isinstance(rules, Sequence) or isinstance(rules, str):
                raise TypeError("'recipe' is no list of rules")
            calibrate = data.get("calibrate", False)
            recipe = Recipe(str(data["name"]), str(data["doc"]), data["quantizer"], tuple(rules), calibrate)
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError("recipe is malformed", where=where, got=f"{type(error).__name__}: {error}") from None
        if recipe.quantizer not in (None, QUANTIZER) or (recipe.quantizer is None) != (not recipe.recipe):
            raise InputError("recipe is malformed", where=where, got=recipe.quantizer, allowed=f"{QUANTIZER} or null")
        check_rules(recipe.recipe, where)
        if recipe.calibrate is not calibrated(recipe.recipe):
            what = "'calibrate' must say whether a rule has an activation_tensor_config"
            raise InputError(what, where=where, got=recipe.calibrate, allowed=calibrated(recipe.recipe))
        return recipe

    def idle(self, files: Sequence[Path]) -> list[str]:
        """Patterns of rules that fit no layer of any of these float files; a rule for all layers is never idle."""
        layers = [layer for path in files for layer in layers_of(path.read_bytes())]
        return [self.recipe[n]["regex"] for n in idle_rules(self.recipe, layers) if self.recipe[n]["regex"] != ".*"]


def recipe_names() -> list[str]:
    """Names of the recipes that ship, sorted."""
    return sorted(path.stem for path in RECIPES_DIR.glob("*.json"))


def load_recipe(name_or_path: str | Path) -> Recipe:
    """A shipped recipe by name, or a JSON file. Raises InputError for an unknown name or a malformed file."""
    text = str(name_or_path)
    path = Path(text) if text.endswith(".json") else RECIPES_DIR / f"{text}.json"
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        if text.endswith(".json"):
            raise InputError("recipe file does not exist", where=path) from None
        raise InputError("unknown quantisation recipe", got=text, allowed=[*recipe_names(), "FILE.json"]) from None
    except (OSError, ValueError) as error:
        raise InputError("recipe is malformed", where=path, got=str(error)) from None
    return Recipe.from_json(data, path)


def load_recipes(names: tuple[str, ...] | list[str]) -> tuple[Recipe, ...]:
    """Recipes in order, the float one first in any case: it is the reference of the others."""
    found = [load_recipe(name) for name in dict.fromkeys((FLOAT, *names))]
    twice = {r.name for r in found if [x.name for x in found].count(r.name) > 1}
    if twice:
        raise InputError("two recipes of one name", got=sorted(twice))
    return tuple(found)


def quantize(float_path: str | Path, recipe: Recipe, path: str | Path, ranges: Ranges | None = None) -> Path:
    """Apply a recipe to a float TFLite file. ranges: of its activations, for recipes that calibrate.

    Raises ConversionError when the recipe does not fit the graph, also when it would leave every layer as it is.
    """
    path = Path(path)
    if recipe.quantizer is None:
        if path.resolve() != Path(float_path).resolve():
            shutil.copyfile(float_path, path)
        return path
    if recipe.calibrate and not ranges:
        raise ConversionError("recipe needs calibration", where=Path(float_path).name, got=recipe.name)
    with quiet(f"quantisation of {Path(float_path).name} by '{recipe.name}'"):
        from ai_edge_quantizer import quantizer

        rules = [*recipe.recipe, *constants_on_the_left(Path(float_path).read_bytes())]
        job = quantizer.Quantizer(str(float_path), in_order(rules))
        seen = dict(ranges or {}) if recipe.calibrate else None
        raw = bytes(job.quantize(seen, enable_progress_report=False).quantized_model or b"")
    if not raw or _types(raw) == _types(Path(float_path).read_bytes()):
        raise ConversionError("recipe quantises no layer of this graph", where=Path(float_path).name, got=recipe.name)
    path.write_bytes(named_by_signature(float_outputs(raw, path), where=path))
    return path


def _types(raw: bytes) -> Counter[str]:
    """How many tensors a file has of each type."""
    return Counter(
        flatbuffer.dtype_of(tensor)
        for graph in flatbuffer.unpack(raw).subgraphs
        for tensor in flatbuffer.tensors(graph)
    )

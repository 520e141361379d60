"""Quantisation recipes are data: one JSON file each in `recipes/`, saved with every artifact they made."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from contract.errors import ConversionError, InputError
from convert.quiet import quiet

RECIPES_DIR = Path(__file__).with_name("recipes")
FLOAT = "float32"
DEFAULT_RECIPES = (FLOAT, "int8-dynamic", "int8-weight-only")
QUANTIZER = "ai-edge-quantizer"


@dataclass(frozen=True)
class Recipe:
    """name: the variant's name in the manifest. quantizer: None = the float file as it is."""

    name: str
    doc: str
    quantizer: str | None
    recipe: tuple[dict[str, Any], ...]

    @property
    def integer(self) -> bool:
        """Whether products are int8: such outputs differ between CPUs by more than a float's last bit."""
        return any(rule["op_config"]["compute_precision"] == "INTEGER" for rule in self.recipe)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "recipe": list(self.recipe)}


def recipe_names() -> list[str]:
    """Names of the recipes that ship, sorted."""
    return sorted(path.stem for path in RECIPES_DIR.glob("*.json"))


def load_recipe(name_or_path: str | Path) -> Recipe:
    """A shipped recipe by name, or a JSON file. Raises InputError for an unknown name or a malformed file."""
    text = str(name_or_path)
    path = Path(text) if text.endswith(".json") else RECIPES_DIR / f"{text}.json"
    try:
        data = json.loads(path.read_text())
        recipe = Recipe(str(data["name"]), str(data["doc"]), data["quantizer"], tuple(data["recipe"]))
    except FileNotFoundError:
        raise InputError("unknown quantisation recipe", got=text, allowed=[*recipe_names(), "FILE.json"]) from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError("recipe is malformed", where=path, got=str(error)) from None
    if recipe.quantizer not in (None, QUANTIZER) or (recipe.quantizer is None) != (not recipe.recipe):
        raise InputError("recipe is malformed", where=path, got=recipe.quantizer, allowed=f"{QUANTIZER} or null")
    return recipe


def load_recipes(names: tuple[str, ...] | list[str]) -> tuple[Recipe, ...]:
    """Recipes in order, the float one first in any case: it is the reference of the others."""
    found = [load_recipe(name) for name in dict.fromkeys((FLOAT, *names))]
    twice = {r.name for r in found if [x.name for x in found].count(r.name) > 1}
    if twice:
        raise InputError("two recipes of one name", got=sorted(twice))
    return tuple(found)


def quantize(float_path: str | Path, recipe: Recipe, path: str | Path) -> Path:
    """Apply a recipe to a float TFLite file. Weights alone: nothing is calibrated. Raises ConversionError."""
    path = Path(path)
    if recipe.quantizer is None:
        if path.resolve() != Path(float_path).resolve():
            shutil.copyfile(float_path, path)
        return path
    with quiet(f"quantisation of {Path(float_path).name} by '{recipe.name}'"):
        from ai_edge_quantizer import quantizer

        raw = bytes(quantizer.Quantizer(str(float_path), list(recipe.recipe)).quantize().quantized_model or b"")
    if not raw:
        raise ConversionError("quantizer gave nothing", where=float_path, got=recipe.name)
    path.write_bytes(raw)
    return path

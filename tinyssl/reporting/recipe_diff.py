"""The bundled recipe that is most similar to a run's, and the differences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tinyssl.config import load_recipe
from tinyssl.finetune_config import load_finetune_recipe
from tinyssl.recipe_files import recipe_names
from tinyssl.reporting.run_facts import flat

PLACES = {"data.sources", "data.holdout", "data.cache_dir"}  # different in every run


@dataclass(frozen=True)
class Setting:
    """A setting of a run, and its value in the bundled recipe."""

    key: str
    value: str
    default: str
    changed: bool


def nearest_recipe(recipe: Mapping[str, Any]) -> tuple[str, list[Setting]]:
    """The name of the bundled recipe with the fewest differences, and every setting.

    Settings that are `auto` in the recipe, and resolved when a run starts, do not count as changed.
    """
    task = "finetune" if recipe.get("task") == "finetune" else "pretrain"
    own = flat(recipe)
    compared = {name: _settings(own, _bundled(name, task)) for name in recipe_names(task)}
    name = min(compared, key=lambda n: sum(setting.changed for setting in compared[n]))
    return name, compared[name]


def _bundled(name: str, task: str) -> dict[str, Any]:
    recipe = load_recipe(name) if task == "pretrain" else load_finetune_recipe(name)
    return flat(recipe.model_dump())


def _settings(own: Mapping[str, Any], default: Mapping[str, Any]) -> list[Setting]:
    return [
        Setting(
            key,
            told(value),
            told(default.get(key)),
            key not in PLACES and value != default.get(key) and default.get(key) != "auto",
        )
        for key, value in own.items()
    ]


def told(value: Any) -> str:
    """A setting's value as it is typed on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ",".join(map(told, value)) + "]"
    return str(value)

"""Files of recipes: names, texts and purposes of the bundled ones."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from tinyssl.errors import UsageError, did_you_mean
from tinyssl.files import read_limited

_LARGEST = 1 << 24  # bytes; a list of many sources may be long


def recipe_names(task: str | None = None) -> list[str]:
    """Sorted names of the bundled recipes, all or those for a task (pretrain or finetune).

    A recipe for fine-tuning has `task: finetune` before its sections.
    """
    entries = [e for e in files("tinyssl.recipes").iterdir() if e.name.endswith(".yaml")]
    names = sorted(e.name.removesuffix(".yaml") for e in entries)
    return [n for n in names if task is None or _task(recipe_text(n)) == task]


def recipe_text(recipe: str | Path) -> str:
    """The YAML of a bundled recipe (by name), of a file, or of a run folder.

    Raises:
        UsageError: neither a bundled recipe nor a readable file.
    """
    bundled = files("tinyssl.recipes").joinpath(f"{recipe}.yaml")
    if Path(recipe).name == str(recipe) and bundled.is_file():
        return bundled.read_text(encoding="utf-8")
    path = Path(recipe)
    try:
        file = path / "recipe.yaml" if path.is_dir() else path
        return read_limited(file, _LARGEST).decode("utf-8")
    except (OSError, ValueError) as error:
        names = recipe_names()
        meant = did_you_mean(str(recipe), names) or ";"
        large = f" ({error})" if "more than" in str(error) else ""
        raise UsageError(
            f"recipe {str(recipe)!r} is neither bundled nor a readable YAML file{large}{meant} "
            f"bundled: {', '.join(names)}"
        ) from None


def purposes() -> dict[str, str]:
    """The purpose of each bundled recipe, which is the first line of its file."""
    return {n: recipe_text(n).partition("\n")[0].removeprefix("# ") for n in recipe_names()}


def _task(text: str) -> str:
    return "finetune" if "\ntask: finetune" in f"\n{text}" else "pretrain"

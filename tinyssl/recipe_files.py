"""The bundled recipes as files: names, texts and what each is for."""

from __future__ import annotations

import difflib
from importlib.resources import files
from pathlib import Path

from tinyssl.errors import UsageError


def recipe_names() -> list[str]:
    """Names of the bundled recipes, sorted."""
    entries = files("tinyssl.recipes").iterdir()
    return sorted(e.name.removesuffix(".yaml") for e in entries if e.name.endswith(".yaml"))


def recipe_text(recipe: str | Path) -> str:
    """The YAML of a bundled recipe (by name), of a file, or of a run folder.

    Raises:
        UsageError: neither a bundled recipe nor a readable file.
    """
    names = recipe_names()
    if str(recipe) in names:
        return files("tinyssl.recipes").joinpath(f"{recipe}.yaml").read_text(encoding="utf-8")
    path = Path(recipe)
    try:
        return (path / "recipe.yaml" if path.is_dir() else path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        near = difflib.get_close_matches(str(recipe), names, n=1)
        meant = f"; did you mean {near[0]}?" if near else ";"
        raise UsageError(
            f"recipe {str(recipe)!r} is neither bundled nor a readable YAML file{meant} "
            f"bundled: {', '.join(names)}"
        ) from None


def purposes() -> dict[str, str]:
    """What each bundled recipe is for: the first line of its file."""
    return {n: recipe_text(n).partition("\n")[0].removeprefix("# ") for n in recipe_names()}

"""Originals beside their augmented views, as training draws them.

r = pictures, v = views, s = their side, t = side of a view, c = channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tinyssl.build import augment_of
from tinyssl.checks import augmented
from tinyssl.config import load_recipe
from tinyssl.console import log
from tinyssl.data import Pictures
from tinyssl.errors import JobError, UsageError
from tinyssl.finetune_config import load_finetune_recipe
from tinyssl.loader import generator_for
from tinyssl.reporting.content import Shot, view_sheets
from tinyssl.reporting.names import short_names
from tinyssl.reporting.recipe_diff import Setting
from tinyssl.reporting.run_facts import RunFacts
from tinyssl.rows import spaced_rows

_ROWS, _VIEWS = 6, 7
_NOTHING = ("0.0", "null")
_COLOURS = ("augment.saturation", "augment.hue", "augment.grayscale")
_ONLY_WITH = {
    "augment.blur_sigma": "augment.blur",
    "augment.cutmix_alpha": "augment.cutmix",
    **dict.fromkeys(
        ["augment.brightness", "augment.contrast", "augment.saturation", "augment.hue"],
        "augment.jitter",
    ),
}
_BESIDE_PIPELINE = ("augment.view_size", "augment.cutmix", "augment.cutmix_alpha")

Draw = Callable[[NDArray[Any], int], NDArray[Any]]  # (r, s, s, c) and a number to (r, c, t, t)


def views_of(facts: RunFacts, pictures: Pictures) -> list[list[Shot]]:
    """A row for each of a few pictures; none where training uses no views, or they cannot be
    drawn."""
    if not draws_views(facts):
        return []
    rows = spaced_rows(len(pictures.paths), _ROWS)
    originals = np.asarray(pictures.array[rows])
    try:
        draw = _finetuning(facts) if facts.finetuned else _pretraining(facts)
        views = np.stack([draw(originals, turn) for turn in range(_VIEWS)], axis=1)
    except (UsageError, JobError) as error:  # such as a missing pipeline file
        log.warning(f"no augmented views in the report: {error}")
        return []
    return view_sheets(originals, short_names([pictures.paths[row] for row in rows]), views)


def draws_views(facts: RunFacts) -> bool:
    """Whether training uses views; False where only a classifier was fitted."""
    return not facts.finetuned or (facts.recipe.get("classifier") or {}).get("method") == "network"


def acting(settings: Sequence[Setting], channels: int) -> list[str]:
    """Augmentation settings with an effect on so many channels, such as `hflip=0.5`."""
    values = {s.key: s.value for s in settings if s.key.startswith("augment.")}
    if values.get("augment.pipeline", "null") != "null":  # it replaces most others
        told = {key: values[key] for key in _BESIDE_PIPELINE if key in values}
        told["augment.pipeline"] = "given"
    else:
        told = {k: v for k, v in values.items() if channels == 3 or k not in _COLOURS}
    return [
        f"{key.removeprefix('augment.')}={value}"
        for key, value in told.items()
        if value not in _NOTHING and values.get(_ONLY_WITH.get(key, key)) not in _NOTHING
    ]


def _pretraining(facts: RunFacts) -> Draw:
    recipe = load_recipe(facts.path / "recipe.yaml")
    return lambda originals, turn: augmented(recipe, originals, turn)


def _finetuning(facts: RunFacts) -> Draw:
    recipe = load_finetune_recipe(facts.path / "recipe.yaml")
    augment = augment_of(recipe.augment, facts.encoder["image_size"])

    def draw(originals: NDArray[Any], turn: int) -> NDArray[Any]:
        raw = torch.from_numpy(np.ascontiguousarray(originals))
        return augment(raw, generator_for(recipe.run.seed, turn, stream=1)).numpy()

    return draw

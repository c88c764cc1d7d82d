"""`tinyssl checks`: what is in a folder, and what the augmentation makes of it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tinyssl.augment import Augment
from tinyssl.build import augment_from
from tinyssl.config import Recipe, load_recipe
from tinyssl.data import Pictures
from tinyssl.files import atomic
from tinyssl.grid import picture_grid
from tinyssl.loader import generator_for
from tinyssl.pipeline import apply_pipeline, load_pipeline
from tinyssl.sources import read_pictures, with_sources

_VIEWS = 8


def check(
    data: str | Path | Sequence[str | Path],
    recipe: str | Path = "mobilenetv3-small",
    overrides: Sequence[str] = (),
    augment: str | Path | None = None,
    rows: int = 8,
) -> str:
    """Reads pictures as pretraining would, and tells what it found.

    Args:
        data: a folder, a picture, a .txt/.csv list, or several of these.
        recipe: whose data settings and augmentation count.
        overrides: `section.key=value` settings on top.
        augment: where to write a PNG of originals and their augmented views; not at all if None.
        rows: pictures in that PNG.

    Returns:
        The report, several lines.

    Raises:
        UsageError: wrong input.
        JobError: no picture can be read.
    """
    settled = with_sources(load_recipe(recipe, overrides), data)
    pictures = read_pictures(settled)
    report = _report(pictures)
    if augment is not None:
        _write_grid(Path(augment), settled, pictures, rows)
        report += f"\nwrote {augment}: originals on the left, {_VIEWS} views of each"
    return report


def _report(pictures: Pictures) -> str:
    n, side, _, channels = pictures.array.shape
    groups = pictures.duplicates()
    mean, std = pictures.statistics()
    lines = [
        f"pictures   {n:,} readable, kept as {side} x {side} x {channels} {pictures.array.dtype}",
        f"mean       {_row(mean)}   of 0 to 1",
        f"deviation  {_row(std)}",
        f"copies     {sum(len(g) - 1 for g in groups):,} exact, in {len(groups):,} groups",
        f"skipped    {len(pictures.skipped):,}",
    ]
    lines += [f"           {path}: {reason}" for path, reason in pictures.skipped[:10]]
    if len(pictures.skipped) > 10:
        lines.append(f"           all in {pictures.folder / 'skipped.csv'}")
    return "\n".join(lines)


def _row(values: Sequence[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)


def _write_grid(path: Path, recipe: Recipe, pictures: Pictures, rows: int) -> None:
    chosen = np.unique(np.linspace(0, len(pictures.paths) - 1, rows).astype(int))
    originals = pictures.array[chosen]
    views = np.stack([augmented(recipe, originals, turn) for turn in range(_VIEWS)], axis=1)
    encoded = io.BytesIO()
    picture_grid(originals, views).save(encoded, "PNG")
    with atomic(path) as file:
        file.write(encoded.getvalue())


def augmented(recipe: Recipe, originals: NDArray[Any], turn: int) -> NDArray[Any]:
    """A view of each picture as the recipe makes them.

    Args:
        recipe: whose augmentation counts.
        originals: (n, s, s, c) uint8 or uint16.
        turn: other views for another number.

    Returns:
        (n, c, t, t) in [0, 1].
    """
    section = recipe.augment
    if section.pipeline is not None:
        pipeline = load_pipeline(section.pipeline)
        seeds = [turn * len(originals) + i for i in range(len(originals))]
        return apply_pipeline(pipeline, originals, seeds, view_size=section.view_size).numpy()
    augment: Augment = augment_from(recipe)
    raw = torch.from_numpy(np.ascontiguousarray(originals))
    return augment(raw, generator_for(recipe.run.seed, turn, stream=1)).numpy()

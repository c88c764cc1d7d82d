"""`tinyssl checks`: content and problems of a set of pictures, and augmented views of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tinyssl.advice import advise
from tinyssl.build import augment_from
from tinyssl.config import Recipe, load_recipe
from tinyssl.data import Pictures
from tinyssl.files import refuse_other_table, typed, writable, write_text
from tinyssl.findings import COLUMNS, find
from tinyssl.grid import picture_grid, refuse_other_sheet, write_sheet
from tinyssl.labels import read_labels
from tinyssl.loader import generator_for
from tinyssl.pipeline import apply_pipeline, load_pipeline
from tinyssl.rows import spaced_rows
from tinyssl.sources import decode_files, find_files, with_sources
from tinyssl.survey import survey

_VIEWS = 8


def check(
    data: str | Path | Sequence[str | Path] = (),
    recipe: str | Path = "mobilenetv3-small",
    overrides: Sequence[str] = (),
    augment: str | Path | None = None,
    rows: int = 8,
    labels: str | Path | None = None,
    listed: str | Path | None = None,
) -> str:
    """Reads pictures as pretraining would, and reports what it found.

    Args:
        data: a folder, a picture, a .txt/.csv list, or several of these; may be left out with
            `labels`.
        recipe: data settings and augmentation come from it.
        overrides: `section.key=value` settings on top, one or several.
        augment: where to write a PNG of originals and their augmented views; not at all if None.
        rows: number of pictures in that PNG.
        labels: a CSV or class folders, also in `train` and `test`: finds copies with different
            labels, and copies in both parts.
        listed: where to write all findings as a CSV; not at all if None.

    Returns:
        The report, several lines.

    Raises:
        UsageError: wrong input.
        JobError: no picture can be read.
    """
    settled = with_sources(load_recipe(recipe, overrides), data)
    table = None if labels is None else read_labels(labels)
    files = set() if table is None else set(table.paths)
    if settled.data.sources or table is None:
        files |= set(find_files(settled))
    named = [*settled.data.sources, *([] if labels is None else [labels])]
    _refuse_to_replace(augment, listed, named, files)
    ordered = sorted(files, key=str)  # as a run has them, whose cache this then is
    pictures = decode_files(ordered, settled)
    headers = survey(ordered, settled.data.max_pixels, settled.run.workers)
    findings = find(pictures, headers, table)
    advice = advise(headers, findings.different, pictures.array.shape[3] == 1)
    sources = settled.data.sources or [str(labels)]
    findings.say("recipe", advice.command(" ".join(map(typed, sources))), *advice.reasons)
    if listed is not None:
        write_text(Path(listed), findings.to_csv())
        findings.say("wrote", f"{listed}: {len(findings.rows):,} rows, all that was found")
    if augment is not None:
        _write_grid(Path(augment), settled, pictures, rows)
        findings.say("wrote", f"{augment}: originals on the left, {_VIEWS} views of each")
    return findings.text()


def _refuse_to_replace(
    augment: str | Path | None,
    listed: str | Path | None,
    named: Sequence[str | Path],
    files: Collection[Path],
) -> None:
    """Raises UsageError where an output would replace a file that is not an earlier output."""
    if augment is not None:
        refuse_other_sheet(Path(augment), files)
    if listed is not None:
        refuse_other_table(writable(Path(listed), ".csv", named), COLUMNS)


def _write_grid(path: Path, recipe: Recipe, pictures: Pictures, rows: int) -> None:
    chosen = spaced_rows(len(pictures.paths), rows)
    originals = pictures.array[chosen]
    views = np.stack([augmented(recipe, originals, turn) for turn in range(_VIEWS)], axis=1)
    write_sheet(path, picture_grid(originals, views))


def augmented(recipe: Recipe, originals: NDArray[Any], turn: int) -> NDArray[Any]:
    """A view of each picture as the recipe makes them.

    Args:
        recipe: the augmentation comes from it.
        originals: (n, s, s, c) uint8 or uint16.
        turn: number of the view; each number gives other views.

    Returns:
        (n, c, t, t) in [0, 1].
    """
    section = recipe.augment
    if section.pipeline is not None:
        pipeline = load_pipeline(section.pipeline)
        seeds = [turn * len(originals) + i for i in range(len(originals))]
        return apply_pipeline(pipeline, originals, seeds, view_size=section.view_size).numpy()
    raw = torch.from_numpy(np.ascontiguousarray(originals))
    return augment_from(recipe)(raw, generator_for(recipe.run.seed, turn, stream=1)).numpy()

"""Finds, decodes and reports on the pictures of a recipe."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinyssl.config import Recipe
from tinyssl.console import log, progress
from tinyssl.data import Pictures, load_pictures
from tinyssl.errors import UsageError
from tinyssl.files import as_list, csv_text, in_home
from tinyssl.own_pictures import copies, held_out, without
from tinyssl.pipeline import read_pipeline
from tinyssl.scanning import scan


def with_sources(recipe: Recipe, data: str | Path | Sequence[str | Path]) -> Recipe:
    """The recipe with its sources replaced by `data`, if any is given.

    Paths become absolute, so that a saved recipe is valid in any folder, and an augmentation
    pipeline in a file is read in, so that later changes of the file do not matter.

    Raises:
        UsageError: that file cannot be read.
    """
    sources = [_absolute(source) for source in as_list(data) or recipe.data.sources]
    pipeline = recipe.augment.pipeline
    cache, holdout = recipe.data.cache_dir, recipe.data.holdout
    init, labels = recipe.encoder.init, recipe.run.watch_labels
    changes: dict[str, dict[str, Any]] = {
        "data": {
            "sources": sources,
            "holdout": holdout and _absolute(holdout),
            "cache_dir": cache and _absolute(cache),
        },
        "augment": {"pipeline": pipeline and read_pipeline(pipeline)},
        "encoder": {"init": init if init in ("random", "pretrained") else _absolute(init)},
        "run": {"watch_labels": labels and _absolute(labels)},
    }
    sections = {name: getattr(recipe, name).model_copy(update=u) for name, u in changes.items()}
    return recipe.model_copy(update=sections)


def _absolute(path: str | Path) -> str:
    return str(in_home(path).absolute())


def read_pictures(recipe: Recipe, left_out: Path | None = None) -> Pictures:
    """Scans the sources and decodes the pictures into the cache, or opens the cache.

    Args:
        recipe: names the sources.
        left_out: the list of pictures that the run held out when it began, which counts in place
            of the labels, since these may have changed; if it is still there.

    Raises:
        UsageError: no pictures at the sources, fewer than two, or all the same.
        JobError: none of the pictures can be read.
    """
    again = left_out is not None
    pictures = decode_files(find_files(recipe, left_out), recipe, as_it_was=again)
    _tell_pictures(pictures)
    _refuse_hopeless(pictures)
    return pictures


def find_files(recipe: Recipe, left_out: Path | None = None) -> list[Path]:
    """The files at a recipe's sources, without those held out and exact copies of these.

    `left_out` is as in `read_pictures`.

    Raises:
        UsageError: there are none, or the labels for `data.holdout` have no test pictures.
    """
    found, holdout = scan(recipe.data.sources), recipe.data.holdout
    if holdout is None:
        return found
    if left_out is not None and left_out.is_file():
        return without(found, scan([left_out]))
    return _leave_out(found, held_out(holdout), holdout)


def _leave_out(found: Sequence[Path], tested: Sequence[Path], labels: str) -> list[Path]:
    others = without(found, tested)
    copied = copies(others, tested)
    kept = without(others, copied)
    if not kept:
        raise UsageError(f"all pictures given are test pictures of {labels}; none is left to train")
    real = {os.path.realpath(path) for path in tested}
    here = len(real.intersection(map(os.path.realpath, found)))  # links to one count once
    tell = log.info if here or copied else log.warning
    too = f", with their exact copies ({len(copied):,})" if copied else ""
    tell(f"{here:,} of the {len(real):,} test pictures of {labels} are here and left out{too}")
    return kept


def decode_files(files: Sequence[Path], recipe: Recipe, *, as_it_was: bool = False) -> Pictures:
    """Decodes files into the cache by the settings of a recipe, or opens the cache.

    `as_it_was` is as in `load_pictures`.

    Raises:
        JobError: none of the pictures can be read.
    """
    data = recipe.data
    with progress("reading", len(files)) as advance:
        return load_pictures(
            files,
            size=data.image_size,
            rule=data.resize,
            channels=data.channels,
            cache_dir=None if data.cache_dir is None else Path(data.cache_dir),
            workers=recipe.run.workers,
            max_pixels=data.max_pixels,
            progress=advance,
            as_it_was=as_it_was,
        )


def _refuse_hopeless(pictures: Pictures) -> None:
    if len(pictures.paths) < 2:
        raise UsageError(
            "got 1 readable picture; instance discrimination needs at least 2, and some hundreds "
            "for a useful encoder"
        )
    if all(np.array_equal(picture, pictures.array[0]) for picture in pictures.array[1:]):
        raise UsageError(
            f"all {len(pictures.paths):,} pictures are the same at {pictures.array.shape[1]} "
            "pixels a side; there is nothing to tell apart"
        )


def duplicates_csv(pictures: Pictures) -> str:
    """Exact copies as `group,path` rows."""
    groups = enumerate(pictures.duplicates())
    rows = [(number, pictures.paths[i]) for number, group in groups for i in group]
    return csv_text([("group", "path"), *rows])


def held_out_csv(recipe: Recipe, pictures: Pictures) -> str:
    """The test pictures that a recipe holds out, and their exact copies, as a CSV of `path`.

    Args:
        recipe: with labels to hold out.
        pictures: what it read from its sources.
    """
    assert recipe.data.holdout is not None
    tested = held_out(recipe.data.holdout)
    read = {*pictures.paths, *(path for path, _ in pictures.skipped)}
    others = without(scan(recipe.data.sources), tested)
    copied = [path for path in others if str(path) not in read]
    return csv_text([("path",), *((path,) for path in [*tested, *copied])])


def _tell_pictures(pictures: Pictures) -> None:
    n, side, _, channels = pictures.array.shape
    groups = pictures.duplicates()
    repeated = sum(len(group) - 1 for group in groups)
    log.info(
        f"{n:,} pictures, {side} x {side} x {channels} {pictures.array.dtype} "
        f"(cache: {pictures.folder})"
    )
    if pictures.skipped:
        path, reason = pictures.skipped[0]
        log.warning(
            f"{len(pictures.skipped):,} files skipped, see skipped.csv; first: {path}: {reason}"
        )
    if pictures.several:
        log.warning(
            f"{len(pictures.several):,} files hold several pictures (frames or pages), of which "
            f"the first is taken; first: {pictures.several[0]}"
        )
    if repeated:
        log.warning(f"{repeated:,} pictures are exact copies of others, listed in duplicates.csv")

"""The pictures that a run was made from."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from tinyssl.config import recipe_values
from tinyssl.errors import UsageError
from tinyssl.labels import read_labels
from tinyssl.run_folder import HELD_OUT, LABELS
from tinyssl.scanning import scan


def own_pictures(run: str | Path) -> list[Path]:
    """Pictures at a run's sources, less those held out, whichever verb made it.

    Raises:
        UsageError: the run has no recipe that can be read, it names no pictures, or what it
            names is gone.
    """
    data = recipe_values(run).get("data")
    sources = data.get("sources") if isinstance(data, dict) else None
    if not isinstance(data, dict) or not isinstance(sources, list) or not sources:
        raise UsageError(f"the recipe of {run} names no pictures")
    found = scan([_moved_along(str(source), Path(run)) for source in sources])
    if data.get("holdout") is None:
        return found
    return without(found, scan([Path(run) / HELD_OUT]))  # the labels may tell another split by now


def holdout_of(run: str | Path) -> str | None:
    """The labels whose test pictures a run of pretraining left out, None if it left out none."""
    labels: str | None = recipe_values(run)["data"].get("holdout")
    return labels


def without(found: Sequence[Path], left_out: Iterable[Path]) -> list[Path]:
    """The files found that are none of those left out, by whichever links they were reached."""
    real = {os.path.realpath(path) for path in left_out}
    return [path for path in found if os.path.realpath(path) not in real]


def _moved_along(source: str, run: Path) -> str:
    """A fine-tuned run's list of labels lies in it, wherever the run was moved to."""
    own = run / LABELS
    gone = Path(source).name == own.name and not Path(source).exists()
    return str(own) if gone and own.is_file() else source


def held_out(labels: str | Path) -> list[Path]:
    """The test pictures of labels: a CSV with a split, or class folders in `train/` and `test/`.

    Raises:
        UsageError: as `read_labels` does, or the labels have no test pictures.
    """
    table = read_labels(labels)
    splits = table.splits or ["train"] * len(table.paths)
    tested = [path for path, split in zip(table.paths, splits, strict=True) if split == "test"]
    if not tested:
        raise UsageError(
            f"{labels} tells no test pictures, so nothing can be held out; give a CSV with the "
            "column split (train or test), or a folder of class folders in train/ and test/"
        )
    return tested

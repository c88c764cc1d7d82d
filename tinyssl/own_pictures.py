"""The pictures of a run, and those held out from it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from tinyssl.config import recipe_values
from tinyssl.errors import UsageError
from tinyssl.files import sha256
from tinyssl.labels import read_labels
from tinyssl.run_folder import HELD_OUT, LABELS
from tinyssl.scanning import scan


def own_pictures(run: str | Path) -> list[Path]:
    """Pictures at the sources of a run of any kind, without those held out.

    Raises:
        UsageError: the run's recipe cannot be read or names no pictures, or they are gone.
    """
    data = recipe_values(Path(run) / "recipe.yaml").get("data")
    sources = data.get("sources") if isinstance(data, dict) else None
    if not isinstance(data, dict) or not isinstance(sources, list) or not sources:
        raise UsageError(f"the recipe of {run} names no pictures")
    found = scan([_moved_along(str(source), Path(run)) for source in sources])
    if not any(path.is_file() for path in found):  # a list may outlive them
        raise UsageError(f"the pictures of {run} are gone, first {found[0]}")
    if data.get("holdout") is None:
        return found
    return without(found, scan([Path(run) / HELD_OUT]))  # the labels may have changed since


def holdout_of(run: str | Path) -> str | None:
    """The labels whose test pictures a run of pretraining left out, None if it left out none."""
    labels: str | None = recipe_values(Path(run) / "recipe.yaml")["data"].get("holdout")
    return labels


def without(found: Sequence[Path], left_out: Iterable[Path]) -> list[Path]:
    """The files found that are not left out, with links resolved."""
    real = {os.path.realpath(path) for path in left_out}
    return [path for path in found if os.path.realpath(path) not in real]


def copies(found: Sequence[Path], originals: Sequence[Path]) -> list[Path]:
    """The files found with the bytes of an original; reads only files whose size both have."""
    ours, theirs = _sizes(found), _sizes(originals)
    common = set(ours.values()) & set(theirs.values())
    digests = {_digest(path) for path, size in theirs.items() if size in common}
    return [path for path, size in ours.items() if size in common and _digest(path) in digests]


def _sizes(paths: Sequence[Path]) -> dict[Path, int]:
    return {path: path.stat().st_size for path in paths if path.is_file()}


def _digest(path: Path) -> str:
    try:
        return sha256(path)
    except OSError:  # told where pictures are read
        return str(path)


def _moved_along(source: str, run: Path) -> str:
    """Finds a fine-tuned run's list of labels in the run, if the run was moved."""
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

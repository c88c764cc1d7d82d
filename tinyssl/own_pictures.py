"""The pictures that a run was made from."""

from __future__ import annotations

from pathlib import Path

from tinyssl.config import recipe_values
from tinyssl.errors import UsageError
from tinyssl.labels import read_labels
from tinyssl.run_folder import LABELS
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
    holdout = data.get("holdout")
    left_out = set() if holdout is None else held_out(str(holdout))
    return [path for path in found if path not in left_out]


def _moved_along(source: str, run: Path) -> str:
    """A fine-tuned run's list of labels lies in it, wherever the run was moved to."""
    own = run / LABELS
    gone = Path(source).name == own.name and not Path(source).exists()
    return str(own) if gone and own.is_file() else source


def held_out(labels: str | Path) -> set[Path]:
    """The test pictures of labels: a CSV with a split, or class folders in `train/` and `test/`.

    Raises:
        UsageError: as `read_labels` does, or the labels have no split.
    """
    table = read_labels(labels)
    if table.splits is None:
        raise UsageError(
            f"{labels} tells no split, so nothing can be held out; give a CSV with the column "
            "split (train or test), or a folder of class folders in train/ and test/"
        )
    return {path for path, split in zip(table.paths, table.splits, strict=True) if split == "test"}

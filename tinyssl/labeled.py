"""Labeled pictures to train on: read, decoded, and checked against each other.

n = pictures without copies, s = image size, c = channels.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyssl.console import log, progress
from tinyssl.data import Pictures, pictures_for
from tinyssl.errors import UsageError
from tinyssl.files import csv_text, read_json
from tinyssl.labels import LabeledPaths, read_labels
from tinyssl.run_folder import LABELS, LABELS_HEADER
from tinyssl.weights import DESCRIPTION, WEIGHTS

RESULT = "finetune.json"  # of a fine-tuned run


@dataclass(frozen=True)
class Labeled:
    """The training data of a classifier.

    Attributes:
        array: (n, s, s, c) uint8 or uint16.
        paths: n absolute paths.
        digests: n digests of the files' bytes, all different.
        labels: (n,) numbers of classes.
        classes: names in alphabetical order, each with at least one picture.
    """

    array: NDArray[Any]
    paths: list[str]
    digests: list[str]
    labels: NDArray[np.int64]
    classes: list[str]

    def counts(self) -> dict[str, int]:
        """Pictures of each class."""
        numbers = np.bincount(self.labels, minlength=len(self.classes))
        return {name: int(count) for name, count in zip(self.classes, numbers, strict=True)}

    def to_csv(self) -> str:
        """The pictures as `path,label,digest` rows."""
        names = [self.classes[number] for number in self.labels]
        rows = zip(self.paths, names, self.digests, strict=True)
        return csv_text([LABELS_HEADER, *rows])


def read_labeled(
    source: str | Path,
    description: Mapping[str, Any],
    *,
    cache_dir: Path | None = None,
    workers: int = 0,
) -> Labeled:
    """Reads labels from a folder of class folders or a CSV, and their pictures.

    Of a CSV with a column `split` only the rows that say train are used. Harmless oddities are
    logged: empty labels, empty class folders, a label given twice.

    Args:
        source: the folder, or the CSV with the columns path,label.
        description: of the encoder that is to take them.
        cache_dir: of decoded pictures; the user's cache folder when None.
        workers: threads; 0 is one a CPU core.

    Raises:
        UsageError: a picture is missing or cannot be read, equal pictures have different labels,
            or fewer than 2 classes have a picture.
    """
    table = _training_rows(read_labels(source), source)
    with progress("reading", len(table.paths)) as advance:
        pictures = pictures_for(
            description,
            sorted(table.paths, key=str),
            cache_dir=cache_dir,
            workers=workers,
            progress=advance,
        )
    refuse_unreadable(pictures)
    by_path = {str(p): name for p, name in zip(table.paths, table.labels, strict=True)}
    names = [by_path[path] for path in pictures.paths]
    kept = _first_of_each(pictures, names)
    repeated = table.repeated + len(names) - len(kept)
    if repeated:
        log.warning(f"{source}: {repeated} labels say again what others said; each counts once")
    classes = sorted({names[row] for row in kept})
    if len(classes) < 2:
        raise UsageError(f"{source} labels 1 class, {classes[0]}; give pictures of at least 2")
    return Labeled(
        array=np.asarray(pictures.array[kept]),
        paths=[pictures.paths[row] for row in kept],
        digests=[pictures.hashes[row] for row in kept],
        labels=np.array([classes.index(names[row]) for row in kept], np.int64),
        classes=classes,
    )


def _training_rows(table: LabeledPaths, source: str | Path) -> LabeledPaths:
    if table.unlabeled:
        log.warning(f"{source}: {table.unlabeled} rows have no label and are left out")
    if table.empty:
        named = ", ".join(table.empty)
        log.warning(f"{source}: no picture of {named}; the classifier will not know such a class")
    if table.splits is None:
        return table
    rows = [row for row, split in enumerate(table.splits) if split == "train"]
    log.info(f"{source}: {len(rows)} of {len(table.splits)} labels are of the split train")
    unseen = sorted(set(table.labels) - {table.labels[row] for row in rows})
    if unseen:
        named = ", ".join(unseen)
        log.warning(f"{source}: no training picture of {named}; the classifier will not know it")
    if not rows:
        raise UsageError(f"{source}: no label is of the split train; there is nothing to learn")
    return LabeledPaths(
        [table.paths[row] for row in rows],
        [table.labels[row] for row in rows],
        repeated=table.repeated,
    )


def refuse_unreadable(pictures: Pictures) -> None:
    """Raises UsageError if a picture, which somebody labeled by hand, cannot be read."""
    if pictures.skipped:
        path, reason = pictures.skipped[0]
        raise UsageError(
            f"{len(pictures.skipped)} labeled pictures cannot be read; first: {path}: {reason}; "
            "mend them or take them out of the labels"
        )


def _first_of_each(pictures: Pictures, names: list[str]) -> list[int]:
    """The first row of each set of equal files; refuses equal files with different labels."""
    first: dict[str, int] = {}
    for row, digest in enumerate(pictures.hashes):
        other = first.setdefault(digest, row)
        if names[other] != names[row]:
            raise UsageError(
                f"{pictures.paths[other]} is {names[other]} and {pictures.paths[row]} is "
                f"{names[row]}, but the two files are equal; keep one of the labels"
            )
    return sorted(first.values())


def smallest_class(labels: NDArray[np.int64]) -> int:
    """Size of the smallest class that occurs."""
    return min(Counter(labels.tolist()).values())


def used_digests(run: str | Path) -> set[str]:
    """Digests of the pictures whose labels a fine-tuned run or its earlier runs were trained on.

    Raises:
        UsageError: a file of one of these runs is damaged.
    """
    return _own_digests(run) | shaped_by(run)


def shaped_by(run: str | Path) -> set[str]:
    """Digests of the pictures whose labels a run's encoder was trained on.

    Includes the runs that it started from, as far as they still exist.

    Args:
        run: the folder, or weights in it.

    Raises:
        UsageError: a file of one of these runs is damaged.
    """
    found: set[str] = set()
    for folder in _line(run):
        found |= _learned(folder / RESULT)
    return found


def pretrained_before(run: str | Path) -> list[Path]:
    """The runs of pretraining that a run started from, as far as they still exist."""
    return [folder for folder in _line(run)[1:] if not (folder / RESULT).is_file()]


def pretrained(run: str | Path) -> Path:
    """The run that a fine-tuned one was made from, over any number of steps; others themselves."""
    folder, known = Path(run), set[Path]()
    while folder not in known and (folder / RESULT).is_file():
        known.add(folder)
        folder = Path(_start_of(folder / DESCRIPTION))
    return folder


def _line(run: str | Path) -> list[Path]:
    """The folder of a run or of weights in it, and those of the runs that it started from."""
    folder, found = _folder(Path(run).absolute()), list[Path]()  # a run may be called `random`
    while folder is not None and folder not in found and folder.is_dir():
        found.append(folder)
        folder = _folder(_start_of(folder / DESCRIPTION))
    return found


def _folder(run: str | Path) -> Path | None:
    """The folder of a run or of weights in it; None for a start that is no run."""
    if str(run) in ("random", "pretrained"):
        return None
    path = Path(run)
    return path.parent if path.name == WEIGHTS else path


def _start_of(description: Path) -> str:
    try:
        return str(read_json(description).get("init", "random"))
    except (OSError, ValueError, AttributeError):  # none, or another program's
        return "random"


def _learned(path: Path) -> set[str]:
    """The digests in a fine-tuned run's result; none where there is no such file."""
    if not path.is_file():
        return set()
    try:
        return set(map(str, dict(read_json(path)).get("encoder_learned", ())))
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"{path} cannot be read: {error}; remove it") from None


def _own_digests(run: str | Path) -> set[str]:
    path = Path(run) / LABELS
    if not path.is_file():
        return set()
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            return {row.get("digest") or "" for row in csv.DictReader(file)}
    except (OSError, csv.Error) as error:
        raise UsageError(f"{path} cannot be read: {error}; remove it") from None

"""Labeled pictures in a training and a test part, to evaluate encoders on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyssl.console import log
from tinyssl.data import Pictures, pictures_for
from tinyssl.errors import UsageError, a_few
from tinyssl.labeled import refuse_unreadable
from tinyssl.labels import from_class_folders, read_labels, stratified_split, write_csv

SPLIT_COLUMNS = ("path", "label", "split")


@dataclass(frozen=True)
class LabeledSplit:
    """n labeled pictures.

    Attributes:
        paths: n paths.
        labels: (n,) numbers of classes.
        classes: names in alphabetical order, each with a training picture.
        test: (n,) True for test pictures.
        drawn: whether the split was drawn here rather than given.
    """

    paths: list[Path]
    labels: NDArray[np.int64]
    classes: list[str]
    test: NDArray[np.bool_]
    drawn: bool = False

    def write(self, path: Path) -> None:
        """Writes a CSV path,label,split that gives the same split again."""
        names = [self.classes[number] for number in self.labels]
        write_csv(path, self.paths, names, ["test" if t else "train" for t in self.test])


def read_split(
    train: str | Path | None,
    test: str | Path | None,
    labels: str | Path | None,
    seed: int,
    kept: str = "",
) -> tuple[LabeledSplit, str]:
    """Reads labels with a split, or draws one.

    Args:
        train: a folder of class folders to fit classifiers on; goes with `test`.
        test: a folder of class folders to measure on.
        labels: instead of the two: a CSV with path,label and optionally split.
        seed: of a split that is drawn.
        kept: name of the file that a drawn split will be written to, for the description.

    Returns:
        The split, and its origin in words.

    Raises:
        UsageError: labels that do not fit, a test class without a training picture, fewer than 2
            classes or no test picture.
    """
    if labels is not None and train is None and test is None:
        table = read_labels(labels)
        if table.unlabeled:
            log.warning(f"{labels}: {table.unlabeled} rows have no label and are left out")
        # By path, so that the order in which somebody sorted a CSV changes no draw.
        order = sorted(range(len(table.paths)), key=table.paths.__getitem__)
        names = [table.labels[row] for row in order]
        if table.splits is not None:
            is_test = np.array([table.splits[row] == "test" for row in order])
            told = f"of {labels}"
        else:
            is_test = stratified_split(names, seed=seed)
            told = f"25 % stratified, seed {seed}" + (f", in {kept}" if kept else "")
        split = _make_split([table.paths[row] for row in order], names, is_test)
        return replace(split, drawn=table.splits is None), told
    if labels is None and train is not None and test is not None:
        sets = [from_class_folders(f) for f in (train, test)]
        paths = sets[0].paths + sets[1].paths
        is_test = np.arange(len(paths)) >= len(sets[0].paths)
        return _make_split(paths, sets[0].labels + sets[1].labels, is_test), f"{train} and {test}"
    raise UsageError("give either --labels labels.csv, or both --train DIR and --test DIR")


def _make_split(paths: list[Path], names: list[str], test: NDArray[np.bool_]) -> LabeledSplit:
    trained = {name for name, is_test in zip(names, test, strict=True) if not is_test}
    unknown = sorted(set(names) - trained)
    if unknown:
        raise UsageError(
            f"{len(unknown)} classes have test pictures but no training picture "
            f"(first: {unknown[0]}); give each class at least one, or leave it out"
        )
    if len(trained) < 2 or not test.any():
        raise UsageError(
            f"{len(trained)} classes and {int(test.sum())} test pictures are labeled; at least 2 "
            "classes and 1 test picture are needed; label 3 or more of each class, or say in a "
            "column split which are for test"
        )
    classes = sorted(trained)
    numbers = {name: number for number, name in enumerate(classes)}
    return LabeledSplit(paths, np.array([numbers[name] for name in names]), classes, test)


def copies_together(split: LabeledSplit, digests: Sequence[str], seed: int) -> LabeledSplit:
    """The split; one that was drawn is drawn again where files are equal, which then stay together.

    Args:
        split: of n pictures.
        digests: n digests of their files.
        seed: of the draw.

    Raises:
        UsageError: too few different pictures.
    """
    first = {digest: row for row, digest in reversed(list(enumerate(digests)))}
    if not split.drawn or len(first) == len(digests):
        return split
    names = [split.classes[number] for number in split.labels]
    rows = sorted(first.values())
    test = stratified_split([names[row] for row in rows], seed=seed)
    tested = {digests[row] for row, chosen in zip(rows, test, strict=True) if chosen}
    log.info(f"{len(digests) - len(rows)} labeled pictures equal others and were drawn with them")
    drawn = _make_split(split.paths, names, np.array([digest in tested for digest in digests]))
    return replace(drawn, drawn=True)


def warn_of(split: LabeledSplit, digests: Sequence[str]) -> int:
    """Warns of test pictures among the training pictures, and of classes without test pictures.

    Args:
        split: of n pictures.
        digests: n digests of their files.

    Returns:
        Number of test pictures that equal a training picture.
    """
    trained = {d for d, test in zip(digests, split.test, strict=True) if not test}
    both = sum(bool(test) and d in trained for d, test in zip(digests, split.test, strict=True))
    if both:
        log.warning(
            f"{both} test pictures are training pictures too (equal files): figures are too good; "
            "take them out of one of the two"
        )
    counts = np.bincount(split.labels[split.test], minlength=len(split.classes))
    absent = [name for name, count in zip(split.classes, counts, strict=True) if not count]
    if absent:
        log.warning(
            f"no test picture of {a_few(absent)}: balanced accuracy is that of the "
            f"other {len(split.classes) - len(absent)} of {len(split.classes)} classes"
        )
    return both


def split_pictures(split: LabeledSplit, description: Mapping[str, Any]) -> Pictures:
    """The pictures of a split, in its order, as the encoder of a description takes them.

    Raises:
        UsageError: a picture cannot be read.
    """
    pictures = pictures_for(description, split.paths)
    refuse_unreadable(pictures)
    return pictures

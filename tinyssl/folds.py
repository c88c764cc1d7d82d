"""Stratified folds, drawn as often as few labels need."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.integer[Any]]
Fold = tuple[NDArray[np.int64], NDArray[np.int64]]


def repeats_for(setting: int | str, labels: int) -> int:
    """Times to draw the folds: `auto` is 2 below 100 labels, else 1."""
    if setting != "auto":
        return int(setting)
    return 2 if labels < 100 else 1


def stratified_folds(labels: Ints, folds: int, repeats: int, seed: int) -> list[list[Fold]]:
    """Cuts the rows into parts that hold equal shares of every class, several times.

    The parts are dealt class by class, each class going on where the last one ended, so that
    parts differ by at most one row, and by at most one row of each class.

    Args:
        labels: (n,).
        folds: parts; at most the pictures of the rarest class, so that each class is in each part.
        repeats: times the parts are drawn anew.
        seed: of the draws.

    Returns:
        For every repeat its folds: rows to fit on, and rows held out.
    """
    drawn = []
    for repeat in range(repeats):
        part = _deal(labels, folds, np.random.default_rng([seed, repeat]))
        drawn.append([(np.flatnonzero(part != p), np.flatnonzero(part == p)) for p in range(folds)])
    return drawn


def _deal(labels: Ints, folds: int, generator: np.random.Generator) -> NDArray[np.int64]:
    part = np.empty(len(labels), np.int64)
    dealt = 0
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        part[rows] = (dealt + np.arange(len(rows))) % folds
        dealt += len(rows)
    return part

"""Stratified folds, drawn repeatedly where labels are few."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import RepeatedStratifiedKFold

Ints = NDArray[np.integer[Any]]
Fold = tuple[NDArray[np.int64], NDArray[np.int64]]


def repeats_for(setting: int | str, labels: int) -> int:
    """Number of draws of the folds: `auto` is 2 below 100 labels, else 1."""
    if setting != "auto":
        return int(setting)
    return 2 if labels < 100 else 1


def stratified_folds(labels: Ints, folds: int, repeats: int, seed: int) -> list[list[Fold]]:
    """Splits the rows into folds with equal shares of every class, several times.

    Args:
        labels: (n,).
        folds: number of folds; at most the size of the rarest class, so that each has all classes.
        repeats: number of draws.
        seed: of the draws.

    Returns:
        The folds of every draw: rows to fit on, and rows held out.
    """
    drawn = RepeatedStratifiedKFold(n_splits=folds, n_repeats=repeats, random_state=seed)
    every = list(drawn.split(np.zeros(len(labels)), labels))
    return [every[start : start + folds] for start in range(0, len(every), folds)]

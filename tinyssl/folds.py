"""Stratified folds, drawn as often as few labels need."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import RepeatedStratifiedKFold

Ints = NDArray[np.integer[Any]]
Fold = tuple[NDArray[np.int64], NDArray[np.int64]]


def repeats_for(setting: int | str, labels: int) -> int:
    """Times to draw the folds: `auto` is 2 below 100 labels, else 1."""
    if setting != "auto":
        return int(setting)
    return 2 if labels < 100 else 1


def stratified_folds(labels: Ints, folds: int, repeats: int, seed: int) -> list[list[Fold]]:
    """Cuts the rows into parts that hold equal shares of every class, several times.

    Args:
        labels: (n,).
        folds: parts; at most the pictures of the rarest class, so that each class is in each part.
        repeats: times the parts are drawn anew.
        seed: of the draws.

    Returns:
        For every repeat its folds: rows to fit on, and rows held out.
    """
    drawn = RepeatedStratifiedKFold(n_splits=folds, n_repeats=repeats, random_state=seed)
    every = list(drawn.split(np.zeros(len(labels)), labels))
    return [every[start : start + folds] for start in range(0, len(every), folds)]

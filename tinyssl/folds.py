"""Stratified folds, drawn repeatedly where labels are few."""

from __future__ import annotations

from collections.abc import Sequence
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

    The only row of a class is never held out, since no other could stand for it.

    Args:
        labels: (n,) from 0.
        folds: number of folds; at most the size of the rarest class of two and more, so that each
            has all of these.
        repeats: number of draws.
        seed: of the draws.

    Returns:
        The folds of every draw: rows to fit on, and rows held out.
    """
    alone = np.bincount(labels)[labels] == 1
    rows, kept = np.flatnonzero(~alone), np.flatnonzero(alone)
    drawn = RepeatedStratifiedKFold(n_splits=folds, n_repeats=repeats, random_state=seed)
    every = [
        (np.union1d(rows[inside], kept), rows[outside])
        for inside, outside in drawn.split(rows, labels[rows])
    ]
    return [every[start : start + folds] for start in range(0, len(every), folds)]


def held_out(parts: Sequence[Fold]) -> NDArray[np.int64]:
    """The rows that are held out of any of the folds of a draw, sorted."""
    return np.sort(np.concatenate([outside for _, outside in parts]))

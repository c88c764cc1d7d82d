"""Parity: how far features of one encoder are apart that were computed in two ways.

n = pictures, d = feature width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Parity:
    """Distances between two sets of features of the same pictures.

    Attributes:
        max_abs: largest absolute difference.
        mean_cosine: over the pictures.
        worst_cosine: the lowest cosine of a picture.
        centred_cosine: mean cosine after subtracting the reference's mean from both. Features of
            different pictures share a large mean, so that the plain cosine flatters.
        same_nearest: share of pictures whose nearest neighbour is the same.
    """

    max_abs: float
    mean_cosine: float
    worst_cosine: float
    centred_cosine: float
    same_nearest: float


def compare(reference: Floats, found: Floats) -> Parity:
    """Parity of `found` with `reference`, both (n, d); for n = 1 `same_nearest` is NaN."""
    wanted, other = reference.astype(np.float64), found.astype(np.float64)
    plain = _cosines(wanted, other)
    mean = wanted.mean(axis=0)
    return Parity(
        max_abs=float(np.abs(wanted - other).max()),
        mean_cosine=float(plain.mean()),
        worst_cosine=float(plain.min()),
        centred_cosine=float(_cosines(wanted - mean, other - mean).mean()),
        same_nearest=float((_nearest(wanted) == _nearest(other)).mean())
        if len(wanted) > 1
        else float("nan"),
    )


def _cosines(one: Floats, other: Floats) -> Floats:
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    cosines: Floats = (one * other).sum(axis=1) / np.maximum(lengths, 1e-300)
    return cosines


def _nearest(rows: Floats) -> NDArray[np.intp]:
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    nearest: NDArray[np.intp] = similarity.argmax(axis=1)
    return nearest

"""Standardization by part and principal components of a network's features.

n = pictures, w = features of all levels of a network, k = components.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from tinyssl.neighbours import nearest, unit_rows

Floats = NDArray[np.float32]
# Share of the largest variance; smaller variances are noise of the pictures at hand.
_FLOOR = 1e-3
_NONE = 1e-12
_NEAR = 8  # pictures, of each


def standardization(features: Floats, widths: Sequence[int]) -> tuple[Floats, Floats]:
    """Centre and scale that give every part of the features the same weight.

    A part is the last level, or one statistic that is pooled from a stage. Features are
    standardized one by one and divided by the square root of their part's width. A feature that
    hardly varies is divided by a tenth of its part's mean deviation instead of its own, which
    would turn it into noise.

    Args:
        features: (n, w).
        widths: of the parts; their sum is w.

    Returns:
        Centre (w,) to subtract and scale (w,) to multiply by.
    """
    scales = []
    for part in np.split(features.std(axis=0), np.cumsum(widths)[:-1]):
        floor = max(0.1 * float(part.mean()), 1e-6)
        scales.append(1 / (np.maximum(part, floor) * np.sqrt(len(part))))
    return features.mean(axis=0), np.concatenate(scales)


def pca_projection(features: Floats, components: int, whitening: float) -> Floats:
    """A projection on the principal components, partly whitened.

    A component of variance v is divided by (v + v_1 / 1000)^whitening, v_1 being the largest
    variance: 0 keeps distances, 1/2 gives all components the same variance (PCA whitening). The
    result is scaled to keep the total variance, and rotated, which keeps distances, until all
    features have the same variance, so that standardizing them again does not undo the whitening.

    Args:
        features: (n, w) with mean 0.
        components: the most that are kept, at least 1.
        whitening: 0 to 1/2.

    Returns:
        (w, k), k at most w and n - 1, and at least 1.
    """
    rows = features.astype(np.float64)
    variances, axes = _leading(rows, components)
    weights = (variances + _FLOOR * variances[0] + 1e-12) ** -whitening
    return _settled(rows, axes * weights, variances * weights**2)


def near_projection(features: Floats, components: int, whitening: float) -> Floats:
    """A projection on the principal components, whitened by how much near pictures differ.

    Directions in which even near pictures differ tell little of what a picture shows: within the
    leading components, an axis along which pictures differ from their 8 nearest by the variance v
    is divided by (v + mean v)^whitening. Locality preserving projections (He and Niyogi, 2003)
    keep the directions where v is small beside the whole variance, this weighs them.

    Args:
        features: (n, w) with mean 0.
        components: the most that are kept, at least 1.
        whitening: 0 to 1/2.

    Returns:
        As `pca_projection`.
    """
    rows = features.astype(np.float64)
    _, axes = _leading(rows, components)
    found = rows @ axes
    units = unit_rows(found)
    near, _ = nearest(units, units, min(_NEAR, len(units) - 1), without=np.arange(len(units)))
    differences = (found[:, None] - found[near]).reshape(-1, found.shape[1])
    between, turn = eigh(differences.T @ differences / max(1, 2 * len(differences)))
    between = np.maximum(between, 0)
    axes = axes @ (turn * (between + between.mean() + 1e-12) ** -whitening)
    variances, turn = _leading(rows @ axes, components)
    return _settled(rows, axes @ turn, variances)


def _settled(
    rows: NDArray[np.float64], axes: NDArray[np.float64], variances: NDArray[np.float64]
) -> Floats:
    """Uncorrelated axes (w, k) scaled to the rows' total variance, and turned to equal ones."""
    total = float(np.square(rows).mean(axis=0).sum())
    scale = np.sqrt(total / variances.sum()) if variances.sum() > 0 else 1.0
    turned: NDArray[np.float64] = axes * scale @ equalizing_rotation(variances)
    return turned.astype(np.float32)


def _leading(rows: NDArray[np.float64], most: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """The largest variances, (k,), and their axes, (w, k); axes without variance are 0.

    At most `most`, the features and one less than the rows, but one. From the smaller of the
    covariance and the Gram matrix, which have the same eigenvalues: 2,000 pictures are fewer than
    the features of several levels.
    """
    count, width = rows.shape
    kept = max(1, min(most, count - 1, width))
    few = count < width
    products = (rows @ rows.T if few else rows.T @ rows) / count
    wanted = (len(products) - kept, len(products) - 1)
    variances, vectors = eigh(products, subset_by_index=wanted, overwrite_a=True)
    variances, vectors = np.maximum(variances[::-1], 0), vectors[:, ::-1]
    if few:
        seen = variances > _NONE * variances[0]
        lengths = np.sqrt(count * np.where(seen, variances, 1))
        vectors = np.where(seen, rows.T @ vectors / lengths, 0)
    return variances, vectors


def equalizing_rotation(variances: NDArray[np.float64]) -> NDArray[np.float64]:
    """A rotation of uncorrelated axes with these variances to axes of their mean variance.

    Rotates one plane at a time, which fixes one axis each (Bendel and Mickey, "Population
    correlation matrices for sampling experiments", 1978).

    Args:
        variances: (k,).

    Returns:
        (k, k) with the new axes as columns.
    """
    turn = np.eye(len(variances))
    covariance = np.diag(variances - variances.mean())  # less the mean, so that the target is 0
    for _ in range(len(variances) - 1):
        excess = np.diag(covariance)
        low, high = int(excess.argmin()), int(excess.argmax())
        if excess[low] >= 0 or excess[high] <= 0:  # or rounding may leave no angle
            break
        a, b, c = covariance[low, low], covariance[low, high], covariance[high, high]
        tangent = (np.sqrt(b * b - a * c) - b) / c
        cosine = 1 / np.sqrt(1 + tangent**2)
        plane = cosine * np.array([[1, -tangent], [tangent, 1]])
        pair = [low, high]
        covariance[:, pair] = covariance[:, pair] @ plane
        covariance[pair] = plane.T @ covariance[pair]
        turn[:, pair] = turn[:, pair] @ plane
    return turn

"""Label spreading over a nearest-neighbour graph to unlabeled pictures.

Zhou et al., "Learning with Local and Global Consistency", NIPS 2003, on the graph and with the
weights of Iscen et al., arXiv:1904.04717. n = pictures, d = feature width, k = classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, diags_array, eye_array
from scipy.sparse.linalg import cg

from tinyssl.neighbours import nearest, unit_rows

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]

_POWER = 3  # gamma of Iscen et al., sec. 4.2


@dataclass(frozen=True)
class Spread:
    """The result of label spreading for every picture.

    Attributes:
        labels: (n,) the most likely class.
        weights: (n,) confidence in [0, 1]: 1 - entropy / log k; 1 where the label was given.
    """

    labels: NDArray[np.int64]
    weights: NDArray[np.float64]


def neighbour_graph(features: Floats, neighbours: int) -> csr_array:
    """Symmetric affinities: `max(cosine, 0) ** 3` to each row's nearest others, both ways.

    The mean is subtracted before cosines are taken, since features of small networks share a large
    one.

    Args:
        features: (n, d).
        neighbours: number for each row; capped at n - 1.

    Returns:
        (n, n) sparse, zero diagonal.
    """
    rows = unit_rows(features - features.mean(axis=0))
    columns, cosines = nearest(rows, rows, neighbours, without=np.arange(len(rows)))
    affinity = np.maximum(cosines, 0, dtype=np.float64).ravel() ** _POWER
    lines = np.repeat(np.arange(len(rows)), columns.shape[1])
    directed = csr_array((affinity, (lines, columns.ravel())), shape=(len(rows), len(rows)))
    return csr_array(directed + directed.T)


def spread_labels(graph: csr_array, labels: Ints, *, alpha: float, classes: int) -> Spread:
    """Solves `(I - alpha S) Z = Y`, S = D^-1/2 A D^-1/2, and takes each row's largest score.

    Y has one column a class, 1 / (pictures of the class) where the label is given, so that
    frequent classes do not flood the graph.

    Args:
        graph: (n, n) A, from `neighbour_graph`.
        labels: (n,) from 0; -1 where none is given.
        alpha: below 1; the larger, the further labels spread.
        classes: k.
    """
    n = len(labels)
    degrees = np.asarray(graph.sum(axis=1)).ravel()
    scale = diags_array(1 / np.sqrt(np.maximum(degrees, 1e-12)))
    system = csr_array(eye_array(n) - alpha * (scale @ graph @ scale))
    scores = np.zeros((n, classes))
    for label in range(classes):
        given = (labels == label).astype(np.float64)
        if given.any():
            scores[:, label] = cg(system, given / given.sum(), rtol=1e-6, maxiter=200)[0]
    return _decide(np.maximum(scores, 0), labels)


def _decide(scores: NDArray[np.float64], labels: Ints) -> Spread:
    """Rows that no label reached get weight 0."""
    classes = scores.shape[1]
    totals = scores.sum(axis=1, keepdims=True)
    shares = np.where(totals > 0, scores / np.maximum(totals, 1e-300), 1 / classes)
    entropy = -(shares * np.log(np.maximum(shares, 1e-300))).sum(axis=1)
    given = labels >= 0
    found = np.where(given, labels, shares.argmax(axis=1))
    # Rounding leaves some 1e-16, which weights balanced by class would blow up.
    weights = np.where(totals[:, 0] > 0, np.clip(1 - entropy / np.log(classes), 0, 1), 0.0)
    return Spread(found.astype(np.int64), np.where(given, 1.0, weights))

"""Chooses the pictures to label first, from their features.

n = pictures, d = width, m = pictures of a cluster. Every method takes unit rows (n, d), the number
to choose and which pictures are covered (labeled already), and returns distinct row numbers of
uncovered pictures in the order of choice.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

from tinyssl.errors import UsageError
from tinyssl.neighbours import Numbers, Rows, nearest, unit_rows

Covered = NDArray[np.bool_]

_MOST_CLUSTERS = 500  # of typiclust; more would split what belongs together (arXiv:2202.02794)
_SMALL = 5  # a cluster of fewer pictures is more likely odd than typical; its turn is last
_NEIGHBOURS = 20


def choose(
    features: NDArray[Any],
    budget: int,
    *,
    method: str = "kmeans",
    covered: Covered | None = None,
    seed: int = 0,
) -> Numbers:
    """Chooses pictures by their features; the same ones for the same arguments.

    Args:
        features: (n, d); scaled to unit length here.
        budget: number to choose, from 1 to the number that is not covered.
        method: one of `METHODS`.
        covered: (n,) True for pictures that are labeled already; none when None.
        seed: of all random choices.

    Returns:
        (budget,) row numbers in the order of choice.

    Raises:
        UsageError: an unknown method, or a budget out of range.
    """
    if method not in METHODS:
        raise UsageError(f"method: got {method!r}, allowed are {', '.join(METHODS)}")
    taken = np.zeros(len(features), bool) if covered is None else np.asarray(covered, bool)
    free = int((~taken).sum())
    if not 1 <= budget <= free:
        raise UsageError(f"budget: got {budget:,}, allowed are 1 to {free:,}")
    return METHODS[method](unit_rows(features), budget, taken, seed)


def typiclust(rows: Rows, budget: int, covered: Covered, seed: int) -> Numbers:
    """The most typical picture of each uncovered cluster, the largest cluster first.

    Hacohen, Dekel & Weinshall, "Active Learning on a Budget: Opposite Strategies Suit High and
    Low Budgets", arXiv:2202.02794: k-means into as many clusters as there will be labels, at most
    500; typicality is the inverse mean distance to the 20 nearest neighbours in the cluster, or
    to half of a smaller cluster.
    """
    clusters = min(budget + int(covered.sum()), _MOST_CLUSTERS)
    labels, _ = _k_means(rows, clusters, seed)
    small = np.bincount(labels) < _SMALL
    return _from_clusters(labels, budget, covered, small, lambda of: _typicality(rows[of]))


def k_means(rows: Rows, budget: int, covered: Covered, seed: int) -> Numbers:
    """The picture nearest to the centre of each uncovered cluster, the largest cluster first."""
    clusters = budget + int(covered.sum())
    labels, centres = _k_means(rows, clusters, seed)
    distances = np.sqrt(np.square(rows - centres[labels]).sum(axis=1))
    last = np.zeros(clusters, bool)
    return _from_clusters(labels, budget, covered, last, lambda members: -distances[members])


def k_center(rows: Rows, budget: int, covered: Covered, seed: int) -> Numbers:
    """Farthest first: each choice is the picture farthest from all that are chosen or covered.

    The greedy 2-approximation of the smallest radius in Sener & Savarese, "Active Learning for
    Convolutional Neural Networks: A Core-Set Approach", arXiv:1708.00489. Where nothing is
    covered, the first one is random.
    """
    chosen = [] if covered.any() else [int(np.random.default_rng(seed).integers(len(rows)))]
    distances = np.full(len(rows), np.inf, np.float32)
    for number in [*np.flatnonzero(covered), *chosen]:
        np.minimum(distances, _distances(rows, number), out=distances)
    taken = covered.copy()
    taken[chosen] = True
    while len(chosen) < budget:
        number = int(np.where(taken, -1, distances).argmax())
        np.minimum(distances, _distances(rows, number), out=distances)
        taken[number] = True
        chosen.append(number)
    return np.array(chosen)


def at_random(rows: Rows, budget: int, covered: Covered, seed: int) -> Numbers:
    """Uniformly random pictures: the baseline for every other method."""
    return np.random.default_rng(seed).permutation(np.flatnonzero(~covered))[:budget]


METHODS: Mapping[str, Callable[[Rows, int, Covered, int], Numbers]] = {
    "kmeans": k_means,
    "typiclust": typiclust,
    "kcenter": k_center,
    "random": at_random,
}


def _distances(rows: Rows, number: int) -> NDArray[np.float32]:
    """(n,) Euclidean distances of unit rows to one of them."""
    squares = 2 - 2 * (rows @ rows[number])
    squares[number] = 0
    distances: NDArray[np.float32] = np.sqrt(np.maximum(squares, 0))
    return distances


def _typicality(rows: Rows) -> NDArray[np.float32]:
    """(m,) negative mean distance to the nearest neighbours; ranks like its inverse."""
    if len(rows) < 2:
        return np.zeros(len(rows), np.float32)
    k = min(_NEIGHBOURS, max(1, len(rows) // 2))
    _, cosines = nearest(rows, rows, k, without=np.arange(len(rows)))
    distances: NDArray[np.float32] = np.sqrt(np.maximum(2 - 2 * cosines, 0)).mean(axis=1)
    return -distances


def _k_means(rows: Rows, clusters: int, seed: int) -> tuple[Numbers, Rows]:
    """(n,) cluster numbers and (clusters, d) centres; mini-batches for more than 50 clusters."""
    clusters = min(clusters, len(rows))
    fit: Any = (
        KMeans(clusters, n_init=3, random_state=seed)
        if clusters <= 50
        else MiniBatchKMeans(clusters, batch_size=5000, n_init=3, random_state=seed)
    )
    # With several threads the sums depend on which one ends first, and so would the choice.
    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct pictures: empty ones
        fit.fit(rows)
    return fit.labels_.astype(np.int64), fit.cluster_centers_


def _from_clusters(
    labels: Numbers,
    budget: int,
    covered: Covered,
    last: NDArray[np.bool_],
    score: Callable[[Numbers], NDArray[np.float32]],
) -> Numbers:
    """Takes the best-scored picture of the cluster with the fewest chosen or covered ones.

    Clusters marked `last` are used only when all others are exhausted.
    """
    free = {int(c): np.flatnonzero((labels == c) & ~covered) for c in np.unique(labels)}
    sizes = np.bincount(labels)
    counts = np.bincount(labels[covered], minlength=len(sizes))
    chosen = []
    for _ in range(budget):
        open_ = (c for c, members in free.items() if len(members))
        cluster = min(open_, key=lambda c: (last[c], counts[c], -sizes[c], c))
        members = free[cluster]
        best = int(np.argmax(score(members)))
        chosen.append(int(members[best]))
        free[cluster] = np.delete(members, best)
        counts[cluster] += 1
    return np.array(chosen)

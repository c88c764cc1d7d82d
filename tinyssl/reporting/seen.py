"""An encoder's view of its pictures: a map, clusters, near copies, outliers.

n = pictures, d = feature width, k = neighbours.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from tinyssl.choosing import choose
from tinyssl.neighbours import alike, centred, isolation, mean_row, near_copy_cosine, nearest

Rows = NDArray[np.float32]
Numbers = NDArray[np.int64]

STEPS = 5  # of progress in `look`
_SEED = 0
_NEIGHBOURS = 8
_NEARER = 5  # factor by which near copies are nearer than nearest pictures usually are
_AXES = 50  # principal axes for the map and the clusters
_CLUSTERS = 12
_A_CLUSTER = 30  # least average number of pictures
_DIVERSE = 12
_FEW = 5  # pictures; fewer are placed by their principal axes alone


@dataclass(frozen=True)
class Seen:
    """Results on the features of n pictures; cosines are of centred features.

    Attributes:
        place: (n, 2) on the map, within -1 to 1.
        cluster: (n,) numbers from 0, the largest cluster first.
        typical: rows of each cluster, the nearest to its centre first.
        near: (n, k) rows of the nearest others, best first.
        cosines: (n, k) of these.
        copies: groups of rows that are near copies.
        threshold: least cosine of near copies.
        odd: (n,) rows, the most isolated first.
        distance: (n,) mean of 1 - cosine to the nearest ten.
        diverse: a dozen typical rows of as many regions.
    """

    place: Rows
    cluster: Numbers
    typical: list[Numbers]
    near: Numbers
    cosines: Rows
    copies: list[list[int]]
    threshold: float
    odd: Numbers
    distance: Rows
    diverse: Numbers


def look(features: NDArray[Any], digests: list[str], step: Callable[[int], None]) -> Seen:
    """Analyses features (n, d) of at least 2 pictures.

    Args:
        features: unscaled.
        digests: n; pictures with equal digests are always copies.
        step: called with 1 after each of `STEPS` steps.
    """
    unit = centred(features, mean_row(features))
    with threadpool_limits(limits=1):  # reproducible, and faster for short loops
        axes = _principal(unit)
        step(1)
        place = _map(axes)
        step(1)
        cluster, typical = _clusters(axes)
    step(1)
    near, cosines = nearest(unit, unit, _NEIGHBOURS, without=np.arange(len(unit)))
    distance = isolation(unit)
    step(1)
    threshold = near_copy_cosine(unit, _NEARER)
    copies, _ = alike(unit, threshold, digests)
    diverse = choose(unit, min(_DIVERSE, len(unit)), method="typiclust", seed=_SEED)
    step(1)
    return Seen(
        place=place,
        cluster=cluster,
        typical=typical,
        near=near,
        cosines=cosines,
        copies=sorted(copies, key=len, reverse=True),
        threshold=threshold,
        odd=np.argsort(-distance, kind="stable"),
        distance=distance,
        diverse=diverse,
    )


def _principal(unit: Rows) -> Rows:
    count = min(_AXES, *unit.shape)
    with np.errstate(invalid="ignore"):  # 0 / 0 where all pictures are equal
        axes: Rows = PCA(count, random_state=_SEED).fit_transform(unit).astype(np.float32)
    return axes


def _map(axes: Rows) -> Rows:
    """PCA, then t-SNE; each axis is scaled to -1 to 1."""
    if len(axes) < _FEW or axes.std() < 1e-6:
        place = np.zeros((len(axes), 2), np.float32)
        place[:, : axes.shape[1]] = axes[:, :2]
    else:
        perplexity = min(30.0, (len(axes) - 1) / 3)
        drawn = TSNE(2, perplexity=perplexity, init="pca", max_iter=750, random_state=_SEED)
        place = _stretched(drawn.fit_transform(axes))
    low, high = place.min(axis=0), place.max(axis=0)
    scaled: Rows = (2 * (place - low) / np.maximum(high - low, 1e-9) - 1).astype(np.float32)
    return scaled


def _stretched(place: Rows) -> Rows:
    """Clips the outer half per cent, which would leave all others in a corner."""
    low, high = np.quantile(place, [0.0025, 0.9975], axis=0)
    margin = 0.05 * (high - low)
    return np.clip(place, low - margin, high + margin)


def _clusters(axes: Rows) -> tuple[Numbers, list[Numbers]]:
    count = min(_CLUSTERS, max(2, len(axes) // _A_CLUSTER), len(axes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct pictures: empty ones
        fitted = KMeans(count, n_init=3, random_state=_SEED).fit(axes)
    sizes = np.bincount(fitted.labels_, minlength=count)
    order = np.argsort(-sizes, kind="stable")
    rank = np.empty(count, np.int64)
    rank[order] = np.arange(count)
    distance = np.square(axes - fitted.cluster_centers_[fitted.labels_]).sum(axis=1)
    members = [np.flatnonzero(fitted.labels_ == old) for old in order if sizes[old]]
    return rank[fitted.labels_], [rows[np.argsort(distance[rows])] for rows in members]

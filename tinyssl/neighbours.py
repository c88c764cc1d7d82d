"""Nearest neighbours and near copies by features, without an n x n matrix in memory.

n = pictures, q = queries, k = neighbours, d = width. Similarities are computed in blocks, of which
one is held at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyssl.rows import spaced_rows

Rows = NDArray[np.float32]
Numbers = NDArray[np.int64]

_ROWS, _COLUMNS = 1024, 4096  # 16 MB of float32 a block
_ASKED = 2000  # pictures that the usual distance of nearest ones is measured on
_NEAR_COPY = 0.85  # least cosine of near copies, however far apart pictures are


def unit_rows(features: NDArray[Any]) -> Rows:
    """Rows (n, d) scaled to length 1 in float32; a zero row stays zero."""
    features = np.asarray(features, np.float32)
    lengths = np.sqrt(np.einsum("nd,nd->n", features, features))
    units: Rows = features / np.maximum(lengths, 1e-12)[:, None]
    return units


def mean_row(features: NDArray[Any]) -> Rows:
    """(d,) mean of the rows (n, d) scaled to unit length."""
    mean: Rows = unit_rows(features).mean(axis=0, dtype=np.float64).astype(np.float32)
    return mean


def centred(features: NDArray[Any], mean: Rows) -> Rows:
    """Rows (n, d) at unit length, minus the mean, and scaled to unit length again.

    Features of one domain share a large mean, which makes all cosines high; cosines of centred
    rows measure similarity relative to the other pictures.
    """
    return unit_rows(unit_rows(features) - mean)


def nearest(
    queries: Rows,
    rows: Rows,
    k: int,
    *,
    without: Numbers | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[Numbers, Rows]:
    """The k rows of the largest inner product with each query.

    Args:
        queries: (q, d).
        rows: (n, d).
        k: capped at the number of rows, or one less where a query excludes one.
        without: (q,) a row to exclude for each query, such as itself; -1 for none.
        progress: called with the number of newly finished queries.

    Returns:
        (q, k) row numbers, best first and ties in order; (q, k) products.
    """
    k = min(k, len(rows) - (without is not None and bool((without >= 0).any())))
    numbers = np.empty((len(queries), k), np.int64)
    products = np.empty((len(queries), k), np.float32)
    for some in _blocks(len(queries), _ROWS):
        left_out = None if without is None else without[some]
        numbers[some], products[some] = _nearest(queries[some], rows, k, left_out)
        if progress is not None:
            progress(some.stop - some.start)
    return numbers, products


def isolation(
    rows: Rows, k: int = 10, progress: Callable[[int], None] | None = None
) -> NDArray[np.float32]:
    """Isolation of each picture: the mean of 1 - product with its k nearest others.

    Args:
        rows: (n, d) unit rows, n at least 2.
        k: capped at n - 1.
        progress: called with the number of newly finished pictures.

    Returns:
        (n,) from 0 (copies of others) to 2.
    """
    _, products = nearest(rows, rows, k, without=np.arange(len(rows)), progress=progress)
    distances: NDArray[np.float32] = 1 - products.mean(axis=1)
    return distances


def near_copy_cosine(rows: Rows, times: float, most: float = 1.0) -> float:
    """The least cosine of near copies, as far as features can tell.

    It is measured, since typical cosines depend on the encoder.

    Args:
        rows: (n, d) centred unit rows.
        times: factor by which near copies are nearer than nearest pictures usually are.
        most: upper limit of the result, for sets of very similar pictures.

    Returns:
        Between 0.85 and `most`.
    """
    if len(rows) < 2:
        return most
    asked = spaced_rows(len(rows), _ASKED)
    _, cosines = nearest(rows[asked], rows, 1, without=asked)
    return float(np.clip(1 - (1 - np.median(cosines)) / times, _NEAR_COPY, most))


def alike(
    rows: Rows,
    threshold: float,
    same: Sequence[str] = (),
    progress: Callable[[int], None] | None = None,
) -> tuple[list[list[int]], NDArray[np.float32]]:
    """Groups of pictures that are linked by products of at least `threshold`.

    Links are chained: two pictures of a group may be less similar than the threshold.

    Args:
        rows: (n, d) unit rows.
        threshold: of the product.
        same: n keys; pictures with equal keys are linked, and their product counts as 1.
        progress: called with the number of newly finished pictures.

    Returns:
        Groups of two or more rows in order; (n,) each row's product with its nearest other.
    """
    sets = _Sets(len(rows))
    closest = np.full(len(rows), -1, np.float32)
    first: dict[str, int] = {}
    for number, key in enumerate(same):
        other = first.setdefault(key, number)
        if other != number:
            sets.join(np.array([other, number]))
            closest[[other, number]] = 1
    for here in _blocks(len(rows), _ROWS):
        for there in _blocks(len(rows), _COLUMNS):
            if there.stop > here.start:  # the matrix is symmetric
                _link(rows, here, there, threshold, sets, closest)
        if progress is not None:
            progress(here.stop - here.start)
    return sets.groups(), closest


class _Sets:
    """Union-find: each number points to one of its set, and the smallest to itself."""

    def __init__(self, n: int) -> None:
        self.parents = np.arange(n)

    def roots(self, numbers: Numbers) -> Numbers:
        """The smallest member of each number's set."""
        found = self.parents[numbers]
        while not np.array_equal(found, above := self.parents[found]):
            found = above
        self.parents[numbers] = found
        return found

    def join(self, numbers: Numbers) -> None:
        """Merges the sets of the numbers."""
        roots = self.roots(numbers)
        self.parents[roots] = roots.min()

    def groups(self) -> list[list[int]]:
        roots = self.roots(np.arange(len(self.parents)))
        order = np.argsort(roots, kind="stable")
        starts = np.flatnonzero(np.diff(roots[order])) + 1
        return [part.tolist() for part in np.split(order, starts) if len(part) > 1]


def _blocks(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def _nearest(queries: Rows, rows: Rows, k: int, without: Numbers | None) -> tuple[Numbers, Rows]:
    numbers = np.zeros((len(queries), 0), np.int64)
    products = np.zeros((len(queries), 0), np.float32)
    for some in _blocks(len(rows), _COLUMNS):
        found = queries @ rows[some].T
        if without is not None:
            inside = np.flatnonzero((without >= some.start) & (without < some.stop))
            found[inside, without[inside] - some.start] = -np.inf
        products = np.concatenate([products, found], axis=1)
        columns = np.broadcast_to(np.arange(some.start, some.stop), found.shape)
        numbers = np.concatenate([numbers, columns], axis=1)
        if products.shape[1] > k:
            kept = _largest(products, k) if k else numbers[:, :0]
            products = np.take_along_axis(products, kept, axis=1)
            numbers = np.take_along_axis(numbers, kept, axis=1)
    order = np.lexsort((numbers, -products), axis=1)
    return np.take_along_axis(numbers, order, axis=1), np.take_along_axis(products, order, axis=1)


def _largest(products: Rows, k: int) -> Numbers:
    """(q, k) columns of the k largest of each row, from left to right; first columns on ties."""
    kept: Numbers = np.sort(np.argpartition(-products, k - 1, axis=1)[:, :k], axis=1)
    least = np.take_along_axis(products, kept, axis=1).min(axis=1, keepdims=True)
    torn = np.flatnonzero(np.count_nonzero(products >= least, axis=1) > k)  # ties cut arbitrarily
    if len(torn):
        above, equal = products[torn] > least[torn], products[torn] == least[torn]
        room = k - np.count_nonzero(above, axis=1, keepdims=True)
        above |= equal & (equal.cumsum(axis=1, dtype=np.int32) <= room)
        kept[torn] = above.nonzero()[1].reshape(-1, k)
    return kept


def _link(
    rows: Rows, here: slice, there: slice, threshold: float, sets: _Sets, closest: Rows
) -> None:
    products = rows[here] @ rows[there].T
    across, down = np.arange(there.start, there.stop), np.arange(here.start, here.stop)
    products[across[None, :] <= down[:, None]] = -np.inf  # itself, and pairs already compared
    closest[here] = np.maximum(closest[here], products.max(axis=1))
    closest[there] = np.maximum(closest[there], products.max(axis=0))
    close = products >= threshold
    # By row: thousands of near copies (frames of a still camera) would make millions of pairs.
    for row in np.flatnonzero(close.any(axis=1)):
        sets.join(np.append(there.start + np.flatnonzero(close[row]), here.start + row))

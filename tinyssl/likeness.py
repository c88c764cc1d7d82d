"""Near copies and blank pictures, found from small thumbnails without an encoder.

n = pictures, s = side, c = channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyssl.neighbours import Rows, alike, unit_rows

NEAR = 0.99  # cosine; recompressed or scaled copies have more, a shift by 2 % of the side less
MOST_COMPARED = 50_000  # pictures; time is quadratic in their number
_SIDE, _ENOUGH = 16, 50


def near_copies(array: NDArray[Any], hashes: Sequence[str]) -> list[list[int]]:
    """Groups of pictures that differ only in compression or scale, including exact copies.

    Compares cosines of gray 16 x 16 thumbnails, minus their own mean and, where there are enough,
    minus the mean picture: solar cells, for instance, share a grid of lines.

    Args:
        array: (n, s, s, c).
        hashes: n digests of the files; those with equal digests are always copies.
    """
    thumbnails = _thumbnails(array)
    units = unit_rows(thumbnails - thumbnails.mean(axis=1, keepdims=True))
    if len(units) >= _ENOUGH:
        shown = units.any(axis=1, keepdims=True)  # constant pictures have no near copies
        units = unit_rows((units - units.mean(axis=0)) * shown)
    return alike(units, NEAR, hashes)[0]


def blank(array: NDArray[Any]) -> tuple[list[int], list[int]]:
    """Numbers of constant pictures, and of those with a deviation below 1 % of the range.

    With 16 bits the range ends at the largest value found, since many sensors use 10 or 12 bits.
    """
    scale = 255.0 if array.dtype == np.uint8 else float(array.max())
    constant, faint = [], []
    for number, picture in enumerate(array):
        if picture.min(axis=(0, 1)).tolist() == picture.max(axis=(0, 1)).tolist():
            constant.append(number)
        elif (picture.std(axis=(0, 1)) < 0.01 * scale).all():
            faint.append(number)
    return constant, faint


def _thumbnails(array: NDArray[Any]) -> Rows:
    """(n, 256): means over the cells of a grid and over channels."""
    cuts = np.linspace(0, array.shape[1], min(_SIDE, array.shape[1]) + 1).astype(int)[:-1]
    sizes = np.diff([*cuts, array.shape[1]])
    areas = np.outer(sizes, sizes)
    rows = []
    for picture in array:
        sums = np.add.reduceat(picture.mean(axis=2, dtype=np.float64), cuts, axis=0)
        rows.append((np.add.reduceat(sums, cuts, axis=1) / areas).ravel())
    return np.array(rows, np.float32)

"""Which pictures look alike or show nothing, from small thumbnails, without an encoder.

n = pictures, s = side, c = channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyssl.neighbours import Rows, alike, unit_rows

NEAR = 0.99  # copies saved again or scaled have more; a shift by 2 % of the side has less
MOST_COMPARED = 50_000  # pictures; the time grows with the square
_SIDE, _ENOUGH = 16, 50


def near_copies(array: NDArray[Any], hashes: Sequence[str]) -> list[list[int]]:
    """Groups of pictures that differ by how they were saved or scaled, exact copies included.

    What is compared is the cosine of gray thumbnails of 16 x 16, less their own mean and, where
    there are enough, less the mean picture: solar cells share a grid of lines, for instance.

    Args:
        array: (n, s, s, c).
        hashes: n digests of the files; equal ones are copies whatever they show.
    """
    thumbnails = _thumbnails(array)
    units = unit_rows(thumbnails - thumbnails.mean(axis=1, keepdims=True))
    if len(units) >= _ENOUGH:
        shown = units.any(axis=1, keepdims=True)  # pictures of one value are alike to none
        units = unit_rows((units - units.mean(axis=0)) * shown)
    return alike(units, NEAR, hashes)[0]


def blank(array: NDArray[Any]) -> tuple[list[int], list[int]]:
    """Pictures of a single value, and others whose deviation is below 1 % of the range.

    That of 16 bits ends at the largest value there is: many sensors use 10 or 12 of them.
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
    """(n, 256): means of the cells of a grid, over channels too."""
    cuts = np.linspace(0, array.shape[1], min(_SIDE, array.shape[1]) + 1).astype(int)[:-1]
    sizes = np.diff([*cuts, array.shape[1]])
    areas = np.outer(sizes, sizes)
    rows = []
    for picture in array:
        sums = np.add.reduceat(picture.mean(axis=2, dtype=np.float64), cuts, axis=0)
        rows.append((np.add.reduceat(sums, cuts, axis=1) / areas).ravel())
    return np.array(rows, np.float32)

"""Evenly spaced samples of rows."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")


def spaced_rows(count: int, most: int) -> NDArray[np.int64]:
    """At most `most` evenly spaced numbers below `count`, always the same ones."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


def spaced(items: Sequence[T], most: int) -> list[T]:
    """At most `most` evenly spaced items, always the same ones."""
    return [items[row] for row in spaced_rows(len(items), most)]

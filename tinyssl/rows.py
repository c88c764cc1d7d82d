"""Evenly spaced samples of rows."""

import numpy as np
from numpy.typing import NDArray


def spaced_rows(count: int, most: int) -> NDArray[np.int64]:
    """At most `most` evenly spaced numbers below `count`, always the same ones."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))

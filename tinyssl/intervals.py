"""95 % confidence intervals of means over draws and of shares of a number of pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student


@dataclass(frozen=True)
class Interval:
    """Mean of several draws with the half-width of its 95 % interval (Student's t)."""

    mean: float
    half_width: float
    draws: int


def interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % half-width of independent draws; a single draw has no half-width (nan)."""
    n = len(values)
    if n < 2:
        return Interval(float(values[0]), float("nan"), n)
    half = student.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n)
    return Interval(float(np.mean(values)), float(half), n)


def half_of_shares(right: NDArray[Any], counts: NDArray[Any]) -> float:
    """Half of the 95 % interval of the mean of the shares `right / counts`, each (classes,).

    Variances are those of shares with two right and two wrong pictures added to each class, as
    Agresti and Coull (1998) do; otherwise a class without errors would have an interval of width 0.
    The pictures added are not counted again below, which with few pictures a class would make the
    interval too narrow.
    """
    share = (right + 2) / (counts + 4)
    return 1.96 * math.sqrt(float((share * (1 - share) / counts).sum())) / len(counts)


def half_of_draws(mean: float, half_width: float, counts: NDArray[Any]) -> float:
    """Half of the 95 % interval of a balanced accuracy over draws of labels and test pictures.

    Args:
        mean: of the draws, in [0, 1].
        half_width: of the draws, all evaluated on the same test pictures.
        counts: (classes,) test pictures of each class; empty where unknown.

    Returns:
        Both combined, as if every class's share were the mean: wider than with the classes' own
        shares where classes are balanced; up to a tenth narrower where a hard class is rare.
    """
    tested = half_of_shares(mean * counts, counts) if len(counts) else 0.0
    return math.hypot(half_width, tested)

"""The linear classifier that fine-tuning fits on scaled features.

n = pictures, d = feature width, k = classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyssl.calibration import fit_temperature, log_loss
from tinyssl.folds import Fold
from tinyssl.logistic import fit_logistic, rotate

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]

STRENGTHS = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
FALLBACK_STRENGTH = 3e-2
_PRIOR_ROWS = 100


@dataclass(frozen=True)
class Scaling:
    """Features are scaled as `(f - mean) / spread`; both (d,)."""

    mean: NDArray[np.float32]
    spread: NDArray[np.float32]

    def __call__(self, features: Floats) -> NDArray[np.float32]:
        """(n, d) features to (n, d) scaled ones."""
        return np.asarray((features - self.mean) / self.spread, np.float32)


@dataclass(frozen=True)
class Plane:
    """A linear classifier, `weight` (k, d) and `bias` (k,), on unscaled features."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    def logits(self, features: Floats) -> NDArray[np.float32]:
        """(n, d) features to (n, k) logits."""
        return np.asarray(features @ self.weight.T + self.bias, np.float32)


def scaling_of(features: Floats) -> Scaling:
    """Mean and shrunk standard deviation of each column.

    The deviation over a handful of pictures is mostly noise, so each variance is shrunk towards the
    mean variance, as if a hundred further pictures had that one.
    """
    n, variance = len(features), features.var(axis=0, dtype=np.float64)
    shrunk = (n * variance + _PRIOR_ROWS * variance.mean()) / (n + _PRIOR_ROWS)
    spread = np.sqrt(np.maximum(shrunk, 1e-12))
    return Scaling(features.mean(axis=0).astype(np.float32), spread.astype(np.float32))


def unscaled(weights: Floats, scaling: Scaling) -> Plane:
    """Folds the scaling into a classifier (d + 1, k) of scaled features, intercepts last."""
    weight = (weights[:-1] / scaling.spread[:, None]).T
    bias = weights[-1] - weight @ scaling.mean
    return Plane(np.ascontiguousarray(weight, np.float32), bias.astype(np.float32))


def fit_plane(features: Floats, labels: Ints, strength: float) -> Plane:
    """A logistic fit on scaled features, see `fit_logistic`; every class from 0 must occur."""
    scaling = scaling_of(features)
    rows, rotation = rotate(scaling(features))
    fitted = fit_logistic(rows, labels, strength).weights
    return unscaled(np.vstack([rotation @ fitted[:-1], fitted[-1:]]), scaling)


def choose_strength(features: Floats, labels: Ints, folds: Sequence[Sequence[Fold]]) -> float:
    """The C of `STRENGTHS` whose held-out logits have the lowest log loss.

    Each at its best temperature, since the temperature is fitted afterwards. Balanced accuracy
    changes in steps of one picture, which is too coarse to choose by with 50 labels.
    """
    held_out: dict[float, list[NDArray[np.float32]]] = {c: [] for c in STRENGTHS}
    truth = []
    for inside, outside in (fold for repeat in folds for fold in repeat):
        scaling = scaling_of(features[inside])
        rows, rotation = rotate(scaling(features[inside]))
        others = scaling(features[outside]) @ rotation
        truth.append(labels[outside])
        for strength, logits in held_out.items():
            logits.append(fit_logistic(rows, labels[inside], strength).logits(others))
    joined = np.concatenate(truth)

    def loss(strength: float) -> float:
        logits = np.concatenate(held_out[strength])
        return log_loss(logits, joined, fit_temperature(logits, joined))

    return min(STRENGTHS, key=loss)

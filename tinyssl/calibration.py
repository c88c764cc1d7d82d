"""Calibration of probabilities: temperature scaling and calibration error."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special
from scipy.optimize import minimize_scalar

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]

_RANGE = (0.05, 20.0)
_BINS = 10  # of the confidence, from 0 to 1


def softmax(logits: Floats, temperature: float = 1.0) -> NDArray[np.float64]:
    """(n, k) logits, divided by `temperature`, to probabilities."""
    probabilities: NDArray[np.float64] = special.softmax(
        np.asarray(logits, np.float64) / temperature, axis=1
    )
    return probabilities


def log_loss(logits: Floats, labels: Ints, temperature: float = 1.0) -> float:
    """Mean of -log of the probability given to the true class, in nats."""
    chosen = softmax(logits, temperature)[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(chosen, 1e-12)).mean())


def fit_temperature(logits: Floats, labels: Ints) -> float:
    """The temperature of the lowest log loss on held-out rows (Guo et al., arXiv:1706.04599).

    Args:
        logits: (n, k) of rows held out of the classifier's fit.
        labels: (n,) from 0.

    Returns:
        Between 0.05 and 20; it does not change which class is predicted.
    """
    found = minimize_scalar(
        lambda power: log_loss(logits, labels, float(np.exp(power))),
        bounds=(float(np.log(_RANGE[0])), float(np.log(_RANGE[1]))),
        method="bounded",
        options={"xatol": 1e-4},
    )
    return float(np.exp(found.x))


def calibration_error(probabilities: Floats, labels: Ints) -> float:
    """Expected calibration error: mean gap of confidence and accuracy over ten equal bins.

    Guo et al., arXiv:1706.04599, eq. 3.

    Args:
        probabilities: (n, k).
        labels: (n,) from 0.
    """
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    places = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    gaps = [
        abs(float(right[places == place].mean()) - float(confidence[places == place].mean()))
        * float(np.mean(places == place))
        for place in np.unique(places)
    ]
    return float(sum(gaps))

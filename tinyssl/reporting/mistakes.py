"""The confusion matrix of a classifier, and its most confident mistakes.

n = labeled pictures, m = evaluated ones, k = classes, d = feature width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.preprocessing import StandardScaler

from tinyssl.folds import stratified_folds
from tinyssl.logistic import fit_logistic, rotate

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]

_FOLDS = 4
_LISTED = 24  # wrong pictures at most
_STRENGTH = 1e-2  # if `tinyssl eval` has not chosen one


@dataclass(frozen=True)
class Wrong:
    """A picture's row, the number of the predicted class, and its probability."""

    row: int
    called: int
    share: float


@dataclass(frozen=True)
class Mistakes:
    """Mistakes of a classifier on pictures that it was not fitted on.

    Attributes:
        confusion: (k, k); [i][j] counts pictures of class i that were predicted as j.
        wrong: the most confident mistakes first.
        how: the classifier and the pictures, in words.
    """

    confusion: NDArray[np.int64]
    wrong: list[Wrong]
    how: str


def find_mistakes(
    features: Floats,
    labels: Ints,
    classes: int,
    *,
    test: NDArray[np.bool_] | None = None,
    strength: float | None = None,
) -> Mistakes | None:
    """Fits a linear classifier and evaluates it on other pictures.

    Args:
        features: (n, d).
        labels: (n,) from 0; -1 for none.
        classes: k.
        test: (n,) True for the pictures to evaluate on; when None, cross-validation.
        strength: of the fit; that chosen by `tinyssl eval` gives the same matrix.

    Returns:
        None where fewer than two classes have enough pictures.
    """
    rows, predicted = [], []
    for inside, outside in _parts(labels, test):
        rows.append(outside)
        predicted.append(_shares(features, labels, inside, outside, classes, strength or _STRENGTH))
    if not rows:
        return None
    how = (
        "by a linear classifier on the training pictures' features, on the test pictures"
        if test is not None
        else "by linear classifiers, each on pictures that had no part in its fit"
    )
    return from_shares(np.concatenate(rows), np.concatenate(predicted), labels, how)


def from_shares(rows: Ints, shares: Floats, labels: Ints, how: str) -> Mistakes:
    """Counts and sorts mistakes.

    Args:
        rows: (m,) rows of the evaluated pictures.
        shares: (m, k) probabilities.
        labels: (n,) of all pictures.
        how: for the result.
    """
    called, truth = shares.argmax(axis=1), labels[rows]
    confusion = np.zeros((shares.shape[1], shares.shape[1]), np.int64)
    np.add.at(confusion, (truth, called), 1)
    surest = np.argsort(-np.where(called == truth, -1, shares.max(axis=1)), kind="stable")
    wrong = [
        Wrong(int(rows[i]), int(called[i]), float(shares[i].max()))
        for i in surest[:_LISTED]
        if called[i] != truth[i]
    ]
    return Mistakes(confusion, wrong, how)


def _parts(labels: Ints, test: NDArray[np.bool_] | None) -> Iterator[tuple[Ints, Ints]]:
    known = np.flatnonzero(labels >= 0)
    if test is not None:
        inside, outside = known[~test[known]], known[test[known]]
        if len(np.unique(labels[inside])) > 1 and len(outside):
            yield inside, outside
        return
    counts = np.bincount(labels[known])
    known = known[counts[labels[known]] >= 2]
    if len(np.unique(labels[known])) < 2:
        return
    smallest = int(np.bincount(labels[known])[np.unique(labels[known])].min())
    (folds,) = stratified_folds(labels[known], min(_FOLDS, smallest), 1, seed=0)
    for inside, outside in folds:
        yield known[inside], known[outside]


def _shares(
    features: Floats, labels: Ints, inside: Ints, outside: Ints, classes: int, strength: float
) -> NDArray[np.float64]:
    """(len(outside), classes) probabilities; the fit is that of `scoring.linear_probe`."""
    scaler = StandardScaler().fit(features[inside])
    rows, rotation = rotate(scaler.transform(features[inside]))
    model = fit_logistic(rows, labels[inside], strength)
    shares = np.zeros((len(outside), classes))
    logits = model.logits(scaler.transform(features[outside]) @ rotation)
    shares[:, model.classes] = softmax(logits, axis=1)
    return shares

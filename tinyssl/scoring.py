"""Scores of features: k-NN, linear probe, few-shot, RankMe, on arrays of features and labels.

n, m = pictures, d = feature width. Labels are integers from 0.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, f1_score
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler
from torch.nn.functional import adaptive_avg_pool2d

from tinyssl.intervals import Interval, interval
from tinyssl.logistic import fit_logistic, rotate
from tinyssl.neighbours import nearest, unit_rows

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]

KNN_CHOICES = (1, 5, 10, 20, 50)
PROBE_CHOICES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
FEW_SHOT_C = 1e-2
_FALLBACK_C = 1e-2
_TEMPERATURE = 0.07
_EPSILON = 1e-7
_PICTURES_AT_ONCE = 64


@dataclass(frozen=True)
class Probe:
    """Predictions of a linear probe, and the regularisation chosen on training folds."""

    predictions: Ints
    C: float


def knn_predict(train: Floats, train_labels: Ints, test: Floats, *, k: int) -> Ints:
    """Weighted k-NN: each of the k most similar rows votes with `exp(cosine / 0.07)`.

    Wu et al., arXiv:1805.01978, sec. 3.4.

    Args:
        train: (n, d) features.
        train_labels: (n,) labels.
        test: (m, d) features.
        k: neighbours; capped at n.

    Returns:
        (m,) labels.
    """
    numbers, cosines = nearest(unit_rows(test), unit_rows(train), k)
    return _vote(cosines, numbers, train_labels)


def knn_loo_score(features: Floats, labels: Ints, *, k: int) -> float:
    """Leave-one-out balanced accuracy of k-NN.

    Args:
        features: (n, d).
        labels: (n,).
        k: neighbours; capped at n - 1.

    Returns:
        In [0, 1]; nan if a feature is not finite or there are no others.
    """
    if not np.isfinite(features).all() or len(features) < 2:
        return float("nan")
    numbers, cosines = _nearest_others(features, k)
    return _mean_recall(labels, _vote(cosines, numbers, labels))


def choose_k(features: Floats, labels: Ints) -> int:
    """The k of `KNN_CHOICES` with the best leave-one-out score on the training rows.

    The smallest one on ties, and 1 for a single row.
    """
    choices = [k for k in KNN_CHOICES if k < len(labels)]
    if not choices:
        return 1
    numbers, cosines = _nearest_others(features, max(choices))

    def score(k: int) -> float:
        return _mean_recall(labels, _vote(cosines[:, :k], numbers[:, :k], labels))

    return max(choices, key=score)


def linear_probe(train: Floats, train_labels: Ints, test: Floats, *, seed: int = 0) -> Probe:
    """Logistic regression on standardised features, classes weighted equally.

    The regularisation is chosen on stratified folds of the training rows by balanced accuracy, or
    fixed where a class has a single row.

    Args:
        train: (n, d) features.
        train_labels: (n,) labels.
        test: (m, d) features.
        seed: of the folds.

    Returns:
        (m,) labels, and the chosen C of `fit_logistic`.
    """
    scaler = StandardScaler().fit(train)
    rows, rotation = rotate(scaler.transform(train))
    strength = _choose_strength(rows, train_labels, seed)
    model = fit_logistic(rows, train_labels, strength)
    return Probe(model.predict(scaler.transform(test) @ rotation), strength)


def few_shot(
    train: Floats,
    train_labels: Ints,
    test: Floats,
    test_labels: Ints,
    *,
    shots: int,
    draws: int = 10,
    seed: int = 0,
) -> Interval:
    """Balanced accuracy of a classifier trained on `shots` random rows of each class.

    Of a class with fewer rows all are used. Features are scaled to unit length, then by the mean
    and overall deviation of the training rows; the regularisation of the logistic regression is
    fixed, as such few labels cannot choose it.
    """
    generator = np.random.default_rng([seed, shots])
    unit_train, unit_test = unit_rows(train), unit_rows(test)
    results = []
    for _ in range(draws):
        chosen = _draw_shots(train_labels, shots, generator)
        rows = unit_train[chosen]
        mean, spread = rows.mean(axis=0), max(float(rows.std(axis=0).mean()), 1e-6)
        few, rotation = rotate((rows - mean) / spread)
        model = fit_logistic(few, train_labels[chosen], FEW_SHOT_C)
        predictions = model.predict((unit_test - mean) / spread @ rotation)
        results.append(_mean_recall(test_labels, predictions))
    return interval(results)


def rankme(features: Floats) -> float:
    """Effective rank: `exp(-sum p_k log p_k)`, `p_k = sigma_k / sum(sigma) + 1e-7`.

    Garrido et al., arXiv:2210.02885, eqs. 1 and 2.

    Args:
        features: (n, d), preferably with more rows than columns.

    Returns:
        From 1 (collapsed) to min(n, d); nan if a feature is not finite.
    """
    if not np.isfinite(features).all():
        return float("nan")
    sigma = np.linalg.svd(np.asarray(features, dtype=np.float64), compute_uv=False)
    p = sigma / max(sigma.sum(), _EPSILON) + _EPSILON
    return float(np.exp(-(p * np.log(p)).sum()))


def retrieval(first: Floats, second: Floats) -> float:
    """Share of views whose nearest other view, by cosine, is of the same picture.

    Both sets are centred by their own mean, since features of a network share a large component.

    Args:
        first: (n, d) features of one view of each picture.
        second: (n, d) features of another view of the same pictures, in the same order.

    Returns:
        From 0 to 1, 1 / n by chance; nan if a feature is not finite.
    """
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        return float("nan")
    one, other = (unit_rows(rows - rows.mean(axis=0)) for rows in (first, second))
    return float(((one @ other.T).argmax(axis=1) == np.arange(len(one))).mean())


def mean_cosine(features: Floats) -> float:
    """Mean cosine over all pairs of different rows (n, d).

    Returns:
        1 when all point the same way, 0 for orthogonal rows; nan if a feature is not finite.
    """
    if not np.isfinite(features).all():
        return float("nan")
    unit = unit_rows(features).astype(np.float64)
    n = len(unit)
    if n < 2:
        return 1.0
    total = float(np.square(unit.sum(axis=0)).sum())
    return (total - float(np.square(unit).sum())) / (n * (n - 1))


def scores(labels: Ints, predictions: Ints, classes: int) -> dict[str, Any]:
    """Accuracy, balanced accuracy, macro F1 (all in [0, 1]) and the confusion matrix.

    Balanced accuracy and macro F1 are means over the classes that occur in `labels`.

    Returns:
        JSON-ready; `confusion[i][j]` counts pictures of class i that were called j.
    """
    present = np.unique(labels)
    macro = f1_score(labels, predictions, labels=present, average="macro", zero_division=0)
    return {
        "accuracy": float(np.mean(labels == predictions)),
        "balanced_accuracy": _mean_recall(labels, predictions),
        "macro_f1": float(macro),
        "confusion": confusion_matrix(labels, predictions, labels=range(classes)).tolist(),
    }


def pixel_features(pictures: NDArray[Any], side: int = 24) -> NDArray[np.float32]:
    """Pictures (n, s, s, c) averaged to `side` pixels, as rows in [0, 1]: a baseline."""
    scale = float(np.iinfo(pictures.dtype).max)
    rows = []
    for start in range(0, len(pictures), _PICTURES_AT_ONCE):
        chunk = pictures[start : start + _PICTURES_AT_ONCE]
        tensor = torch.from_numpy(np.asarray(chunk, dtype=np.float32)).permute(0, 3, 1, 2)
        rows.append(adaptive_avg_pool2d(tensor / scale, side).flatten(1).numpy())
    return np.concatenate(rows)


def evaluate_features(
    train: Floats,
    train_labels: Ints,
    test: Floats,
    test_labels: Ints,
    *,
    classes: int,
    shots: Sequence[int] = (1, 5, 10, 20),
    draws: int = 10,
    seed: int = 0,
) -> dict[str, Any]:
    """Every score of one encoder, JSON-ready.

    Returns:
        `knn` and `linear` (scores, and the k or C chosen on training rows), `few_shot` by
        number of shots (mean, half_width, draws), `rankme` of the test features, `width`,
        `seconds`.
    """
    start = time.monotonic()
    k = choose_k(train, train_labels)
    knn = scores(test_labels, knn_predict(train, train_labels, test, k=k), classes)
    probe = linear_probe(train, train_labels, test, seed=seed)
    shot_scores = {
        str(s): vars(
            few_shot(train, train_labels, test, test_labels, shots=s, draws=draws, seed=seed)
        )
        for s in shots
    }
    return {
        "knn": knn | {"k": k},
        "linear": scores(test_labels, probe.predictions, classes) | {"C": probe.C},
        "few_shot": shot_scores,
        "rankme": rankme(test),
        "width": int(train.shape[1]),
        "seconds": round(time.monotonic() - start, 3),
    }


def _mean_recall(labels: Ints, predictions: Ints) -> float:
    """Balanced accuracy over the classes that occur; scikit-learn warns about the others."""
    return float(np.mean([np.mean(predictions[labels == c] == c) for c in np.unique(labels)]))


def _nearest_others(features: Floats, k: int) -> tuple[Ints, NDArray[np.float32]]:
    """Numbers and cosines, (n, k), of the nearest other rows of each row."""
    unit = unit_rows(features)
    return nearest(unit, unit, k, without=np.arange(len(unit)))


def _vote(cosines: NDArray[np.float32], numbers: Ints, labels: Ints) -> Ints:
    votes = np.zeros((len(numbers), int(labels.max()) + 1))
    weights = np.exp((cosines.astype(np.float64) - 1) / _TEMPERATURE)
    np.add.at(votes, (np.arange(len(votes))[:, None], labels[numbers]), weights)
    winners: Ints = votes.argmax(axis=1)
    return winners


def _choose_strength(rows: Floats, labels: Ints, seed: int) -> float:
    """Tries `PROBE_CHOICES` in order until two in a row are no better than the best so far."""
    smallest = int(np.bincount(labels)[np.unique(labels)].min())
    if smallest < 2:
        return _FALLBACK_C
    folds = StratifiedKFold(min(3, smallest), shuffle=True, random_state=seed)
    splits: list[tuple[Ints, Ints]] = list(folds.split(rows, labels))
    totals: list[float] = []
    for strength in PROBE_CHOICES:
        fold_scores = [_fold_score(rows, labels, *split, strength) for split in splits]
        totals.append(sum(fold_scores))
        if len(totals) - int(np.argmax(totals)) > 2:
            break
    return PROBE_CHOICES[int(np.argmax(totals))]


def _fold_score(rows: Floats, labels: Ints, inside: Ints, outside: Ints, strength: float) -> float:
    model = fit_logistic(rows[inside], labels[inside], strength)
    return _mean_recall(labels[outside], model.predict(rows[outside]))


def _draw_shots(labels: Ints, shots: int, generator: np.random.Generator) -> Ints:
    chosen = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        chosen.append(generator.permutation(rows)[:shots])
    return np.concatenate(chosen)

"""Weighted fits; the unweighted ones are held against scikit-learn in test_scoring."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from tinyssl.logistic import balanced_weights, fit_logistic


def clouds(n: int = 90) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    labels = generator.choice(3, n, p=[0.6, 0.3, 0.1])
    centres = generator.normal(size=(3, 6))
    return centres[labels] + generator.normal(size=(n, 6)), labels


def test_balanced_weights_give_every_class_the_same() -> None:
    labels = np.array([4, 4, 4, 1, 7, 7])
    weights = balanced_weights(labels)
    assert [weights[labels == c].sum() for c in (1, 4, 7)] == pytest.approx([2, 2, 2])


@pytest.mark.parametrize("strength", [0.01, 1.0])
def test_weighted_fit_is_scikit_learns(strength: float) -> None:
    rows, labels = clouds()
    weights = np.random.default_rng(1).uniform(0, 3, len(labels))
    reference = LogisticRegression(C=strength, max_iter=20000, tol=1e-8)
    reference.fit(rows, labels, sample_weight=weights)
    logits = fit_logistic(rows, labels, strength, weights).logits(rows)
    found = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert found == pytest.approx(reference.predict_proba(rows), abs=3e-3)


def test_a_row_without_weight_is_not_there() -> None:
    rows, labels = clouds()
    weights = np.ones(len(labels))
    weights[50:] = 0
    some = fit_logistic(rows, labels, 0.1, weights).logits(rows)
    alone = fit_logistic(rows[:50], labels[:50], 0.1, weights[:50]).logits(rows)
    assert some == pytest.approx(alone, abs=2e-3)

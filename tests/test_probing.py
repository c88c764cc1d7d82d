"""The classifier in units of the features, and the choice of its strength."""

import numpy as np
import pytest

from tinyssl.folds import stratified_folds
from tinyssl.logistic import fit_logistic, rotate
from tinyssl.probing import STRENGTHS, choose_strength, fit_plane, scaling_of, unscaled


def clouds(n: int = 60, d: int = 20, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    centres = np.random.default_rng(9).normal(size=(3, d))
    rows = centres[labels] + 1.5 * generator.normal(size=(n, d)) + 4
    return (rows * np.geomspace(0.1, 10, d)).astype(np.float32), labels


def test_spread_goes_from_the_common_to_the_own_one() -> None:
    columns = np.geomspace(0.1, 10, 20)
    few, many = (scaling_of(clouds(n)[0]).spread for n in (3, 30000))
    own = clouds(30000)[0].std(axis=0)
    assert many == pytest.approx(own, rel=0.15, abs=0.3)
    assert few.max() / few.min() < many.max() / many.min() / 5 < columns.max() / columns.min()


def test_constant_columns_are_no_trouble() -> None:
    rows = np.full((5, 3), 7, np.float32)
    assert np.isfinite(scaling_of(rows)(rows)).all()


def test_plane_on_raw_features_is_the_fit_on_scaled_ones() -> None:
    features, labels = clouds()
    scaling = scaling_of(features)
    model = fit_logistic(scaling(features), labels, 0.1)
    plane = unscaled(model.weights, scaling)
    assert plane.weight.shape == (3, 20)
    assert plane.logits(features) == pytest.approx(model.logits(scaling(features)), abs=1e-3)


def test_fit_plane_tells_clouds_apart() -> None:
    features, labels = clouds()
    test, truth = clouds(300, seed=1)
    plane = fit_plane(features, labels, 0.1)
    assert np.mean(plane.logits(test).argmax(axis=1) == truth) > 0.8


def test_chosen_strength_has_the_lowest_held_out_log_loss() -> None:
    features, labels = clouds(30, 8)
    folds = stratified_folds(labels, 3, 1, seed=0)
    losses = {}
    for strength in STRENGTHS:
        logits, truth = [], []
        for inside, outside in (f for repeat in folds for f in repeat):
            scaling = scaling_of(features[inside])
            rows, rotation = rotate(scaling(features[inside]))
            model = fit_logistic(rows, labels[inside], strength)
            logits.append(model.logits(scaling(features[outside]) @ rotation))
            truth.append(labels[outside])
        joined, names = np.concatenate(logits).astype(float), np.concatenate(truth)
        by_temperature = []
        for temperature in np.geomspace(0.05, 20, 100):
            powers = np.exp(joined / temperature)
            chances = powers[np.arange(len(names)), names] / powers.sum(axis=1)
            by_temperature.append(-np.log(chances).mean())
        losses[strength] = min(by_temperature)
    assert choose_strength(features, labels, folds) == min(losses, key=lambda c: losses[c])

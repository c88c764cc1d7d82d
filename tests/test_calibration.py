"""Temperatures and calibration errors, against grids, loops and a case that is known."""

import numpy as np
import pytest

from tinyssl.calibration import calibration_error, fit_temperature, log_loss, softmax


def honest(n: int = 4000, k: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose softmax is the true chance of each label."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(n, k)) * 1.5
    chances = softmax(logits)
    labels = (chances.cumsum(axis=1) < generator.random((n, 1))).sum(axis=1)
    return logits, np.minimum(labels, k - 1)


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_the_temperature_undoes_a_scale(factor: float) -> None:
    logits, labels = honest()
    assert fit_temperature(logits * factor, labels) == pytest.approx(factor, rel=0.08)


def test_the_temperature_is_the_minimum_of_a_grid() -> None:
    logits, labels = honest(60)
    grid = np.geomspace(0.05, 20, 2000)
    best = min(grid, key=lambda t: log_loss(logits, labels, t))
    assert fit_temperature(logits, labels) == pytest.approx(best, rel=5e-3)


def test_separable_rows_stop_at_the_bound() -> None:
    logits = np.eye(3).repeat(4, axis=0)
    assert fit_temperature(logits, np.arange(3).repeat(4)) == pytest.approx(0.05, rel=0.01)


def test_log_loss_is_a_loop() -> None:
    logits, labels = honest(20)
    by_hand = 0.0
    for row, label in zip(logits / 2.5, labels, strict=True):
        by_hand -= np.log(np.exp(row[label]) / np.exp(row).sum()) / 20
    assert log_loss(logits, labels, 2.5) == pytest.approx(by_hand)


def test_softmax_takes_huge_logits() -> None:
    assert softmax(np.array([[1e4, 0.0]])) == pytest.approx(np.array([[1.0, 0.0]]))


def test_calibration_error_is_a_loop_over_bins() -> None:
    logits, labels = honest(300)
    shares = softmax(logits * 3)
    total = 0.0
    for low in np.arange(10) / 10:
        inside = [
            (row.max(), row.argmax() == label)
            for row, label in zip(shares, labels, strict=True)
            if low <= row.max() < low + 0.1 or (low == 0.9 and row.max() == 1)
        ]
        if inside:
            confidence, right = np.mean(inside, axis=0)
            total += len(inside) / 300 * abs(confidence - right)
    assert calibration_error(shares, labels) == pytest.approx(total)


def test_overconfidence_shows_in_the_error_and_the_temperature_mends_it() -> None:
    logits, labels = honest()
    raw = calibration_error(softmax(logits * 4), labels)
    mended = calibration_error(softmax(logits * 4, fit_temperature(logits * 4, labels)), labels)
    assert raw > 0.15
    assert mended < 0.03

"""Intervals against SciPy's own, and what few pictures do to them."""

import math

import numpy as np
import pytest
from scipy.stats import t as student

from tinyssl.intervals import half_of_draws, half_of_shares, interval


@pytest.mark.parametrize("count", [2, 10, 37])
def test_interval_is_students(count: int) -> None:
    values = np.random.default_rng(count).normal(size=count)
    error = values.std(ddof=1) / np.sqrt(count)
    low, high = student.interval(0.95, count - 1, loc=values.mean(), scale=error)
    found = interval(values.tolist())
    assert found.mean - found.half_width == pytest.approx(low)
    assert found.mean + found.half_width == pytest.approx(high)
    assert found.draws == count


def test_one_draw_has_no_interval() -> None:
    found = interval([0.25])
    assert (found.mean, found.draws) == (0.25, 1)
    assert math.isnan(found.half_width)


def test_shares_cover_the_truth_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    truth, counts = np.array([0.97, 0.6, 0.3]), np.array([12, 40, 9])
    right = generator.binomial(counts, truth, (4000, 3))
    halves = np.array([half_of_shares(row, counts) for row in right])
    covered = np.abs((right / counts).mean(axis=1) - truth.mean()) <= halves
    assert 0.93 <= covered.mean() <= 0.99


@pytest.mark.parametrize("pictures", [1, 2, 4, 12])
@pytest.mark.parametrize("classes", [4, 100])
def test_shares_cover_the_truth_with_few_pictures_of_each_class(
    classes: int, pictures: int
) -> None:
    truth, counts = np.linspace(0.3, 0.9, classes), np.full(classes, pictures)
    right = np.random.default_rng(0).binomial(counts, truth, (2000, classes))
    halves = np.array([half_of_shares(row, counts) for row in right])
    covered = np.abs((right / counts).mean(axis=1) - truth.mean()) <= halves
    assert covered.mean() >= 0.93


def test_no_error_on_few_pictures_is_not_certainty() -> None:
    counts = np.array([5, 5])
    assert half_of_shares(counts, counts) > 0.05


def test_draws_without_spread_still_have_the_test_pictures_interval() -> None:
    counts = np.array([30, 30])
    assert half_of_draws(0.8, 0.0, counts) == pytest.approx(half_of_shares(0.8 * counts, counts))
    assert half_of_draws(0.8, 0.3, counts) == pytest.approx(
        math.hypot(0.3, half_of_draws(0.8, 0.0, counts))
    )
    assert half_of_draws(0.8, 0.3, np.zeros(0)) == pytest.approx(0.3)

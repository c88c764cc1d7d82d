"""Schedules are data: their shape can be read off."""

from fractions import Fraction

import numpy as np
import pytest

from tinyssl.budget import epochs_for, negatives_for, views_for
from tinyssl.schedule import warmup_cosine


@pytest.mark.parametrize(("steps", "warmup"), [(100, 10), (100, 0), (10, 10), (5, 9), (1, 0)])
def test_one_positive_rate_a_step(steps: int, warmup: int) -> None:
    rates = warmup_cosine(steps, warmup, 0.3)
    assert rates.shape == (steps,)
    assert (rates > 0).all()
    assert rates.max() <= 0.3


def test_rises_to_the_peak_and_falls_along_a_cosine() -> None:
    rates = warmup_cosine(110, 10, 2.0)
    assert rates[10] == 2.0
    assert (np.diff(rates[:11]) > 0).all()
    assert (np.diff(rates[10:]) < 0).all()
    assert rates[60] == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize(
    ("pictures", "views", "epochs"),
    [(1000, 50_000, 50), (3, 10**6, 400), (10**6, 10**6, 5), (4, 26, 6), (10**6, 10**400, 400)],
)
def test_epochs_spend_the_views(pictures: int, views: int, epochs: int) -> None:
    chosen, reason = epochs_for(pictures, views)
    assert chosen == epochs
    assert f"{views:,}" in reason
    assert ("kept within" in reason) == (chosen != round(Fraction(views, pictures)))


def test_a_gpu_sees_more_views_unless_told_how_many() -> None:
    assert views_for("auto", "cuda") > views_for("auto", "cpu")
    assert views_for(1000, "cuda") == views_for(1000, "cpu") == 1000


@pytest.mark.parametrize(
    ("setting", "pictures", "expected"),
    [
        ("auto", 2000, None),
        ("auto", 65_536, None),
        ("auto", 65_537, 16_384),
        ("all", 10**6, None),
        (100, 1000, 100),
        (100, 150, None),
    ],
)
def test_negatives(setting: int | str, pictures: int, expected: int | None) -> None:
    assert negatives_for(setting, pictures, batch=64) == expected

"""From held-out logits to scores, a temperature and a choice."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from tinyssl.approach_choice import Judged, choose, judge_logits
from tinyssl.calibration import log_loss


def test_scores_are_means_over_the_repeats() -> None:
    generator = np.random.default_rng(0)
    labels = generator.choice(3, 30, p=[0.6, 0.2, 0.2])
    logits = generator.normal(size=(2, 30, 3)).astype(np.float32)
    logits[:, np.arange(30), labels] += 1
    judged = judge_logits(logits, labels)
    each = [balanced_accuracy_score(labels, repeat.argmax(axis=1)) for repeat in logits]
    assert judged.scores["balanced_accuracy"] == pytest.approx(np.mean(each))
    assert judged.scores["accuracy"] == pytest.approx(
        np.mean([np.mean(repeat.argmax(axis=1) == labels) for repeat in logits])
    )
    by_hand = np.mean([log_loss(repeat, labels, judged.temperature) for repeat in logits])
    assert judged.scores["log_loss"] == pytest.approx(by_hand)
    assert judged.scores["log_loss"] <= judged.scores["log_loss_uncalibrated"]


def judged(**accuracy: float) -> dict[str, Judged]:
    return {name: Judged({"balanced_accuracy": value}, 1.0) for name, value in accuracy.items()}


@pytest.mark.parametrize(
    ("accuracy", "chosen"),
    [
        ({"linear": 0.70, "semi": 0.71, "network": 0.80}, "network"),
        ({"linear": 0.79, "semi": 0.71, "network": 0.80}, "linear"),
        ({"linear": 0.70, "semi": 0.79, "network": 0.80}, "semi"),
        ({"linear": 0.80, "semi": 0.80}, "linear"),
    ],
)
def test_best_is_chosen_and_within_a_picture_the_cheapest(
    accuracy: dict[str, float], chosen: str
) -> None:
    name, reason = choose(judged(**accuracy), labels=50)
    assert name == chosen
    assert all(f"{key} {100 * value:.1f}" in reason for key, value in accuracy.items())
    assert ("cheapest" in reason) == (accuracy[name] < max(accuracy.values()))


def test_an_only_one_is_told_as_such() -> None:
    assert "the only one" in choose(judged(linear=0.7), labels=9)[1]

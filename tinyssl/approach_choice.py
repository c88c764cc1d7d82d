"""What held-out logits say of an approach, and which approach to take.

n = labeled pictures, k = classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tinyssl.calibration import calibration_error, fit_temperature, log_loss, softmax
from tinyssl.scoring import scores


@dataclass(frozen=True)
class Judged:
    """What is known of an approach from pictures that its fits did not see.

    Attributes:
        scores: means over the repeats, JSON-ready.
        temperature: that suits the held-out logits best.
    """

    scores: dict[str, float]
    temperature: float


def judge_logits(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> Judged:
    """Scores of held-out logits (repeats, n, k), with one temperature for all of them."""
    repeats, _, classes = logits.shape
    joined, truth = logits.reshape(-1, classes), np.tile(labels, repeats)
    temperature = fit_temperature(joined, truth)
    found = [scores(labels, repeat.argmax(axis=1), classes) for repeat in logits]
    means = {
        key: float(np.mean([s[key] for s in found]))
        for key in ("balanced_accuracy", "accuracy", "macro_f1")
    }
    return Judged(
        means
        | {
            "temperature": temperature,
            "log_loss": log_loss(joined, truth, temperature),
            "log_loss_uncalibrated": log_loss(joined, truth),
            "calibration_error": calibration_error(softmax(joined, temperature), truth),
            "calibration_error_uncalibrated": calibration_error(softmax(joined), truth),
        },
        temperature,
    )


def choose(judged: Mapping[str, Judged], *, labels: int) -> tuple[str, str]:
    """The approach of the best balanced accuracy; the first of those within one picture of it.

    Args:
        judged: by name, the cheapest first.
        labels: n, so that 1 / n is what one picture counts.

    Returns:
        Its name, and the reason in words.
    """
    accuracy = {name: found.scores["balanced_accuracy"] for name, found in judged.items()}
    best = max(accuracy.values())
    name = next(name for name, value in accuracy.items() if best - value < 1 / labels)
    told = ", ".join(f"{other} {100 * value:.1f}" for other, value in accuracy.items())
    if len(judged) == 1:
        return name, f"the only one that can be fitted here, held-out balanced accuracy {told} %"
    cheapest = "" if accuracy[name] == best else "; the cheapest of those within one picture"
    return name, f"held-out balanced accuracy {told} %{cheapest}"

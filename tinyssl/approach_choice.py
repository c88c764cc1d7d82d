"""Scores of approaches on held-out pictures, and the choice between them.

n = labeled pictures, k = classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tinyssl.calibration import calibration_error, fit_temperature, log_loss, softmax
from tinyssl.logistic import balanced_weights
from tinyssl.scoring import scores


@dataclass(frozen=True)
class Judged:
    """Scores of an approach on pictures that its fits did not see.

    Attributes:
        scores: means over the repeats, JSON-ready.
        first: the balanced accuracy of the first repeat.
        temperature: of the lowest log loss on the held-out logits.
        shares: (n,) share of each picture in the balanced accuracy, averaged over the repeats.
        repeats: number of times the folds were drawn.
    """

    scores: dict[str, float]
    first: float
    temperature: float
    shares: NDArray[np.float64]
    repeats: int = 1


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
        found[0]["balanced_accuracy"],
        temperature,
        (logits.argmax(axis=2) == labels).mean(axis=0) * balanced_weights(labels) / len(labels),
        repeats,
    )


def leads(found: Judged, others: Iterable[Judged]) -> bool:
    """Whether the balanced accuracy on the first draw of the folds is above that of all others."""
    return all(found.first > other.first for other in others)


def choose(judged: Mapping[str, Judged]) -> tuple[str, str]:
    """The best of the cheap approaches, unless the last leads by more than a standard error.

    The last one trains the whole network, takes fifty times as long and is less well calibrated;
    with 50 labels one picture is 2 points. It therefore has to beat the best of the others (the
    cheapest of those within one picture) by more than the standard error of the difference over
    the pictures, which leaves some room for chance. It is not taken where it was judged on fewer
    draws of the folds, because it did not lead on the first.

    Args:
        judged: by name, the cheapest first, the network last.

    Returns:
        Its name, and the reason in words.
    """
    accuracy = {name: found.scores["balanced_accuracy"] for name, found in judged.items()}
    told = ", ".join(f"{other} {100 * value:.1f}" for other, value in accuracy.items())
    *others, last = judged
    if not others:
        return last, f"the only one that can be fitted here, held-out balanced accuracy {told} %"
    best = max(accuracy[name] for name in others)
    one_picture = 1 / len(judged[last].shares) + 1e-9  # else rounding decides at exactly one
    rival = next(name for name in others if best - accuracy[name] < one_picture)
    told = f"held-out balanced accuracy {told} %"
    if judged[last].repeats < judged[rival].repeats:
        return rival, f"{told}; {last} does not lead on the first draw of the folds"
    lead, error = accuracy[last] - accuracy[rival], _standard_error(judged[rival], judged[last])
    clear = lead > error
    why = f"{last} {'leads' if clear else 'does not lead'} {rival} by more than a standard error"
    return last if clear else rival, f"{told}; {why} ({100 * error:.1f})"


def _standard_error(one: Judged, other: Judged) -> float:
    """Of the difference of two balanced accuracies on the same pictures."""
    differences = one.shares - other.shares
    return float(np.sqrt(len(differences)) * np.std(differences, ddof=1))

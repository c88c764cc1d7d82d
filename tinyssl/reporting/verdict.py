"""A verdict on a run in words, from the scores of `tinyssl eval` or from label-free scores.

All accuracies here are balanced and in percent. An interval is one of 95 %: it comes from the
number of test pictures of each class, of few-shot scores also from the draws of labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tinyssl.intervals import half_of_draws, half_of_shares

_LEAD = 5.0  # points, as pretraining may bring: where they can hide, nothing has failed yet
_TO_DO = {
    "no": "What to do: train longer (--epochs){}; as it is, this encoder is not worth shipping.",
    "unknown": f"What to do: label more test pictures; with these a lead of {_LEAD:.0f} points "
    "can go unnoticed.",
}
_ADAPT = ", or start from ImageNet weights (--recipe adapt)"
_FROM_RANDOM = "pretrained"  # name of a run's own encoder; `adapted` if it started from weights
_TAUGHT = "Not known: labels of test pictures trained this encoder, and its figures are too good."

Level = Literal["yes", "partly", "no", "unknown"]
Figure = Mapping[str, Any]

_COUNTED = ("k-NN", "linear", "10-shot")  # measures of the verdict, as far as present
_ALL_SCORED = 65_536  # pictures; with more, only a sample of the bank is scored
_FLOOR = ("raw pixels", "descriptors", "random weights")  # baselines that must be beaten


@dataclass(frozen=True)
class Score:
    """A balanced accuracy and the half-width of its 95 % interval, in percent."""

    mean: float
    half: float

    def __sub__(self, other: Score) -> Score:
        """The difference; its interval assumes independence, which makes it too wide where both err
        on the same pictures, as encoders mostly do."""
        return Score(self.mean - other.mean, math.hypot(self.half, other.half))

    @property
    def sign(self) -> int:
        """1 or -1 where the interval excludes 0, else 0."""
        return 0 if abs(self.mean) <= self.half else int(math.copysign(1, self.mean))


@dataclass(frozen=True)
class Judged:
    """The scores of one encoder by measure."""

    name: str
    scores: dict[str, Score]
    rankme: float | None
    retrieval: float | None = None
    taught: int = 0  # test pictures whose labels it was trained on


@dataclass(frozen=True)
class Verdict:
    """A level, a headline, and sentences with the figures."""

    level: Level
    headline: str
    sentences: list[str]


def judged(result: Mapping[str, Any]) -> list[Judged]:
    """The encoders of `eval.json`, the run's own last."""
    return [
        Judged(
            name,
            _scores(found, result.get("fewest")),
            found.get("rankme"),
            found.get("retrieval"),
            found.get("taught_by_test", 0),
        )
        for name, found in result.get("encoders", {}).items()
    ]


def recall_score(confusion: Sequence[Sequence[int]]) -> Score:
    """Balanced accuracy of a confusion matrix, with the interval of a mean of shares."""
    matrix = np.asarray(confusion, float)
    counts, right = matrix.sum(axis=1), np.diag(matrix)
    counts, right = counts[counts > 0], right[counts > 0]
    return Score(100 * float((right / counts).mean()), 100 * half_of_shares(right, counts))


def own_classifier(result: Mapping[str, Any]) -> Score | None:
    """The score of a fine-tuned run's own classifier in `eval.json`; None if it was not judged."""
    confusion = result.get("classifier", {}).get("confusion")
    return None if confusion is None else recall_score(confusion)


def label_verdict(result: Mapping[str, Any]) -> Verdict:
    """Compares the last encoder of `eval.json` with all others."""
    *rivals, own = judged(result)
    outcomes = {rival.name: compare(own, rival) for rival in rivals if not rival.taught}
    level = "unknown" if own.taught else _level(outcomes)
    headline = _TAUGHT if own.taught else _headline(level, outcomes)
    sentences = [_against(name, found) for name, found in outcomes.items()]
    if level in _TO_DO and outcomes and not own.taught:
        sentences.append(_TO_DO[level].format(_ADAPT if own.name == _FROM_RANDOM else ""))
    return Verdict(level, headline, [*sentences, *_left_out(rivals), measured_on(result)])


def _left_out(encoders: Sequence[Judged]) -> list[str]:
    """Sentences on encoders that are not compared, as they were trained on test labels."""
    return [
        f"{e.name} is not compared: the labels of {e.taught:,} test pictures trained it."
        for e in encoders
        if e.taught
    ]


def compare(own: Judged, rival: Judged) -> dict[str, Score]:
    """The differences that decide the verdict, by measure."""
    return {m: own.scores[m] - rival.scores[m] for m in counted([own, rival])}


def counted(encoders: Sequence[Judged]) -> list[str]:
    """The measures that decide the verdict and that all encoders have."""
    return [m for m in _COUNTED if all(m in encoder.scores for encoder in encoders)]


def label_free_verdict(
    look: Mapping[str, float], losses: Sequence[float], pictures: int | None, collapse: str | None
) -> Verdict:
    """A verdict without labels.

    Args:
        look: the newest label-free scores: rankme, bank_rank, bank_cosine and, if measured,
            retrieval.
        losses: of instance discrimination, per epoch.
        pictures: number trained on, if known.
        collapse: result of `tinyssl.watch.collapse_warning`.
    """
    if collapse is not None:
        return Verdict("no", "No: the features collapsed.", [_capital(collapse) + "."])
    told = []
    if "rankme" in look:
        told.append(
            f"The features use about {look['rankme']:.0f} dimensions (RankMe), and embeddings of "
            f"different pictures are {_alike(look['bank_cosine'])} (mean cosine "
            f"{look['bank_cosine']:.2f}): no sign of collapse."
        )
    chance = math.log(pictures) if pictures and 1 < pictures <= _ALL_SCORED else math.inf
    if "retrieval" in look:
        told.append(
            f"For {100 * look['retrieval']:.0f} % of some augmented views the nearest other one is "
            "of the same picture: more is better between runs on the same pictures."
        )
    if losses:
        told.append(f"The loss went from {losses[0]:.2f} to {losses[-1]:.2f}{_guessing(chance)}.")
    told.append(
        "Whether the features separate what matters to you only labels can tell: some 50 will do."
    )
    if losses and losses[-1] >= chance:
        signs = ", and the loss is no better than guessing: train longer"
    else:
        signs = "; so far all signs are healthy" if told[1:] else ", and nothing was watched"
    return Verdict("unknown", f"Not known yet: it was not judged on labels{signs}.", told)


def finetuned_verdict(found: Mapping[str, Any]) -> Verdict:
    """A verdict from `finetune.json`: held-out folds of the labels, without test pictures."""
    taken = found["held_out"].get(found["recipe"])
    counts = found["labels"].values()
    measured = sum(count > 1 for count in counts)
    those = "those with a single label are not measured"
    less = f" ({those})" if measured < len(counts) else ""
    ask = "Only pictures that had no part in it tell more."
    if taken is None:
        return Verdict("unknown", "Not known yet: nothing could be held out.", [ask])
    if taught := found.get("taught"):
        ask = f"Too good: {taught:,} of the labels had trained the encoder before. {ask}"
    accuracy = 100 * taken["balanced_accuracy"]
    return Verdict(
        "unknown",
        f"Not judged on test pictures yet; {accuracy:.1f} % on held-out folds of its labels.",
        [
            f"Balanced accuracy, with {sum(counts):,} labels of {len(counts)} classes{less}; "
            f"guessing would get {100 / measured:.1f} %.",
            ask,
        ],
    )


def best_of(encoders: Sequence[Judged]) -> Verdict:
    """Which of several runs, evaluated on the same pictures, is best, and by how much."""
    measures = counted(encoders)
    if not measures:
        return Verdict("unknown", "Not known: the runs share no measure.", [])
    fair = [encoder for encoder in encoders if not encoder.taught]
    if len(fair) < 2:
        headline = "Not known: labels of test pictures trained too many of the runs."
        return Verdict("unknown", headline, _left_out(encoders))
    best = max(fair, key=lambda e: sum(e.scores[m].mean for m in measures))
    outcomes = {other.name: compare(best, other) for other in fair if other is not best}
    headline = f"Best on average is {best.name}: {_differences(outcomes)}."
    sentences = [_against(name, found) for name, found in outcomes.items()]
    level: Level = "yes" if all(map(_mostly_better, outcomes.values())) else "partly"
    return Verdict(level, headline, [*sentences, *_left_out(encoders)])


def _scores(found: Figure, fewest: int | None) -> dict[str, Score]:
    """Scores by measure, except for more shots than the smallest class has training pictures."""
    scores = {}
    for key, name in (("knn", "k-NN"), ("linear", "linear")):
        if "confusion" in found.get(key, {}):
            scores[name] = recall_score(found[key]["confusion"])
    tested = _tested(found)
    for shots, value in found.get("few_shot", {}).items():
        if fewest is not None and int(shots) > fewest:
            continue
        half = half_of_draws(value["mean"], value["half_width"], tested)
        scores[f"{shots}-shot"] = Score(100 * value["mean"], 100 * half)
    return scores


def _tested(found: Figure) -> NDArray[np.float64]:
    """Nonzero numbers of test pictures of classes, from a confusion matrix."""
    matrix = np.asarray(found.get("knn", {}).get("confusion", [[0]]), float)
    counts: NDArray[np.float64] = matrix.sum(axis=1)
    return counts[counts > 0]


def _level(outcomes: Mapping[str, Mapping[str, Score]]) -> Level:
    """Yes if most measures beat every baseline, and no rival beats the run.

    Unknown where none is beaten clearly, none beats the run, and the intervals hide a large lead.
    """
    signs = {name: [d.sign for d in found.values()] for name, found in outcomes.items()}
    floor = [signs[name] for name in _FLOOR if name in signs]
    if not floor:
        return "unknown"
    lost = any(sum(s) < 0 for s in signs.values())
    if any(sum(s) < 0 for s in floor):
        return "no"
    if all(sum(s) == 0 for s in floor):
        unclear = [d for n in _FLOOR for d in outcomes.get(n, {}).values() if d.sign == 0]
        return "unknown" if any(d.mean + d.half > _LEAD for d in unclear) else "no"
    clear = all(_mostly_better(outcomes[name]) for name in _FLOOR if name in signs)
    return "yes" if clear and not lost else "partly"


def _mostly_better(found: Mapping[str, Score]) -> bool:
    signs = [difference.sign for difference in found.values()]
    return 2 * signs.count(1) > len(signs) and -1 not in signs


def _headline(level: Level, outcomes: Mapping[str, Mapping[str, Score]]) -> str:
    word = {"yes": "Yes", "partly": "Partly", "no": "No", "unknown": "Not known"}[level]
    return f"{word}: {_differences(outcomes) or 'there is nothing to compare with'}."


def _differences(outcomes: Mapping[str, Mapping[str, Score]]) -> str:
    """What is clearly better or worse than each rival, and in which measures if not in all."""
    above = {n: [m for m, d in found.items() if d.sign > 0] for n, found in outcomes.items()}
    below = {n: [m for m, d in found.items() if d.sign < 0] for n, found in outcomes.items()}
    better = [n for n, found in outcomes.items() if found and above[n] == [*found]]
    worse = [n for n, found in outcomes.items() if found and below[n] == [*found]]
    even = [n for n in outcomes if not above[n] + below[n]]
    parts = [f"clearly better than {_listed(better)}"] if better else []
    parts += [
        f"{'but ' if better else 'clearly better '}than {n} only in {_listed(above[n])}"
        for n in outcomes
        if above[n] and n not in better
    ]
    parts += [f"not clearly different from {_listed(even)}"] if even else []
    parts += [f"worse than {_listed(worse)}"] if worse else []
    parts += [
        f"worse than {n} in {_listed(below[n])}" for n in outcomes if below[n] and n not in worse
    ]
    return "; ".join(parts)


def _against(name: str, found: Mapping[str, Score]) -> str:
    told = ", ".join(f"{m} {signed(d)}{_doubt(d)}" for m, d in found.items())
    return f"Against {name}: {told} points."


def signed(score: Score) -> str:
    """A difference in percent points, such as `+7.5 ± 3.0`."""
    return f"{score.mean:+.1f} ± {score.half:.1f}".replace("-", "\N{MINUS SIGN}")


def _doubt(difference: Score) -> str:
    return "" if difference.sign else " (too close to call)"


def measured_on(result: Mapping[str, Any]) -> str:
    """The data of the figures in `eval.json`, and the meaning of their intervals."""
    own: Figure = next(iter(result.get("encoders", {}).values()), {})
    there, named = len(_tested(own)), len(result["classes"])
    missing = f" (no picture of the other {named - there})" if 0 < there < named else ""
    return (
        f"Measured on {result['test']:,} test pictures of {there or named} classes{missing}; "
        f"classifiers were fitted on {result['train']:,} others. {_doubts(result)}Balanced "
        "accuracy in percent; ± is a 95 % interval."
    )


def _doubts(result: Mapping[str, Any]) -> str:
    told = ""
    if both := result.get("test_in_training"):
        told += f"Too good: {both:,} of the test pictures are training pictures too (equal files). "
    if seen := result.get("pretrained_on"):
        told += f"{seen:,} of the test pictures were pretrained on, without their labels. "
    return told


def _listed(names: Sequence[str]) -> str:
    told = [f"“{name}”" if "," in name else name for name in names]
    return told[0] if len(told) == 1 else f"{', '.join(told[:-1])} and {told[-1]}"


def _alike(cosine: float) -> str:
    return "far apart" if cosine < 0.5 else "rather alike" if cosine < 0.9 else "very alike"


def _guessing(chance: float) -> str:
    return f"; guessing which picture it is would cost {chance:.2f}" if chance < math.inf else ""


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]

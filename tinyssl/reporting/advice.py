"""Warnings about a run, with what to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tinyssl.locks import is_held
from tinyssl.reporting.names import shown
from tinyssl.reporting.run_facts import RunFacts
from tinyssl.run_folder import resume_command
from tinyssl.watch import collapse_warning

_FEW = 500
_FEW_TESTED = 100
_MANY_COPIES = 0.01
_MANY_NEAR_COPIES = 0.05
_PEAK_LOST = 0.02  # of k-NN accuracy, after its peak
_PEAK_EARLY = 0.8  # of the epochs
_STILL = 0.01  # of the loss's total range, in the last fifth of the epochs
_LOOKS = 3


@dataclass(frozen=True)
class Advice:
    """A problem and what to do about it; `serious` ones may invalidate the result."""

    what: str
    todo: str
    serious: bool = False


def advise(facts: RunFacts, pictures: int | None, near_copies: float | None) -> list[Advice]:
    """All warnings about a run, the serious ones first.

    Args:
        facts: of the run.
        pictures: number trained on; None if unknown.
        near_copies: share of pictures that nearly repeat another; None if not measured.
    """
    found = [
        *_unfinished(facts),
        *_collapse(facts),
        *_few(facts, pictures),
        *_copies(facts, pictures),
        *_near_copies(near_copies),
        *_skipped(facts),
        *_too_long(facts),
        *_tested(facts),
    ]
    return sorted(found, key=lambda advice: not advice.serious)


def all_clear(facts: RunFacts) -> str:
    """Lists the checks that passed, for a run without warnings."""
    looked = [
        "no collapse" if facts.last_look() else "",
        "no skipped files",
        "" if facts.finetuned else "few copies",
        "no sign of too long a training" if facts.curve("loss") else "",
    ]
    return f"Nothing to warn of: {', '.join(text for text in looked if text)}."


def collapse_of(facts: RunFacts) -> str | None:
    """The collapse warning of the newest scores; None without collapse, or without scores."""
    look = facts.last_look()
    return collapse_warning(look) if "bank_rank" in look else None


def _collapse(facts: RunFacts) -> Iterator[Advice]:
    text = collapse_of(facts)
    if text is not None:
        what, _, todo = text.partition("). ")
        yield Advice(f"{what}).", f"{todo}.", serious=True)


def _unfinished(facts: RunFacts) -> Iterator[Advice]:
    if not finished(facts):
        held = is_held(facts.path)
        what = "is still being trained" if held else "was stopped before its end"
        yield Advice(
            f"The run {what}, and its features are those of the last level.",
            "Wait for it." if held else f"Go on with it: {resume_command(facts.path)}",
            serious=True,
        )


def finished(facts: RunFacts) -> bool:
    """Whether the encoder is the final one of the run."""
    return bool(facts.encoder["finished"])


def _few(facts: RunFacts, pictures: int | None) -> Iterator[Advice]:
    if pictures is not None and pictures < _FEW and not facts.finetuned:
        from_random = facts.encoder["init"] == "random"
        yield Advice(
            f"Only {pictures:,} pictures were trained on.",
            "Collect more, some 2,000 if you can"
            + ("; or start from ImageNet weights: --recipe adapt." if from_random else "."),
            serious=from_random,
        )


def _copies(facts: RunFacts, pictures: int | None) -> Iterator[Advice]:
    extra = sum(len(group) - 1 for group in facts.copies)
    if extra and (not pictures or extra > _MANY_COPIES * pictures):
        why = "the loss pushes a picture away from its own copy"
        if facts.curve("near"):
            why = "a picture's own copies take the places of other near pictures"
        yield Advice(
            f"{extra:,} pictures are exact copies of others (listed in duplicates.csv).",
            f"Remove them: {why}, and copies on both sides of a split make test figures too good.",
            serious=bool(pictures) and extra > 10 * _MANY_COPIES * (pictures or 0),
        )


def _near_copies(share: float | None) -> Iterator[Advice]:
    if share is not None and share > _MANY_NEAR_COPIES:
        yield Advice(
            f"{100 * share:.0f} % of the pictures nearly repeat another one, see below.",
            "Look at the groups. If they are frames of one scene, keep one of each, and put "
            "whole groups on one side of a split into training and test pictures.",
        )


def _skipped(facts: RunFacts) -> Iterator[Advice]:
    if facts.skipped:
        path, reason = facts.skipped[0]
        yield Advice(
            f"{len(facts.skipped):,} files could not be read, the first: {shown(path)} "
            f"({shown(reason)}).",
            "See skipped.csv; mend or remove them, or leave it so if they are no pictures.",
        )


def _too_long(facts: RunFacts) -> Iterator[Advice]:
    if not finished(facts):
        return
    knn, loss = facts.curve("knn"), facts.curve("loss")
    if len(knn) >= _LOOKS:
        best, value = max(knn, key=lambda point: point[1])
        end, last = knn[-1]
        if value - last > _PEAK_LOST and best <= _PEAK_EARLY * end:
            yield Advice(
                f"k-NN accuracy was best at epoch {best:.0f} ({100 * value:.1f} %) and fell to "
                f"{100 * last:.1f} % by epoch {end:.0f}.",
                f"Train shorter: run.epochs={best:.0f}.",
            )
            return
    if len(loss) >= 10:
        values = np.array([value for _, value in loss])
        way = float(values.max() - values.min())
        fifth = len(values) // 5
        late = float(values[-fifth - 1] - values[-1])
        if way > 0 and late < _STILL * way and values[-1] < values[0]:
            yield Advice(
                f"In the last {fifth} of {len(values)} epochs the loss hardly moved.",
                f"A shorter run may do as well: run.epochs={len(values) - fifth}.",
            )


def _tested(facts: RunFacts) -> Iterator[Advice]:
    result = facts.result
    if not result:
        return
    if result["test"] < _FEW_TESTED:
        yield Advice(
            f"Only {result['test']:,} test pictures: the intervals are wide.",
            "Label some hundred test pictures before you decide by these figures.",
        )
    if both := result.get("test_in_training", 0):
        yield Advice(
            f"{both:,} test pictures are training pictures too (equal files): the figures are too "
            "good.",
            "Take them out of one of the two, and judge again.",
            serious=True,
        )
    own = list(result.get("encoders", {}).values())[-1:]
    if taught := sum(found.get("taught_by_test", 0) for found in own):
        yield Advice(
            f"The labels of {taught:,} test pictures trained this encoder: its figures are too "
            "good.",
            "Judge it on pictures that had no part in its training, in this run or in those that "
            "it started from.",
            serious=True,
        )
    seen = result.get("classifier", {}).get("seen_in_finetuning", 0)
    if seen:
        yield Advice(
            f"{seen:,} test pictures were used in fine-tuning: the classifier's figures are too "
            "good.",
            "Judge it on pictures that had no part in it.",
            serious=True,
        )

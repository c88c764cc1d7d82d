"""Contradictory labels, and copies across training and test pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tinyssl.labels import LabeledPaths


@dataclass(frozen=True)
class LabelFindings:
    """Problems of labels, as groups of paths.

    Attributes:
        contradictions: copies, exact or near, with different labels.
        leaks: copies, exact or near, in both the training and the test part.
    """

    contradictions: list[list[str]]
    leaks: list[list[str]]


def check_labels(table: LabeledPaths, groups: Sequence[Sequence[str]]) -> LabelFindings:
    """Compares labels and splits within groups of copies, given as paths."""
    label = {str(p): name for p, name in zip(table.paths, table.labels, strict=True)}
    split = {}
    if table.splits is not None:
        split = {str(p): name for p, name in zip(table.paths, table.splits, strict=True)}
    contradictions, leaks = [], []
    for group in groups:
        named = [path for path in group if path in label]
        if len({label[path] for path in named}) > 1:
            contradictions.append(named)
        if len({split[path] for path in named if path in split}) > 1:
            leaks.append(named)
    return LabelFindings(contradictions, leaks)


def class_lines(table: LabeledPaths) -> list[str]:
    """Lines on the classes and their sizes, the rarest first; never raises."""
    counts = sorted(Counter(table.labels).items(), key=lambda item: (item[1], item[0]))
    lines = [f"{len(table.labels):,} pictures of {len(counts):,} classes"]
    if len(counts) < 2:
        lines.append("one class: a classifier needs at least two")
    rare = [f"{name} {count:,}" for name, count in counts[:5]]
    lines.append(f"rarest: {', '.join(rare)}")
    if table.splits is not None:
        parts = Counter(table.splits)
        lines.append(f"split: {parts['train']:,} train, {parts['test']:,} test")
        trained = {n for n, s in zip(table.labels, table.splits, strict=True) if s == "train"}
        unseen = sorted(set(table.labels) - trained)
        if unseen:
            lines.append(f"no training picture of {', '.join(unseen[:5])}")
    if table.unlabeled:
        lines.append(f"{table.unlabeled:,} rows without a label are left out")
    return lines

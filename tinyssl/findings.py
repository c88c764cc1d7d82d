"""What `tinyssl checks` finds in a set of pictures, as lines of text and as rows of a CSV."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tinyssl.data import Pictures
from tinyssl.errors import one_line
from tinyssl.files import csv_text
from tinyssl.label_checks import check_labels, class_lines
from tinyssl.labels import LabeledPaths
from tinyssl.likeness import MOST_COMPARED, blank, near_copies
from tinyssl.survey import Survey

_SHOWN = 5
_DARK = 1 << 14  # of 16 bits

COLUMNS = ("problem", "group", "path", "detail")  # of the list


@dataclass
class Findings:
    """The report of `tinyssl checks`.

    Attributes:
        lines: (topic, text); the topic is empty where a line continues the one above.
        rows: (problem, group, path, detail): all findings, of which the lines give examples.
        different: number of pictures, each group of near copies counted once.
    """

    lines: list[tuple[str, str]] = field(default_factory=list)
    rows: list[tuple[str, int, str, str]] = field(default_factory=list)
    different: int = 0

    def say(self, topic: str, *texts: str) -> None:
        """Adds lines under one topic."""
        topics = [topic] + [""] * (len(texts) - 1)
        self.lines += list(zip(topics, map(one_line, texts), strict=True))

    def groups(self, topic: str, count: str, groups: Sequence[Sequence[str]]) -> None:
        """Adds a count and the first groups of paths; all of them become rows."""
        shown = ["  ".join(group[:3]) + "  ..." * (len(group) > 3) for group in groups[:_SHOWN]]
        self.say(topic, count, *shown)
        for number, group in enumerate(groups, 1):
            self.rows += [(topic, number, path, "") for path in group]

    def text(self) -> str:
        """All lines, with the topics in a column."""
        return "\n".join(f"{topic:<10} {text}".rstrip() for topic, text in self.lines)

    def to_csv(self) -> str:
        """All rows as `problem,group,path,detail`."""
        return csv_text([COLUMNS, *self.rows])


def find(pictures: Pictures, found: Survey, table: LabeledPaths | None = None) -> Findings:
    """Examines decoded pictures, their headers, and labels if given."""
    findings = Findings()
    _tell_kinds(findings, pictures, found)
    copies = _tell_copies(findings, pictures)
    _tell_blank(findings, pictures)
    if table is not None:
        _tell_labels(findings, table, copies)
    _tell_skipped(findings, pictures)
    return findings


def _tell_kinds(findings: Findings, pictures: Pictures, found: Survey) -> None:
    n, side, _, channels = pictures.array.shape
    mean, std = pictures.statistics()
    kept = f"{n:,} readable, kept as {side} x {side} x {channels} {pictures.array.dtype}"
    findings.say("pictures", kept)
    findings.say("formats", _counted(found.formats))
    findings.say("modes", _counted(found.modes))
    findings.say("sizes", *_sizes(found))
    findings.say("mean", f"{_row(mean)}   of 0 to 1")
    findings.say("deviation", _row(std))
    if pictures.array.dtype.itemsize == 2 and (largest := int(pictures.array.max())) < _DARK:
        told = "dark in views and reports, but training scales them"
        findings.say("largest", f"{largest:,} of 65,535, as of sensors with fewer bits: {told}")
    several = [[path] for path in pictures.several]
    if several:
        count = f"{len(several):,} files with more frames or pages; the first is taken"
        findings.groups("several", count, several)


def _tell_copies(findings: Findings, pictures: Pictures) -> list[list[str]]:
    """Reports exact and near copies; returns the groups of both."""
    exact = _paths(pictures, pictures.duplicates())
    count = f"{_more(exact):,} exact, in {len(exact):,} groups"
    findings.groups("copies", count, exact)
    findings.different = len(pictures.paths) - _more(exact)
    if len(pictures.paths) > MOST_COMPARED:
        findings.say("near", f"not looked for among more than {MOST_COMPARED:,} pictures")
        return exact
    every = near_copies(pictures.array, pictures.hashes)
    near = [g for g in every if len({pictures.hashes[row] for row in g}) > 1]
    groups = _paths(pictures, near)
    findings.groups("near", f"{len(near):,} groups saved again, scaled, or nearly alike", groups)
    findings.different = len(pictures.paths) - _more(every)
    return _paths(pictures, every)


def _tell_blank(findings: Findings, pictures: Pictures) -> None:
    constant, faint = blank(pictures.array)
    rows = [[pictures.paths[row]] for row in [*constant, *faint]]
    count = f"{len(constant):,} of one value, {len(faint):,} with next to no contrast"
    findings.groups("blank", count, rows)


def _tell_labels(findings: Findings, table: LabeledPaths, copies: list[list[str]]) -> None:
    findings.say("labels", *class_lines(table))
    odd = check_labels(table, copies)
    count = f"{len(odd.contradictions):,} groups of copies, exact or near, with different labels"
    findings.groups("conflicts", count, odd.contradictions)
    if table.splits is not None:
        count = f"{len(odd.leaks):,} groups of copies, exact or near, in both train and test"
        findings.groups("leaks", count, odd.leaks)


def _tell_skipped(findings: Findings, pictures: Pictures) -> None:
    kinds: dict[str, list[tuple[str, str]]] = {}
    for path, reason in pictures.skipped:
        kinds.setdefault(re.sub(r"\d[\d,]*", "0", reason), []).append((path, reason))
    told = [f"{len(pictures.skipped):,}"]
    for files in sorted(kinds.values(), key=len, reverse=True):
        path, reason = files[0]
        more = f"; so are {len(files) - 1:,} more" * (len(files) > 1)
        told.append(f"{path}: {reason}{more}")
    findings.say("skipped", *told)
    findings.rows += [("skipped", 0, path, reason) for path, reason in pictures.skipped]


def _sizes(found: Survey) -> Iterator[str]:
    if not found.sides:
        return
    common = [f"{long:,} x {short:,} ({n:,})" for (short, long), n in found.sides.most_common(3)]
    yield f"long x short side: {', '.join(common)}, {len(found.sides):,} sizes in all"
    sides = found.short_sides()
    longest = max(long for _, long in found.sides)
    yield f"short side {sides[0]:,} to {sides[-1]:,}, half {sides[len(sides) // 2]:,} or less"
    yield f"longest side {longest:,}; {found.long_pictures(1.5):,} longer than 1.5 to 1"


def _paths(pictures: Pictures, groups: Sequence[Sequence[int]]) -> list[list[str]]:
    return [[pictures.paths[row] for row in group] for group in groups]


def _more(groups: Sequence[Sequence[object]]) -> int:
    return sum(len(group) - 1 for group in groups)


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.most_common())


def _row(values: Sequence[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)

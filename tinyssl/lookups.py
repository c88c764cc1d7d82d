"""Searches in features: nearest pictures of a query, near copies, and outliers.

Cosines are of centred features (see `neighbours.centred`), and each result is written as a CSV
beside the features.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinyssl.console import progress
from tinyssl.embedding import read_some
from tinyssl.errors import UsageError
from tinyssl.extraction import Extractor
from tinyssl.feature_file import Features
from tinyssl.files import csv_text, refuse_other_table, write_text
from tinyssl.neighbours import alike, centred, isolation, mean_row, near_copy_cosine, nearest

_NEARER, _ENOUGH = 3, 0.95  # see `near_copy_cosine`; frames of a still camera are all copies
COLUMNS = {
    "nearest": ("query", "rank", "path", "cosine"),
    "duplicates": ("group", "path", "cosine", "exact"),
    "outliers": ("rank", "path", "distance"),
}  # of each list


@dataclass(frozen=True)
class Lookup:
    """A CSV that was written, its rows, and one line that describes it."""

    out: Path
    rows: Sequence[tuple[Any, ...]]
    told: str


def check_wishes(
    out: str | Path,
    lists: Iterable[str],
    queries: Sequence[str | Path],
    k: int,
    threshold: float | None,
) -> None:
    """Checks settings before any work is done; `find_...` check their own list again.

    Args:
        out: file of the features.
        lists: wanted keys of `COLUMNS`.
        queries: pictures to find the nearest of.
        k: number of nearest pictures of each query.
        threshold: cosine of near copies; measured on the features when None.

    Raises:
        UsageError: an invalid query, k or threshold, or a file that is no such list, or has
            further columns, would be replaced.
    """
    for name in lists:
        _place(out, name)
    for query in queries:
        if not Path(query).is_file():
            raise UsageError(f"nearest: no picture {query}; give a picture file")
    if k < 1:
        raise UsageError(f"k: got {k}; give 1 or more")
    if threshold is not None and not 0 < threshold <= 1:
        raise UsageError(f"threshold: got {threshold:g}, allowed is above 0 and up to 1")


def find_nearest(
    features: Features,
    out: str | Path,
    extractor: Extractor,
    queries: Sequence[str | Path],
    k: int = 10,
) -> Lookup:
    """Writes `<stem>.nearest.csv`: query,rank,path,cosine of the k pictures nearest to each query.

    A query that is one of the pictures does not find itself.

    Raises:
        UsageError: a query cannot be read, or another file is there.
    """
    asked = [Path(os.path.abspath(query)) for query in queries]
    mean = mean_row(features.features)
    places = {path: row for row, path in enumerate(features.paths)}
    numbers, cosines = nearest(
        centred(extractor.features(read_some(extractor, asked)), mean),
        centred(features.features, mean),
        k,
        without=np.array([places.get(str(query), -1) for query in asked]),
    )
    rows = [
        (str(query), rank, features.paths[number], _short(cosine))
        for query, found, products in zip(asked, numbers, cosines, strict=True)
        for rank, (number, cosine) in enumerate(zip(found, products, strict=True), 1)
    ]
    path = _write(out, "nearest", rows)
    return Lookup(path, rows, f"the {numbers.shape[1]:,} pictures nearest to each query")


def find_duplicates(features: Features, out: str | Path, threshold: float | None = None) -> Lookup:
    """Writes `<stem>.duplicates.csv`: group,path,cosine,exact of near copies.

    The cosine is that with the most similar other picture; groups are chained, so two pictures of
    one may be less similar. `exact` is yes for files with the same bytes as another. By default
    near copies are three times nearer than nearest pictures usually are.

    Raises:
        UsageError: another file is there.
    """
    unit = centred(features.features, mean_row(features.features))
    if threshold is None:
        threshold = round(near_copy_cosine(unit, _NEARER, _ENOUGH), 3)
    with progress("comparing", len(unit)) as advance:
        groups, closest = alike(unit, threshold, features.digests, advance)
    copies = Counter(features.digests)
    exact = ["yes" if copies[digest] > 1 else "no" for digest in features.digests]
    rows = [
        (number, features.paths[i], _short(closest[i]), exact[i])
        for number, group in enumerate(groups, 1)
        for i in group
    ]
    path = _write(out, "duplicates", rows)
    return Lookup(
        path, rows, f"{len(rows):,} near copies in {len(groups):,} groups, cosine {threshold:g} up"
    )


def find_outliers(features: Features, out: str | Path) -> Lookup:
    """Writes `<stem>.outliers.csv`: rank,path,distance, the most isolated pictures first.

    The distance is the mean of 1 - cosine to the ten nearest pictures.

    Raises:
        UsageError: fewer than 2 pictures, or another file is there.
    """
    if len(features.paths) < 2:
        raise UsageError("outliers: got 1 picture; at least 2 are needed")
    unit = centred(features.features, mean_row(features.features))
    with progress("comparing", len(unit)) as advance:
        distances = isolation(unit, progress=advance)
    order = np.argsort(-distances, kind="stable")
    rows = [(n, features.paths[i], _short(distances[i])) for n, i in enumerate(order, 1)]
    path = _write(out, "outliers", rows)
    return Lookup(path, rows, f"{len(rows):,} pictures, those that fit least first")


def _place(out: str | Path, name: str) -> Path:
    """The path of a list, checked to replace nothing else."""
    path = Path(out).with_name(f"{Path(out).stem}.{name}.csv")
    refuse_other_table(path, COLUMNS[name])
    return path


def _short(value: float) -> float:
    return round(float(value), 4)


def _write(out: str | Path, name: str, rows: Sequence[Sequence[object]]) -> Path:
    path = _place(out, name)
    write_text(path, csv_text([COLUMNS[name], *rows]))
    return path

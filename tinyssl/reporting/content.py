"""Pictures in the report: sheets, data of the map, the confusion matrix.

n = pictures shown, k = classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyssl.reporting.gallery import Gallery
from tinyssl.reporting.mistakes import Mistakes
from tinyssl.reporting.pictures import map_thumbnails, sheet_uri
from tinyssl.reporting.seen import Seen

_PER_CLUSTER = 12
_PER_QUERY = 6
_ODD = 18
_GROUPS, _PER_GROUP = 12, 6
_MATRIX = 20  # classes; with more, only the most frequent confusions are listed
_CONFUSIONS = 20


@dataclass(frozen=True)
class Shot:
    """A picture with its name and a short note."""

    uri: str
    name: str
    note: str = ""


@dataclass(frozen=True)
class Sheet:
    """Pictures under a heading."""

    title: str
    note: str
    shots: list[Shot]


@dataclass(frozen=True)
class Confusion:
    """A matrix as rows of (class, cells), each cell a count and its share of the row; for many
    classes only pairs: (true class, predicted class, count, share)."""

    classes: list[str]
    rows: list[tuple[str, list[tuple[int, float]]]]
    pairs: list[tuple[str, str, int, float]]


class Shots:
    """Makes shots of the rows of a gallery, each encoded once."""

    def __init__(self, gallery: Gallery) -> None:
        self.gallery = gallery
        self._uris: dict[int, str] = {}

    def __call__(self, row: int, note: str = "") -> Shot:
        row = int(row)
        if row not in self._uris:
            self._uris[row] = sheet_uri(self.gallery.pictures.array[row])
        return Shot(self._uris[row], self.gallery.names[row], note)


def neighbour_sheets(gallery: Gallery, seen: Seen, shots: Shots) -> list[Sheet]:
    """A dozen diverse pictures, each with its nearest others, and their classes where they differ
    from the first one."""
    return [
        Sheet(gallery.names[row], label_of(gallery, row), _nearest_shots(gallery, seen, shots, row))
        for row in seen.diverse
    ]


def _nearest_shots(gallery: Gallery, seen: Seen, shots: Shots, row: int) -> list[Shot]:
    own = label_of(gallery, row)
    found = [shots(row, own)]
    for other, cosine in zip(seen.near[row][:_PER_QUERY], seen.cosines[row], strict=False):
        label = label_of(gallery, other)
        found.append(
            shots(other, _joined("" if label == own else label or "no label", f"{cosine:.3f}"))
        )
    return found


def cluster_sheets(gallery: Gallery, seen: Seen, shots: Shots) -> list[Sheet]:
    """The most typical pictures of each cluster."""
    return [
        Sheet(
            f"Cluster {number}",
            _joined(f"{len(rows):,} pictures", _commonest(gallery, rows)),
            [shots(row, label_of(gallery, row)) for row in rows[:_PER_CLUSTER]],
        )
        for number, rows in enumerate(seen.typical, 1)
    ]


def copy_sheets(gallery: Gallery, seen: Seen, shots: Shots) -> list[Sheet]:
    """Groups of near copies, the largest first."""
    return [
        Sheet(
            f"Group {number}",
            f"{len(rows):,} pictures",
            [shots(row, label_of(gallery, row)) for row in rows[:_PER_GROUP]],
        )
        for number, rows in enumerate(seen.copies[:_GROUPS], 1)
    ]


def odd_shots(gallery: Gallery, seen: Seen, shots: Shots) -> list[Shot]:
    """The most isolated pictures, with their mean distance to the nearest ten."""
    return [
        shots(row, _joined(label_of(gallery, row), f"{seen.distance[row]:.2f}"))
        for row in seen.odd[:_ODD]
    ]


def wrong_shots(gallery: Gallery, mistakes: Mistakes, shots: Shots) -> list[Shot]:
    """The most confident mistakes, with true and predicted classes."""
    return [
        shots(
            wrong.row,
            f"is {label_of(gallery, wrong.row)}, called {gallery.classes[wrong.called]} "
            f"({100 * wrong.share:.0f} %)",
        )
        for wrong in mistakes.wrong
    ]


def confusion_table(gallery: Gallery, mistakes: Mistakes) -> Confusion:
    """The matrix, or only the most frequent confusions where it would be too large."""
    matrix, classes = mistakes.confusion, gallery.classes
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    if len(classes) <= _MATRIX:
        rows = [
            (name, [(int(c), float(s)) for c, s in zip(matrix[i], shares[i], strict=True)])
            for i, name in enumerate(classes)
        ]
        return Confusion(classes, rows, [])
    off = matrix - np.diag(np.diag(matrix))
    order = np.argsort(-off, axis=None, kind="stable")[:_CONFUSIONS]
    found = [np.unravel_index(place, off.shape) for place in order]
    pairs = [
        (classes[i], classes[j], int(off[i, j]), float(shares[i, j])) for i, j in found if off[i, j]
    ]
    return Confusion(classes, [], pairs)


def view_sheets(
    pictures: NDArray[Any], names: Sequence[str], views: NDArray[Any]
) -> list[list[Shot]]:
    """A row for each picture: the original, then its views.

    Args:
        pictures: (r, s, s, c) uint8 or uint16.
        names: r.
        views: (r, v, c, t, t) in [0, 1].
    """
    return [
        [
            Shot(sheet_uri(picture), name, "original"),
            *(Shot(sheet_uri(view), name, f"view {i}") for i, view in enumerate(made, 1)),
        ]
        for picture, name, made in zip(pictures, names, views, strict=True)
    ]


def map_data(gallery: Gallery, seen: Seen, progress: Callable[[int], None]) -> dict[str, Any]:
    """Data of the map's script, with one entry per row; see `templates/map.js`."""
    rank = np.empty(len(seen.odd), np.int64)
    rank[seen.odd] = np.arange(1, len(seen.odd) + 1)
    return {
        "x": _short(seen.place[:, 0], 4),
        "y": _short(seen.place[:, 1], 4),
        "names": gallery.names,
        "classes": gallery.classes,
        "label": gallery.labels.tolist(),
        "cluster": seen.cluster.tolist(),
        "test": None if gallery.test is None else gallery.test.astype(int).tolist(),
        "odd": rank.tolist(),
        "near": seen.near[:, :_PER_QUERY].tolist(),
        "start": int(seen.diverse[0]),
        "cosines": [_short(row, 3) for row in seen.cosines[:, :_PER_QUERY]],
        "thumbs": map_thumbnails(gallery.pictures.array, progress),
    }


def label_of(gallery: Gallery, row: int) -> str:
    """The class of a picture; empty if it has none."""
    number = int(gallery.labels[row])
    return "" if number < 0 else gallery.classes[number]


def _commonest(gallery: Gallery, rows: NDArray[np.int64]) -> str:
    labels = gallery.labels[rows]
    labels = labels[labels >= 0]
    if not len(labels):
        return ""
    counts = np.bincount(labels, minlength=len(gallery.classes))
    best = np.argsort(-counts, kind="stable")[:2]
    told = [f"{100 * counts[i] / len(labels):.0f} % {gallery.classes[i]}" for i in best]
    return ", ".join(text for text, i in zip(told, best, strict=True) if counts[i])


def _joined(*texts: str) -> str:
    return ", ".join(text for text in texts if text)


def _short(values: NDArray[Any], digits: int) -> list[float]:
    return [round(float(value), digits) for value in values]

"""The lines of a label curve: their names and points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Points = Sequence[Mapping[str, Any]]

METHODS = {
    "linear": "linear on the frozen encoder",
    "finetune": "fine-tuned encoder",
    "scratch": "fine-tuned from random weights",
}


def lines_of(points: Points) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """The points by (method, selection), in the order of `METHODS`; see `label_curve`."""
    lines: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for point in points:
        lines.setdefault((point["method"], point["select"]), []).append(point)
    return dict(sorted(lines.items(), key=lambda line: list(METHODS).index(line[0][0])))


def line_name(method: str, select: str) -> str:
    """Such as `fine-tuned encoder, random choice`."""
    return f"{METHODS[method]}, {select} choice"

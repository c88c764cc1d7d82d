"""The chart of the label curve in `eval.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log10
from typing import Any

from tinyssl.curve_lines import Points, line_name, lines_of
from tinyssl.reporting.charts import DASHES, LEGEND, SYMBOLS, Chart
from tinyssl.reporting.names import for_plot

_APART = 1.025  # factor between lines, so that intervals do not overlap
_MARGIN = 0.06  # decades at both ends


def label_curve_chart(points: Points) -> Chart:
    """Balanced accuracy over the number of labels, with 95 % intervals.

    A method has a colour, and a selection a dash and a symbol; with a single method a selection has
    a colour too.

    Args:
        points: from `tinyssl.label_curve.label_curve`, at least one.
    """
    lines = lines_of(points)
    methods, selects = _places(m for m, _ in lines), _places(s for _, s in lines)
    traces = [
        _trace(
            line,
            methods[method] if len(methods) > 1 else selects[select],
            selects[select],
            place - (len(lines) - 1) / 2,
        )
        for place, ((method, select), line) in enumerate(lines.items())
    ]
    told = "; ".join(f"{_name(line[0])}: {', '.join(map(_told, line))}" for line in lines.values())
    return Chart(
        "labels", "Accuracy over labels", told, {"data": traces, "layout": _layout(points)}
    )


def label_curve_words(points: Points) -> str:
    """The best lines with the fewest and with the most labels, in words."""
    counts = sorted({point["labels"] for point in points})
    ends = [counts[0], counts[-1]] if len(counts) > 1 else counts
    told = [_best([point for point in points if point["labels"] == count]) for count in ends]
    return f"Best on average {'; '.join(told)}."


def _best(points: Points) -> str:
    best = max(points, key=lambda point: float(point["mean"]))
    return f"with {best['labels']:,} labels: {_name(best)}, {_percent(best)}"


def _places(names: Any) -> dict[str, int]:
    return {name: place for place, name in enumerate(dict.fromkeys(names))}


def _name(point: Mapping[str, Any]) -> str:
    return line_name(point["method"], point["select"])


def _told(point: Mapping[str, Any]) -> str:
    return f"{_percent(point)} with {point['labels']:,}"


def _percent(point: Mapping[str, Any]) -> str:
    return f"{100 * point['mean']:.1f} ± {100 * point['half_width']:.1f} %"


def _trace(line: Points, colour: int, select: int, shift: float) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": for_plot(_name(line[0])),
        "x": [round(point["labels"] * _APART**shift, 3) for point in line],
        "y": [round(100 * point["mean"], 2) for point in line],
        "customdata": [point["labels"] for point in line],
        "error_y": {
            "type": "data",
            "array": [round(100 * point["half_width"], 2) for point in line],
            "thickness": 1.5,
            "width": 3,
        },
        "line": {"width": 2, "dash": DASHES[select % len(DASHES)]},
        "marker": {"size": 8, "symbol": SYMBOLS[select % len(SYMBOLS)]},
        "hovertemplate": "%{customdata:,} labels: %{y:.1f} ± %{error_y.array:.1f} %<extra>"
        + for_plot(_name(line[0]))
        + "</extra>",
        "meta": {"colour": colour},
    }


def _layout(points: Points) -> dict[str, Any]:
    counts: Sequence[int] = sorted({point["labels"] for point in points})
    return {
        "xaxis": {
            "type": "log",
            "title": {"text": "labeled pictures"},
            "tickvals": counts,
            "ticktext": [f"{count:,}" for count in counts],
            "range": [log10(counts[0]) - _MARGIN, log10(counts[-1]) + _MARGIN],
        },
        "yaxis": {"title": {"text": "balanced accuracy, %"}},
        "legend": LEGEND,
    }

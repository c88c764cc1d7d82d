"""Charts as JSON for plotly; colours are indices of a palette that the page sets by theme."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tinyssl.reporting.names import for_plot
from tinyssl.reporting.run_facts import RunFacts
from tinyssl.reporting.verdict import Judged

Points = Sequence[tuple[float, float]]

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "triangle-down")
_TERMS = {
    "instance": "instance discrimination",
    "near": "near pictures",
    "distillation": "self-distillation",
}
_FROM_ZERO = ("retrieval", "rankme", "bank_cosine", "lr", "pictures_per_s")
DASHES = ("solid", "dash", "dot", "dashdot")
LEGEND = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}


@dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
        key: of its element in the page.
        title: a short heading.
        told: its content in words, for readers who cannot see it.
        figure: `data` and `layout` for plotly.
    """

    key: str
    title: str
    told: str
    figure: dict[str, Any]


def score_chart(encoders: Sequence[Judged], colours: Sequence[int]) -> Chart:
    """Scores of all encoders with intervals; `colours` are indices of the palette."""
    measures = list(dict.fromkeys(m for encoder in encoders for m in encoder.scores))
    traces = [
        _dots(encoder, measures, place - (len(encoders) - 1) / 2, colour)
        for place, (encoder, colour) in enumerate(zip(encoders, colours, strict=True))
    ]
    axis = {
        "tickvals": list(range(len(measures))),
        "ticktext": measures,
        "range": [-0.5, len(measures) - 0.5],
        "showgrid": False,
    }
    told = "; ".join(
        f"{encoder.name}: " + ", ".join(f"{m} {s.mean:.1f}" for m, s in encoder.scores.items())
        for encoder in encoders
    )
    layout = {
        "xaxis": axis,
        "yaxis": {"title": {"text": "balanced accuracy, %"}},
        "legend": LEGEND,
    }
    return Chart("scores", "Scores on held-out pictures", told, {"data": traces, "layout": layout})


def run_charts(runs: Sequence[RunFacts], names: Sequence[str] = ()) -> list[Chart]:
    """Curves over epochs of one run, or of several with their names; without those that have no
    values."""
    curves = [
        ("knn", "k-NN accuracy on the watched labels", "balanced accuracy, %", 100),
        ("retrieval", "Views whose nearest view is of the same picture", "share, %", 100),
        ("rankme", "Dimensions in use (RankMe): near 1 is collapse", "effective rank", 1),
        ("bank_cosine", "How alike embeddings are: near 1 is collapse", "mean cosine", 1),
        ("lr", "Learning rate", "learning rate", 1),
        ("pictures_per_s", "Speed, mean so far", "pictures/s", 1),
    ]
    lines = dict(zip(names, runs, strict=True)) if names else {"": runs[0]}
    loss = _curves(lines, "loss", "Loss", "loss", 1) if names else _losses(runs[0])
    drawn = [loss, *(_curves(lines, *curve) for curve in curves)]
    return [chart for chart in drawn if chart is not None]


def _dots(encoder: Judged, measures: Sequence[str], place: float, colour: int) -> dict[str, Any]:
    shift = 0.17 * place
    shown = [(i, encoder.scores[m]) for i, m in enumerate(measures) if m in encoder.scores]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": for_plot(encoder.name),
        "x": [i + shift for i, _ in shown],
        "y": [round(score.mean, 2) for _, score in shown],
        "error_y": {
            "type": "data",
            "array": [round(score.half, 2) for _, score in shown],
            "thickness": 1.5,
            "width": 3,
        },
        "marker": {"size": 10 if colour == 0 else 8, "symbol": SYMBOLS[colour % len(SYMBOLS)]},
        "hovertemplate": "%{y:.1f} ± %{error_y.array:.1f} %<extra>" + for_plot(encoder.name)
        + "</extra>",
        "meta": {"colour": colour},
    }  # fmt: skip


def _losses(run: RunFacts) -> Chart | None:
    lines = {name: run.curve(key) for key, name in _TERMS.items()}
    lines = {name: points for name, points in lines.items() if points}
    if len(lines) > 1:
        lines["sum"] = run.curve("loss")
    return _chart("loss", "Loss terms" if len(lines) > 1 else "Loss", "loss", lines)


def _curves(
    runs: Mapping[str, RunFacts], key: str, title: str, unit: str, scale: float
) -> Chart | None:
    curves = {name or title: run.curve(key) for name, run in runs.items()}
    lines = {name: [(x, scale * y) for x, y in points] for name, points in curves.items() if points}
    return _chart(key, title, unit, lines)


def _chart(key: str, title: str, unit: str, lines: Mapping[str, Points]) -> Chart | None:
    if all(len(points) < 2 for points in lines.values()):
        return None  # single points make no curve
    traces = [_line(name, points, number) for number, (name, points) in enumerate(lines.items())]
    told = "; ".join(_course(name, points) for name, points in lines.items())
    layout = {
        "xaxis": {"title": {"text": "epoch"}},
        "yaxis": {
            "title": {"text": unit},
            "rangemode": "tozero" if key in _FROM_ZERO else "normal",
        },
        "showlegend": len(lines) > 1,
        "legend": LEGEND,
    }
    return Chart(key, title, told, {"data": traces, "layout": layout})


def _line(name: str, points: Points, number: int) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(points) < 30 else "lines",
        "name": for_plot(name),
        "x": [x for x, _ in points],
        "y": [float(f"{y:.5g}") for _, y in points],
        "line": {"width": 2, "dash": DASHES[number % len(DASHES)]},
        "marker": {"size": 6, "symbol": SYMBOLS[number % len(SYMBOLS)]},
        "hovertemplate": "epoch %{x}: %{y:.4g}<extra></extra>",
        "meta": {"colour": number},
    }


def _course(name: str, points: Points) -> str:
    (start, first), (end, last) = points[0], points[-1]
    return f"{name}: {first:.4g} at epoch {start:.0f}, {last:.4g} at epoch {end:.0f}"

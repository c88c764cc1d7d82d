"""The label curve as a table and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from rich.table import Table

from tinyssl.console import score_table
from tinyssl.curve_lines import Points, line_name, lines_of
from tinyssl.errors import one_line
from tinyssl.files import atomic
from tinyssl.opening import OWN

# Okabe and Ito's colours, which colour-blind readers tell apart.
_COLOURS = {"linear": "#0072B2", "finetune": "#D55E00", "scratch": "#009E73"}
_STYLES = ("-", "--", ":", "-.")


def curve_table(points: Points) -> Table:
    """Balanced accuracy in percent with its 95 % interval: a row a method and selection."""
    shots = sorted({point["shots"] for point in points})
    shown = score_table("Balanced accuracy over labels a class, %", list(map(str, shots)))
    for (method, select), line in lines_of(points).items():
        cells = [f"{100 * p['mean']:.1f}±{100 * p['half_width']:.1f}" for p in line]
        shown.add_row(f"{method}, {select}", *cells)
    shown.caption = (
        f"Mean and 95 % interval of {points[0]['draws']} choices of pictures.\n"
        "No choice knows the classes, so one can be left without a label."
    )
    return shown


def plot_curve(points: Points, title: str, out: Path) -> None:
    """Draws accuracy over labels with 95 % intervals as a PNG.

    Raises:
        JobError: `out` cannot be written.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    styles = dict(zip(dict.fromkeys(p["select"] for p in points), _STYLES, strict=False))
    for (method, select), line in lines_of(points).items():
        _draw(axes, line, _COLOURS[method], styles[select], line_name(method, select))
    _label(axes, sorted({point["labels"] for point in points}), title)
    with atomic(out) as file:
        figure.savefig(file, format="png", dpi=150, metadata={"Software": OWN})


def _draw(axes: Axes, line: Points, colour: str, style: str, name: str) -> None:
    labels = [point["labels"] for point in line]
    means = [100 * point["mean"] for point in line]
    halves = [100 * point["half_width"] for point in line]
    axes.plot(labels, means, style, color=colour, marker="o", markersize=3, label=name)
    low = [m - h for m, h in zip(means, halves, strict=True)]
    high = [m + h for m, h in zip(means, halves, strict=True)]
    axes.fill_between(labels, low, high, color=colour, alpha=0.12, linewidth=0)


def _label(axes: Axes, labels: Sequence[int], title: str) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(labels))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel("labeled pictures")
    axes.set_ylabel("balanced accuracy, %")
    axes.set_title(one_line(title), loc="left", parse_math=False)  # a folder's name may have `$`
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="small")

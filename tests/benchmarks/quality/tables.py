"""The cells of a study as tables (Markdown, CSV) and as plots of accuracy over seconds.

python -m tests.benchmarks.quality.tables tests/benchmarks/results/quality
"""

import argparse
import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from tinyssl.errors import UsageError
from tinyssl.files import atomic, write_text
from tinyssl.intervals import interval

COLUMNS = ("k-NN", "linear", "10-shot", "k-NN, all levels", "linear, all", "10-shot, all")
COMPONENTS = ("k-NN, components", "linear, comp.", "10-shot, comp.")
Key = tuple[str, str, float]
Row = dict[str, Any]
Memory = Mapping[str, Mapping[str, int]]
MEMORY = "memory.json"


def scores_of(cell: Mapping[str, Any]) -> dict[str, float]:
    """Balanced accuracies in % of the last level, all levels and components; of pixels one only."""
    last = cell["scores"]
    wide = cell["scores_of_all_levels"] or last
    values = []
    for found in (last, wide, cell.get("scores_of_components") or wide):
        values += [
            found["knn"]["balanced_accuracy"],
            found["linear"]["balanced_accuracy"],
            found["few_shot"]["10"]["mean"],
        ]
    names = (*COLUMNS, *COMPONENTS)
    return {name: 100 * value for name, value in zip(names, values, strict=True)}


def columns_of(cells: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Names of the columns; those of components only if the study has them."""
    narrow = any(cell.get("scores_of_components") for cell in cells)
    return (*COLUMNS, *COMPONENTS) if narrow else COLUMNS


def rows_of(cells: Sequence[Mapping[str, Any]], memory: Memory) -> list[Row]:
    """A row for each set, method and budget: means over the seeds with 95 % half-widths.

    `memory` has the peak memory of training by set and method, in MB.
    """
    grouped: dict[Key, list[Mapping[str, Any]]] = {}
    for cell in cells:
        grouped.setdefault(_key(cell), []).append(cell)
    rows = []
    for (name, method, budget), group in grouped.items():
        row: Row = {"set": name, "method": method, "budget": budget, "seeds": len(group)}
        for column in columns_of(cells):
            found = interval([scores_of(cell)[column] for cell in group])
            row[column], row[f"{column} ±"] = found.mean, found.half_width
        row["seconds"] = float(np.mean([cell["seconds"] for cell in group]))
        row["MB"] = memory.get(name, {}).get(method, "")
        rows.append(row)
    return sorted(rows, key=lambda row: (row["set"], -row["10-shot, all"]))


def means_of(cells: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Means over the sets of every method and budget that was run on all of them, seed by seed."""
    sets = {cell["cell"]["set"] for cell in cells}
    found: dict[tuple[str, float], dict[int, dict[str, dict[str, float]]]] = {}
    for cell in cells:
        name, method, budget = _key(cell)
        seeds = found.setdefault((method, budget), {})
        seeds.setdefault(cell["cell"]["seed"], {})[name] = scores_of(cell)
    rows = []
    for (method, budget), seeds in found.items():
        whole = [scores for scores in seeds.values() if set(scores) == sets]
        if not whole:
            continue
        row: Row = {"set": "mean", "method": method, "budget": budget, "seeds": len(whole)}
        for column in columns_of(cells):
            means = [float(np.mean([s[column] for s in scores.values()])) for scores in whole]
            told = interval(means)
            row[column], row[f"{column} ±"] = told.mean, told.half_width
        rows.append(row)
    return sorted(rows, key=lambda row: -row["10-shot, all"])


def changes_of(cells: Sequence[Mapping[str, Any]], of: str) -> list[Row]:
    """Differences of tinyssl, shorter runs of it and variants to the method `of`, by seed.

    Means over the sets of all runs at full length; without all of these sets there is no row.
    """
    base: dict[tuple[str, int], dict[str, float]] = {}
    found: dict[tuple[str, float], dict[int, dict[str, dict[str, float]]]] = {}
    for cell in cells:
        name, method, budget = _key(cell)
        seed = cell["cell"]["seed"]
        if method == of and budget == 1:
            base[name, seed] = scores_of(cell)
        elif method != of and cell["settings"]["kind"] == "tinyssl":
            found.setdefault((method, budget), {}).setdefault(seed, {})[name] = scores_of(cell)
    whole = [seeds for (_, budget), seeds in found.items() if budget == 1]
    sets = {name for seeds in whole for scores in seeds.values() for name in scores}
    rows = []
    for (method, budget), seeds in found.items():
        shared = [s for s, ours in seeds.items() if all(n in ours and (n, s) in base for n in sets)]
        if not shared:
            continue
        row: Row = {"set": f"minus {of}", "method": method, "budget": budget, "seeds": len(shared)}
        for column in columns_of(cells):
            changes = [
                float(np.mean([seeds[s][n][column] - base[n, s][column] for n in sets]))
                for s in shared
            ]
            told = interval(changes)
            row[column], row[f"{column} ±"] = told.mean, told.half_width
        rows.append(row)
    return sorted(rows, key=lambda row: -row["10-shot, all"])


def _key(cell: Mapping[str, Any]) -> Key:
    about = cell["cell"]
    return about["set"], about["method"], about["budget"]


def markdown(rows: Sequence[Row]) -> str:
    """One table for each set, the best 10-shot accuracy first."""
    lines = []
    columns = [name for name in (*COLUMNS, *COMPONENTS) if name in rows[0]]
    costs = ["seconds", "MB"] if any(row.get("MB") for row in rows) else ["seconds"]
    for name in dict.fromkeys(row["set"] for row in rows):
        lines += ["", f"**{name}**, balanced accuracy in %", ""]
        lines += [f"| method | budget | {' | '.join([*columns, *costs])} | seeds |"]
        lines += ["|---" * (len(columns) + len(costs) + 3) + "|"]
        for row in (row for row in rows if row["set"] == name):
            told = " | ".join(_with_half_width(row[c], row[f"{c} ±"]) for c in columns)
            spent = " | ".join(f"{row[c]:.0f}" if row.get(c, "") != "" else "" for c in costs)
            lines.append(
                f"| {row['method']} | {row['budget']:g} | {told} | {spent} | {row['seeds']} |"
            )
    return "\n".join(lines[1:]) + "\n"


def _with_half_width(mean: float, half: float) -> str:
    return f"{mean:.1f}" if np.isnan(half) else f"{mean:.1f} ± {half:.1f}"


def as_csv(rows: Sequence[Row]) -> str:
    """The rows as CSV, not rounded."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def plot(rows: Sequence[Row], out: Path) -> None:
    """Plots 10-shot accuracy of the last features in the table over seconds of training, one set.

    Methods of the same length are side by side.
    """
    score = "10-shot, comp." if "10-shot, comp." in rows[0] else "10-shot, all"
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for number, method in enumerate(methods):
        line = sorted((r for r in rows if r["method"] == method), key=lambda row: row["seconds"])
        aside = 1 + 0.012 * (number - len(methods) / 2)
        axes.errorbar(
            [aside * r["seconds"] for r in line],
            [r[score] for r in line],
            yerr=[np.nan_to_num(r[f"{score} ±"]) for r in line],
            marker="o",
            capsize=3,
            label=method,
            color=f"C{number}" if number < 10 else "black",
        )
    axes.set_xlabel("seconds of one processor core")
    axes.set_ylabel("10-shot balanced accuracy, %")
    axes.set_title(rows[0]["set"], loc="left")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="small", ncols=2)
    with atomic(out) as file:
        figure.savefig(file, format="png", dpi=130)


def plotted(rows: Sequence[Row], cells: Sequence[Mapping[str, Any]]) -> dict[str, list[Row]]:
    """The rows of each set, without ablations of a single length."""
    variants = {cell["cell"]["method"] for cell in cells if "as" in cell["settings"]}
    lengths: dict[str, set[float]] = {}
    for row in rows:
        lengths.setdefault(row["method"], set()).add(row["budget"])
    kept = [r for r in rows if r["method"] not in variants or len(lengths[r["method"]]) > 1]
    return {name: [r for r in kept if r["set"] == name] for name in {r["set"] for r in kept}}


def read(folder: Path) -> list[dict[str, Any]]:
    """The cells of a study's folder.

    Raises:
        UsageError: the folder has none.
    """
    cells = [json.loads(path.read_text()) for path in sorted(folder.glob("*-s*.json"))]
    if not cells:
        raise UsageError(f"{folder} has no cells of a study: SET-METHOD-BUDGET-sSEED.json")
    return cells


def read_rows(folder: Path) -> list[Row]:
    """A row for each set, method and budget, with the peak memory if it was measured."""
    memory = folder / MEMORY
    return rows_of(read(folder), json.loads(memory.read_text()) if memory.exists() else {})


def tables(folder: Path) -> str:
    """All tables of a study as Markdown: means over its sets, changes, then set by set."""
    cells = read(folder)
    changes = [row for of in ("tinyssl", "simclr") for row in changes_of(cells, of)]
    return markdown([*means_of(cells), *changes, *read_rows(folder)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("results", type=Path, help="folder of a study's cells")
    folder = parser.parse_args().results
    try:
        cells, rows, told = read(folder), read_rows(folder), tables(folder)
    except UsageError as error:
        parser.error(str(error))
    write_text(folder / "table.md", told)
    write_text(folder / "table.csv", as_csv(rows))
    for name, found in plotted(rows, cells).items():
        plot(found, folder / f"{name}.png")
    print(told)


if __name__ == "__main__":
    main()

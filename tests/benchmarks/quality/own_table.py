"""Tables of the results of `own_loop`: means of seeds with 95 % intervals, and differences.

python -m tests.benchmarks.quality.own_table tests/benchmarks/results/quality-own-loop
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from tinyssl.errors import UsageError
from tinyssl.files import write_text
from tinyssl.intervals import interval

SCORES = ("knn", "linear", "10-shot")
FILE = re.compile(r"(?P<set>.+)-(?P<method>[a-z0-9]+)-(?P<budget>[0-9.]+)-s(?P<seed>\d+)\.json")
Found = dict[str, dict[str, dict[int, dict[str, Any]]]]  # by way, set and seed
LEVELS = {"components": "components of all levels, as the recipe", "last_level": "last level alone"}


def read(folder: Path) -> Found:
    """Results by way (a method, with its share of the time), set and seed.

    Raises:
        UsageError: the folder has no results.
    """
    found: Found = {}
    for file in sorted(folder.glob("*-s*.json")):
        if (parts := FILE.fullmatch(file.name)) is None:
            continue
        way = parts["method"] + (
            "" if parts["budget"] == "1" else f", {parts['budget']} of the time"
        )
        seeds = found.setdefault(way, {}).setdefault(parts["set"], {})
        seeds[int(parts["seed"])] = json.loads(file.read_text())
    if not found:
        raise UsageError(f"{folder} has no results of own_loop: SET-METHOD-BUDGET-sSEED.json")
    return dict(sorted(found.items(), key=lambda one: (not one[0].startswith("tinyssl"), one[0])))


def means_over(sets: list[str], results: dict[str, dict[int, dict[str, Any]]], level: str) -> Any:
    """The seeds that have all sets, and means over the sets in %, (seeds, scores)."""
    seeds = sorted(set.intersection(*(set(results.get(name, {})) for name in sets)))
    values = [
        [np.mean([results[name][seed]["scores"][level][key] for name in sets]) for key in SCORES]
        for seed in seeds
    ]
    return seeds, 100 * np.array(values).reshape(-1, len(SCORES))


def told(values: Any) -> str:
    """Mean and half-width of each column; empty without values."""
    if len(values) == 0:
        return ""
    found = [interval([float(value) for value in column]) for column in np.transpose(values)]
    return " / ".join(
        f"{one.mean:.1f}" + (f" ± {one.half_width:.1f}" if len(values) > 1 else "") for one in found
    )


def _counted(seeds: int) -> str:
    return "1 seed" if seeds == 1 else f"{seeds} seeds"


def markdown(found: Found, level: str) -> str:
    """Sets as columns and ways as rows, then the differences of the first way to the others."""
    sets = sorted({name for results in found.values() for name in results})
    lines = [f"k-NN / linear probe / 10-shot, balanced accuracy in %; {LEVELS[level]}", ""]
    lines += [f"| | {' | '.join(sets)} | mean |", "|---" * (len(sets) + 2) + "|"]
    for way, results in found.items():
        cells = [told(means_over([name], results, level)[1]) for name in sets]
        lines.append(
            f"| {way} | {' | '.join(cells)} | {told(means_over(sets, results, level)[1])} |"
        )
    first = next(iter(found))
    ours = dict(zip(*means_over(sets, found[first], level), strict=True))
    for way, results in found.items():
        theirs = dict(zip(*means_over(sets, results, level), strict=True))
        shared = [seed for seed in ours if seed in theirs]
        if way != first and shared:
            change = told([ours[seed] - theirs[seed] for seed in shared])
            lines += [
                "",
                f"{first} minus {way}, means of the sets, {_counted(len(shared))}: {change}",
            ]
    return "\n".join([*lines, ""])


def costs(found: Found) -> str:
    """Seconds and epochs of each way on each set, as means over the seeds."""
    lines = ["| | set | seeds | seconds | epochs |", "|---|---|---|---|---|"]
    for way, results in found.items():
        for name, seeds in results.items():
            seconds, epochs = (
                np.mean([one[key] for one in seeds.values()]) for key in ("seconds", "epochs")
            )
            lines.append(f"| {way} | {name} | {len(seeds)} | {seconds:.0f} | {epochs:.1f} |")
    return "\n".join([*lines, ""])


def tables(found: Found) -> str:
    """Tables of the scores of all levels and of the last one, then of the costs."""
    return "\n".join([*(markdown(found, level) for level in LEVELS), costs(found)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="--out of own_loop")
    folder = parser.parse_args().folder
    try:
        told = tables(read(folder))
    except UsageError as error:
        parser.error(str(error))
    write_text(folder / "table.md", told)


if __name__ == "__main__":
    main()

"""Rank correlations of label-free scores with accuracy over the cells of a study.

python -m tests.benchmarks.quality.criterion tests/benchmarks/results/quality
"""

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from tests.benchmarks.quality.tables import COLUMNS, read, scores_of
from tinyssl.errors import UsageError
from tinyssl.files import write_text

Cells = Sequence[Mapping[str, Any]]
FEWEST = 6  # cells of a set: ranks of fewer are due to chance


def correlations(cells: Cells, within: str) -> dict[str, dict[str, float]] | str:
    """Spearman's correlations by label-free score and accuracy, as means over the sets.

    Args:
        cells: of trained networks.
        within: `methods` compares all cells of a set, `ours` only those of tinyssl.

    Returns:
        A string if a set has fewer than `FEWEST` cells.
    """
    chosen = [c for c in cells if within == "methods" or c["settings"]["kind"] == "tinyssl"]
    counts = Counter(cell["cell"]["set"] for cell in chosen)
    if min(counts.values(), default=0) < FEWEST:
        return f"too few: {dict(counts)}"
    sets = sorted(counts)
    found: dict[str, dict[str, float]] = {}
    for score in chosen[0]["label_free"]:
        found[score] = {
            column: float(np.mean([_one(chosen, name, score, column) for name in sets]))
            for column in COLUMNS
        }
    return found


def _one(cells: Cells, name: str, score: str, column: str) -> float:
    group = [cell for cell in cells if cell["cell"]["set"] == name]
    pairs = [(cell["label_free"][score], scores_of(cell)[column]) for cell in group]
    return float(spearmanr(*zip(*pairs, strict=True)).statistic)


def all_correlations(cells: Cells) -> dict[str, Any]:
    """Correlations over the trained networks of a study, without its ablations of tinyssl."""
    trained = [
        cell
        for cell in cells
        if cell["settings"]["kind"] in ("tinyssl", "peer") and "as" not in cell["settings"]
    ]
    told: dict[str, Any] = {"cells": len(trained)}
    return told | {within: correlations(trained, within) for within in ("methods", "ours")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("results", type=Path, help="folder of a study's cells")
    folder = parser.parse_args().results
    try:
        told = json.dumps(all_correlations(read(folder)), indent=1)
    except UsageError as error:
        parser.error(str(error))
    write_text(folder / "criterion.json", told + "\n")
    print(told)


if __name__ == "__main__":
    main()

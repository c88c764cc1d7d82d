"""Methods side by side: pictures to features, judged on labels that training never saw.

    python -m tests.benchmarks.quality.study tests/benchmarks/quality/cpu.yaml --data sets \
        --out tests/benchmarks/results/quality

The YAML names sets (folders with train/CLASS/ and test/CLASS/), methods, seeds and budgets. Every
cell is a JSON file; those that are there are not run again, so a study can stop and go on. A budget
is a share of the study's views; other methods get the processor seconds that the
method `like` took on that set with that seed. `--tune` tries each method's grid, judged on folds of
the training pictures of the first set only, and writes what is best to tuned.json, which cells use.
"""

import argparse
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from tests.benchmarks.machine import machine
from tests.benchmarks.quality.methods import KINDS, Job, Made, peak_memory_mb
from tinyssl.files import write_text
from tinyssl.labeled_split import LabeledSplit, read_split
from tinyssl.scoring import choose_k, evaluate_features, knn_loo_score

TUNED = "tuned.json"


@dataclass(frozen=True)
class Cell:
    """One method on one set, with one seed and budget."""

    set: str
    method: str
    seed: int
    budget: float

    def file(self, out: Path) -> Path:
        """Where its result is."""
        return out / f"{self.set}-{self.method}-{self.budget:g}-s{self.seed}.json"


class Study:
    """A YAML with the folder of its sets and the folder of its results."""

    def __init__(self, file: Path, data: Path, out: Path) -> None:
        self.values = yaml.safe_load(file.read_text()) | {"data": str(data)}
        self.data, self.out = data, out
        self.methods: Mapping[str, Any] = self.values["methods"]
        self.tuned = _read(out / TUNED) or {}

    def cells(self) -> Iterator[Cell]:
        """All cells, those that others depend on first; what needs no training has one budget."""
        like = self.values["like"]
        order = sorted(self.methods, key=lambda name: name != like)
        for seed, name in itertools.product(self.values["seeds"], self.values["sets"]):
            for method in order:
                trains = self.methods[method]["kind"] in ("tinyssl", "peer")
                for budget in self.values["budgets"] if trains else [1]:
                    yield Cell(name, method, seed, budget)

    def run(self, cell: Cell) -> None:
        """Runs a cell and writes its result."""
        split = self.split(cell.set)
        settings = dict(self.methods[cell.method]) | self.tuned.get(cell.method, {})
        made = self._make(cell, split, settings)
        train, test = ~split.test, split.test
        scores = evaluate_features(
            made.features[train], split.labels[train], made.features[test], split.labels[test],
            classes=len(split.classes), shots=(1, 5, 10, 20), seed=cell.seed,
        )  # fmt: skip
        for found in (scores["knn"], scores["linear"]):
            found.pop("confusion")
        result = {
            "cell": vars(cell), "settings": settings, "shared": self._shared(cell.budget),
            "seconds": round(made.seconds, 1), "views": made.views,
            "peak_memory_mb": round(peak_memory_mb()), "scores": scores, "machine": machine(),
        }  # fmt: skip
        write_text(cell.file(self.out), json.dumps(result, indent=1) + "\n")

    def tune(self, method: str) -> None:
        """Tries a method's grid by leave-one-out k-NN on the training pictures of the first set."""
        grid = self.methods[method].get("grid", {})
        split = self.split(self.values["sets"][0])
        cell = Cell(self.values["sets"][0], method, 0, 1)
        tried = []
        for values in itertools.product(*grid.values()):
            settings = dict(self.methods[method]) | dict(zip(grid, values, strict=True))
            try:
                made = self._make(cell, split, settings)
            except FloatingPointError as error:
                print(method, values, error, flush=True)
                continue
            features, labels = made.features[~split.test], split.labels[~split.test]
            score = knn_loo_score(features, labels, k=choose_k(features, labels))
            tried.append((score, dict(zip(grid, values, strict=True))))
            print(method, values, f"{100 * score:.1f}", flush=True)
        best = max(tried, key=lambda pair: pair[0])[1]
        self.tuned[method] = best
        write_text(self.out / TUNED, json.dumps(self.tuned, indent=1) + "\n")

    def split(self, name: str) -> LabeledSplit:
        """The pictures of a set."""
        folder = self.data / name
        return read_split(folder / "train", folder / "test", None, 0, self.out)[0]

    def _make(self, cell: Cell, split: LabeledSplit, settings: dict[str, Any]) -> Made:
        shared = self.values | {"settings": self._shared(cell.budget)}
        job = Job(split, shared, settings, cell.seed, self._seconds(cell, settings))
        return KINDS[settings["kind"]](job)

    def _shared(self, budget: float) -> list[str]:
        return [*self.values["settings"], f"run.views={round(self.values['views'] * budget)}"]

    def _seconds(self, cell: Cell, settings: Mapping[str, Any]) -> float:
        if settings["kind"] != "peer":
            return 0.0
        model = Cell(cell.set, self.values["like"], cell.seed, cell.budget).file(self.out)
        return float(json.loads(model.read_text())["seconds"])


def _read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("study", type=Path, help="YAML")
    parser.add_argument("--data", type=Path, required=True, help="folder of the sets")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--tune", action="store_true", help="try the grids first")
    given = parser.parse_args()
    torch.set_num_threads(1)  # so that seconds of the processor are wall-clock on a free core
    given.out.mkdir(parents=True, exist_ok=True)
    study = Study(given.study, given.data, given.out)
    cells = [cell for cell in study.cells() if not cell.file(given.out).exists()]
    for number, cell in enumerate(cells):
        tunable = study.methods[cell.method].get("grid")
        if given.tune and tunable and cell.method not in study.tuned:
            study.tune(cell.method)
        print(f"{number + 1}/{len(cells)} {cell}", flush=True)
        study.run(cell)


if __name__ == "__main__":
    main()

"""Comparison of methods: features of pictures, judged on labels that training never saw.

    python -m tests.benchmarks.quality.study tests/benchmarks/quality/cpu.yaml --data sets \
        --out tests/benchmarks/results/quality --tune --jobs 2

The YAML, or the one that it names as its `base`, names sets (folders with train/CLASS/ and
test/CLASS/), methods, seeds and budgets. Every cell is a JSON file; existing ones are not run
again, so that a study can be interrupted and resumed. A budget is a share of the study's views.
First, with nothing else running, the seconds of a step are measured for every method on every set
(costs.json; memory.json has the peak memory of a training process); other methods then take as many
steps as fit in the time of the method `like`. `--tune` tries each method's grid, judged only on the
training pictures of the sets in `tune_sets`, and writes every try to tuned.json; cells use the
best. `--encoders` saves the trained encoders of cells in a folder: to judge them again, for example
with other features, give it with another --out.
"""

import argparse
import itertools
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import yaml

from tests.benchmarks.machine import machine
from tests.benchmarks.quality.methods import KINDS, Cost, Job, Made, cost
from tests.benchmarks.quality.tables import MEMORY
from tinyssl.errors import TinysslError
from tinyssl.files import write_text
from tinyssl.labeled_split import LabeledSplit, read_split
from tinyssl.scoring import choose_k, evaluate_features, knn_loo_score

TUNED, COSTS = "tuned.json", "costs.json"
Given = tuple[Path, Path, Path, Path | None]  # YAML, sets, results, encoders
TRAINED = ("tinyssl", "peer", "supervised")  # kinds of methods that take steps


@dataclass(frozen=True)
class Cell:
    """One method on one set, with one seed and budget."""

    set: str
    method: str
    seed: int
    budget: float

    def file(self, out: Path) -> Path:
        """Path of its result."""
        return out / f"{self.set}-{self.method}-{self.budget:g}-s{self.seed}.json"


class Study:
    """A YAML with the folders of its sets and of its results."""

    def __init__(
        self, file: Path, data: Path, out: Path, encoders: Path | None, seeds: Sequence[int] = ()
    ) -> None:
        self.file, self.values = file, _load(file) | {"data": str(data)}
        self.data, self.out, self.encoders = data, out, encoders
        self.methods: Mapping[str, Any] = self.values["methods"]
        self.like: str = self.values["like"]
        self.seeds: Sequence[int] = seeds or self.values["seeds"]
        self.tuned = _read(out / TUNED) or {}
        self.costs = _read(out / COSTS) or {}
        self.memory = _read(out / MEMORY) or {}

    def missing(self) -> list[Cell]:
        """Cells without a result, by seed, method and set; without training one budget only."""
        cells = []
        for seed, (method, settings) in itertools.product(self.seeds, self.methods.items()):
            trains = settings["kind"] in TRAINED
            budgets = settings.get("budgets", self.values["budgets"]) if trains else [1]
            for name, budget in itertools.product(self.values["sets"], budgets):
                cells.append(Cell(name, method, seed, budget))
        return [cell for cell in cells if not cell.file(self.out).exists()]

    def untried(self) -> list[tuple[str, dict[str, Any]]]:
        """Points of the methods' grids that have not been tried."""
        return [
            (method, values)
            for method, settings in self.methods.items()
            for values in self._grid(settings.get("grid", {}))
            if values not in [row["settings"] for row in self.tuned.get(method, [])]
        ]

    def lacking(self, tune: bool) -> str | None:
        """An error message if sets, or learning rates chosen by a grid, are missing."""
        names = [*self.values["sets"], *(self.values["tune_sets"] if tune else [])]
        absent = [name for name in dict.fromkeys(names) if not (self.data / name).is_dir()]
        if absent:
            return f"{self.data} has no {', '.join(absent)}: folders with train/CLASS/, test/CLASS/"
        unrated = [
            name for name, values in self.methods.items()
            if values["kind"] in ("peer", "supervised") and "lr" not in values | self._best(name)
            and not (tune and "grid" in values)
        ]  # fmt: skip
        if unrated:
            return f"no rate for {', '.join(unrated)}: --tune, or copy a study's {TUNED} to --out"
        return None

    def run(self, cell: Cell) -> str:
        """Runs a cell and writes its result; returns a line about it."""
        split = self.split(cell.set)
        settings = self._settings(cell.method) | self._best(cell.method)
        made = self._make(cell, split, settings, self.encoders)
        scores, wide, narrow = (
            None if features is None else self._scores(features, split, cell.seed)
            for features in (made.features, made.wide, made.components)
        )
        cost = self.costs[cell.set].get(self._base(cell.method), 0.0)
        result = {
            "cell": vars(cell), "settings": settings, "shared": self._shared(cell.budget),
            "steps": made.steps, "pictures_seen": made.seen,
            "seconds": round(made.steps * cost, 2), "seconds_beside_others": round(made.seconds, 2),
            "scores": scores, "scores_of_all_levels": wide, "scores_of_components": narrow,
            "label_free": made.label_free, "machine": machine() | {"command": self.command()},
        }  # fmt: skip
        write_text(cell.file(self.out), json.dumps(result, indent=1) + "\n")
        few = result["scores"]["few_shot"]["10"]["mean"]
        return f"{cell}: {made.seconds:.0f} s, 10-shot {100 * few:.1f}"

    def command(self) -> str:
        """The command of the study, since a cell's own process has another one."""
        return f"python -m tests.benchmarks.quality.study {self.file}"

    def uncosted(self) -> list[tuple[str, str]]:
        """Sets and methods to measure the cost of; an ablation costs as much as its method."""
        return [
            (name, method)
            for name, (method, values) in itertools.product(
                self.values["sets"], self.methods.items()
            )
            if values["kind"] in TRAINED and "as" not in values
            and not (method in self.costs.get(name, {}) and method in self.memory.get(name, {}))
        ]  # fmt: skip

    def cost(self, name: str, method: str) -> Cost:
        """Cost of a method's training on a set, with nothing else running."""
        cell = Cell(name, method, self.values["seeds"][0], 1)
        return cost(self._job(cell, self.split(name), self._settings(method)))

    def keep_cost(self, name: str, method: str, found: Cost) -> None:
        """Writes the cost of training; seconds that are already known are kept."""
        self.costs.setdefault(name, {}).setdefault(method, found.seconds)
        self.memory.setdefault(name, {})[method] = found.memory
        write_text(self.out / COSTS, json.dumps(self.costs, indent=1) + "\n")
        write_text(self.out / MEMORY, json.dumps(self.memory, indent=1) + "\n")

    def _scores(self, features: Any, split: LabeledSplit, seed: int) -> dict[str, Any]:
        train, test = ~split.test, split.test
        scores = evaluate_features(
            features[train], split.labels[train], features[test], split.labels[test],
            classes=len(split.classes), shots=(1, 5, 10, 20), seed=seed,
        )  # fmt: skip
        for found in (scores["knn"], scores["linear"]):
            found.pop("confusion")
        return scores

    def tune(self, method: str, values: Mapping[str, Any]) -> float | None:
        """Leave-one-out k-NN accuracy of a grid point on training pictures, mean of sets, in %."""
        scores = []
        for name in self.values["tune_sets"]:
            split = self.split(name)
            cell = Cell(name, method, self.values["seeds"][0], self.values["tune_budget"])
            try:
                made = self._make(cell, split, self._settings(method) | values)
            except (FloatingPointError, TinysslError):
                return None
            features, labels = made.features[~split.test], split.labels[~split.test]
            scores.append(knn_loo_score(features, labels, k=choose_k(features, labels)))
        return 100 * sum(scores) / len(scores)

    def keep(self, method: str, values: dict[str, Any], score: float | None) -> None:
        """Saves a try of a method."""
        self.tuned.setdefault(method, []).append({"settings": values, "knn": score})
        write_text(self.out / TUNED, json.dumps(self.tuned, indent=1) + "\n")

    def split(self, name: str) -> LabeledSplit:
        """The pictures of a set."""
        folder = self.data / name
        return read_split(folder / "train", folder / "test", None, 0)[0]

    @staticmethod
    def _grid(grid: Mapping[str, Any]) -> list[dict[str, Any]]:
        points = itertools.product(*grid.values()) if grid else ()
        return [dict(zip(grid, values, strict=True)) for values in points]

    def _settings(self, method: str) -> dict[str, Any]:
        return {k: v for k, v in self.methods[method].items() if k not in ("grid", "budgets")}

    def _best(self, method: str) -> dict[str, Any]:
        """The best settings of a method's grid; an ablation (`as`) has those of its method."""
        tried = self.tuned.get(self._base(method), [])
        tried = [row for row in tried if row["knn"] is not None]
        return max(tried, key=lambda row: row["knn"])["settings"] if tried else {}

    def _make(
        self, cell: Cell, split: LabeledSplit, settings: dict[str, Any], kept: Path | None = None
    ) -> Made:
        job = self._job(cell, split, settings)
        file = kept and cell.file(kept).with_suffix(".safetensors")
        return KINDS[settings["kind"]](replace(job, kept=file))

    def _job(self, cell: Cell, split: LabeledSplit, settings: dict[str, Any]) -> Job:
        shared = self.values | {"settings": self._shared(cell.budget)}
        costs = self.costs.get(cell.set, {})
        share = 1.0
        if settings["kind"] != "tinyssl" and cell.method in costs:
            share = costs[self.like] / costs[cell.method]
        return Job(split, shared, settings, cell.seed, share)

    def _base(self, method: str) -> str:
        return str(self.methods[method].get("as", method))

    def _shared(self, budget: float) -> list[str]:
        return [*self.values["settings"], f"run.views={round(self.values['views'] * budget)}"]


def _load(file: Path) -> dict[str, Any]:
    """A study's YAML merged over the one in the same folder that it names as `base`.

    A list of names as methods selects those of the base.
    """
    values: dict[str, Any] = yaml.safe_load(file.read_text())
    if "base" not in values:
        return values
    base = _load(file.with_name(values.pop("base")))
    if isinstance(values.get("methods"), list):
        values["methods"] = {name: base["methods"][name] for name in values["methods"]}
    return base | values


def _read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None


def _run(given: Given, cell: Cell) -> str:
    torch.set_num_threads(1)  # so that seconds of the processor are wall-clock on a free core
    try:
        return Study(*given).run(cell)
    except (FloatingPointError, TinysslError) as error:
        return f"{cell} failed and has no result: {error}"


def _tune(given: Given, method: str, values: dict[str, Any]) -> float | None:
    torch.set_num_threads(1)
    return Study(*given).tune(method, values)


def _cost(given: Given, name: str, method: str) -> Cost:
    torch.set_num_threads(1)
    return Study(*given).cost(name, method)


def _cost_all(study: Study, given: Given) -> None:
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        for name, method in study.uncosted():
            study.keep_cost(name, method, pool.submit(_cost, given, name, method).result())


def _tune_all(study: Study, pool: Executor, given: Given) -> None:
    points = study.untried()
    scores = pool.map(partial(_tune, given), *zip(*points, strict=True)) if points else []
    for (method, values), score in zip(points, scores, strict=True):
        study.keep(method, values, score)
        print(f"{method} {values}: {score}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("study", type=Path, help="YAML")
    parser.add_argument("--data", type=Path, required=True, help="folder of the sets")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--encoders", type=Path, help="folder to keep trained encoders in")
    parser.add_argument("--seeds", type=int, nargs="+", default=[], help="some of the YAML's")
    parser.add_argument("--tune", action="store_true", help="try the grids first")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time, a core each")
    parsed = parser.parse_args()
    given = (parsed.study, parsed.data, parsed.out, parsed.encoders)
    for folder in filter(None, (parsed.out, parsed.encoders)):
        folder.mkdir(parents=True, exist_ok=True)
    study = Study(*given, seeds=parsed.seeds)
    if told := study.lacking(parsed.tune):
        parser.error(told)
    _cost_all(study, given)
    with ProcessPoolExecutor(parsed.jobs, get_context("spawn")) as pool:
        if parsed.tune:
            _tune_all(study, pool, given)
        cells = study.missing()
        for number, line in enumerate(pool.map(partial(_run, given), cells), 1):
            print(f"{number}/{len(cells)} {line}", flush=True)


if __name__ == "__main__":
    main()

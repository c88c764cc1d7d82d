"""Accuracy of a classifier on the pictures that each method of `tinyssl select` chooses.

    python -m tests.benchmarks.selecting xsdd=train.npz,test.npz --out results/select.json

The files are those of `tinyssl embed`; a picture's class is the name of its folder. For each
method, budget and seed a logistic regression is fitted on the features of the chosen pictures; its
score is the balanced accuracy on the test pictures. With --folds these are not used
(`xsdd=train.npz`): for every seed, three times, pictures are chosen among two thirds of the
training ones and the rest is used as test pictures.
"""

import argparse
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedKFold

from tests.benchmarks.machine import machine
from tinyssl.choosing import METHODS, choose
from tinyssl.feature_file import Features, read_features


def classes(features: Features) -> np.ndarray:
    return np.array([Path(path).parent.name for path in features.paths])


def score(train: Features, test: Features, method: str, budget: int, seed: int) -> float:
    """Balanced accuracy in %; classes that were not chosen count as wrong."""
    chosen = choose(train.features, budget, method=method, seed=seed)
    found = classes(train)[chosen]
    if len(set(found)) == 1:
        return 100 / len(set(classes(test)))
    model = LogisticRegression(C=30, max_iter=500)
    model.fit(train.features[chosen], found)
    predicted = model.predict(test.features)
    return 100 * float(balanced_accuracy_score(classes(test), predicted))


def parts(files: Sequence[str], folds: bool, seed: int) -> Iterator[tuple[Features, Features]]:
    """Pairs of the pictures to choose from and those to test on."""
    found = [read_features(file) for file in files]
    if not folds:
        yield found[0], found[1]
        return
    cut = StratifiedKFold(3, shuffle=True, random_state=seed)
    for chosen, judged in cut.split(found[0].features, classes(found[0])):
        yield _rows(found[0], chosen), _rows(found[0], judged)


def _rows(features: Features, rows: np.ndarray) -> Features:
    return replace(
        features, features=features.features[rows], paths=[features.paths[row] for row in rows]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sets", nargs="+", metavar="NAME=TRAIN[,TEST]")
    parser.add_argument("--folds", action="store_true", help="of the training pictures")
    parser.add_argument("--budgets", type=int, nargs="+", default=[20, 50, 200])
    parser.add_argument("--per-class", type=int, help="instead of --budgets: labels a class")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if not given.folds and any("," not in entry for entry in given.sets):
        parser.error("give NAME=TRAIN,TEST, or --folds to judge on training pictures")
    warnings.simplefilter("ignore", ConvergenceWarning)
    rows = []
    for name, files in (entry.split("=") for entry in given.sets):
        rows += list(measure(name, files.split(","), given))
    if given.out:
        given.out.write_text(json.dumps({"machine": machine(), "results": rows}, indent=1) + "\n")


def measure(name: str, files: Sequence[str], given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rows of a set; prints a line for each."""
    pairs = [(s, pair) for s in range(given.seeds) for pair in parts(files, given.folds, s)]
    train, test = pairs[0][1]
    each = given.per_class and [given.per_class * len(np.unique(classes(train)))]
    for budget in each or given.budgets:
        for method in given.methods:
            found = [score(*pair, method, budget, seed) for seed, pair in pairs]
            print(name, budget, method, f"{np.mean(found):.1f} ± {np.std(found, ddof=1):.1f}")
            yield {
                "set": name, "train": len(train.paths), "judged": len(test.paths),
                "folds": given.folds, "budget": budget, "method": method,
                "balanced_accuracy": [round(value, 2) for value in found],
            }  # fmt: skip


if __name__ == "__main__":
    main()

"""What a classifier learns from the pictures that each method of `tinyssl select` chooses.

    python -m tests.benchmarks.selecting xsdd=train.npz,test.npz --out results/select.json

The files are of `tinyssl embed`; a picture's class is its folder. For each method, budget and seed:
a logistic regression on the features of the chosen pictures, balanced accuracy on the test ones.
"""

import argparse
import json
import warnings
from pathlib import Path

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from tests.benchmarks.machine import machine
from tinyssl.choosing import METHODS, choose
from tinyssl.feature_file import Features, read_features


def classes(features: Features) -> np.ndarray:
    return np.array([Path(path).parent.name for path in features.paths])


def score(train: Features, test: Features, method: str, budget: int, seed: int) -> float:
    """Balanced accuracy in %; classes that were not chosen count as wrong."""
    chosen = choose(train.features, budget, method=method, seed=seed)
    model = LogisticRegression(C=30, max_iter=500)
    model.fit(train.features[chosen], classes(train)[chosen])
    predicted = model.predict(test.features)
    return 100 * float(balanced_accuracy_score(classes(test), predicted))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("sets", nargs="+", metavar="NAME=TRAIN,TEST")
    parser.add_argument("--budgets", type=int, nargs="+", default=[20, 50, 200])
    parser.add_argument("--per-class", type=int, help="instead of --budgets: labels a class")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    rows = []
    for name, files in (entry.split("=") for entry in given.sets):
        train, test = (read_features(file) for file in files.split(","))
        each = given.per_class and [given.per_class * len(np.unique(classes(train)))]
        for budget in each or given.budgets:
            for method in METHODS:
                scores = [score(train, test, method, budget, s) for s in range(given.seeds)]
                rows.append(
                    {
                        "set": name,
                        "train": len(train.paths),
                        "test": len(test.paths),
                        "budget": budget,
                        "method": method,
                        "balanced_accuracy": scores,
                    }
                )
                print(name, budget, method, f"{np.mean(scores):.1f} ± {np.std(scores, ddof=1):.1f}")
    if given.out:
        given.out.write_text(json.dumps({"machine": machine(), "results": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

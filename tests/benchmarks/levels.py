"""Scores of features of more than the last level, by run: `encoder.levels`.

    python -m tests.benchmarks.levels xsdd=sets/xsdd,runs/xsdd --levels 1 3 all \
        --out tests/benchmarks/results/levels-adapt.json

A set is a folder with train/CLASS/ and test/CLASS/; a run has one level, no descriptors, and was
pretrained on train/ without labels. `train` are scores on the training pictures alone, by which
recipes were chosen: leave-one-out k-NN, and 10-shot from one half of them to the other. `test` are
the scores of `tinyssl eval`. The run's initial weights are measured too, with the same levels.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.machine import machine
from tinyssl.encoder import Encoder, create_encoder, embed_pictures, widen
from tinyssl.labeled_split import LabeledSplit, read_split, split_pictures
from tinyssl.scoring import choose_k, evaluate_features, few_shot, knn_loo_score
from tinyssl.weights import load_encoder, load_weights, random_like, read_description

ONE_LEVEL = "encoder.levels=1 encoder.components=0 encoder.descriptors=false"


def has_one_level(run: Path) -> bool:
    """Whether the run's features are those of the last level alone."""
    told = read_description(run)
    return told.get("levels", 1) == 1 and not told.get("components") and not told.get("descriptors")


def encoders(run: Path) -> Iterator[tuple[str, Encoder, dict[str, Any]]]:
    """The run's encoder, and before it the one with its initial weights."""
    encoder, description = load_encoder(run)
    init = str(description["init"])
    start = random_like(description, description["seed"])
    if init != "random":
        start = create_encoder(
            description["name"], channels=description["channels"], stem=description["stem"]
        )
        load_weights(start, init)
    yield "start", start.eval(), description
    yield "run", encoder, description


def judge(
    encoder: Encoder, array: NDArray[Any], split: LabeledSplit, levels: int | str
) -> dict[str, Any]:
    """Balanced accuracies in %."""
    train, test = ~split.test, split.test
    wide = widen(encoder, levels, array[train])  # type: ignore[arg-type]
    features = embed_pictures(wide, array)
    rows, labels = features[train], split.labels[train]
    first, second = np.array_split(np.random.default_rng(0).permutation(len(rows)), 2)
    halves = few_shot(rows[first], labels[first], rows[second], labels[second], shots=10, seed=0)
    found = evaluate_features(
        rows, labels, features[test], split.labels[test], classes=len(split.classes), shots=(10,)
    )
    return {
        "levels": levels,
        "width": wide.width,
        "train": {
            "knn": 100 * knn_loo_score(rows, labels, k=choose_k(rows, labels)),
            "10-shot": 100 * halves.mean,
        },
        "test": {
            "knn": 100 * found["knn"]["balanced_accuracy"],
            "linear": 100 * found["linear"]["balanced_accuracy"],
            "10-shot": 100 * found["few_shot"]["10"]["mean"],
            "10-shot half width": 100 * found["few_shot"]["10"]["half_width"],
        },
    }


def measure(name: str, folder: Path, run: Path, levels: list[str]) -> Iterator[dict[str, Any]]:
    """A row for each encoder and number of levels."""
    split = read_split(folder / "train", folder / "test", None, 0)[0]
    for which, encoder, description in encoders(run):
        array = split_pictures(split, description).array
        for count in levels:
            value = count if count == "all" else int(count)
            about = {"set": name, "backbone": description["name"], "encoder": which}
            yield about | judge(encoder, array, split, value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", metavar="NAME=SET,RUN")
    parser.add_argument("--levels", nargs="+", default=["1", "2", "3", "all"])
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    places = []
    for entry in given.runs:
        name, _, pair = entry.partition("=")
        folder, run = map(Path, pair.split(","))
        if not has_one_level(run):
            parser.error(f"{run} has more than its last level: pretrain it with {ONE_LEVEL}")
        places.append((name, folder, run))
    rows = []
    for name, folder, run in places:
        for row in measure(name, folder, run, given.levels):
            rows.append(row)
            print(json.dumps(row), flush=True)
    given.out.write_text(json.dumps({"machine": machine(), "results": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Scores of starting weights by what their features are projected on, on unseen training pictures.

    python -m tests.benchmarks.whitening sets/xsdd sets/elpv --weights weights.safetensors \
        --pictures 50 100 200 --out tests/benchmarks/results/near-whitening-folds.json

Nothing is trained. For each of three folds of train/ a projection is fitted on two thirds of the
pictures (or on so many of them, on the first fold alone), and classifiers on all of the two thirds;
they are judged on the last third. test/ is never read.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.folds import judge_split, thirds
from tests.benchmarks.machine import machine
from tinyssl.components import near_projection, pca_projection, standardization
from tinyssl.data import load_pictures
from tinyssl.encoder import create_encoder, embed_pictures
from tinyssl.labels import from_class_folders
from tinyssl.weights import load_weights

Floats = NDArray[np.float32]
Labels = NDArray[np.int_]
LEVELS, COMPONENTS = 3, 256
PROJECTIONS: dict[str, Callable[[Floats], Floats] | None] = {
    "three levels": None,
    "256 components": lambda features: pca_projection(features, COMPONENTS, 0),
    "the same, whitening 0.25": lambda features: pca_projection(features, COMPONENTS, 0.25),
    "whitening 0.5 by near": lambda features: near_projection(features, COMPONENTS, 0.5),
}


def features_of(data: Path, weights: Path, pixels: int) -> tuple[Floats, list[int], Labels]:
    """Features (n, w) of three levels, the widths of their parts, and labels (n,)."""
    labeled = from_class_folders(data / "train")
    pictures = load_pictures(labeled.paths, size=pixels, rule="crop", channels=3).array
    encoder = create_encoder("efficientnet-lite0", levels=LEVELS)
    load_weights(encoder, weights)
    labels = np.unique(labeled.labels, return_inverse=True)[1]
    return embed_pictures(encoder, pictures), encoder.part_widths, labels


def judge(
    features: Floats, widths: list[int], labels: Labels, pictures: int | None
) -> dict[str, dict[str, float]]:
    """Balanced accuracy in % by projection and score, means of folds or the first fold's."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ("last level", *PROJECTIONS)}
    for fit, held in thirds(labels)[: 1 if pictures else None]:
        order = np.random.default_rng(0).permutation(fit)
        fitted = order[: pictures or len(fit)]
        found["last level"].append(judge_split(features[:, -widths[-1] :], labels, fit, held))
        centre, scale = standardization(features[fitted], widths)
        standard = (features - centre) * scale
        for name, project in PROJECTIONS.items():
            shown = standard @ project(standard[fitted]) if project else standard
            found[name].append(judge_split(shown, labels, fit, held))
    return {name: _means(folds) for name, folds in found.items()}


def _means(folds: list[dict[str, float]]) -> dict[str, float]:
    return {score: round(float(np.mean([f[score] for f in folds])), 2) for score in folds[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sets", type=Path, nargs="+", help="folders with train/CLASS/")
    parser.add_argument("--weights", type=Path, required=True, help="safetensors, timm's names")
    parser.add_argument("--pixels", type=int, default=192, help="a side  [192]")
    parser.add_argument("--pictures", type=int, nargs="*", default=[], help="to fit on, beside all")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    given = parser.parse_args()
    result = {"machine": machine(), "pixels": given.pixels, "pictures": {}}
    for data in given.sets:
        features = features_of(data, given.weights, given.pixels)
        for pictures in (None, *given.pictures):
            kept = result["pictures"].setdefault(str(pictures or "all"), {})
            kept[data.name] = judge(*features, pictures)
            print(data.name, pictures or "all", kept[data.name], flush=True)
        given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

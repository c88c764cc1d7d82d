"""What settings are worth on folds of the training pictures: the way to choose them.

    python -m tests.benchmarks.folds sets/xsdd --recipe adapt --out study.jsonl \
        encoder.init=weights.safetensors loss.distill_weight=20

Pretrains on train/ and judges on three folds of the same pictures; test/ is never opened. Appends
one line with the scores of the start, of the end, and of blends between them.
"""

import argparse
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from sklearn.model_selection import StratifiedKFold

from tests.benchmarks.machine import machine
from tinyssl import pretrain
from tinyssl.checkpoint import load_checkpoint
from tinyssl.config import load_recipe
from tinyssl.data import load_pictures
from tinyssl.encoder import embed_pictures
from tinyssl.labels import from_class_folders
from tinyssl.opening import IMAGE_EXTENSIONS
from tinyssl.scoring import choose_k, few_shot, knn_predict, linear_probe, rankme, scores
from tinyssl.weights import load_encoder

BLENDS = (0.0, 0.5, 0.7, 1.0)


def judge(features: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Mean balanced accuracy in % over three folds: k-NN, linear probe, 10-shot."""
    found: dict[str, list[float]] = {"knn": [], "linear": [], "10-shot": []}
    classes = int(labels.max()) + 1
    for fit, held in StratifiedKFold(3, shuffle=True, random_state=0).split(features, labels):
        train, truth, test = features[fit], labels[fit], features[held]
        knn = knn_predict(train, truth, test, k=choose_k(train, truth))
        linear = linear_probe(train, truth, test).predictions
        for name, predictions in (("knn", knn), ("linear", linear)):
            found[name].append(scores(labels[held], predictions, classes)["balanced_accuracy"])
        found["10-shot"].append(few_shot(train, truth, test, labels[held], shots=10).mean)
    means = {name: round(100 * float(np.mean(values)), 1) for name, values in found.items()}
    return means | {"rankme": round(rankme(features))}


def study(data: Path, recipe: str, settings: list[str]) -> dict[str, object]:
    labeled = from_class_folders(data / "train", IMAGE_EXTENSIONS)
    labels = np.unique(labeled.labels, return_inverse=True)[1]
    with TemporaryDirectory() as folder:
        start = time.monotonic()
        run = pretrain(data / "train", recipe, Path(folder) / "run", overrides=settings)
        seconds = time.monotonic() - start
        encoder, description = load_encoder(run)
        first = load_checkpoint(run / "checkpoints" / "last.pt")["start"]
        taken = load_recipe(run).data
    pictures = load_pictures(
        labeled.paths, size=taken.image_size, rule=taken.resize, channels=description["channels"]
    )
    last = {key: value.clone() for key, value in encoder.state_dict().items()}
    by_blend = {}
    for blend in BLENDS:
        mixed = {
            key: torch.lerp(first[key], value, blend) if value.is_floating_point() else value
            for key, value in last.items()
        }
        encoder.load_state_dict(mixed)
        by_blend[str(blend)] = judge(embed_pictures(encoder, pictures.array), labels)
    return {
        "set": data.name,
        "recipe": recipe,
        "settings": [s for s in settings if not s.startswith("encoder.init")],
        "seconds": round(seconds),
        "by_blend": by_blend,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, help="folder with train/CLASS/")
    parser.add_argument("settings", nargs="*", help="section.key=value")
    parser.add_argument("--recipe", default="mobilenetv3-small")
    parser.add_argument("--out", type=Path, required=True, help="file to append a line to")
    given = parser.parse_intermixed_args()
    line = json.dumps(study(given.data, given.recipe, given.settings) | {"machine": machine()})
    with given.out.open("a") as file:
        file.write(line + "\n")
    print(line)


if __name__ == "__main__":
    main()

"""Scores of settings on folds of the training pictures, by which settings are chosen.

    python -m tests.benchmarks.folds sets/xsdd --recipe adapt --out study.jsonl \
        encoder.init=weights.safetensors loss.distill_weight=20

Pretrains on train/ and evaluates on three folds of the same pictures; test/ is never read. With
--unseen it pretrains on two thirds and evaluates on the last third. Appends one line with scores of
the initial weights, the final ones, and blends between them.
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
from tinyssl.scoring import choose_k, few_shot, knn_predict, linear_probe, rankme, scores
from tinyssl.weights import load_encoder, widen_like

BLENDS = (0.0, 0.5, 0.7, 1.0)


def judge(features: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Mean balanced accuracy in % over three folds: k-NN, linear probe and 10-shot."""
    found = [judge_split(features, labels, fit, held) for fit, held in thirds(labels)]
    means = {name: round(float(np.mean([f[name] for f in found])), 1) for name in found[0]}
    return means | {"rankme": round(rankme(features))}


def judge_split(
    features: np.ndarray, labels: np.ndarray, fit: np.ndarray, held: np.ndarray
) -> dict[str, float]:
    """Balanced accuracy in % on the rows `held` of classifiers fitted on the rows `fit`."""
    classes = int(labels.max()) + 1
    train, truth, test = features[fit], labels[fit], features[held]
    guesses = {
        "knn": knn_predict(train, truth, test, k=choose_k(train, truth)),
        "linear": linear_probe(train, truth, test).predictions,
    }
    found = {
        name: 100 * scores(labels[held], guess, classes)["balanced_accuracy"]
        for name, guess in guesses.items()
    }
    shots = few_shot(train, truth, test, labels[held], shots=10).mean
    return found | {"10-shot": 100 * shots}


def thirds(labels: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Three pairs of rows: two thirds to fit on, and the third held out."""
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    return list(folds.split(labels, labels))


def study(data: Path, recipe: str, settings: list[str], unseen: bool) -> dict[str, object]:
    labeled = from_class_folders(data / "train")
    labels = np.unique(labeled.labels, return_inverse=True)[1]
    fit, held = thirds(labels)[0]
    with TemporaryDirectory() as folder:
        listed = Path(folder) / "pictures.txt"
        taken = fit if unseen else np.arange(len(labels))
        listed.write_text("".join(f"{labeled.paths[row].resolve()}\n" for row in taken))
        start = time.monotonic()
        given = [*settings, "encoder.blend=1"]  # a blended end cannot be blended as below
        run = pretrain(listed, recipe, Path(folder) / "run", overrides=given)
        seconds = time.monotonic() - start
        encoder, description = load_encoder(run)
        first = load_checkpoint(run / "checkpoints" / "last.pt")["start"]
        kept = load_recipe(run).data
    pictures = load_pictures(
        labeled.paths, size=kept.image_size, rule=kept.resize, channels=description["channels"]
    )
    last = {key: value.clone() for key, value in encoder.state_dict().items()}
    by_blend = {}
    for blend in BLENDS:
        mixed = {
            key: torch.lerp(first[key], value, blend)
            if key in first and value.is_floating_point()
            else value
            for key, value in last.items()
        }
        encoder.load_state_dict(mixed)
        wide = widen_like(encoder, description, pictures.array[taken])
        features = embed_pictures(wide, pictures.array)
        judged = judge_split(features, labels, fit, held) if unseen else judge(features, labels)
        by_blend[str(blend)] = {name: round(score, 1) for name, score in judged.items()}
    return {
        "set": data.name,
        "recipe": recipe,
        "settings": [s for s in settings if not s.startswith("encoder.init")],
        "unseen": unseen,
        "seconds": round(seconds),
        "by_blend": by_blend,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, help="folder with train/CLASS/")
    parser.add_argument("settings", nargs="*", help="section.key=value")
    parser.add_argument("--recipe", default="mobilenetv3-small")
    parser.add_argument(
        "--unseen", action="store_true", help="pretrain on two thirds, judge on the third"
    )
    parser.add_argument("--out", type=Path, required=True, help="file to append a line to")
    given = parser.parse_intermixed_args()
    line = json.dumps(
        study(given.data, given.recipe, given.settings, given.unseen) | {"machine": machine()}
    )
    with given.out.open("a") as file:
        file.write(line + "\n")
    print(line)


if __name__ == "__main__":
    main()

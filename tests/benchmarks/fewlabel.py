"""What fine-tuning from few labels is worth: each recipe, from a run and from random weights.

    python -m tests.benchmarks.fewlabel sets/xsdd runs/xsdd --shots 5 10 --seeds 0 1 2 \
        --out tests/benchmarks/results/fewlabel-xsdd.json

A set is a folder with train/CLASS/ and test/CLASS/. For every seed some labels a class are drawn
from train/; all of train/ serves as unlabeled pictures; test/ only gives the figures.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.benchmarks.machine import machine
from tinyssl import finetune
from tinyssl.calibration import calibration_error
from tinyssl.classifier import load_classifier
from tinyssl.data import IMAGE_EXTENSIONS
from tinyssl.encoder import create_encoder
from tinyssl.finetune_config import FOR_AUTO
from tinyssl.labels import LabeledPaths, from_class_folders, write_csv
from tinyssl.model import load
from tinyssl.scoring import scores
from tinyssl.weights import read_description, save_encoder

RECIPES = (*FOR_AUTO, "auto")


def draw(labeled: LabeledPaths, shots: int, seed: int, out: Path) -> Path:
    """Writes a CSV of `shots` pictures a class; a class with fewer gives all it has."""
    generator = np.random.default_rng([seed, shots])
    names = np.array(labeled.labels)
    rows = [
        row
        for name in np.unique(names)
        for row in generator.permutation(np.flatnonzero(names == name))[:shots]
    ]
    write_csv(out, [labeled.paths[row] for row in rows], [labeled.labels[row] for row in rows])
    return out


def random_run(run: Path, out: Path, seed: int) -> Path:
    """The run's network with random weights, otherwise like the run."""
    description = read_description(run)
    encoder = create_encoder(
        description["name"],
        channels=description["channels"],
        stem=description["stem"],
        mean=description["mean"],
        std=description["std"],
        seed=seed,
    )
    out.mkdir()
    save_encoder(encoder, out, image_size=description["image_size"], resize=description["resize"])
    return out


def judge(run: Path, test: LabeledPaths) -> dict[str, float]:
    """Balanced accuracy and calibration error on the test pictures, in %."""
    classifier = load_classifier(run)
    assert classifier is not None
    truth = np.array([classifier.classes.index(name) for name in test.labels])
    features = torch.from_numpy(load(run).embed(test.paths))
    shares = classifier.probabilities(features).numpy()
    found = scores(truth, shares.argmax(axis=1), len(classifier.classes))
    return {
        "balanced_accuracy": round(100 * found["balanced_accuracy"], 2),
        "calibration_error": round(100 * calibration_error(shares, truth), 2),
    }


def measure(
    start: Path, labels: Path, unlabeled: Path, recipe: str, settings: Sequence[str], out: Path
) -> tuple[Path, dict[str, Any]]:
    """Fine-tunes once; the folder, and what it took and chose."""
    begun = time.monotonic()
    finetune(start, labels, recipe, out, unlabeled=unlabeled, overrides=settings)
    result = json.loads((out / "finetune.json").read_text())
    held_out = {
        name: round(100 * found["balanced_accuracy"], 2)
        for name, found in result["held_out"].items()
    }
    told = {"seconds": round(time.monotonic() - begun, 1), "chosen": result["recipe"]}
    return out, told | {"held_out": held_out, "temperature": round(result["temperature"], 3)}


def means(rows: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Mean and standard deviation over the seeds, balanced accuracy in %."""
    grouped: dict[str, list[float]] = {}
    for row in rows:
        key = f"{row['start']}, {row['shots']}-shot, {row['recipe']}"
        grouped.setdefault(key, []).append(row["balanced_accuracy"])
    return {
        key: [round(float(np.mean(v)), 2), round(float(np.std(v)), 2)] for key, v in grouped.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, help="folder with train/ and test/ class folders")
    parser.add_argument("run", type=Path, help="run folder to start from")
    parser.add_argument("settings", nargs="*", help="section.key=value")
    parser.add_argument("--shots", type=int, nargs="+", default=[10])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--starts", nargs="+", default=["run", "random"])
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    given = parser.parse_intermixed_args()
    labeled = from_class_folders(given.data / "train", IMAGE_EXTENSIONS)
    test = from_class_folders(given.data / "test", IMAGE_EXTENSIONS)
    rows: list[dict[str, Any]] = []
    for seed in given.seeds:
        for shots in given.shots:
            with tempfile.TemporaryDirectory() as folder:
                place = Path(folder)
                labels = draw(labeled, shots, seed, place / "labels.csv")
                starts = {"run": given.run, "random": random_run(given.run, place / "r", seed)}
                for start in given.starts:
                    for recipe in given.recipes:
                        out = place / f"{start}-{recipe}"
                        settings = [f"run.seed={seed}", *given.settings]
                        path, told = measure(
                            starts[start], labels, given.data / "train", recipe, settings, out
                        )
                        row = {"start": start, "shots": shots, "seed": seed, "recipe": recipe}
                        rows.append(row | judge(path, test) | told)
                        print(rows[-1], flush=True)
            result = {"machine": machine(), "set": given.data.name, "means": means(rows)}
            given.out.write_text(json.dumps(result | {"rows": rows}, indent=1) + "\n")
    for key, (mean, std) in means(rows).items():
        print(f"{key}: {mean} ± {std}")


if __name__ == "__main__":
    main()

"""Scores of fine-tuning with few labels: recipes on a run, its initial and random weights.

    python -m tests.benchmarks.fewlabel sets/xsdd runs/xsdd --seeds 0 1 2 3 4 \
        --out tests/benchmarks/results/fewlabel-xsdd.json

A set is a folder with train/CLASS/ and test/CLASS/. For every seed some labels of each class are
drawn from train/; all of train/ serves as unlabeled pictures, and test/ is used for the figures
alone. What --out already contains is not measured again.

A job is START/RECIPE. START is `run`, `init` (the weights that the run began from) or `random`.
With random weights classifiers get as many features as the run has; `few-label` gets those of the
last level and trains batch normalization, which has no statistics worth keeping.

With --undrawn the test pictures are not used: scores are those of the training pictures that were
not drawn. With --remember features of a picture by frozen weights are computed once instead of for
every draw, and seconds do not include them.
"""

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tinyssl.finetuning
import tinyssl.model
from tests.benchmarks.machine import machine
from tinyssl import finetune
from tinyssl.calibration import calibration_error
from tinyssl.classifier import load_classifier
from tinyssl.data import load_pictures
from tinyssl.encoder import Encoder, create_encoder, embed_pictures
from tinyssl.errors import UsageError
from tinyssl.files import write_text
from tinyssl.intervals import interval
from tinyssl.labels import LabeledPaths, from_class_folders, from_csv, write_csv
from tinyssl.model import load
from tinyssl.scoring import scores
from tinyssl.weights import (
    load_weights,
    random_like,
    read_description,
    save_encoder,
    widen_like,
)

JOBS = (
    "run/few-label-linear",
    "run/few-label-semi",
    "run/few-label",
    "run/auto",
    "random/few-label-linear",
    "random/few-label",
)


def about(run: Path) -> dict[str, Any]:
    """The network of a run and its initial weights."""
    found = read_description(run)
    told = ("name", "channels", "image_size", "levels", "pooling", "descriptors", "components")
    kept = {key: found.get(key) for key in told}
    return kept | {"init": Path(str(found.get("init", "random"))).name}


def draw(labeled: LabeledPaths, shots: int, seed: int, out: Path) -> Path:
    """Writes a CSV of `shots` pictures of each class, or of all if a class has fewer."""
    generator = np.random.default_rng([seed, shots])
    names = np.array(labeled.labels)
    rows = [
        row
        for name in np.unique(names)
        for row in generator.permutation(np.flatnonzero(names == name))[:shots]
    ]
    write_csv(out, [labeled.paths[row] for row in rows], [labeled.labels[row] for row in rows])
    return out


def other_start(run: Path, start: str, recipe: str, data: Path, out: Path, seed: int) -> Path:
    """A run folder like `run` with its initial weights, or random ones."""
    description = read_description(run)
    if start == "random" and recipe == "few-label":
        encoder = random_like(description, seed, "zero")
    elif start == "random":
        shown = load_pictures(
            from_class_folders(data / "train").paths,
            size=description["image_size"],
            rule=description["resize"],
            channels=description["channels"],
        )
        encoder = widen_like(random_like(description, seed), description, shown.array)
    else:
        encoder = create_encoder(
            description["name"], channels=description["channels"], stem=description["stem"]
        )
        load_weights(encoder, description["init"])
    out.mkdir(exist_ok=True)
    save_encoder(encoder, out, image_size=description["image_size"], resize=description["resize"])
    return out


def judge(run: Path, test: LabeledPaths) -> dict[str, float]:
    """Balanced accuracy and calibration error on test pictures, in %."""
    classifier = load_classifier(run)
    assert classifier is not None
    truth = np.array([classifier.classes.index(name) for name in test.labels])
    features = torch.from_numpy(load(run).embed(test.paths, raw=True))
    shares = classifier.probabilities(features).numpy()
    found = scores(truth, shares.argmax(axis=1), len(classifier.classes))
    return {
        "balanced_accuracy": round(100 * found["balanced_accuracy"], 2),
        "calibration_error": round(100 * calibration_error(shares, truth), 2),
    }


def measure(
    job: str, run: Path, labels: Path, data: Path, test: LabeledPaths, seed: int,
    settings: Sequence[str], place: Path,
) -> dict[str, Any]:  # fmt: skip
    """One job on one draw of labels: its scores on `test`, its seconds and its choice."""
    start, _, recipe = job.partition("/")
    given = [f"run.seed={seed}", *settings]
    if start != "run":
        run = other_start(run, start, recipe, data, place / start, seed)
    if start == "random" and recipe == "few-label":
        given.append("network.batch_norm=train")
    begun, used = time.monotonic(), time.process_time()
    out = finetune(
        run,
        labels,
        recipe,
        place / "out",
        unlabeled=data / "train",
        overrides=given,
        overwrite=True,
    )
    told = {
        "seconds": round(time.monotonic() - begun, 1),
        "cpu_seconds": round(time.process_time() - used, 1),
    }
    result = json.loads((out / "finetune.json").read_text())
    held_out = {
        name: round(100 * found["balanced_accuracy"], 2)
        for name, found in result["held_out"].items()
    }
    return judge(out, test) | told | {"chosen": result["recipe"], "held_out": held_out}


class Memory:
    """A replacement of `embed_pictures` that caches rows by weights and the bytes of pictures."""

    def __init__(self) -> None:
        self.rows: dict[tuple[bytes, bytes], np.ndarray] = {}

    def __call__(self, encoder: Encoder, pictures: np.ndarray, **given: Any) -> np.ndarray:
        digest = hashlib.sha256()
        for value in encoder.state_dict().values():
            digest.update(value.cpu().numpy().tobytes())
        weights = digest.digest()
        keys = [(weights, hashlib.sha256(picture.tobytes()).digest()) for picture in pictures]
        new = [row for row, key in enumerate(keys) if key not in self.rows]
        if new:
            features = embed_pictures(encoder, pictures[new], device=given.get("device", "cpu"))
            self.rows |= zip((keys[row] for row in new), features, strict=True)
        return np.stack([self.rows[key] for key in keys])

    def use(self) -> None:
        """Replaces the function in the modules where recipes with frozen weights call it."""
        for module in (tinyssl.finetuning, tinyssl.model):
            module.embed_pictures = self  # type: ignore[attr-defined]


def undrawn(labeled: LabeledPaths, labels: Path) -> LabeledPaths:
    """The pictures that are not in a CSV of drawn ones."""
    drawn = set(from_csv(labels).paths)
    kept = [row for row, path in enumerate(labeled.paths) if path not in drawn]
    return LabeledPaths([labeled.paths[r] for r in kept], [labeled.labels[r] for r in kept])


def means(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean balanced accuracy of the seeds and its 95 % half-width, in %."""
    grouped: dict[str, list[float]] = {}
    for row in rows:
        grouped.setdefault(f"{row['job']}, {row['shots']} a class", []).append(
            row["balanced_accuracy"]
        )
    return {
        key: {name: round(value, 2) for name, value in vars(interval(values)).items()}
        for key, values in sorted(grouped.items())
    }


def earlier(out: Path, head: dict[str, Any], settings: list[str]) -> list[dict[str, Any]]:
    """The rows that a file already has.

    Raises:
        UsageError: they are of another set or run, other settings, or judged otherwise.
    """
    if not out.exists():
        return []
    kept = json.loads(out.read_text())
    same = all(kept.get(key, value) == value for key, value in head.items())
    if not same or any(row["settings"] != settings for row in kept["rows"]):
        raise UsageError(f"{out} has figures of another set, run or settings: give another --out")
    return list(kept["rows"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, help="folder with train/ and test/ class folders")
    parser.add_argument("run", type=Path, help="run folder to start from")
    parser.add_argument("settings", nargs="*", help="section.key=value")
    parser.add_argument("--shots", type=int, nargs="+", default=[10], help="labels a class")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--jobs", nargs="+", default=list(JOBS), help="START/RECIPE")
    parser.add_argument("--undrawn", action="store_true", help="judge on training pictures")
    parser.add_argument("--remember", action="store_true", help="features of frozen weights")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    given = parser.parse_intermixed_args()
    if given.remember:
        Memory().use()
    labeled = from_class_folders(given.data / "train")
    head = {"set": given.data.name, "run": about(given.run)}
    head["judged"] = "training pictures not drawn" if given.undrawn else "test pictures"
    try:
        rows = earlier(given.out, head, given.settings)
    except UsageError as error:
        parser.error(str(error))
    done = {(row["job"], row["shots"], row["seed"]) for row in rows}
    wanted = [(j, n, s) for s in given.seeds for n in given.shots for j in given.jobs]
    for job, shots, seed in (task for task in wanted if task not in done):
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            labels = draw(labeled, shots, seed, place / "labels.csv")
            test = (
                undrawn(labeled, labels)
                if given.undrawn
                else from_class_folders(given.data / "test")
            )
            found = measure(job, given.run, labels, given.data, test, seed, given.settings, place)
        asked = {"job": job, "shots": shots, "seed": seed, "settings": given.settings}
        rows.append(asked | found)
        print(rows[-1], flush=True)
        told = {"machine": machine()} | head | {"means": means(rows), "rows": rows}
        write_text(given.out, json.dumps(told, indent=1) + "\n")
    for key, found in means(rows).items():
        print(f"{key}: {found['mean']} ± {found['half_width']} (n = {found['draws']})")


if __name__ == "__main__":
    main()

"""`tinyssl eval`: one table of scores, the run's encoder beside its baselines."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.table import Table

from tinyssl import __version__
from tinyssl.classifier import load_classifier
from tinyssl.console import log, progress
from tinyssl.data import IMAGE_EXTENSIONS, Pictures, load_pictures
from tinyssl.device import keep_freed_memory, pick_device
from tinyssl.encoder import Encoder, create_encoder, embed_pictures
from tinyssl.errors import JobError, UsageError
from tinyssl.files import write_text
from tinyssl.labeled import used_digests
from tinyssl.labels import from_class_folders, from_csv, stratified_split, write_csv
from tinyssl.scoring import evaluate_features, pixel_features, scores
from tinyssl.weights import WEIGHTS, load_encoder, load_weights, read_description

SHOTS = (1, 5, 10, 20)
SPLIT_FILE = "eval_split.csv"


@dataclass(frozen=True)
class _Task:
    """Labeled pictures, split: what every encoder of the table is judged on."""

    paths: list[Path]
    labels: NDArray[np.int64]
    classes: list[str]
    test: NDArray[np.bool_]


def evaluate(
    run: str | Path,
    *,
    train: str | Path | None = None,
    test: str | Path | None = None,
    labels: str | Path | None = None,
    baselines: Sequence[str | Path] = (),
    draws: int = 10,
    seed: int = 0,
    device: str = "auto",
    out: str | Path | None = None,
) -> dict[str, Any]:
    """Judges a run's encoder beside raw pixels, random weights, its start and any baselines.

    Args:
        run: a run folder.
        train: a folder of class folders to fit the classifiers on; goes with `test`.
        test: a folder of class folders to measure on.
        labels: instead of the two: columns path,label and optionally split; without a
            split a stratified one is drawn and written beside `eval.json`.
        baselines: run folders or weight files for the run's architecture.
        draws: random choices of labels for each number of shots, at least 10.
        seed: of the draws, of the folds and of the random weights' baseline if the run has none.
        device: auto, cpu, cuda or cuda:N.
        out: where to write the result; `eval.json` in the run folder when None.

    Returns:
        What is written: `encoders` by name (see `evaluate_features`), and what was measured on;
        of a fine-tuned run with these classes also the scores of its own `classifier`.

    Raises:
        UsageError: no encoder at `run`, labels that do not fit, or fewer than 10 draws.
    """
    if draws < 10:
        raise UsageError(f"draws: got {draws}; at least 10 are needed for an interval")
    description = read_description(run)
    target = Path(out) if out is not None else Path(run) / "eval.json"
    task, recorded = _task(train, test, labels, seed, target.parent)
    encoders = _encoders(run, description, baselines, seed)
    result: dict[str, Any] = {
        "tinyssl": __version__,
        "run": str(run),
        "classes": task.classes,
        "train": int((~task.test).sum()),
        "test": int(task.test.sum()),
        "split": recorded,
        "seed": seed,
        "encoders": {},
    }
    with progress("judging", 1 + len(encoders), "encoders") as advance:
        for name, features in _features(encoders, task, description, device):
            result["encoders"][name] = _judge(features, task, draws, seed)
            advance(1)
    own = _own_classifier(run, task, description, features)
    if own is not None:
        result["classifier"] = own
    write_text(target, json.dumps(result, indent=1) + "\n")
    log.info(f"wrote {target}")
    return result


def _judge(features: NDArray[Any], task: _Task, draws: int, seed: int) -> dict[str, Any]:
    return evaluate_features(
        features[~task.test],
        task.labels[~task.test],
        features[task.test],
        task.labels[task.test],
        classes=len(task.classes),
        shots=SHOTS,
        draws=draws,
        seed=seed,
    )


def table(result: dict[str, Any], title: str = "Balanced accuracy, %") -> Table:
    """The scores of `evaluate` as a table of balanced accuracies in percent."""
    shown = Table(
        title=title,
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=0,  # the box puts a space between columns; more would not fit 80 of them
    )
    shown.add_column("", overflow="fold")
    for column in ("k-NN", "linear", "1-shot", "5-shot", "10-shot", "20-shot", "RankMe"):
        shown.add_column(column, justify="right", no_wrap=True)
    for name, found in result["encoders"].items():
        shots = [found["few_shot"][str(s)] for s in SHOTS]
        shown.add_row(
            name,
            f"{100 * found['knn']['balanced_accuracy']:.1f}",
            f"{100 * found['linear']['balanced_accuracy']:.1f}",
            *(f"{100 * s['mean']:.1f}±{100 * s['half_width']:.1f}" for s in shots),
            f"{found['rankme']:.0f}",
        )
    counts = np.sum(next(iter(result["encoders"].values()))["knn"]["confusion"], axis=1)
    shown.caption = (
        f"{len(result['classes'])} classes, {result['train']:,} training and {result['test']:,} "
        f"test pictures ({counts.min():,} to {counts.max():,} a class).\n"
        f"Shots: mean and 95 % interval of {shots[0]['draws']} draws, seed {result['seed']}."
    )
    if "classifier" in result:
        accuracy = 100 * result["classifier"]["balanced_accuracy"]
        shown.caption += f"\nThe run's own classifier: {accuracy:.1f} on the test pictures."
    return shown


def _task(
    train: str | Path | None,
    test: str | Path | None,
    labels: str | Path | None,
    seed: int,
    folder: Path,
) -> tuple[_Task, str]:
    if labels is not None and train is None and test is None:
        table = from_csv(labels)
        if table.unlabeled:
            log.warning(f"{labels}: {table.unlabeled} rows have no label and are left out")
        if table.splits is not None:
            is_test, told = np.array([s == "test" for s in table.splits]), f"of {labels}"
        else:
            is_test = stratified_split(table.labels, seed=seed)
            names = ["test" if t else "train" for t in is_test]
            write_csv(folder / SPLIT_FILE, table.paths, table.labels, names)
            told = f"25 % stratified, seed {seed}, in {SPLIT_FILE}"
        return _make_task(table.paths, table.labels, is_test), told
    if labels is None and train is not None and test is not None:
        sets = [from_class_folders(f, IMAGE_EXTENSIONS) for f in (train, test)]
        paths = sets[0].paths + sets[1].paths
        is_test = np.arange(len(paths)) >= len(sets[0].paths)
        return _make_task(paths, sets[0].labels + sets[1].labels, is_test), f"{train} and {test}"
    raise UsageError("give either --labels labels.csv, or both --train DIR and --test DIR")


def _make_task(paths: list[Path], names: list[str], test: NDArray[np.bool_]) -> _Task:
    trained = {name for name, is_test in zip(names, test, strict=True) if not is_test}
    unknown = sorted(set(names) - trained)
    if unknown:
        raise UsageError(
            f"{len(unknown)} classes have test pictures but no training picture "
            f"(first: {unknown[0]}); give each class at least one, or leave it out"
        )
    if len(trained) < 2 or not test.any():
        raise UsageError(
            f"{len(trained)} classes and {int(test.sum())} test pictures are labeled; at least 2 "
            "classes and 1 test picture are needed"
        )
    classes = sorted(trained)
    numbers = {name: number for number, name in enumerate(classes)}
    return _Task(paths, np.array([numbers[name] for name in names]), classes, test)


Build = Callable[[], tuple[Encoder, dict[str, Any]]]


def _encoders(
    run: str | Path, description: dict[str, Any], baselines: Sequence[str | Path], seed: int
) -> dict[str, Build]:
    """How to get each encoder of the table, in the order of its rows, the run's last."""
    encoders: dict[str, Build] = {
        "random weights": lambda: (_random(description, seed), description)
    }
    init = str(description.get("init", "random"))
    if init not in ("random", "pretrained") and not Path(init).exists():
        log.warning(f"the run's start {init} is no longer there; the table has no row for it")
    elif init != "random":
        encoders["start, frozen"] = lambda: (_from_init(description, init), description)
    own = "pretrained" if init == "random" else "adapted"
    for path in map(Path, baselines):
        taken = path.name in encoders or path.name == own
        encoders[str(path) if taken else path.name] = partial(_baseline, path, description)
    encoders[own] = lambda: load_encoder(run)
    return encoders


def _random(description: dict[str, Any], seed: int) -> Encoder:
    return create_encoder(
        description["name"],
        channels=description["channels"],
        stem=description["stem"],
        mean=description["mean"],
        std=description["std"],
        seed=int(description.get("seed", seed)),
    )


def _from_init(description: dict[str, Any], init: str) -> Encoder:
    pretrained = init == "pretrained"
    encoder = create_encoder(
        description["name"],
        channels=description["channels"],
        stem=description["stem"],
        pretrained=pretrained,
    )
    if not pretrained:
        load_weights(encoder, init)
    return encoder


def _baseline(path: Path, description: dict[str, Any]) -> tuple[Encoder, dict[str, Any]]:
    if path.is_dir() and (path / WEIGHTS).exists():
        return load_encoder(path)
    return _from_init(description, str(path)), description


def _features(
    encoders: dict[str, Build], task: _Task, description: dict[str, Any], device: str
) -> Any:
    """Yields (name, features in the order of the task) for pixels and every encoder."""
    chosen = pick_device(device)
    keep_freed_memory()
    pictures = _pictures(task, description)
    yield "raw pixels", pixel_features(pictures.array)
    for name, build in encoders.items():
        try:
            encoder, own = build()
        except JobError as error:  # the start came from a hub that is out of reach now
            log.warning(f"the table has no row for {name!r}: {error}")
            continue
        yield name, embed_pictures(encoder, _pictures(task, own).array, device=chosen)


def _own_classifier(
    run: str | Path, task: _Task, description: dict[str, Any], features: NDArray[np.float32]
) -> dict[str, Any] | None:
    """Scores of a fine-tuned run's classifier on the test rows; None where there is none."""
    classifier = load_classifier(run)
    if classifier is None:
        return None
    if classifier.classes != task.classes:
        log.warning("the run's own classifier has other classes and is not judged")
        return None
    digests = np.array(_pictures(task, description).hashes)[task.test]
    seen = len(set(digests) & used_digests(run))
    if seen:
        log.warning(f"{seen} test pictures were used in fine-tuning; its figures are too good")
    shares = classifier.probabilities(torch.from_numpy(features[task.test])).numpy()
    found = scores(task.labels[task.test], shares.argmax(axis=1), len(task.classes))
    return found | {"seen_in_finetuning": seen}


def _pictures(task: _Task, description: dict[str, Any]) -> Pictures:
    pictures = load_pictures(
        task.paths,
        size=description["image_size"],
        rule=description["resize"],
        channels=description["channels"],
    )
    if pictures.skipped:
        path, reason = pictures.skipped[0]
        raise UsageError(
            f"{len(pictures.skipped)} labeled pictures cannot be read; first: {path}: {reason}; "
            "mend them or take them out of the labels"
        )

    return pictures
